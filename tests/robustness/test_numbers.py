"""Overflow is noticed and told; smaller precisions agree with fp32 as far as the table in PROMISES.md says."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lumina_core import LuminaError, PrecisionError, bundled, generate, load
from lumina_core.sampling.finite import Finite
from lumina_core.sampling.logits import keep_by_entropy
from tests.robustness import agreement
from tests.robustness.workload import DRAWN, Watched, build_all, chat, draw, restore

TOKENS, PSNR = 1.5, 3.0  # percentage points and dB that a figure may be off the one stated


def idle() -> None:
    pass


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return build_all(tmp_path_factory.mktemp("families"))


def overflowing(folder, dtype: torch.dtype) -> Watched:
    """A checkpoint whose layers give numbers beyond 65,504 and below 1e38."""
    model = load(folder, dtype=dtype)
    with torch.no_grad():
        for layer in model.transformer.model.layers:
            layer.mlp.down_proj.weight.fill_(3e3)
            layer.mlp.up_proj.weight.mul_(100)
    return Watched(model)


JOBS = {
    "ar": ("mgpt2", lambda w: draw(w, idle, "ar")),
    "jacobi": ("mgpt2", lambda w: draw(w, idle, "jacobi")),
    "coupled": ("mgpt1", lambda w: draw(w, idle, "coupled")),
    "entropy top-k": ("pure", lambda w: draw(w, idle, "jacobi", cfg=0.8)),
    "chat": ("mgpt1", lambda w: chat(w, idle)),
    "restore": ("pure", lambda w: restore(w, idle)),
}


@pytest.mark.parametrize("name", JOBS)
def test_fp16_that_overflows_is_told_and_bf16_and_fp32_draw(folders, name):
    family, job = JOBS[name]
    watched = overflowing(folders[family], torch.float16)
    with pytest.raises(PrecisionError) as held:
        job(watched)
    told = str(held.value)
    assert isinstance(held.value, LuminaError)
    assert "overflowed in fp16" in told and "precision bf16, or fp32" in told
    assert not watched.cache_lives
    for dtype in (torch.bfloat16, torch.float32):
        assert job(overflowing(folders[family], dtype))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_damaged_weights_are_told_in_any_precision(folders, value):
    watched = Watched(load(folders["mgpt2"]))
    with torch.no_grad():
        watched.model.transformer.lm_head.weight[-20] = value
    for decode in ("ar", "jacobi"):
        with pytest.raises(PrecisionError, match="in fp32: the weights are damaged, or a LoRA is too strong"):
            draw(watched, idle, decode)


def test_the_drawing_stops_at_the_row_where_it_is_noticed(folders):
    """Not when the picture is whole: a large one takes minutes."""
    model = load(folders["mgpt2"])
    prompt = replace(model.converse(["a circle"], size=(32, 64)), expects="image")
    places = []

    def spoil(module, args, hidden):
        return hidden * math.nan if len(places) > 6 else hidden

    model.transformer.register_forward_hook(spoil)
    with pytest.raises(PrecisionError):
        for event in generate(model.transformer, model.vocabulary, prompt, replace(DRAWN, decode="ar")):
            places.append(event)
    assert len(places) < 20


def test_no_draw_from_what_is_no_number_leaves_the_table():
    """An index made of nan would end a CUDA process: the top-k that follows the entropy must stay one."""
    for value in (math.nan, math.inf):
        scores = torch.randn(3, 50)
        scores[1, 7] = value
        assert keep_by_entropy(scores, 2, 20).shape == scores.shape


def test_one_bad_number_is_never_forgotten():
    finite = Finite(torch.device("cpu"), torch.float16)
    for i in range(5):
        scores = torch.randn(2, 8)
        if i == 1:
            scores[0, 3] = -math.inf
        if i == 2:
            scores[0, 3] = math.inf
        finite.note(scores)
    with pytest.raises(PrecisionError):
        finite.check()
    fine = Finite(torch.device("cpu"), torch.float16)
    fine.note(torch.full((4, 65536), 6e4))
    fine.check()


class Reads(TorchDispatchMode):
    """Counts the numbers that are read from a device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aten = torch.ops.aten
        self.count += func.overloadpacket in (aten.item, aten._local_scalar_dense, aten.is_nonzero)
        return func(*args, **(kwargs or {}))


def test_the_device_is_asked_once_a_row_and_not_for_every_token(folders):
    model = load(folders["mgpt2"])
    counts = {}
    for rows in (2, 4):
        prompt = replace(model.converse(["a circle"], size=(32, 32 * rows)), expects="image")
        with Reads() as reads:
            for _ in generate(model.transformer, model.vocabulary, prompt, replace(DRAWN, decode="ar")):
                pass
        counts[rows] = reads.count
    assert counts[4] - counts[2] == 2 * 4  # rows of codes: 4 in each row of units


@pytest.fixture(scope="module")
def rows() -> dict:
    return agreement.stated()


@pytest.mark.parametrize("name", bundled())
def test_the_table_is_true(name, rows, record_property):
    """Measured again and held against the figures that stand there."""
    measured = agreement.measured(name)
    record_property("cases", len(measured))
    assert len(measured) >= 3
    for now in measured:
        assert (name, now.precision) in rows, (
            f"python -m tests.robustness.agreement {name} prints the rows that lack"
        )
        said = rows[name, now.precision]
        assert abs(now.tokens - said.tokens) <= TOKENS, f"stated {said}\nmeasured {now}"
        if said.psnr is None:
            assert now.psnr is None or now.psnr > 40, f"stated {said}\nmeasured {now}"
        else:
            assert now.psnr is None or now.psnr >= said.psnr - PSNR, f"stated {said}\nmeasured {now}"
            assert now.codes >= said.codes - 5, f"stated {said}\nmeasured {now}"


def test_the_table_has_a_row_for_every_bundled_checkpoint_and_no_other(rows):
    assert {name for name, _ in rows} == set(bundled())
    assert {p for _, p in rows} >= {"bf16", "fp16", "int8"}


def test_the_page_states_the_tolerance_and_the_counts():
    page = agreement.PROMISES.read_text("utf-8")
    assert re.search(rf"{TOKENS:g} percentage points and {PSNR:g} dB", page)
    assert f"{agreement.FORCED} held-out examples" in page and f"{agreement.DRAWN} pictures" in page
    assert agreement.HEADER in page
