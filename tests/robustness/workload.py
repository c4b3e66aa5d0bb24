"""What the tests of faults and endurance run: tiny checkpoints of all families, and jobs on them that can be ended.

A job calls `poll` as a host does: at every event, and in the layers of both networks.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image

from lumina_core import (
    AnswerFinished,
    Model,
    PictureFinished,
    Restoration,
    Sampling,
    ask,
    generate,
    load,
)
from lumina_core.weights import Bare
from tests.core import checkpoints

POSITIONS = {"mgpt1": 1024, "mgpt2": 1024, "pure": 300}  # few, so that PURE's tiles are small
DRAWN = Sampling(seed=5, cfg=3.0, image_top_k=0, text_top_k=4, max_tokens=40)
Poll = Callable[[], object]


class Cancel(Exception):
    """Stands for a host's Cancel."""


def build_all(folder: Path) -> dict[str, Path]:
    return {
        family: checkpoints.build(folder / family, family, max_position_embeddings=POSITIONS[family])
        for family in POSITIONS
    }


def picture(side: int = 64, seed: int = 4) -> Image.Image:
    pixels = torch.randint(0, 256, (side, side, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


@dataclass
class Watched:
    """A model whose layers poll, and of whose key-value caches it is known whether they live."""

    model: Model
    poll: Poll = lambda: None
    tables: list[weakref.ref] = field(default_factory=list)

    def __post_init__(self):
        self.model.transformer.poll = lambda: self.poll()  # `polled` changes it
        for layer in (m for m in self.model.vq.modules() if isinstance(m, torch.nn.Conv2d)):
            layer.register_forward_pre_hook(lambda *_: self.poll() and None)
        make = self.model.transformer.new_cache

        def new_cache(*args):
            cache = make(*args)
            self.tables = [weakref.ref(t) for t in (*cache.keys, *cache.values)]
            return cache

        self.model.transformer.new_cache = new_cache

    @property
    def cache_lives(self) -> bool:
        return any(ref() is not None for ref in self.tables)

    @contextmanager
    def polled(self, poll: Poll):
        self.poll = poll
        try:
            yield self.model
        finally:
            self.poll = lambda: None


def events(model: Model, prompt, sampling: Sampling, poll: Poll) -> list:
    """What a generation hands out: codes of pictures, tokens of answers."""
    out = []
    for event in generate(model.transformer, model.vocabulary, prompt, sampling):
        poll()
        if isinstance(event, PictureFinished):
            out.append((event.index, event.grid.codes.tolist()))
        elif isinstance(event, AnswerFinished):
            out.append((event.index, event.tokens, event.reason))
    return out


def draw(watched: Watched, poll: Poll, decode: str, window: int | None = 8, **settings) -> list:
    """Two pictures with guidance, decoded."""
    with watched.polled(poll) as model:
        prompt = replace(model.converse(["a red circle"], size=(32, 32)), expects="image")
        sampling = replace(DRAWN, **{"decode": decode, "batch": 2, "window": window, **settings})
        told = events(model, prompt, sampling, poll)
        return [told, [model.decode(torch.tensor(codes)).tobytes() for _, codes in told]]


def dense(watched: Watched, poll: Poll) -> bytes:
    """A depth map of a picture."""
    with watched.polled(poll) as model:
        request = ask(model, "depth", picture(), size=(64, 64))
        [(_, codes)] = events(model, request.prompt, replace(DRAWN, window=16), poll)
        return request.place(model.decode(torch.tensor(codes))).tobytes()


def chat(watched: Watched, poll: Poll, decode: str = "jacobi") -> list:
    """An answer about a picture."""
    with watched.polled(poll) as model:
        prompt = replace(model.converse(["what is this?"], [picture(32)], target=32), expects="text")
        return events(model, prompt, replace(DRAWN, cfg=1.0, decode=decode), poll)


def restore(watched: Watched, poll: Poll) -> list:
    """A picture restored in several tiles."""
    with watched.polled(poll) as model:
        job = Restoration(model, picture(20), 2.0, seed=3)
        sampling = replace(DRAWN, cfg=0.8, text_top_k=1, max_tokens=12, window=16)
        work = job.abreast(job.prompts(), sampling)
        for _ in job.draw(work, 2):
            poll()
        done = job.finish()
        return [done.picture.tobytes(), done.texts]


def loading(folder: Path, poll: Poll) -> list:
    """A checkpoint loaded, and the sum of its weights."""
    model = load(folder, report=lambda done, total: poll())
    return [float(p.double().sum()) for p in (*model.transformer.parameters(), *model.vq.parameters())]


def jobs_of(models: dict[str, Watched], folders: dict[str, Path]) -> dict[str, Callable[[Poll], object]]:
    """The jobs by name; each gives the same every time it is run."""
    return {
        "ar": lambda poll: draw(models["mgpt2"], poll, "ar"),
        "jacobi": lambda poll: draw(models["mgpt2"], poll, "jacobi"),
        "coupled": lambda poll: draw(models["mgpt1"], poll, "coupled"),
        "depth": lambda poll: dense(models["mgpt1"], poll),
        "chat": lambda poll: chat(models["mgpt1"], poll),
        "restore": lambda poll: restore(models["pure"], poll),
        "load": lambda poll: loading(folders["mgpt2"], poll),
    }


class Countdown:
    """Counts polls, and ends the job at one of them."""

    def __init__(self, at: int = 0, error: Callable[[], BaseException] = Cancel):
        self.count, self.at, self.error = 0, at, error

    def __call__(self) -> None:
        self.count += 1
        if self.count == self.at:
            raise self.error()


class Failing(Bare):
    """Layers of an injected `ops` that fail where they are told to: the calls of `Linear` or `Conv2d` are counted.

    They stand for a device: what a layer of a real one says when there is no memory for its result.
    """

    at: tuple[int, ...] = ()  # numbers of the calls that fail
    calls = 0
    kind = "Linear"
    error: Callable[[], BaseException] = MemoryError
    made: weakref.WeakSet = weakref.WeakSet()

    @classmethod
    def call(cls, kind: str) -> None:
        if kind == cls.kind:
            cls.calls += 1
            if cls.calls in cls.at:
                raise cls.error()

    @classmethod
    @contextmanager
    def failing(cls, kind: str, at: tuple[int, ...], error: Callable[[], BaseException]):
        cls.kind, cls.at, cls.error, cls.calls = kind, at, error, 0
        try:
            yield cls
        finally:
            cls.at = ()

    class Linear(Bare.Linear):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            Failing.made.add(self)

        def forward(self, x):
            Failing.call("Linear")
            return super().forward(x)

        def _load_from_state_dict(self, *args):
            Failing.call("filling")
            super()._load_from_state_dict(*args)

    class Conv2d(Bare.Conv2d):
        def forward(self, x):
            Failing.call("Conv2d")
            return super().forward(x)


def resident(thorough: bool = True) -> int:
    """Bytes of this process in main memory; thorough: after what nobody holds is gone."""
    import psutil

    if thorough:
        gc.collect()
    return psutil.Process().memory_info().rss
