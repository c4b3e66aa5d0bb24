"""One picture or its start, timed by phase: prefill, decoding, image tokenizer; passes counted where they happen."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .. import Model, PictureFinished, Progress, Prompt, Sampling, generate
from ..unirep import Vocabulary


@dataclass(frozen=True)
class Run:
    """What one picture took."""

    passes: int  # of decoding; prefill passes are not among them
    tokens: int  # drawn, row ends among them
    width: int  # tokens a row that most of these passes were fed
    prefill: float  # seconds
    decode: float  # with capture
    vq: float
    peak: int | None  # bytes; None where the system does not tell
    capture: float = 0.0  # seconds of recording CUDA graphs


class Passes:
    """Counts the passes of a transformer while it is open, by hooks on its forward that go when it closes.

    `is_prefill(args, kwargs)` tells a prefill from a decoding pass. `prefilled` is when the last prefill was over.
    A CUDA graph is recorded on a stream of its own, and runs no forward when it is replayed: what is done on other
    streams is no pass but `capture`, and with `graphs` the passes have to be counted elsewhere.
    """

    def __init__(self, module: nn.Module, device: torch.device, is_prefill: Callable[[tuple, dict], bool]):
        self.module, self.device, self.is_prefill = module, device, is_prefill
        self.widths: Counter[int] = Counter()
        self.prefills = self.graphs = 0
        self.capture = 0.0

    def __enter__(self) -> Passes:
        self.stream = stream_of(self.device)
        self.handles = [
            self.module.register_forward_pre_hook(self._begins),
            self.module.register_forward_hook(self._ends, with_kwargs=True),
        ]
        synchronize(self.device)
        self.start = self.prefilled = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        synchronize(self.device)
        self.end = time.perf_counter()
        for handle in self.handles:
            handle.remove()

    def _begins(self, *_: object) -> None:
        if stream_of(self.device) != self.stream and not is_capturing(self.device):
            self.began = time.perf_counter()  # the rehearsal of a recording

    def _ends(self, module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        if stream_of(self.device) != self.stream:
            if is_capturing(self.device):
                self.graphs += 1
                self.capture += time.perf_counter() - self.began
        elif self.is_prefill(args, kwargs):
            self.prefills += 1
            synchronize(self.device)
            self.prefilled = time.perf_counter()
        else:
            self.widths[tokens_of(args, kwargs).shape[1]] += 1

    @property
    def decoding(self) -> int:
        return sum(self.widths.values())

    @property
    def width(self) -> int:
        return self.widths.most_common(1)[0][0] if self.widths else 0


def tokens_of(args: tuple, kwargs: dict) -> torch.Tensor:
    """The tokens (R, T) a pass was fed."""
    return args[0] if args else kwargs.get("tokens", kwargs.get("input_ids"))


def starts_a_row(args: tuple, kwargs: dict) -> bool:
    """Whether a pass of our transformer is a prefill: all of its rows start at the same number, not at cursors."""
    return isinstance(args[1] if len(args) > 1 else kwargs.get("start", 0), int)


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def stream_of(device: torch.device) -> object:
    """The stream that work goes to; None where there are none."""
    return torch.cuda.current_stream(device) if device.type == "cuda" else None


def is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def tokens_to_draw(vocabulary: Vocabulary, prompt: Prompt) -> int:
    """Codes and row ends of the picture that a prompt leaves to draw."""
    h, w = vocabulary.codes_shape(prompt.units)
    given = 0 if prompt.open_at is None else len(prompt.tokens) - prompt.open_at - 3
    return h * (w + 1) - given


def passes_told(events: int, mode: str, whole: bool = True) -> int:
    """Decoding passes of a picture by its number of `Progress` events.

    Every pass ends in one and a whole picture in one more; plain decoding does not feed its last code.
    """
    return events - (2 if mode == "ar" else 1) if whole else events


def draw(model: Model, prompt: Prompt, sampling: Sampling, most: int | None = None) -> Run:
    """Draws one picture and decodes it.

    It is left once it has `most` tokens; a pass may bring some more. Then an empty picture is decoded, which takes as
    long.
    """
    device = model.transformer.model.norm.weight.device
    whole = tokens_to_draw(model.vocabulary, prompt)
    codes = torch.zeros(model.vocabulary.codes_shape(prompt.units), dtype=torch.int64)
    peak, events, tokens = Peak(device), 0, 0
    with Passes(model.transformer, device, starts_a_row) as passes:
        drawing = generate(model.transformer, model.vocabulary, prompt, sampling)
        for event in drawing:
            if isinstance(event, Progress):
                events += 1
                # the last event is the picture's end, and no token
                tokens = min(whole, whole + 1 - (event.total - event.done))
                if (most or whole) <= tokens < whole:
                    break
            elif isinstance(event, PictureFinished):
                codes = event.grid.codes
        drawing.close()
    start = time.perf_counter()
    model.decode(codes)
    return Run(
        passes_told(events, sampling.decode, tokens == whole) if passes.graphs else passes.decoding,
        tokens,
        passes.width,
        passes.prefilled - passes.start,
        passes.end - passes.prefilled,
        time.perf_counter() - start,
        peak.bytes(),
        passes.capture,
    )


class Peak:
    """The most memory that stood at once since this was made, weights included."""

    STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def __init__(self, device: torch.device):
        self.device = device
        self.known = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            try:
                self.CLEAR.write_text("5")  # Linux: the peak of the process starts anew
            except OSError:
                self.known = False

    def bytes(self) -> int | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if not self.known:
            return None
        fields = dict(line.split(":", 1) for line in self.STATUS.read_text().splitlines() if ":" in line)
        return int(fields["VmHWM"].split()[0]) * 1024


def copy_speed(device: torch.device) -> float:
    """Bytes a second that a plain copy reads and writes: the bandwidth that can be had here."""
    size = 1 << (30 if device.type == "cuda" else 27)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(5):
        synchronize(device)
        start = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        best = max(best, 2 * size / (time.perf_counter() - start))
    return best
