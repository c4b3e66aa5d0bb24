"""Boxes a model drew are read back from its picture, through the image tokenizer's noise."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from lumina_core import boxes
from lumina_core.boxes import Box, drawn_boxes
from lumina_core.training import world

SIZES = ((64, 64), (96, 64), (128, 128), (512, 384))


def outlined(ground: np.ndarray, wanted: list[Box], colour=(0, 255, 0), thick: int = 2) -> np.ndarray:
    out = ground.copy()
    for b in wanted:
        inside = np.zeros(out.shape[:2], bool)
        inside[b.top : b.bottom, b.left : b.right] = True
        inside[b.top + thick : b.bottom - thick, b.left + thick : b.right - thick] = False
        out[inside] = colour
    return out


def noisy(picture: np.ndarray, sigma: float) -> np.ndarray:
    rng = np.random.default_rng(7)
    return (picture + rng.normal(0, sigma, picture.shape)).clip(0, 255).astype(np.uint8)


def truth(scene: world.Scene) -> list[Box]:
    found = [Box(*(int(edge) for edge in box)) for box in world.boxes(scene)]
    return sorted(found, key=lambda b: (b.top, b.left, b.bottom, b.right))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ground", ["picture", "black"])
@pytest.mark.parametrize("sigma", [0, 8])
def test_frames_drawn_around_the_objects_of_a_scene_are_found_exactly(size, ground, sigma):
    for n in range(12):
        scene = world.scene("held-out", n, *size)
        picture = world.picture(scene)
        on = picture if ground == "picture" else np.zeros_like(picture)
        drawn = noisy(outlined(on, truth(scene), (255, 0, 255), max(2, min(size) // 60)), sigma)
        assert drawn_boxes(drawn, noisy(picture, sigma)) == truth(scene), n


def test_filled_boxes_on_black_are_found():
    wanted = [Box(4, 5, 30, 20), Box(34, 10, 60, 60)]
    drawn = np.zeros((64, 64, 3), np.uint8)
    for b in wanted:
        drawn[b.top : b.bottom, b.left : b.right] = (255, 200, 0)
    assert drawn_boxes(drawn, np.full((64, 64, 3), 90, np.uint8)) == wanted


def test_crossing_and_nested_frames_are_told_apart():
    wanted = [Box(10, 10, 60, 50), Box(30, 25, 90, 80), Box(40, 32, 54, 44)]
    given = np.full((100, 100, 3), 128, np.uint8)
    assert drawn_boxes(outlined(given, wanted), given) == wanted


def test_a_broken_frame_is_still_one_box():
    given = np.full((64, 64, 3), 200, np.uint8)
    drawn = outlined(given, [Box(8, 8, 48, 40)])
    drawn[8:10, 20:26] = 200
    assert drawn_boxes(drawn, given) == [Box(8, 8, 48, 40)]


@pytest.mark.parametrize("sigma", [0, 12])
def test_an_unchanged_picture_and_an_edit_have_no_boxes(sigma):
    scene = world.scene("held-out", 3, 64, 64)
    picture = world.picture(scene)
    assert drawn_boxes(noisy(picture, sigma), picture) == []
    triangle = world.Object("triangle", "red", "in the center", "large", 32, 32, 14)
    plain = world.Scene(64, 64, "white", (), ())
    drawn = world.picture(world.Scene(64, 64, "white", (triangle,), (False,)))
    assert drawn_boxes(drawn, world.picture(plain)) == []


def test_a_found_box_is_scaled_to_the_picture_it_belongs_to():
    assert Box(8, 16, 32, 64).scaled(2, 0.5) == Box(16, 8, 64, 32)
    assert Box(0, 0, 10, 10).scaled(0.01, 0.01) == Box(0, 0, 1, 1)
    assert Box(0, 0, 4, 4).scaled(1, 1, left=10, top=20) == Box(10, 20, 14, 24)


def test_boxes_are_told_as_json_and_as_a_mask():
    said = json.loads(boxes.to_json([((64, 48), [Box(1, 2, 3, 4)]), ((64, 48), [])], "circle"))
    assert said[0] == {"width": 64, "height": 48, "boxes": [{"label": "circle", "box": [1, 2, 3, 4]}]}
    assert said[1]["boxes"] == []
    inside = boxes.mask((64, 48), [Box(1, 2, 3, 4)])
    assert inside.shape == (48, 64) and inside.sum() == 4 and inside[2, 1]


def test_drawn_frames_lie_inside_their_boxes():
    picture = Image.new("RGB", (40, 30), "black")
    shown = np.asarray(boxes.draw(picture, [Box(5, 6, 20, 15)]))
    ys, xs = np.nonzero(shown.max(-1))
    assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (5, 6, 20, 15)
    assert not shown[8:13, 8:17].any()
