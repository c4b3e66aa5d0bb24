"""Segments of a segmentation picture: exact on clean ones, stable in order, and unmoved by noise and faded edges."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from PIL import Image

from lumina_core import InputError
from lumina_core.segments import masks_of, painted, segments
from lumina_core.training import world

SIZES = ((64, 64), (96, 64), (64, 96))


def scenes(count: int):
    return [world.scene("held-out", n, *SIZES[n % 3]) for n in range(count)]


def regions(picture: np.ndarray) -> dict[tuple, np.ndarray]:
    return {tuple(c): (picture == c).all(-1) for c in np.unique(picture.reshape(-1, 3), axis=0).tolist()}


def shuffled_labels(found) -> list[tuple]:
    return [s.colour for s in found]


def test_a_clean_picture_gives_its_colours_and_masks_exactly():
    for scene in scenes(12):
        truth = world.segmentation(scene)
        found = segments(truth[None])
        wanted = regions(truth)
        assert {s.colour for s in found} == set(wanted)
        assert all(np.array_equal(s.mask[0], wanted[s.colour]) for s in found)
        assert np.array_equal(painted(found)[0], truth)


def test_a_batch_can_be_watched_and_given_up():
    batch = np.stack([world.segmentation(world.scene("held-out", n, 64, 64)) for n in range(3)])
    seen = []

    def watched(things):
        seen.append(len(things))
        return iter(things)

    segments(batch, watched=watched)
    assert seen[-1] == len(batch)

    def cancelled(things):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segments(batch, watched=cancelled)


@pytest.mark.parametrize("scale", [1, 5])
@pytest.mark.parametrize("sigma", [6, 12])
def test_noise_and_faded_edges_add_no_segments(sigma, scale):
    rng = np.random.default_rng(1)
    for scene in scenes(3 if scale > 1 else 12):
        truth = Image.fromarray(world.segmentation(scene))
        small = truth.resize((truth.width // 2, truth.height // 2), Image.Resampling.BILINEAR)
        blurred = np.asarray(small.resize(truth.size, Image.Resampling.BICUBIC)).astype(float)
        stained = (blurred + rng.normal(0, sigma, blurred.shape)).clip(0, 255).astype(np.uint8)
        stained = stained.repeat(scale, 0).repeat(scale, 1)
        wanted = regions(np.asarray(truth).repeat(scale, 0).repeat(scale, 1))
        found = segments(stained[None])
        assert len(found) == len(wanted)
        for colour, mask in wanted.items():
            nearest = min(found, key=lambda s: np.abs(np.array(s.colour) - colour).sum())
            assert (nearest.mask[0] & mask).sum() / (nearest.mask[0] | mask).sum() > 0.8


def test_every_pixel_belongs_to_one_segment():
    rng = np.random.default_rng(2)
    picture = rng.integers(0, 256, (2, 40, 60, 3), np.uint8)
    found = segments(picture, tolerance=64, min_area=0.001)
    assert (sum(s.mask.astype(int) for s in found) == 1).all()


def test_order_is_by_area_then_by_colour():
    picture = np.zeros((30, 40, 3), np.uint8)
    picture[:, 20:30], picture[:15, 30:], picture[15:, 30:] = (0, 0, 255), (255, 0, 0), (0, 255, 0)
    assert [s.colour for s in segments(picture[None])] == [(0, 0, 0), (0, 0, 255), (0, 255, 0), (255, 0, 0)]
    turned = picture[::-1, ::-1]
    assert shuffled_labels(segments(turned[None])) == shuffled_labels(segments(picture[None]))
    assert [round(s.area, 3) for s in segments(picture[None])] == [0.5, 0.25, 0.125, 0.125]


def test_a_small_region_joins_what_it_lies_in():
    picture = np.zeros((40, 40, 3), np.uint8)
    picture[:, 20:] = (255, 255, 0)
    picture[4:8, 26:30] = (255, 0, 255)  # one hundredth
    three = segments(picture[None], min_area=0.005)
    assert [s.colour for s in three] == [(0, 0, 0), (255, 255, 0), (255, 0, 255)]
    two = segments(picture[None], min_area=0.02)
    assert [s.colour for s in two] == [(0, 0, 0), (255, 255, 0)] and two[1].mask[0, 4:8, 26:30].all()


def test_a_wide_region_that_is_too_small_joins_its_neighbour_to_the_last_pixel():
    picture = np.zeros((40, 400, 3), np.uint8)
    picture[:, 170:] = (255, 0, 0)
    [one] = segments(picture[None], min_area=0.5)
    assert one.colour == (255, 0, 0) and one.mask.all()


def test_black_can_be_left_out_unless_it_is_all_there_is():
    picture = torch.zeros(1, 20, 20, 3)
    alone, _ = masks_of(picture, drop_black=True)
    assert len(alone) == 1 and alone[0].all()
    picture[:, :, :8, 0] = 1
    for dropped, colours in ((False, ["#000000", "#ff0000"]), (True, ["#ff0000"])):
        masks, said = masks_of(picture, drop_black=dropped)
        assert [entry[:7] for entry in said.split('"color": "')[1:]] == colours
        assert torch.equal(masks[-1], picture[..., 0])


def test_a_colour_is_one_segment_through_a_whole_batch():
    batch = np.zeros((3, 32, 32, 3), np.uint8)
    batch[0, :8], batch[2, 8:12] = (255, 0, 0), (250, 10, 4)
    found = segments(batch)
    assert len(found) == 2 and found[1].mask.shape == (3, 32, 32)
    assert [int(m.sum()) for m in found[1].mask] == [256, 0, 128]


def test_near_colours_are_told_apart_when_asked():
    picture = np.full((32, 32, 3), 100, np.uint8)
    picture[:, 16:] = 130
    assert len(segments(picture[None])) == 1
    assert len(segments(picture[None], tolerance=20)) == 2


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 50), (2, 50, 1)])
def test_the_smallest_pictures_are_one_segment(shape):
    [one] = segments(np.full((*shape, 3), 7, np.uint8))
    assert one.colour == (7, 7, 7) and one.mask.all() and one.area == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tolerance": 2}, "tolerance is 2; it may be from 16"),
        ({"tolerance": float("nan")}, "tolerance is nan"),
        ({"min_area": 1.0}, "min_area is 1.0"),
        ({"min_area": 0.9}, "largest segment covers 0.5"),
    ],
)
def test_a_bad_setting_is_told(options, says):
    picture = np.zeros((10, 10, 3), np.uint8)
    picture[:5] = 255
    with pytest.raises(InputError, match=says):
        segments(picture[None], **options)


@pytest.mark.parametrize(
    ("side", "options", "says"),
    [
        (128, {"tolerance": 16}, "tolerance is 16, .* more than 1536 colours. Raise it"),
        (
            64,
            {"tolerance": 32},
            "tolerance is 32 and min_area 0, .* at most 256 .* Raise tolerance .* or min_area",
        ),
    ],
)
def test_noise_is_refused_at_once_and_can_be_given_up(side, options, says):
    noise = np.random.default_rng(4).integers(0, 256, (1, side, side, 3), np.uint8)
    begun = time.process_time()
    with pytest.raises(InputError, match=says):
        segments(noise, min_area=0, **options)
    assert time.process_time() - begun < 5

    def cancelled(things):
        yield from things[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segments(noise, min_area=0, watched=cancelled, **options)
