"""The key-value cache: its size is known before, asked for, and given back."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lumina_core import InputError, PictureFinished, RowFinished, Sampling, TextPiece, generate
from lumina_core.cache import KVCache
from lumina_core.sampling import engine, room
from lumina_core.sampling.answer import ROOM
from lumina_core.sampling.contexts import Contexts
from lumina_core.sampling.events import LARGEST_WINDOW, WINDOWS
from lumina_core.sampling.text import DRAFTS
from tests.core.scripted import PROMPT, SIZE, Scripted, V

SAMPLING = Sampling(seed=1, cfg=3.0, image_top_k=0)


@pytest.fixture
def caches(monkeypatch):
    """Weak references to the tables of every cache that is made, and their bytes."""
    made = []

    class Watched(Contexts):
        def __init__(self, *args):
            super().__init__(*args)
            tables = [*self.cache.keys, *self.cache.values]
            made.append(([weakref.ref(t) for t in tables], sum(t.nbytes for t in tables)))

    monkeypatch.setattr(engine, "Contexts", Watched)
    return made


def start(model, sampling=SAMPLING, size=(64, 64), **options):
    prompt = model.prompt("a red circle", size=size)
    return prompt, generate(model.transformer, model.vocabulary, prompt, sampling, **options)


@pytest.mark.parametrize("decode", ["ar", "jacobi", "coupled"])
@pytest.mark.parametrize(("cfg", "batch"), [(1.0, 1), (3.0, 2)])
def test_the_size_that_is_told_is_the_size_that_is_taken(tiny_model, caches, decode, cfg, batch):
    sampling = replace(SAMPLING, decode=decode, cfg=cfg, batch=batch)
    prompt, events = start(tiny_model, sampling)
    next(events)
    [(_, nbytes)] = caches
    assert nbytes == room.cache_nbytes(tiny_model.transformer, tiny_model.vocabulary, prompt, sampling)
    events.close()


def test_windows_that_are_not_asked_for_take_little_room():
    assert Sampling(decode="ar").spare == 0
    assert Sampling().spare == max(WINDOWS) < LARGEST_WINDOW
    assert Sampling(window=200).spare == 200


def test_the_cache_is_gone_when_a_generation_is_closed(tiny_model, caches):
    _, events = start(tiny_model)
    next(events)
    events.close()
    gc.collect()
    assert not any(ref() is not None for ref in caches[0][0])


def test_the_cache_is_gone_when_a_generation_fails_though_the_error_is_held(tiny_model, caches, monkeypatch):
    _, events = start(tiny_model)
    next(events)
    monkeypatch.setattr(tiny_model.transformer, "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError) as held:
        list(events)
    assert not any(ref() is not None for ref in caches[0][0]), held


def test_the_cache_is_gone_when_the_picture_is_handed_out_to_be_decoded(tiny_model, caches):
    _, events = start(tiny_model)
    for event in events:
        if isinstance(event, PictureFinished):
            assert not any(ref() is not None for ref in caches[0][0])
            return
    raise AssertionError("no picture came")


def test_a_size_that_does_not_fit_the_memory_names_size_need_and_what_fits(tiny_model):
    model = tiny_model
    prompt = model.prompt("a red circle", size=(256, 256))
    free = room.cache_nbytes(model.transformer, model.vocabulary, prompt, SAMPLING, units=(3, 3))
    need = room.cache_nbytes(model.transformer, model.vocabulary, prompt, SAMPLING)
    with pytest.raises(InputError) as refused:
        start(model, size=(256, 256), free=free)
    told = str(refused.value)
    assert "256x256" in told
    assert f"{need / 1e6:.1f} MB" in told
    assert f"{free / 1e6:.1f} MB are free" in told
    assert "The largest square that fits is 96x96." in told
    start(model, size=(256, 256), free=need)
    with pytest.raises(InputError, match="batch 2, takes .* is 96x96, or lower batch"):
        start(model, replace(SAMPLING, batch=2), size=(128, 128), free=2 * free)
    with pytest.raises(InputError, match="No size fits; lower batch, set cfg to 1"):
        start(model, free=10)


def test_too_many_positions_name_the_largest_square(tmp_path):
    from lumina_core import load
    from tests import tiny

    model = load(tiny.build(tmp_path / "short", positions=300))
    with pytest.raises(InputError) as refused:
        start(model, size=(128, 128))
    side = int(re.search(r"largest square that fits is (\d+)x", str(refused.value))[1])
    assert "300 positions" in str(refused.value)
    start(model, size=(side, side))
    with pytest.raises(InputError, match="positions"):
        start(model, size=(side + 32, side + 32))


def test_free_memory_is_a_number_or_unknown(monkeypatch):
    free = room.free_bytes(torch.device("cpu"))
    assert free is None or free > 1e6
    assert room.free_bytes(torch.device("meta")) is None
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert room.free_bytes(torch.device("cpu")) is None


def test_a_cache_grows_and_keeps_what_it_holds(tiny_model):
    contexts = Contexts(tiny_model.transformer, 1, True, 8)
    with torch.inference_mode():
        contexts.prefill([[5, 6, 7]] * contexts.n)
        kept = contexts.cache.keys[0][:, :3].clone()
        contexts.reserve(20, more=4)
        assert contexts.cache.capacity == 24 == contexts.cache.keys[0].shape[1]
        assert torch.equal(contexts.cache.keys[0][:, :3], kept)
        contexts.reserve(10)
        assert contexts.cache.capacity == 24


def test_on_mps_the_cache_is_written_without_index_copy():
    class Mps(torch.Tensor):
        """A tensor that says it stands there."""

        device = torch.device("mps")

        def index_copy_(self, *args):
            raise NotImplementedError("aten::index_copy.out on MPS")

    places, new = torch.tensor([1, 2, 5, 6]), torch.randn(4, 1, 3)
    written = []
    for kind in (torch.Tensor, Mps):
        cache = KVCache(1, 2, 4, 1, 3, device="cpu", dtype=torch.float32)
        for tables in (cache.keys, cache.values):
            tables[0] = tables[0].as_subclass(kind)
        cache.write(0, places, new, new + 1)
        written.append([t[0].as_subclass(torch.Tensor) for t in (cache.keys, cache.values)])
    for plain, mps in zip(*written, strict=True):
        assert plain.any()
        assert torch.equal(plain, mps)


TEXT = replace(PROMPT, expects="text")


class Growing(Scripted):
    """Keeps the cache that it makes."""

    def new_cache(self, *args, **options):
        self.cache = super().new_cache(*args, **options)
        return self.cache

    def held(self) -> int:
        return sum(t.nbytes for t in (*self.cache.keys, *self.cache.values))


def test_text_is_reckoned_with_a_thousand_tokens_of_one_row():
    long, tokens = Growing([], TEXT, positions=20_000), len(TEXT.tokens)

    def needed(model=long, prompt=TEXT, **settings) -> int:
        return room.cache_nbytes(model, V, prompt, replace(SAMPLING, decode="ar", **settings))

    row = long.cache_nbytes(1, 1, torch.float32)
    assert needed(max_tokens=10240) == (tokens + room.TEXT) * row == needed(max_tokens=10240, cfg=1.0)
    assert needed(max_tokens=100) == (tokens + 100) * row
    assert needed(Growing([], TEXT, positions=500)) == 500 * row
    assert needed(prompt=PROMPT, max_tokens=10240) == (tokens + 10240) * 2 * row


def test_text_takes_one_row_until_a_picture_begins():
    script = [50] * 400 + [*V.encode(torch.arange(4).view(2, 2)), 51, V.separator]
    model = Growing(script, TEXT, positions=1000)
    told = room.cache_nbytes(model, V, TEXT, SAMPLING)
    rows, drawn = [], False
    for event in generate(model, V, TEXT, replace(SAMPLING, temperature=0.0, text_top_k=0)):
        drawn |= isinstance(event, RowFinished)
        if isinstance(event, TextPiece | RowFinished):
            rows.append((drawn, model.cache.rows, len(model.cache.keys[0])))
            assert drawn or model.held() <= told
    assert set(rows) == {(False, 1, 1), (True, 2, 2)}


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_text_that_outgrows_the_memory_is_told_and_its_cache_is_gone(cfg):
    model, seen = Growing([50] * 900, TEXT, positions=1000), []
    events = generate(model, V, TEXT, replace(SAMPLING, temperature=0.0, text_top_k=0, cfg=cfg), free=100)
    told = r"^Text behind token (\d+) of an answer takes .* are free on cpu. Set max_tokens to \1 or less"
    with pytest.raises(InputError, match=told):
        seen.extend(e for e in events if isinstance(e, TextPiece))
    assert not model.cache.keys
    plenty = generate(model, V, TEXT, replace(SAMPLING, temperature=0.0, text_top_k=0), free=1 << 20)
    assert sum(len(e.tokens) for e in plenty if isinstance(e, TextPiece)) >= 900 > 0 < len(seen)


class Bounded(Growing):
    """Refuses to be fed beyond its cache, as real tables do."""

    def __call__(self, tokens, start=0, cache=None, *args, **options):
        end = int(torch.as_tensor(start).max()) + tokens.shape[1]
        assert end <= cache.capacity
        return super().__call__(tokens, start, cache, *args, **options)


@pytest.mark.parametrize("words", range(ROOM - 12, ROOM - 6))
def test_a_picture_may_begin_where_a_run_of_drafts_and_the_cache_end(words):
    """All drafts hold, so a run brings eight tokens; the last one begins a picture, whose sizes are drawn."""
    known = [*range(50, 50 + DRAFTS), SIZE - 2]
    prompt = replace(TEXT, tokens=(0, 49, *known, 1))
    script = [49] * words + [*known, *V.encode(torch.arange(4).view(2, 2)), V.separator]
    greedy = replace(SAMPLING, temperature=0.0, text_top_k=0, cfg=1.0)
    events = list(generate(Bounded(script, prompt, positions=1000), V, prompt, greedy))
    assert sum(isinstance(e, PictureFinished) for e in events) == 1


def test_the_cache_of_an_answer_is_gone_when_it_is_closed():
    model = Growing([50] * 90, TEXT)
    events = generate(model, V, TEXT, replace(SAMPLING, batch=2))
    next(events)
    events.close()
    assert not model.cache.keys


PEAK = """
import sys, torch
from lumina_core.sampling import Sampling, generate, room
from lumina_core.transformer import Transformer, TransformerConfig
from lumina_core.prompts import Prompt
from lumina_core.unirep import Vocabulary

torch.set_num_threads(1)
config = TransformerConfig(128, 512, 64, 10, 2, 2, 8000)
transformer = Transformer(config).eval().requires_grad_(False)
vocabulary = Vocabulary(bos=0, separator=1, separator_name="", image_start=2, image_end=3, row_end=4, placeholder=5,
                        grid={n: 8 + n for n in range(1, 9)}, code_ids=torch.arange(64, 128), latents_per_unit=2)
sampling = Sampling(cfg=3.0, batch=int(sys.argv[1]), image_top_k=0)

def draw(units, steps):
    prompt = Prompt("mgpt2", "case", tuple([0, 20, 21] * 670), "image", units)
    events = generate(transformer, vocabulary, prompt, sampling)
    for _, event in zip(range(steps), events):
        pass
    return room.cache_nbytes(transformer, vocabulary, prompt, sampling)

def peak():  # of this process alone: getrusage begins with what the process that started it held
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))

sampling, wanted = Sampling(cfg=1.0, batch=1, image_top_k=0), sampling
draw((1, 1), 1)  # the prefill's own memory, and what loads on first use
sampling = wanted
before = peak()
nbytes = draw((2, 2), 12)
print(nbytes, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from Linux's own count")
def test_the_peak_of_a_generation_grows_by_the_cache_and_little_more():
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", PEAK, "3"], cwd=root, capture_output=True, text=True, timeout=300, check=True
    )
    nbytes, grown = map(int, run.stdout.split())
    assert nbytes > 4e8
    assert grown <= 1.15 * nbytes
    assert grown >= 0.5 * nbytes  # the rest may lie in what the prefill gave back
