"""The book that is kept on CUDA graphs, with a recorder that records nothing but functions."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager

import pytest
import torch

from lumina_core import load
from lumina_core.sampling import graphs
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


def two(transformer, n: int = 2, guided: bool = True, capacity: int = 700) -> list[Contexts]:
    """Two contexts of one model behind the same prompt, the first with graphs."""
    both = []
    for recorder in (Recorder(), None):
        contexts = Contexts(transformer, n, guided, capacity)
        if recorder:
            contexts.graphs = Graphs(transformer, contexts.cache, recorder)
        both.append(contexts)
    with torch.inference_mode():
        for contexts in both:
            contexts.prefill([[5, 6, 7, 8]] * contexts.n)
            if guided:
                contexts.prefill([[7, 8]] * contexts.n, unconditional=True)
    return both


@pytest.fixture
def pair(tiny_model):
    return two(tiny_model.transformer)


def same_states(graphed: Contexts, plain: Contexts, count: int, unconditional: bool = True) -> None:
    """Feeds both contexts the same tokens, one a pass."""
    for i in range(count):
        tokens = torch.tensor([[9 + i], [20 + i]])[: graphed.n]
        got, expected = (c.advance(tokens, unconditional) for c in (graphed, plain))
        torch.testing.assert_close(got, expected)


@torch.inference_mode()
def test_passes_are_recorded_when_warm_and_give_the_same_states(pair):
    same_states(*pair, WARM + 4)
    recorder = pair[0].graphs.recorder
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
    graphed.peek(torch.tensor([[9], [9]]), torch.zeros(2, dtype=torch.int64), 0)
    assert graphed.graphs.recorder.recorded == 3, "a shape is warm once and for all"
    assert {key[-1] for key in graphed.graphs.made} == {graphed.cache.capacity}


@pytest.mark.parametrize(("columns", "recorded"), [(48, 4), (16, 8)])
def test_the_usual_pass_is_recorded_at_once_in_each_bucket_and_a_rare_one_never(
    tiny_model, monkeypatch, columns, recorded
):
    """Rows as plain decoding feeds them: the row end comes with the last code."""
    contexts = Contexts(tiny_model.transformer, 1, True, 4 * BUCKET)
    recorder = Recorder()
    contexts.graphs = Graphs(tiny_model.transformer, contexts.cache, recorder)
    monkeypatch.setattr(tiny_model.transformer, "forward", lambda tokens, *_: torch.zeros(*tokens.shape, 1))
    passes = [0, 0]  # of codes alone, and with a row end
    while contexts.longest + columns + 1 <= contexts.cache.capacity:
        for column in range(columns):
            ended = column == columns - 1
            contexts.advance(torch.zeros(1, 1 + ended, dtype=torch.int64))
            passes[ended] += 1
    assert recorder.recorded == recorded
    both = recorded > 4
    assert recorder.replayed == passes[0] - WARM + both * (passes[1] - WARM)


@torch.inference_mode()
def test_a_narrow_pass_at_the_edge_of_a_bucket_stays_in_that_of_a_wide_one(pair):
    graphed, plain = pair
    graphed.longest = plain.longest = BUCKET - 4
    for _ in range(WARM + 3):
        for width in (1, 8):
            tokens, ahead = torch.arange(2 * width).view(2, width) + 9, torch.zeros(2, dtype=torch.int64)
            torch.testing.assert_close(graphed.peek(tokens, ahead, 0), plain.peek(tokens, ahead, 0))
    assert graphed.graphs.recorder.recorded == 2
    assert {key[-1] for key in graphed.graphs.made} == {graphed.cache.capacity}


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
def test_states_follow_weights_that_move(tiny_folder):
    transformer = load(tiny_folder).transformer
    graphed, plain = two(transformer)
    same_states(graphed, plain, WARM + 2)
    for p in transformer.parameters():
        old, p.data = p.data, p.data.clone()
        old.fill_(torch.nan)
    plain.parts = transformer.parts(plain.device)
    same_states(graphed, plain, WARM + 2)
    assert graphed.graphs.recorder.recorded == 2


@torch.inference_mode()
def test_states_are_the_same_behind_a_cache_that_grew_and_a_row_that_came(tiny_model):
    graphed, plain = two(tiny_model.transformer, 1, False, 40)
    same_states(graphed, plain, WARM + 2, unconditional=False)
    for contexts in (graphed, plain):
        contexts.reserve(700)
    same_states(graphed, plain, WARM + 2, unconditional=False)
    for contexts in (graphed, plain):
        contexts.guide()
        contexts.prefill([[7, 8]], unconditional=True)
    same_states(graphed, plain, WARM + 2)
    assert graphed.graphs.recorder.recorded == 3


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
        same_states(graphed, plain, 3 * WARM)
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


class Cuda:
    """As much of torch.cuda as a capture needs: the current stream, and the pool that memory comes from meanwhile.

    As there, a capture that fails to begin or to end leaves its stream the current one.
    """

    def __init__(self, fails: str):
        self.fails, self.capturing, self.done = fails, False, []
        self.main = self.current = self.Stream()

    class Stream:
        device_index = 0

        def __init__(self, device=None):
            self.waited = []

        def wait_stream(self, other):
            self.waited.append(other)

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        before, self.current = self.current, stream
        if self.fails == "begin":
            raise RuntimeError("capture_begin")
        self.capturing = True
        try:
            yield
        finally:
            if self.fails == "end":
                raise RuntimeError("capture_end")
            self.capturing = False
            self.current = before

    def end(self, device, pool):
        if not self.capturing:
            raise RuntimeError("not currently recording to mempool_id")
        self.capturing = False
        self.done.append(("ended", device, pool))

    def release(self, device, pool):
        self.done.append(("released", device, pool))

    def work(self):
        """What is to be recorded."""
        if self.capturing and self.fails == "work":
            raise KeyError("work")


@pytest.mark.parametrize(
    ("fails", "error", "done"),
    [
        ("", None, []),
        ("begin", RuntimeError, []),
        ("work", KeyError, []),
        ("end", RuntimeError, [("ended", 0, "pool"), ("released", 0, "pool")]),
    ],
)
def test_a_capture_that_fails_leaves_the_thread_on_its_stream_and_no_pool_open(
    monkeypatch, fails, error, done
):
    cuda = Cuda(fails)
    for name in ("stream", "graph", "Stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: cuda.current)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", type("Graph", (), {"replay": lambda self: None}))
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", cuda.end, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", cuda.release, raising=False)
    monkeypatch.setattr(graphs, "_threads", threading.local())
    recorder = graphs.Recorder(torch.device("cuda", 0))
    if error:
        with pytest.raises(error):
            recorder.record(cuda.work)
    else:
        recorder.record(cuda.work)
    assert cuda.current is cuda.main
    assert not cuda.capturing
    assert cuda.done == done
