"""The speed claims on a real GPU, by the rows of `bench`, with random weights of the published size; minutes, 27 GB."""

from __future__ import annotations

import gc
import json

import pytest
import torch

from lumina_core import bench, memory
from lumina_core.bench.shapes import SHAPES
from lumina_core.cli import parser

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TOKENS = "2400"  # of about 9,300; the floor is that of these


def measured(folder, *words: str) -> dict[str, dict]:
    """The rows of a bench at 768x768, by mode."""
    gc.collect()  # of the bench before
    file = folder / "bench.json"
    options = ("bench", "--random", "7b-2", "--tokens", TOKENS, "--json", str(file), *words)
    for line in bench.run(parser().parse_args(options), pytest.fail, pytest.fail):
        print(line)
    return {row["mode"]: row for row in json.loads(file.read_text("utf-8"))["rows"]}


@pytest.fixture(scope="module")
def bf16(tmp_path_factory):
    words = ("--precision", "bf16", "--modes", "ar,jacobi", "--windows", "32")
    return measured(tmp_path_factory.mktemp("bf16"), *words)


def test_plain_decoding_reaches_sixty_percent_of_the_bandwidth(bf16):
    assert bf16["ar"]["floor_share"] >= 0.6


def test_a_window_of_32_costs_at_most_1_6_times_a_single_pass(bf16):
    assert bf16["jacobi"]["ms_per_pass"] <= 1.6 * bf16["ar"]["ms_per_pass"]


@pytest.fixture(scope="module")
def int8(tmp_path_factory):
    return measured(tmp_path_factory.mktemp("int8"), "--precision", "int8", "--modes", "ar")


def test_int8_is_faster_than_bf16(bf16, int8):
    assert int8["ar"]["ms_per_pass"] < bf16["ar"]["ms_per_pass"]


def test_int8_saves_the_memory_of_its_weights(bf16, int8):
    config = SHAPES["7b-2"].config
    saved = memory.weights_nbytes(config, "bf16") - memory.weights_nbytes(config, "int8")
    assert bf16["ar"]["peak"] - int8["ar"]["peak"] == pytest.approx(saved, rel=0.2)
