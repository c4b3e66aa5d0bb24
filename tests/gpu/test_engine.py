"""What only a CUDA device can show: graphs give the same states, nothing waits for the device, memory comes back."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from lumina_core import InputError, PictureFinished, Sampling, generate, load
from lumina_core.sampling import room
from lumina_core.sampling.contexts import Contexts
from lumina_core.transformer import Transformer, TransformerConfig
from lumina_core.vq.decoding import decode

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


@torch.inference_mode()
def test_a_graph_is_recorded_and_gives_the_same_states(model):
    both = [Contexts(model.transformer, 2, True, 600) for _ in range(2)]
    both[1].graphs = None
    for contexts in both:
        contexts.prefill([[5, 6, 7, 8]] * contexts.n)
        contexts.prefill([[7, 8]] * contexts.n, unconditional=True)
    for i in range(12):
        tokens = torch.tensor([[9 + i], [20 + i]], device="cuda")
        a, b = (contexts.advance(tokens) for contexts in both)
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert both[0].graphs.works
    assert len(both[0].graphs.made) == 1


@torch.inference_mode()
def test_graphs_follow_weights_that_move(model):
    before = pictures(model, AR)
    model.transformer.to("cpu")
    model.transformer.to("cuda")
    after = pictures(model, AR)
    assert float((before[0] == after[0]).float().mean()) > 0.5


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


def test_the_cache_is_given_back_and_its_size_is_the_one_told(model):
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    prompt = model.prompt("a red circle", size=(512, 512))
    events = generate(model.transformer, model.vocabulary, prompt, AR)
    next(events)
    told = room.cache_nbytes(model.transformer, model.vocabulary, prompt, AR)
    assert told <= torch.cuda.memory_allocated() - before <= 1.15 * told + 64e6
    events.close()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() - before < 64e6


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
