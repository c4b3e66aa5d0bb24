"""UniRep: every grid becomes tokens and comes back; nothing else does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lumina_core import InputError, PictureError
from lumina_core.sampling.rules import place_after
from lumina_core.unirep import Vocabulary


def vocabulary(latents: int, codes: int = 50) -> Vocabulary:
    ids = torch.randperm(codes, generator=torch.Generator().manual_seed(latents)) + 100
    grid = {n: 20 + n for n in range(1, 9)}
    return Vocabulary(0, 1, "<sep>", 2, 3, 4, 5, grid, ids, latents)


grids = st.tuples(st.sampled_from([2, 4]), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**31))


def codes_of(latents, h, w, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 50, (h * latents, w * latents), generator=generator)


@given(grids)
@settings(max_examples=60)
def test_codes_survive_the_way_through_tokens(grid):
    v, codes = vocabulary(grid[0]), codes_of(*grid)
    tokens = v.encode(codes)
    assert len(tokens) == codes.shape[0] * (codes.shape[1] + 1) + 4
    assert torch.equal(v.decode(tokens), codes)
    assert tokens.count(v.row_end) == codes.shape[0]


@given(grids)
@settings(max_examples=30)
def test_a_code_that_a_checkpoint_has_not_is_named(grid):
    v, codes = vocabulary(grid[0]), codes_of(*grid)
    codes[-1, -1] = 50
    with pytest.raises(InputError, match="hold code 50; this checkpoint has 50 codes"):
        v.encode(codes)
    assert v.rows(codes[:0]) == []


@given(grids, st.data())
@settings(max_examples=60)
def test_a_damaged_picture_is_refused(grid, data):
    v = vocabulary(grid[0])
    tokens = v.encode(codes_of(*grid))
    at = data.draw(st.integers(0, len(tokens) - 1))
    with pytest.raises(PictureError):
        v.decode([*tokens[:at], *tokens[at + 1 :]])
    with pytest.raises(PictureError):
        v.decode([*tokens[:at], 9, *tokens[at + 1 :]])


@given(grids, grids)
@settings(max_examples=30)
def test_pictures_are_found_in_text_and_folded_to_a_mark(one, two):
    v = vocabulary(one[0])
    first, second = (v.encode(codes_of(one[0], *g[1:])) for g in (one, two))
    answer = [7, *first, 8, 8, *second, 1]
    assert [answer[a:b] for a, b in v.pictures(answer)] == [first, second]
    assert v.fold(answer) == [7, v.placeholder, 8, 8, v.placeholder, 1]


@given(grids, st.data())
@settings(max_examples=30)
def test_an_unfinished_picture_is_left_out_of_the_text(grid, data):
    v = vocabulary(grid[0])
    whole = v.encode(codes_of(*grid))
    cut = data.draw(st.integers(1, len(whole) - 1))
    answer = [7, *whole, 8, *whole[:cut]]
    assert v.fold(answer) == [7, v.placeholder, 8]
    assert len(v.pictures(answer)) == 1


@given(grids)
@settings(max_examples=30)
def test_the_rules_force_what_the_layout_says_and_leave_the_rest_free(grid):
    v = vocabulary(grid[0])
    tokens = [7, *v.encode(codes_of(*grid))]
    for i in range(2, len(tokens)):
        place = place_after(tokens[:i], v)
        assert place.kind == (
            "size"
            if i < 4
            else "row_end"
            if tokens[i] == v.row_end
            else "end"
            if tokens[i] == v.image_end
            else "code"
        )
        assert place.forced(v) in (None, tokens[i])
        assert place.guided == (i >= 4)
    assert place_after(tokens, v).kind == "text"
    assert place_after(tokens[:1], v).kind == "text"


@pytest.mark.parametrize("code", [-1, 10**6])
def test_a_code_that_the_checkpoint_has_not_is_refused(tiny_model, code):
    codes = torch.zeros(4, 4, dtype=torch.int64)
    codes[1, 2] = code
    with pytest.raises(InputError, match=f"hold code {code}; .* has .* codes"):
        tiny_model.decode(codes)
