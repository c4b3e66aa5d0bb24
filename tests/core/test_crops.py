"""How pictures come to the sizes a checkpoint knows: allowed sizes, the choice, the crop, transparency."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lumina_core.families.mgpt1 import Mgpt1
from lumina_core.families.mgpt2 import Mgpt2
from lumina_core.image import allowed_sizes, crop, nearest_size, on_white, plan_crop, stretch

side = st.integers(1, 3000)


def picture(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width * 7919 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values, "RGB")


@given(st.integers(2, 40).map(lambda n: n * 32))
@settings(max_examples=30)
def test_allowed_sizes_are_whole_units_within_area_and_ratio(target):
    sizes = allowed_sizes(target)
    assert len(set(sizes)) == len(sizes)
    assert (target, target) in sizes
    for w, h in sizes:
        assert w % 32 == 0 and h % 32 == 0
        assert w * h <= target * target
        assert max(w, h) <= 4 * min(w, h)
    assert sorted(sizes) == sorted((h, w) for w, h in sizes)


def test_of_two_sizes_that_keep_as_much_the_wider_wins_and_then_the_higher():
    sizes = [(32, 64), (64, 32)]
    assert nearest_size(100, 100, sizes) == (64, 32)
    assert nearest_size(100, 100, sizes[::-1]) == (64, 32)
    # 2:1 and 1:2 of a square keep half each; so do two sizes of one width around a picture of the proportions between
    assert nearest_size(200, 200, [(64, 32), (64, 128)]) == (64, 128)
    assert nearest_size(200, 200, [(64, 128), (64, 32)]) == (64, 128)


def test_a_listed_size_stays_in_2_0_even_where_a_larger_one_has_its_proportions():
    sizes = [(64, 64), (32, 32)]
    assert Mgpt2().input_size(32, 32, sizes) == (32, 32)
    assert Mgpt1().input_size(32, 32, sizes) == (64, 64)


def test_an_exact_half_is_rounded_to_even_when_resizing():
    # both scales are exactly 1.5: 21 becomes 31.5 and 23 becomes 34.5
    assert plan_crop(21, 20, (30, 30)).resize == (32, 30)
    assert plan_crop(23, 20, (30, 30)).resize == (34, 30)


def test_halving_stops_before_a_side_falls_below_the_crop_and_floors():
    assert plan_crop(257, 259, (64, 64)).halvings == ((128, 129), (64, 64))
    assert plan_crop(127, 400, (64, 64)).halvings == ()
    assert plan_crop(128, 129, (64, 64)).halvings == ((64, 64),)


@given(side, side, st.sampled_from(allowed_sizes(512)))
@settings(max_examples=300)
def test_a_crop_never_reaches_past_the_resized_picture(width, height, size):
    plan = plan_crop(width, height, size)
    assert plan.slack[0] >= 0 and plan.slack[1] >= 0
    assert min(plan.slack) == 0  # one side fits exactly, the other is cut
    assert all(w >= size[0] and h >= size[1] for w, h in plan.halvings)


@given(side, side)
@settings(max_examples=100)
def test_the_choice_keeps_the_largest_share(width, height):
    sizes = allowed_sizes(768)

    def share(size):
        a, b = size[0] / width, size[1] / height
        return min(a, b) / max(a, b)

    assert share(nearest_size(width, height, sizes)) == max(map(share, sizes))


def test_the_centre_is_cut_unless_a_place_or_a_random_source_is_given():
    wide = picture(200, 64)
    whole = np.asarray(wide)
    assert np.array_equal(np.asarray(crop(wide, (64, 64))), whole[:, 68:132])
    assert np.array_equal(np.asarray(crop(wide, (64, 64), at=(0, 0))), whole[:, :64])
    expected = random.Random(5).randint(0, 136)
    assert expected != 68
    got = crop(wide, (64, 64), rng=random.Random(5))
    assert np.array_equal(np.asarray(got), whole[:, expected : expected + 64])


def test_a_random_cut_draws_the_left_edge_first():
    plan = plan_crop(100, 100, (50, 100))
    rng = random.Random(1)
    assert plan.anywhere(random.Random(1)) == (rng.randint(0, 50), rng.randint(0, 0))


def test_stretch_keeps_the_whole_picture():
    assert stretch(picture(200, 64), (64, 64)).size == (64, 64)
    same = picture(64, 32)
    assert stretch(same, (64, 32)) is same


@pytest.mark.parametrize(("alpha", "grey"), [(0, 255), (255, 10), (128, 132)])
def test_transparency_is_blended_on_white_and_truncated(alpha, grey):
    # 10 * 128/255 + 255 * 127/255 = 132.02
    pixel = Image.new("RGBA", (1, 1), (10, 10, 10, alpha))
    assert on_white(pixel).getpixel((0, 0)) == (grey,) * 3
