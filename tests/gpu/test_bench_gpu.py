"""The speed claims on a real GPU, with random weights of the published size; minutes, and 20 GB of its memory."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lumina_core import Sampling
from lumina_core.bench import floor, measure, shapes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SIZE = (768, 768)


def measured(precision: str, *samplings: Sampling) -> list[tuple[float, float | None]]:
    """Seconds of a pass and its share of the floor for each way to draw, one warm-up picture before each."""
    shape = shapes.SHAPES["7b-2"]
    model = shapes.build("7b-2", shape, torch.device("cuda"), precision)
    prompt = shapes.prompt_of(model, shape, SIZE)
    out = []
    for sampling in samplings:
        measure.draw(model, prompt, sampling)
        run = measure.draw(model, prompt, dataclasses.replace(sampling, seed=1))
        each = run.decode / run.passes
        out.append((each, floor.floor_of(model, prompt, sampling).share(each)))
    return out


@pytest.fixture(scope="module")
def bf16():
    return measured("bf16", Sampling(decode="ar"), Sampling(decode="jacobi", window=32))


def test_plain_decoding_reaches_sixty_percent_of_the_bandwidth(bf16):
    assert bf16[0][1] >= 0.6


def test_a_window_of_32_costs_at_most_1_6_times_a_single_pass(bf16):
    assert bf16[1][0] <= 1.6 * bf16[0][0]


def test_int8_is_faster_than_bf16(bf16):
    assert measured("int8", Sampling(decode="ar"))[0][0] < bf16[0][0]
