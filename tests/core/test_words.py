"""Text holds words alone: no codes, row ends or image ends are drawn outside a picture."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lumina_core.sampling.abreast import Abreast
from lumina_core.sampling.finite import Finite
from lumina_core.sampling.logits import (
    draw,
    gumbel,
    keep_top,
    noise_key,
)
from lumina_core.sampling.text import drawn_tokens
from tests.core.scripted import GREEDY, PROMPT, SIZE, Scripted, V, answer, words


def draw_of(scores, place, top_k, masked=False) -> int:
    """The token drawn from scores (1, V) at a place of an answer."""
    said = Scripted([], masked=masked)
    finite = Finite(torch.device("cpu"), torch.float32)
    [token] = drawn_tokens(said, V, scores, [noise_key(7, place)], finite, 1.0, top_k)
    return int(token)


def test_mask_image_logits_keeps_codes_out_of_what_top_k_counts():
    scores = torch.zeros(1, SIZE)
    scores[0, 30:40], scores[0, 50], scores[0, 51] = 9.0, 8.0, 7.9
    for masked, drawable in ((True, {50, 51}), (False, {50})):
        seen = {draw_of(scores, place, 2, masked) for place in range(50)}
        assert seen == drawable


@pytest.mark.parametrize("decode", ["ar", "jacobi"])
@pytest.mark.parametrize("top_k", [0, 1, 5])
@pytest.mark.parametrize("part", [30, V.row_end, V.image_end])
def test_no_part_of_a_picture_is_drawn_in_text(part, top_k, decode):
    script = [50, *[part] * 20, 51, V.separator]
    _, events = answer(script, replace(GREEDY, text_top_k=top_k, decode=decode))
    said = words(events)
    assert (said[0], said[-1], len(said)) == (50, 51, 22)
    assert not {part, V.image_start} & set(said[1:-1])


def test_no_part_of_a_picture_is_drawn_in_texts_side_by_side():
    prompt = replace(PROMPT, expects="text")
    said = Scripted([50, 30, V.row_end, V.image_end, 51, V.separator])
    events = list(Abreast(said, V, [prompt] * 2, [1, 2], GREEDY).draw(2))
    for i in range(2):
        tokens = words([e for e in events if e.index == i])
        assert (tokens[0], tokens[-1], len(tokens)) == (50, 51, 5)
        assert not {30, V.row_end, V.image_end} & set(tokens)


@pytest.mark.parametrize("top_k", [0, 1, 4])
def test_what_is_drawn_without_a_part_of_a_picture_is_what_upstream_draws(top_k):
    parts = {*V.code_ids.tolist(), V.row_end, V.image_end}
    rng, sound = torch.Generator().manual_seed(3), 0
    for place in range(300):
        scores = torch.randn(1, SIZE, generator=rng) * 3
        noise = gumbel(torch.tensor([noise_key(7, place)]), SIZE)
        wanted = int(draw(keep_top(scores, top_k), 1.0, noise))
        token = draw_of(scores, place, top_k)
        assert token not in parts
        if wanted not in parts:
            assert token == wanted
            sound += 1
    assert 100 < sound < 300
