"""The contact sheet: every task of every bundled checkpoint, every picture whole, nothing over anything else."""

from __future__ import annotations

import numpy as np
import pytest

from lumina_core import bundled, load
from lumina_core.demo import held_out, pools_of
from lumina_core.sheet import WIDTH, Cell, Section, contact_sheet
from lumina_core.training.recipes import RECIPES


@pytest.mark.parametrize("name", sorted(bundled()))
def test_every_task_of_a_bundled_checkpoint_is_shown(name):
    model = load(name)
    shown = [held_out(model, kind, 0, size).task for kind, size in pools_of(model)]
    assert set(shown) == set(model.tasks)
    assert "text_to_image" not in model.tasks or shown.count("text_to_image") == len(RECIPES[name].sizes)


def picture(number: int, width: int = 64, height: int = 64) -> np.ndarray:
    return np.full((height, width, 3), (number, 255 - number, 77), np.uint8)


def test_every_picture_is_there_whole_and_enlarged_by_whole_numbers():
    sizes = [(64, 64), (96, 64), (64, 96), (128, 128), (160, 96), (500, 300), (8, 200)]
    cells = []
    for n in range(14):
        given = n % 3
        pictures = tuple(picture(5 * n + i, *sizes[(n + i) % len(sizes)]) for i in range(1 + given))
        cells.append(Cell(f"task {n}", "some words " * (n % 9), pictures, given, "an answer " * (n % 4)))
    sheet = np.asarray(contact_sheet([Section("One", cells[:5]), Section("Two", cells[5:])]))
    red = np.where((sheet.sum(-1) == 255 + 77) & (sheet[..., 2] == 77), sheet[..., 0].astype(int), -1)
    assert sheet.shape[1] == WIDTH
    for cell in cells:
        for p in cell.pictures:
            area = red == p[0, 0, 0]
            rows, columns = area.any(1).sum(), area.any(0).sum()
            times = rows // p.shape[0]
            assert (rows, columns) == (times * p.shape[0], times * p.shape[1])
            assert area.sum() == rows * columns, "nothing lies on it"


def test_words_stand_below_their_picture():
    bare = np.asarray(contact_sheet([Section("One", [Cell("", "", (picture(1),))])]))
    said = np.asarray(
        contact_sheet([Section("One", [Cell("depth", "a red circle", (picture(1),), 0, "yes")])])
    )
    assert said.shape[0] > bare.shape[0]
    lower = said[bare.shape[0] - 30 :, :300]
    assert (lower < 200).any(), "ink"
