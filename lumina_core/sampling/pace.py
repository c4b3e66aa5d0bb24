"""Which window pays: measured on the passes of the run itself, remembered for the next one.

The window never changes what jacobi draws, so it may change at any pass. It does change which picture coupled draws
of a seed; there it stays as it was asked for.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from .events import COUPLED_WINDOW, WINDOWS

if TYPE_CHECKING:
    from ..transformer import Transformer
    from .contexts import Contexts
    from .events import Sampling

log = logging.getLogger(__name__)

TRIAL = 5  # passes of a window between decisions
FIRST = 16
EAGER = 0.6  # how far what a window brings forward may lie above what one pass of it brought, as a share
_known: WeakKeyDictionary[Transformer, dict[tuple, Pace]] = WeakKeyDictionary()


class Pace:
    """Tokens a second of each window, and the choice of the next pass.

    Begins in the middle and goes to the neighbour that is not tried yet, wider first, while the best of those tried
    has one; goes on counting after that, and comes back to a window that few passes spoke against. The time of a pass
    is the least that was seen: others ran on the machine during the rest.
    """

    def __init__(self, fixed: int | None):
        self.fixed = fixed
        self.tokens = dict.fromkeys(WINDOWS, 0)
        self.passes = dict.fromkeys(WINDOWS, 0)
        self.seconds = dict.fromkeys(WINDOWS, math.inf)
        self.window = fixed or FIRST
        self.settled = fixed is not None

    @classmethod
    def of(cls, contexts: Contexts, sampling: Sampling) -> Pace:
        """The pace of this model, batch and guidance; kept while the model lives.

        In 16 bit the width of a pass shows in its rounding, so there it must not depend on a clock: the same seed is to
        give the same picture again.
        """
        if sampling.window is not None:
            return cls(sampling.window)
        if sampling.decode == "coupled":
            return cls(COUPLED_WINDOW)
        if contexts.dtype != torch.float32:
            return cls(FIRST)
        paces = _known.setdefault(contexts.transformer, {})
        key = (contexts.cache.rows, str(contexts.device), contexts.dtype, sampling.cfg, sampling.temperature)
        return paces.setdefault(key, cls(None))

    @contextmanager
    def timed(self) -> Iterator[int]:
        """The window of the next pass; takes its time."""
        start = time.perf_counter()
        yield self.window
        self._last = time.perf_counter() - start

    def note(self, tokens: int, usual: bool = True) -> None:
        """Told how many places the pass brought forward; decides on the window now and then.

        A pass where the window could not bring what it usually does counts for its time alone.
        """
        if self.fixed is not None:
            return
        w = self.window
        self.seconds[w] = min(self.seconds[w], self._last)
        if not usual:
            return
        self.passes[w] += 1
        self.tokens[w] += tokens
        if self.passes[w] % TRIAL == 0:
            self._decide()

    def speed(self, window: int) -> float:
        """Places a second."""
        passes = self.passes[window]
        return self.tokens[window] / passes / self.seconds[window] if passes else 0.0

    def _hope(self, window: int) -> float:
        """The speed that a window may yet turn out to have."""
        return self.speed(window) * (1 + EAGER / max(1, self.passes[window]) ** 0.5)

    def _decide(self) -> None:
        best = max(WINDOWS, key=self._hope)
        untried = [w for w in (2 * best, best // 2) if self.passes.get(w) == 0]
        self.window = untried[0] if untried else best
        if not untried and not self.settled:
            self.settled = True
            self._say()

    def _say(self) -> None:
        if self.window == min(WINDOWS):
            log.info("Lumina-mGPT: drafts do not pay here; decoding one code a pass, as 'ar' does")
        else:
            speed = self.speed(self.window)
            log.info("Lumina-mGPT: %d drafts a pass, %.0f tokens a second", self.window, speed)
