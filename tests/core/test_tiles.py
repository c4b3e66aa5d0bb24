"""Tiles: they cover any picture, their shares add up to one, and what they show has no seams."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lumina_core import InputError
from lumina_core.color import adain_fix, wavelet_fix
from lumina_core.tiles import LONGEST, blend, one_tile, outlined, plan_tiles

SIDE = st.integers(1, 700) | st.just(5000)


@settings(deadline=None)
@given(SIDE, SIDE, st.sampled_from([32, 64, 128]), st.floats(0, 0.5))
def test_tiles_cover_any_picture_with_shares_that_add_up_to_one(width, height, tile, part):
    overlap = int(tile * part)
    plan = plan_tiles((width, height), tile, overlap)
    assert min(plan.canvas) >= tile
    assert all(c == s for c, s in zip(plan.canvas, (width, height), strict=True)) or min(width, height) < tile
    for starts, length in ((plan.lefts, plan.canvas[0]), (plan.tops, plan.canvas[1])):
        assert starts[0] == 0 and starts[-1] == length - tile
        steps = np.diff(starts)
        assert ((steps > 0) & (steps <= tile - overlap)).all()
    if plan.canvas[0] * plan.canvas[1] < 1 << 18:
        total = torch.zeros(plan.canvas[1], plan.canvas[0], dtype=torch.float64)
        for share, (left, top, right, bottom) in zip(plan.weights(), plan.boxes, strict=True):
            assert right - left == bottom - top == tile
            assert (share > 0).all()
            total[top:bottom, left:right] += share
        assert (total - 1).abs().max() < 1e-12


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_a_small_or_narrow_picture_takes_few_tiles(width, height):
    plan = plan_tiles((width, height), 512, 96)
    factor = [c / s for c, s in zip(plan.canvas, (width, height), strict=True)]
    assert min(factor) >= 1
    longest = max(width, height, LONGEST * 512)
    assert max(plan.canvas) <= longest
    if max(plan.canvas) < longest:  # proportions are kept
        assert abs(plan.canvas[0] * height - plan.canvas[1] * width) <= 0.5 * max(width, height)


def test_a_picture_of_one_tile_is_left_as_it_is():
    plan = plan_tiles((512, 512), 512, 96)
    assert (len(plan), plan.canvas) == (1, (512, 512))
    assert plan_tiles((100, 100), 512, 96).canvas == (512, 512)
    assert one_tile((300, 900), 512).canvas == (512, 512)


@pytest.mark.parametrize(("tile", "overlap"), [(500, 0), (0, 0), (512, 257), (512, -1)])
def test_an_impossible_plan_is_refused(tile, overlap):
    with pytest.raises(InputError, match="it (must|may) be"):
        plan_tiles((1000, 1000), tile, overlap)


def test_the_shares_of_many_tiles_never_stand_all_at_once():
    plan = plan_tiles((3000, 3000), 512, 96)
    shares, alive = plan.weights(), []
    for share in shares:
        alive.append(weakref.ref(share))
        del share
        assert sum(ref() is not None for ref in alive) <= 1
    assert len(alive) == len(plan)


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    """(3, 384, 384), about 3x3 tiles of 160: soft shapes and a little grain."""
    rng = np.random.default_rng(4)
    soft = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize(
        (384, 384), Image.BICUBIC
    )
    values = np.asarray(soft) / 255 * 0.6 + 0.2 + rng.normal(0, 0.01, (384, 384, 3))
    return torch.from_numpy(values).float().movedim(-1, 0)


PLAN = plan_tiles((384, 384), 160, 40)


def cut(picture: torch.Tensor) -> list[torch.Tensor]:
    return [picture[:, top:bottom, left:right] for left, top, right, bottom in PLAN.boxes]


def seam(picture: torch.Tensor, plan=PLAN) -> float:
    """The mean step across the lines where a tile begins or ends, as a multiple of the mean step elsewhere."""
    on, off = [], []
    for axis, starts in ((2, plan.lefts), (1, plan.tops)):
        steps = picture.diff(dim=axis).abs().mean(0).mean(2 - axis)  # step n: from line n to n + 1
        lines = {s - 1 for s in starts if s} | {s + plan.tile - 1 for s in starts[:-1]}
        on += [steps[n] for n in lines]
        off += [steps[n] for n in range(len(steps)) if n not in lines]
    return float(torch.stack(on).mean() / torch.stack(off).mean())


def test_the_plan_is_one_of_three_by_three_tiles():
    assert (len(PLAN.lefts), len(PLAN.tops)) == (3, 3)


def test_tiles_that_change_nothing_give_the_picture_itself(picture):
    assert (blend(PLAN, cut(picture)) - picture).abs().max() < 1e-6


def test_tiles_of_other_colours_show_no_seam_and_pasted_ones_do(picture):
    rng = torch.Generator().manual_seed(1)
    shifted = [t + (torch.rand(3, 1, 1, generator=rng) - 0.5) * 0.2 for t in cut(picture)]
    assert seam(blend(PLAN, shifted)) <= 1.1
    pasted = picture.clone()
    for tile, (left, top, right, bottom) in zip(shifted, PLAN.boxes, strict=True):
        pasted[:, top:bottom, left:right] = tile
    assert seam(pasted) > 1.5, "the measure must see a seam"


def test_tiles_of_other_detail_show_no_seam(picture):
    rng = torch.Generator().manual_seed(1)
    grainy = [t + torch.randn(t.shape, generator=rng) * 0.05 for t in cut(picture)]
    assert seam(blend(PLAN, grainy)) <= 1.1


@pytest.mark.parametrize("fix", [wavelet_fix, adain_fix])
def test_the_colour_fix_takes_tiles_back_to_the_picture(picture, fix):
    rng = torch.Generator().manual_seed(2)
    shifted = [t + (torch.rand(3, 1, 1, generator=rng) - 0.5) * 0.4 for t in cut(picture)]
    fixed = [fix(new[None], old[None])[0] for new, old in zip(shifted, cut(picture), strict=True)]
    blended = blend(PLAN, fixed)
    assert (blended - picture).abs().max() < 1e-3
    assert seam(blended) <= 1.1


def test_the_plan_is_drawn_on_the_picture():
    grey = np.full((384, 384, 3), 128, np.uint8)
    drawn = outlined(PLAN, grey)
    assert (grey == 128).all(), "the picture given stays as it is"
    for left, top, right, bottom in PLAN.boxes:
        for x, y in ((left, top), (right - 1, bottom - 1)):
            assert (drawn[y, x] != 128).any()
    assert (drawn[200, 200:204] == 128).all()
    assert outlined(plan_tiles((1, 1), 64, 16), np.zeros((1, 1, 3), np.uint8)).shape == (1, 1, 3)
