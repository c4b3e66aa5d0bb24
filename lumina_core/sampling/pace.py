"""Which window pays: measured on the passes of the run itself, remembered for the next one.

The window never changes what jacobi draws, so it may change at any pass. It does change which picture coupled draws
of a seed; there it stays as it was asked for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from .events import COUPLED_WINDOW, WINDOWS

if TYPE_CHECKING:
    from ..transformer import Transformer
    from .contexts import Contexts
    from .events import Sampling

log = logging.getLogger(__name__)

TRIAL = 6  # passes that a window is judged by
_known: WeakKeyDictionary[Transformer, dict[tuple, Pace]] = WeakKeyDictionary()


class Pace:
    """Tokens a second of each window, and the choice of the next pass."""

    def __init__(self, fixed: int | None):
        self.fixed = fixed
        self.tokens = dict.fromkeys(WINDOWS, 0)
        self.seconds = dict.fromkeys(WINDOWS, 0.0)
        self.passes = dict.fromkeys(WINDOWS, 0)
        self.window = fixed or WINDOWS[0]
        self.settled = fixed is not None

    @classmethod
    def of(cls, contexts: Contexts, sampling: Sampling) -> Pace:
        """The pace of this model, batch and guidance; kept while the model lives."""
        if sampling.window is not None:
            return cls(sampling.window)
        if sampling.decode == "coupled":
            return cls(COUPLED_WINDOW)
        paces = _known.setdefault(contexts.transformer, {})
        key = (contexts.cache.rows, str(contexts.device), contexts.dtype, sampling.cfg, sampling.temperature)
        return paces.setdefault(key, cls(None))

    @contextmanager
    def timed(self) -> Iterator[int]:
        """The window of the next pass; takes its time."""
        start = time.perf_counter()
        yield self.window
        self._last = time.perf_counter() - start

    def note(self, tokens: int) -> None:
        """Told how many places the pass brought forward; decides on the next window while trials last."""
        if self.settled:
            return
        w = self.window
        self.passes[w] += 1
        if self.passes[w] == 1:
            return  # the first pass of a size pays for warming up
        self.tokens[w] += tokens
        self.seconds[w] += self._last
        if self.passes[w] > TRIAL:
            untried = [x for x in WINDOWS if self.passes[x] <= TRIAL]
            self.window = untried[0] if untried else max(WINDOWS, key=self.speed)
            self.settled = not untried
            if self.settled:
                self._say()

    def speed(self, window: int) -> float:
        """Places a second."""
        return self.tokens[window] / self.seconds[window] if self.seconds[window] else 0.0

    def _say(self) -> None:
        if self.window == 2:
            log.info("Lumina-mGPT: drafts do not pay here; decoding one code a pass, as 'ar' does")
        else:
            gain = self.speed(self.window) / self.speed(2)
            log.info("Lumina-mGPT: window %d, %.1f times as fast as one code a pass", self.window, gain)
