"""Which window pays: measured on the passes of the run itself, remembered for the next one.

The window never changes what jacobi draws, so it may change at any pass. It does change which picture coupled draws
of a seed; there it stays as it was asked for.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
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

FIRST = 16
FIRST_OF_SEVERAL = 12  # where a pass feeds several rows, a batch or guidance, so that each place costs more
TRIAL = 5  # passes of each of two windows that are held against each other, turn about
SPREAD = 0.2  # standard error of what passes of a window bring, relative to it, from which on that is known
WIDER = 1.15  # what a window of twice the width brings forward, as far as is known before it is tried
PRIOR = 2  # passes that such a guess counts for
STAY = 1.1  # what another window than the first must promise: few passes tell little
SURE = 64  # passes that are counted where no clock may decide
PAYS = 1.25  # places a pass of the first window must bring there: on a graphics card it costs little more than one of 2
_known: WeakKeyDictionary[Transformer, dict[tuple, Pace]] = WeakKeyDictionary()


class Pace:
    """How far passes of each window bring a picture forward, what they cost, and the choice of the next one.

    Begins in the middle. A neighbour that may be faster is tried in turns with the window in use, so that whatever
    else the machine does slows both; the cheapest pass of each tells their costs. What passes bring is counted apart
    from that, among passes of the same window: drafts that a wider one has refined hold more often. The count goes on
    and may bring a window back.
    """

    def __init__(self, fixed: int | None, first: int = FIRST):
        self.fixed, self.first = fixed, first
        self.window = fixed or first
        self.settled = fixed is not None
        self.brought: dict[int, Counter[int]] = {w: Counter() for w in WINDOWS}  # window -> places -> passes
        self.cost = {first: 1.0}  # of a pass, relative to the first window
        self.turns: list[int] = []  # windows of the coming passes of a trial, the next one last
        self.least: dict[int, float] = {}  # seconds, of the windows on trial

    @classmethod
    def of(cls, contexts: Contexts, sampling: Sampling) -> Pace:
        """The pace of this model, batch and guidance; kept while the model lives. Every thread has its own: passes of
        two that were counted as one would tell nothing.

        In 16 bit the width of a pass shows in its rounding, so there it must not depend on a clock (see `Counted`).
        """
        if sampling.window is not None:
            return cls(sampling.window)
        if sampling.decode == "coupled":
            return cls(COUPLED_WINDOW)
        if contexts.dtype != torch.float32:
            return Counted()
        paces = _known.setdefault(contexts.transformer, {})
        kind = (contexts.cache.rows, str(contexts.device), contexts.dtype, sampling.cfg, sampling.temperature)
        key = (threading.get_ident(), *kind)
        return paces.setdefault(key, cls(None, FIRST if contexts.cache.rows == 1 else FIRST_OF_SEVERAL))

    @contextmanager
    def timed(self) -> Iterator[int]:
        """The window of the next pass; takes its time."""
        start = time.perf_counter()
        yield self.window
        self._last = time.perf_counter() - start

    def note(self, places: int, usual: bool = True) -> None:
        """Told how many places the pass brought forward; decides on the next window.

        A pass where the window could not do what it usually does counts for nothing.
        """
        if self.fixed is not None or not usual:
            return
        if self.turns:
            self.least[self.window] = min(self.least.get(self.window, math.inf), self._last)
            self.turns.pop()
        else:
            self.brought[self.window][places] += 1
        if not self.turns and self._is_known(self.first):
            self._weigh()
            self._choose()
        self.window = self.turns[-1] if self.turns else self.window

    def speed(self, window: int) -> float:
        """Places for the cost of one pass of the first window."""
        return self.places(window) / self.cost[window]

    def places(self, window: int) -> float:
        """How far a pass of a window brings a picture; at first by what the most used one lets expect."""
        most = max(self.brought, key=lambda w: self.brought[w].total())
        own = self.brought[window]
        if window == most:
            return _mean(own, window)
        if window < most:
            guess = _mean(self.brought[most], window)  # at the most: fewer drafts have been refined as often
        else:
            guess = _mean(self.brought[most], most) * WIDER ** math.log2(window / most)
        return (own.total() * _mean(own, window) + PRIOR * guess) / (own.total() + PRIOR)

    def _weigh(self) -> None:
        """Ends a trial: the cost of the newcomer follows from the cost of the window it was tried with."""
        for window in self.least.keys() - self.cost.keys():
            known = next(w for w in self.least if w in self.cost)
            self.cost[window] = self.cost[known] * self.least[window] / self.least[known]
        self.least.clear()

    def _choose(self) -> None:
        best = max(self.cost, key=lambda w: self.speed(w) * (STAY if w == self.first else 1))
        narrower = max(best // 2, min(WINDOWS))
        # a wider pass costs no less, a narrower one at least its share
        least = {2 * best: self.cost[best], narrower: self.cost[best] * narrower / best}
        hopes = {w: self.places(w) / cost for w, cost in least.items() if self._is_new(w)}
        tried = max(hopes, key=hopes.get, default=best)
        self.window = best
        known = self._is_known(best)
        if tried != best and known and hopes[tried] > STAY * self.speed(best):
            self.turns = [best, tried] * TRIAL
        elif known and not self.settled:
            self.settled = True
            self._say()

    def _is_known(self, window: int) -> bool:
        """Whether passes of a window have told what they bring; a few that bring very different numbers have not."""
        brought = self.brought[window]
        total = brought.total()
        if total < TRIAL:
            return False
        mean = _mean(brought, window)
        variance = sum((min(n, window) - mean) ** 2 * passes for n, passes in brought.items()) / (total - 1)
        return variance / total <= (SPREAD * mean) ** 2

    def _is_new(self, window: int) -> bool:
        return window in WINDOWS and window not in self.cost

    def _say(self) -> None:
        if self.window == min(WINDOWS):
            log.info("Lumina-mGPT: drafts do not pay here; decoding one code a pass, as 'ar' does")
        else:
            log.info("Lumina-mGPT: %d drafts a pass bring %.1f codes", self.window, self.places(self.window))


class Counted(Pace):
    """The first window, or the narrowest from the pass on where the drafts of the run so far have not paid.

    What passes bring is a function of the seed, so the same seed gives the same picture again.
    """

    def __init__(self):
        super().__init__(FIRST)
        self.settled = False

    def note(self, places: int, usual: bool = True) -> None:
        if self.settled or not usual:
            return
        self.brought[FIRST][places] += 1
        if self.brought[FIRST].total() == SURE:
            self.settled = True
            if self.places(FIRST) < PAYS:
                self.window = min(WINDOWS)
            self._say()


def _mean(brought: Counter[int], most: int) -> float:
    """Mean places of passes, each counted up to `most`; 0 of none."""
    return sum(min(n, most) * passes for n, passes in brought.items()) / max(brought.total(), 1)
