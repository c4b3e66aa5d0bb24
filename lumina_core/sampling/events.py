"""Settings of a generation, and what it reports while it runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import InputError
from ..unirep import TokenGrid

MODES = ("ar", "jacobi", "coupled")
LARGEST_WINDOW = 256
# tried where none is set, each against its half and its double; 2 is plain decoding with row ends taken along
WINDOWS = (2, 3, 4, 6, 8, 12, 16, 24, 32)
COUPLED_WINDOW = 32


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; names are those of the node inputs. Picture i of a batch uses seed + i."""

    seed: int = 0
    cfg: float = 4.0
    temperature: float = 1.0
    image_top_k: int = 4096
    text_top_k: int = 10
    decode: str = "jacobi"
    batch: int = 1
    max_tokens: int = 10240
    upstream_exact: bool = False  # upstream's guidance decay (2.0) instead of a constant scale
    window: int | None = None  # drafts a pass of jacobi and coupled; None: chosen by speed

    def __post_init__(self):
        limits = {
            "cfg": (0.0, 100.0),
            "temperature": (0.0, 10.0),
            "image_top_k": (0, 1 << 20),
            "text_top_k": (0, 1 << 20),
            "batch": (1, 4096),
            "max_tokens": (1, 1 << 20),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:  # nan is refused too
                raise InputError(f"{name} is {value}; it may be from {low} to {high}.")
        if self.decode not in MODES:
            raise InputError(f"decode is {self.decode!r}; it may be {', '.join(MODES)}.")
        if self.window is not None and not 1 <= self.window <= LARGEST_WINDOW:
            raise InputError(f"window is {self.window}; it may be from 1 to {LARGEST_WINDOW}, or auto.")

    @property
    def spare(self) -> int:
        """Places of the cache behind the last token that drafts may take."""
        return 0 if self.decode == "ar" else self.window or max(*WINDOWS, COUPLED_WINDOW)


@dataclass(frozen=True)
class Progress:
    """Tokens drawn so far, and how many there will be at most.

    Of one picture where a batch is drawn in step, of all where they come one after the other. A free answer counts
    against the most it may write until it begins a picture, then against the end of that picture. Where memory ran out
    it begins anew.
    """

    done: int
    total: int


@dataclass(frozen=True, eq=False)
class RowFinished:
    """A row of codes was finished: `codes` (pictures, rows so far, w) stay on the device they were drawn on."""

    codes: torch.Tensor
    shape: tuple[int, int]  # codes (h, w) of the whole picture


@dataclass(frozen=True, eq=False)
class PictureFinished:
    """Picture number `index` of the batch is whole."""

    index: int
    grid: TokenGrid


@dataclass(frozen=True)
class TextPiece:
    """Tokens of text that answer number `index` was given."""

    index: int
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class AnswerFinished:
    """Free answer number `index` is over: all its tokens, and why it ended.

    "stop": the model ended it. "limit": `max_tokens` or the model's positions ran out. "picture": it began a picture
    that does not fit in what was left; the picture's start, and its sizes where it drew them, are the last tokens.
    """

    index: int
    tokens: tuple[int, ...]
    reason: str


Event = Progress | RowFinished | PictureFinished | TextPiece | AnswerFinished
