"""What only a CUDA device can show: graphs give the same states, nothing waits for the device, memory comes back."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from lumina_core import InputError, PictureFinished, Sampling, generate, load
from lumina_core.prompts import Prompt
from lumina_core.sampling import room
from lumina_core.sampling.contexts import Contexts
from lumina_core.sampling.graphs import WARM
from lumina_core.transformer import Transformer, TransformerConfig
from lumina_core.vq.decoding import decode
from tests.core.scripted import V

AR = Sampling(seed=3, cfg=3.0, image_top_k=0, decode="ar")


@pytest.fixture(scope="module")
def model(tiny_folder):
    return load(tiny_folder, device="cuda")


def pictures(model, sampling, size=(64, 96)) -> list[torch.Tensor]:
    prompt = model.prompt("a red circle", size=size)
    events = generate(model.transformer, model.vocabulary, prompt, sampling)
    return [e.grid.codes for e in events if isinstance(e, PictureFinished)]


def without_graphs(model, sampling) -> list[torch.Tensor]:
    model.transformer.graphs = False
    try:
        return pictures(model, sampling)
    finally:
        del model.transformer.graphs


@pytest.mark.parametrize("decode", ["ar", "jacobi", "coupled"])
def test_graphs_draw_what_single_launches_draw(model, decode):
    sampling = replace(AR, decode=decode, batch=2, window=None if decode == "ar" else 16)
    first, second = pictures(model, sampling), without_graphs(model, sampling)
    same = [float((a == b).float().mean()) for a, b in zip(first, second, strict=True)]
    assert min(same) > 0.5  # another kernel may tip a near tie, and all that follows it


def two(transformer, n: int = 2, guided: bool = True, capacity: int = 600) -> list[Contexts]:
    """Two contexts of one model behind the same prompt, the second without graphs."""
    both = [Contexts(transformer, n, guided, capacity, with_graphs) for with_graphs in (True, False)]
    for contexts in both:
        contexts.prefill([[5, 6, 7, 8]] * contexts.n)
        if guided:
            contexts.prefill([[7, 8]] * contexts.n, unconditional=True)
    return both


def same_states(graphed: Contexts, plain: Contexts, count: int, unconditional: bool = True) -> None:
    """Feeds both contexts the same tokens, one a pass."""
    for i in range(count):
        tokens = torch.tensor([[9 + i], [20 + i]], device="cuda")[: graphed.n]
        a, b = (contexts.advance(tokens, unconditional) for contexts in (graphed, plain))
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_graph_is_recorded_and_gives_the_same_states(model):
    graphed, plain = two(model.transformer)
    same_states(graphed, plain, 12)
    assert graphed.graphs.works
    assert len(graphed.graphs.made) == 1


@torch.inference_mode()
def test_graphs_follow_weights_that_move(tiny_folder, monkeypatch):
    transformer = load(tiny_folder, device="cuda").transformer
    graphed, plain = two(transformer)
    recorder, recorded = graphed.graphs.recorder, []
    record = recorder.record

    def counted(work):
        recorded.append(work)
        return record(work)

    monkeypatch.setattr(recorder, "record", counted)
    same_states(graphed, plain, WARM + 3)
    for p in transformer.parameters():
        old, p.data = p.data, p.data.clone()
        old.fill_(torch.nan)  # what a graph of the old weights would give
    plain.parts = transformer.parts(plain.device)
    same_states(graphed, plain, WARM + 3)
    assert len(recorded) == 2
    assert graphed.graphs.works
    assert len(graphed.graphs.made) == 1


@torch.inference_mode()
def test_graphs_follow_a_cache_that_grows_and_a_row_that_comes(model):
    graphed, plain = two(model.transformer, 1, False, 40)
    same_states(graphed, plain, WARM + 3, unconditional=False)
    assert len(graphed.graphs.made) == 1
    for contexts in (graphed, plain):
        contexts.reserve(600)
    assert not graphed.graphs.made
    same_states(graphed, plain, WARM + 3, unconditional=False)
    assert len(graphed.graphs.made) == 1
    for contexts in (graphed, plain):
        contexts.guide()
        contexts.prefill([[7, 8]], unconditional=True)
    assert not graphed.graphs.made
    same_states(graphed, plain, WARM + 3)
    assert len(graphed.graphs.made) == 1
    assert graphed.graphs.works


@torch.inference_mode()
def test_a_capture_that_fails_leaves_the_device_as_it_was(model):
    graphed, plain = two(model.transformer)
    stream, forward = torch.cuda.current_stream(), model.transformer.forward

    def waits(*args):
        out = forward(*args)
        if torch.cuda.is_current_stream_capturing():
            out.sum().item()  # not allowed in a capture
        return out

    model.transformer.forward = waits
    try:
        same_states(graphed, plain, WARM + 3)
    finally:
        del model.transformer.forward
    assert not graphed.graphs.works
    assert torch.cuda.current_stream() == stream
    same_states(*two(model.transformer), WARM + 3)


@torch.inference_mode()
def test_plain_decoding_never_waits_for_the_device_between_rows(model):
    prompt = model.prompt("a red circle", size=(256, 64))
    events = generate(model.transformer, model.vocabulary, prompt, AR)
    for _ in zip(range(10), events, strict=False):
        pass
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in zip(range(20), events, strict=False):
            pass
    finally:
        torch.cuda.set_sync_debug_mode("default")
        events.close()


def test_the_cache_is_given_back_and_its_size_is_the_one_told():
    """Two layers as wide as those of the 7B shape, two guided pictures of 512x512: 546 MB of keys and values."""
    config = TransformerConfig(128, 4096, 256, 2, 32, 32, 8192)
    transformer = Transformer(config, dtype=torch.bfloat16, device="cuda").requires_grad_(False)
    sizes = {n: 8 + n for n in range(1, 17)}
    vocabulary = replace(V, grid=sizes, code_ids=torch.arange(64, 128), latents_per_unit=4)
    prompt, sampling = Prompt("mgpt2", "case", (0, 30, 31), "image", (16, 16)), replace(AR, batch=2)
    told = room.cache_nbytes(transformer, vocabulary, prompt, sampling)
    assert told > 5e8
    small = replace(prompt, units=(1, 1))  # what libraries keep from their first use on is not the cache's
    for _ in generate(transformer, vocabulary, small, sampling):
        pass
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    events = generate(transformer, vocabulary, prompt, sampling)
    next(events)
    assert told <= torch.cuda.memory_allocated() - before <= 1.15 * told
    events.close()
    assert torch.cuda.memory_allocated() - before < 0.1 * told


def test_a_picture_that_cannot_fit_is_refused_before_any_work(model):
    prompt = model.prompt("a red circle", size=(128, 128))
    with pytest.raises(InputError, match="free on cuda"):
        generate(model.transformer, model.vocabulary, prompt, replace(AR, batch=4096), free=1 << 20)


@torch.inference_mode()
def test_half_precision_decodes_nearly_the_same(model):
    codes = torch.randint(0, 64, (1, 32, 32), device="cuda")
    whole = decode(model.vq, codes)
    model.vq.to(torch.bfloat16)
    try:
        half = decode(model.vq, codes).float()
    finally:
        model.vq.to(torch.float32)
    assert torch.corrcoef(torch.stack([half.flatten(), whole.flatten()]))[0, 1] > 0.99


@torch.inference_mode()
def test_a_window_costs_little_more_than_one_token_at_full_width():
    """Two layers of the 7B shape in bf16: a pass of 2 x 32 tokens against one of 2 x 1, 4,000 keys."""
    config = TransformerConfig(4096, 4096, 11008, 2, 32, 32, 10240)
    transformer = Transformer(config, dtype=torch.bfloat16, device="cuda").requires_grad_(False)
    contexts = Contexts(transformer, 1, True, 4200)
    contexts.prefill([[1] * 4000] * contexts.n)
    contexts.prefill([[1] * 3990] * contexts.n, unconditional=True)
    ahead = torch.zeros(1, dtype=torch.int64, device="cuda")

    def seconds(width: int) -> float:
        tokens = torch.ones(1, width, dtype=torch.int64, device="cuda")
        for _ in range(8):
            contexts.peek(tokens, ahead, 0)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(50):
            contexts.peek(tokens, ahead, 0)
        torch.cuda.synchronize()
        return time.perf_counter() - start

    assert seconds(32) <= 1.6 * seconds(1)
