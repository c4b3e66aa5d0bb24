"""What a pass has to read at least, and the rows of the table that say so."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lumina_core import InputError, Sampling, memory
from lumina_core.bench import floor, measure, report, shapes
from lumina_core.cache import KVCache

PLAIN = Sampling(seed=3, cfg=3.0, image_top_k=20, decode="ar")
TEXT = "a red circle"


def test_a_pass_reads_the_weights_the_heads_codes_and_the_keys_of_both_rows(tiny_model):
    prompt = tiny_model.prompt(TEXT, size=(64, 32))
    got = floor.floor_of(tiny_model, prompt, PLAIN, 36)
    c, codes = tiny_model.config, len(tiny_model.vocabulary.code_ids)
    unread = 2 * c.vocab_size * c.hidden_size - codes * c.hidden_size
    assert got.weights == 4 * (sum(p.numel() for p in tiny_model.transformer.parameters()) - unread)
    place = 2 * 4 * c.num_hidden_layers * c.hidden_size
    assert got.cache == place * (len(prompt.tokens) + 3 + 18 + 3 + 18)
    assert got.bandwidth is None and "no floor" in got.source
    alone = floor.floor_of(tiny_model, prompt, dataclasses.replace(PLAIN, cfg=1.0), 36)
    assert alone.cache == place * (len(prompt.tokens) + 3 + 18)
    start = floor.floor_of(tiny_model, prompt, PLAIN, 10)
    assert (start.weights, start.cache) == (got.weights, place * (len(prompt.tokens) + 3 + 5 + 3 + 5))


@pytest.mark.parametrize(
    ("name", "speed"),
    [
        ("NVIDIA H200", 4800e9),
        ("NVIDIA H100 80GB HBM3", 3350e9),
        ("NVIDIA H100 PCIe", 2039e9),
        ("NVIDIA A100-SXM4-80GB", 2039e9),
        ("NVIDIA A100 80GB PCIe", 1935e9),
        ("NVIDIA A100-SXM4-40GB", 1555e9),
        ("NVIDIA GeForce RTX 4090", 1008e9),
        ("NVIDIA RTX A1000 Laptop GPU", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)
def test_a_card_has_the_bandwidth_of_its_own_data_sheet(name, speed):
    assert floor.published(name) == speed


@pytest.mark.parametrize("size", [(512, 512), (256, 256)])
def test_random_weights_are_refused_where_both_rows_of_a_given_picture_do_not_fit(monkeypatch, size):
    shape = dataclasses.replace(shapes.SHAPES["pure"], size=size)
    positions = sum(shapes.PROMPT + memory.tokens(shape.vq, s) for s in (shape.given, size))
    c = shape.config
    cache = KVCache.nbytes(
        c.num_hidden_layers, 2, positions, c.num_key_value_heads, c.head_dim, torch.bfloat16
    )
    numbers = memory.PUBLISHED_VQ_PARAMETERS["pure"]
    held = memory.weights_nbytes(c, "bf16") + 4 * numbers + cache
    for free, fits in ((held - 1, False), (held + 1e9, True)):
        monkeypatch.setattr(shapes, "free_bytes", lambda device, free=free: free)
        asked = ("pure", shape, torch.device("cpu"), "bf16", numbers)
        if fits:
            shapes._refuse_if_short(*asked)
        else:
            with pytest.raises(InputError, match="--random pure in bf16 takes"):
                shapes._refuse_if_short(*asked)


def test_the_share_of_the_floor_is_bytes_over_time_and_bandwidth():
    assert floor.Floor(60, 20, 100.0, "").share(2.0) == pytest.approx(0.4)
    assert floor.Floor(60, 20, None, "").share(2.0) is None
    assert measure.copy_speed(torch.device("cpu")) > 1e8


def test_a_row_holds_medians():
    runs = [measure.Run(p, 36, 16, 1.0, d, 0.5, 10 * p) for p, d in ((10, 2.0), (12, 1.2), (30, 9.0))]
    first = measure.Run(40, 36, 16, 1.5, 3.5, 0.5, None)
    row = report.row_of(("m", (64, 32), "jacobi"), runs, first, (4, 8), floor.Floor(10, 2, 24.0, ""))
    assert (row.passes, row.decode, row.window, row.peak, row.seeds) == (12, 2.0, 16, 300, 3)
    assert row.tokens_per_pass == pytest.approx(32 / 12)
    assert row.ms_per_pass == pytest.approx(2000 / 12)
    assert row.ms_per_token == pytest.approx(3000 / 36)
    assert row.first == pytest.approx(2.0)
    assert row.gb_per_second * 1e9 == pytest.approx(12 / (2 / 12))
    assert row.floor_share == pytest.approx(3.0)


def test_a_row_of_the_first_tokens_is_by_these_and_without_recording():
    runs = [measure.Run(15, 18, 1, 1.8, 6.5, 0.5, None, capture=0.5)]
    first = measure.Run(8, 9, 1, 1.8, 4.0, 0.5, None)
    row = report.row_of(("m", (64, 32), "ar"), runs, first, (4, 8), floor.Floor(10, 2, 60.0, ""))
    assert (row.drawn, row.window) == (18, None)
    assert row.tokens_per_pass == pytest.approx(16 / 15)
    assert row.ms_per_pass == pytest.approx(400)
    assert row.floor_share == pytest.approx(0.5)
    assert row.ms_per_token == pytest.approx(1000 * (1.8 / 36 + 6.5 / 18))
    assert row.first == pytest.approx(0.75)  # 4.0 beyond half of 6.5
