"""Which sequences each step of training sees: tasks by weight, batches of about equal length, padding kept small."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from .dataset import Dataset, Pool
from .objective import collate
from .sequences import Language

SPAN = 8  # batches drawn together, sorted by length and dealt out in random order


@dataclass(frozen=True)
class Phase:
    """A part of training: it lasts until step `until`; pools are drawn with these weights."""

    until: int
    weights: dict[Pool, float]


@dataclass(frozen=True)
class Plan:
    """The phases, the rows of a batch, and how often the prompt is left out (of those `guided` kinds only)."""

    phases: tuple[Phase, ...]
    batch: int
    drop_prompt: float
    guided: frozenset[str]
    seed: int


class Batches:
    """The batches of a plan; each is a function of its step alone."""

    def __init__(self, plan: Plan, dataset: Dataset, language: Language):
        self.plan, self.dataset, self.language = plan, dataset, language
        self._span = lru_cache(maxsize=2)(self._drawn_span)

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and labels (B, T), padded on the right."""
        rows = self._span(step // SPAN)[step % SPAN]
        return collate([self._row(*row) for row in rows], most=1 << 20)

    def _row(self, pool: Pool, number: int, bare: bool) -> tuple[list[int], list[int]]:
        tokens, labels = self.dataset[pool].item(number)
        return (self.language.bare(tokens, labels) if bare else None) or (tokens, labels)

    def _drawn_span(self, span: int) -> list[list[tuple[Pool, int, bool]]]:
        rng = np.random.default_rng([self.plan.seed, 7, span])
        rows = []
        for step in range(span * SPAN, (span + 1) * SPAN):
            phase = next((p for p in self.plan.phases if step < p.until), self.plan.phases[-1])
            pools = list(phase.weights)
            weights = np.array([phase.weights[p] for p in pools])
            for i in rng.choice(len(pools), size=self.plan.batch, p=weights / weights.sum()):
                pool = pools[i]
                number = int(rng.integers(len(self.dataset[pool])))
                bare = pool[0] in self.plan.guided and rng.random() < self.plan.drop_prompt
                rows.append((pool, number, bare))
        rows.sort(key=lambda row: self._length(*row))
        batches = [rows[i : i + self.plan.batch] for i in range(0, len(rows), self.plan.batch)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def _length(self, pool: Pool, number: int, bare: bool) -> int:
        starts = self.dataset[pool].starts
        # A bare picture is shorter than its sequence by its prompt; half is near enough to sort by.
        return int(starts[number + 1] - starts[number]) >> bare
