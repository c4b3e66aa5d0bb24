"""The book that is kept on CUDA graphs, with a recorder that records nothing but functions."""

from __future__ import annotations

import logging

import pytest
import torch

from lumina_core.sampling.contexts import Contexts
from lumina_core.sampling.graphs import BUCKET, WARM, Graphs


class Recorder:
    """Stands for the one on CUDA: a replay does the work again and puts the result where it was."""

    def __init__(self, fails: bool = False):
        self.fails, self.recorded, self.replayed = fails, 0, 0

    def record(self, work):
        if self.fails:
            raise RuntimeError("operation not permitted\nwhen capturing")
        self.recorded += 1
        result = work()

        def replay():
            self.replayed += 1
            result.copy_(work())

        return replay, result


@pytest.fixture
def pair(tiny_model):
    """Two contexts of one model behind the same prompt, the first with graphs."""
    both = []
    for recorder in (Recorder(), None):
        contexts = Contexts(tiny_model.transformer, 2, True, 700)
        if recorder:
            contexts.graphs = Graphs(tiny_model.transformer, contexts.cache, recorder)
        both.append(contexts)
    with torch.inference_mode():
        for contexts in both:
            contexts.prefill([[5, 6, 7, 8]] * contexts.n)
            contexts.prefill([[7, 8]] * contexts.n, unconditional=True)
    return both


@torch.inference_mode()
def test_passes_are_recorded_when_warm_and_give_the_same_states(pair):
    graphed, plain = pair
    for i in range(WARM + 4):
        tokens = torch.tensor([[9 + i], [20 + i]])
        torch.testing.assert_close(graphed.advance(tokens), plain.advance(tokens))
    recorder = graphed.graphs.recorder
    assert (recorder.recorded, recorder.replayed) == (1, 4)


@torch.inference_mode()
def test_each_shape_and_bucket_has_a_graph_of_its_own(pair):
    graphed, plain = pair
    for width in (1, 4):
        for _ in range(WARM + 1):
            tokens, ahead = torch.arange(2 * width).view(2, width) + 9, torch.zeros(2, dtype=torch.int64)
            torch.testing.assert_close(graphed.peek(tokens, ahead, 0), plain.peek(tokens, ahead, 0))
    assert graphed.graphs.recorder.recorded == 2
    assert {key[-1] for key in graphed.graphs.made} == {BUCKET}
    graphed.longest += BUCKET
    for _ in range(WARM + 1):
        graphed.peek(torch.tensor([[9], [9]]), torch.zeros(2, dtype=torch.int64), 0)
    assert {key[-1] for key in graphed.graphs.made} == {BUCKET, graphed.cache.capacity}


def warm(contexts) -> None:
    for _ in range(WARM + 1):
        contexts.peek(torch.tensor([[9], [9]]), torch.zeros(2, dtype=torch.int64), 0)


@torch.inference_mode()
def test_graphs_are_dropped_when_a_weight_moves_and_made_again(pair):
    graphed, _ = pair
    warm(graphed)
    weight = graphed.transformer.model.layers[-1].mlp.down_proj.weight
    kept = weight.data
    try:
        weight.data = kept.clone()
        graphed.peek(torch.tensor([[9], [9]]), torch.zeros(2, dtype=torch.int64), 0)
        assert not graphed.graphs.made
        warm(graphed)
        assert graphed.graphs.recorder.recorded == 2
    finally:
        weight.data = kept


@torch.inference_mode()
def test_graphs_are_dropped_with_the_cache_and_when_it_grows(pair):
    graphed, _ = pair
    warm(graphed)
    graphed.reserve(900)
    assert not graphed.graphs.made
    warm(graphed)
    assert graphed.graphs.made
    graphed.free()
    assert not graphed.graphs.made


@torch.inference_mode()
def test_what_cannot_be_recorded_runs_as_before_and_is_told_once(pair, caplog):
    graphed, plain = pair
    graphed.graphs.recorder.fails = True
    with caplog.at_level(logging.WARNING):
        for i in range(3 * WARM):
            tokens = torch.tensor([[9 + i], [20 + i]])
            torch.testing.assert_close(graphed.advance(tokens), plain.advance(tokens))
    assert caplog.text.count("no CUDA graphs here (operation not permitted)") == 1


def test_a_pass_that_is_not_recorded_reads_as_many_keys_as_its_graph_will(pair, monkeypatch):
    graphed, _ = pair
    lengths, whole = [], graphed.transformer.forward

    def seen(tokens, start, cache, rows, length, parts):
        lengths.append(length)
        return whole(tokens, start, cache, rows, length, parts)

    monkeypatch.setattr(graphed.transformer, "forward", seen)
    with torch.inference_mode():
        warm(graphed)
    assert set(lengths) == {BUCKET}


def test_there_are_no_graphs_on_a_cpu(tiny_model):
    contexts = Contexts(tiny_model.transformer, 1, False, 8)
    assert contexts.graphs is None
