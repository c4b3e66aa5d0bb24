"""CUDA graphs of whole passes: a pass of thousands of small launches becomes one.

One graph for each shape of pass (rows, tokens) and bucket of keys, recorded when that shape has been run a few times
and is no rare one, all in one memory pool, all over one cache. They die when their bucket is left, with the cache, and
when a weight has moved or changed its type; where recording fails, passes are run as before. Source: the CUDA Graphs
section of PyTorch's "CUDA semantics".
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ..cache import KVCache
    from ..transformer import Transformer

log = logging.getLogger(__name__)

BUCKET = 512  # keys that a graph's reach is rounded up to
WARM = 3  # passes of a shape before it is recorded
RARE = 25  # a shape of fewer passes than one in so many gets no graph: less than 20 of plain decoding's 512 a bucket
MOST = 64  # graphs at a time


class Recorder:
    """Records work on a CUDA device. Any object with `record(work)`, giving (replay, result), can stand in."""

    def __init__(self, device: torch.device):
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = _stream_of_thread(device)

    def record(self, work: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        """A function that does `work` again on the same tensors, and where its result then stands."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            work()  # libraries set themselves up outside the recording
        current.wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads of the process, a host's for one, may call CUDA meanwhile
        where = {"pool": self.pool, "stream": self.stream, "capture_error_mode": "thread_local"}
        try:
            # the outer one, because a capture that cannot begin or end leaves the thread on its own stream
            with torch.cuda.stream(current), torch.cuda.graph(graph, **where):
                result = work()
        except BaseException:
            self._close()
            raise
        return graph.replay, result

    def _close(self) -> None:
        """Ends what a capture that could not end leaves open: memory goes on to be had from its pool, which it holds.

        Does nothing where it did end.
        """
        end = getattr(torch._C, "_cuda_endAllocateToPool", None)
        release = getattr(torch._C, "_cuda_releasePool", None)
        if end is None or release is None:
            return
        try:
            end(self.stream.device_index, self.pool)
        except RuntimeError:  # it had ended, or never begun
            return
        release(self.stream.device_index, self.pool)


_threads = threading.local()


def _stream_of_thread(device: torch.device) -> torch.cuda.Stream:
    """The stream that a thread records on: one for good, because cuBLAS keeps memory for each it has seen."""
    streams = vars(_threads).setdefault("streams", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)
    return streams[device]


def bucket_of(length: int, cache: KVCache) -> int:
    """Keys to read where `length` stand: a few lengths only, as each costs a graph, and cuDNN a plan of attention."""
    return min(-(-length // BUCKET) * BUCKET, cache.capacity)


def reach(length: int, cache: KVCache, device: torch.device) -> int:
    """Keys to read in a pass without graphs, where `length` stand."""
    return bucket_of(length, cache) if device.type == "cuda" else length


class Graphs:
    """Runs passes of one transformer over one cache, recorded where that is possible."""

    def __init__(self, transformer: Transformer, cache: KVCache, recorder: Recorder):
        self.transformer, self.cache, self.recorder = transformer, cache, recorder
        # by shape and bucket
        self.made: dict[tuple, tuple[Callable[[], None], list[torch.Tensor]]] = {}
        self.seen: Counter[tuple] = Counter()  # passes of each shape
        self.recent: Counter[tuple] = Counter()  # the same, halved with each new bucket
        self.bucket = 0
        self.weights = fingerprint(transformer)
        self.parts = transformer.parts(cache.steps.device)
        self.works = True

    @staticmethod
    def possible(transformer: Transformer, device: torch.device) -> bool:
        """Whether graphs can be had: on CUDA, with all weights there, and not switched off by the owner."""
        if device.type != "cuda" or not getattr(transformer, "graphs", True):
            return False
        return all(p.device.type == "cuda" for p in transformer.parameters())

    @classmethod
    def of(cls, transformer: Transformer, cache: KVCache, device: torch.device) -> Graphs | None:
        """Graphs where they can be had."""
        return cls(transformer, cache, Recorder(device)) if cls.possible(transformer, device) else None

    def run(self, tokens: torch.Tensor, start: torch.Tensor, rows: slice, length: int) -> torch.Tensor:
        """States (R, T, hidden) of a pass as `Transformer.forward` gives them."""
        if fingerprint(self.transformer) != self.weights:
            self.drop()
            self.weights = fingerprint(self.transformer)
            self.parts = self.transformer.parts(self.cache.steps.device)
        shape = (*tokens.shape, rows.start, rows.stop)
        bucket = self._count(shape, length)
        key = (*shape, bucket)
        if key not in self.made and not (self._pays(shape) and self._record(key, tokens, start, rows)):
            return self.transformer(tokens, start, self.cache, rows, bucket, self.parts)
        replay, (held_tokens, held_start, result, *_) = self.made[key]
        held_tokens.copy_(tokens)
        held_start.copy_(start)
        replay()
        return result.clone()

    def _count(self, shape: tuple, length: int) -> int:
        """Notes a pass; gives its bucket, which never goes back: a narrow pass may reach less far than a wide one."""
        bucket = bucket_of(length, self.cache)
        if bucket > self.bucket:
            self.bucket = bucket
            self.recent = Counter({other: passes / 2 for other, passes in self.recent.items()})
        self.seen[shape] += 1
        self.recent[shape] += 1
        return self.bucket

    def _pays(self, shape: tuple) -> bool:
        """Whether a shape is worth a graph: it is warm, and not rare, as passes that take a row end along are."""
        often = self.recent[shape] * RARE >= self.recent.total()
        return self.works and self.seen[shape] > WARM and often and len(self.made) < MOST

    def _record(self, key: tuple, tokens: torch.Tensor, start: torch.Tensor, rows: slice) -> bool:
        """Whether it could be recorded; graphs of smaller buckets are gone then."""
        bucket = key[-1]
        held_tokens, held_start = tokens.clone(), start.clone()
        try:
            replay, result = self.recorder.record(
                lambda: self.transformer(held_tokens, held_start, self.cache, rows, bucket, self.parts)
            )
        except (
            RuntimeError
        ) as e:  # whatever CUDA says, the picture can be drawn without; a host's Cancel is no such
            self.works = False
            self.drop()
            log.warning("Lumina-mGPT: no CUDA graphs here (%s); going on without", str(e).split("\n")[0])
            return False
        tables = list(self.transformer.rotary.tables.values())  # replays read them: they must stay
        self.made = {other: graph for other, graph in self.made.items() if other[-1] == bucket}
        self.made[key] = (replay, [held_tokens, held_start, result, *tables])
        return True

    def drop(self) -> None:
        """Forgets all graphs."""
        self.made.clear()
        self.seen.clear()
        self.recent.clear()
        self.bucket = 0


def fingerprint(transformer: Transformer) -> tuple:
    """Changes when weights were moved, cast or replaced: addresses and types of a few of them."""
    first, last = transformer.model.layers[0], transformer.model.layers[-1]
    some = (
        transformer.model.embed_tokens.weight,
        transformer.model.norm.weight,
        first.self_attn.q_proj.weight,
        first.mlp.down_proj.weight,
        last.self_attn.q_proj.weight,
        last.mlp.down_proj.weight,
    )
    return tuple((w.data_ptr(), w.dtype) for w in some)
