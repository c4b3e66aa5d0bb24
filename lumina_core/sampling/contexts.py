"""The conditional and unconditional rows of a batch in one cache, fed together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .graphs import Graphs, reach

if TYPE_CHECKING:
    from ..transformer import Transformer

READ = 2048  # tokens of prefixes that are read in one pass, unless one alone is longer


class Contexts:
    """n pictures: rows 0..n-1 see the prompt; rows n..2n-1, with guidance, see only the open picture.

    Each row has its own cursor, so the two prefixes may differ in length.
    """

    def __init__(
        self, transformer: Transformer, n: int, guided: bool, capacity: int, with_graphs: bool = True
    ):
        weight = transformer.model.embed_tokens.weight
        self.transformer, self.n, self.guided = transformer, n, guided
        self.device, self.dtype = transformer_device(transformer), weight.dtype
        self.cache = transformer.new_cache(2 * n if guided else n, capacity, self.device, self.dtype)
        self.cursor = torch.zeros(self.cache.rows, dtype=torch.int64, device=self.device)
        self.longest = 0
        self.graphs = Graphs.of(transformer, self.cache, self.device) if with_graphs else None
        self.parts = transformer.parts(self.device)

    @staticmethod
    def nbytes(transformer: Transformer, n: int, guided: bool, capacity: int) -> int:
        """Bytes that the cache of such contexts takes."""
        dtype = transformer.model.embed_tokens.weight.dtype
        return transformer.cache_nbytes(2 * n if guided else n, capacity, dtype)

    def prefill(self, prefixes: Sequence[Sequence[int]], unconditional: bool = False) -> torch.Tensor:
        """Starts the rows of one kind, each with tokens of its own; hidden states (n, hidden) of their last ones.

        A prefix that all rows share is read once.
        """
        first = self.n if unconditional else 0
        lengths = [len(tokens) for tokens in prefixes]
        if all(tokens == prefixes[0] for tokens in prefixes):
            states = self._read(prefixes[:1], first).expand(self.n, -1)
            self.cache.copy_row(first, slice(first, first + self.n), lengths[0])
        else:
            step = max(1, READ // max(lengths))
            states = torch.cat(
                [self._read(prefixes[i : i + step], first + i) for i in range(0, self.n, step)]
            )
        self.cursor[first : first + self.n] = torch.tensor(lengths, device=self.device)
        self.longest = max(self.longest, *lengths)
        return states

    def _read(self, prefixes: Sequence[Sequence[int]], row: int) -> torch.Tensor:
        """Feeds one prefix to each row from `row` on, in one pass; the states of their last tokens."""
        ids = torch.zeros(len(prefixes), max(map(len, prefixes)), dtype=torch.int64)
        for filled, tokens in zip(ids, prefixes, strict=True):
            filled[: len(tokens)] = torch.tensor(list(tokens))
        # What stands behind a shorter row is written over before anything may look at it.
        rows = slice(row, row + len(ids))
        hidden = self.transformer(ids.to(self.device), 0, self.cache, rows, parts=self.parts)
        return torch.stack([hidden[i, len(tokens) - 1] for i, tokens in enumerate(prefixes)])

    def advance(
        self, tokens: torch.Tensor, unconditional: bool = True, going: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Feeds tokens (n, T) to both kinds of rows, or to the conditional ones only; last hidden (rows, hidden).

        Where `going` (rows,) is false a row's cursor stays, so that it forgets what it was fed.
        """
        rows = slice(0, self.cache.rows if unconditional else self.n)
        if unconditional and self.guided:
            tokens = torch.cat([tokens, tokens])
        steps = tokens.shape[1]
        self.longest += steps
        hidden = self._pass(tokens, self.cursor[rows], rows, self.longest)
        self.cursor[rows] += steps if going is None else steps * going
        return hidden[:, -1]

    def peek(self, tokens: torch.Tensor, ahead: torch.Tensor, most: int) -> torch.Tensor:
        """Feeds tokens (n, T) to all rows, `ahead` (n,) places behind the cursors, which stay; all their states.

        `most` is the largest of `ahead`, given so that no device has to be asked.
        """
        if self.guided:
            tokens, ahead = torch.cat([tokens, tokens]), torch.cat([ahead, ahead])
        return self._pass(tokens, self.cursor + ahead, slice(None), self.longest + most + tokens.shape[1])

    def peek_alone(self, tokens: torch.Tensor) -> torch.Tensor:
        """Feeds tokens (n, T) to the conditional rows; all their states, while the cursors stay."""
        rows = slice(0, self.n)
        return self._pass(tokens, self.cursor[rows], rows, self.longest + tokens.shape[1])

    def move(self, steps: int, unconditional: bool = True) -> None:
        """Moves the cursors on over places that were fed by `peek`, or by `peek_alone`."""
        self.cursor[: None if unconditional else self.n] += steps
        self.longest += steps

    def _pass(self, tokens: torch.Tensor, start: torch.Tensor, rows: slice, length: int) -> torch.Tensor:
        if self.graphs is not None:
            return self.graphs.run(tokens, start, rows, length)
        length = reach(length, self.cache, self.device)
        return self.transformer(tokens, start, self.cache, rows, length, self.parts)

    def reserve(self, capacity: int, more: int = 0) -> None:
        """Makes the cache hold at least `capacity` positions a row; where it must grow, `more` besides."""
        if capacity > self.cache.capacity:
            if self.graphs is not None:
                self.graphs.drop()
            self.cache.grow(capacity + more)

    def guide(self) -> None:
        """Adds the unconditional rows, with nothing read yet, where the contexts were begun without."""
        if self.guided:
            return
        if self.graphs is not None:
            self.graphs.drop()
        self.cache.add_rows(self.n)
        self.cursor = torch.cat([self.cursor, torch.zeros_like(self.cursor)])
        self.guided = True

    def free(self) -> None:
        """Lets the cache go; nothing can be fed after."""
        if self.graphs is not None:
            self.graphs.drop()
        self.parts = None
        self.cache.free()


def transformer_device(transformer: Transformer) -> torch.device:
    """Where the transformer computes: a host may hold offloaded weights elsewhere and says so in `device`."""
    return getattr(transformer, "device", None) or transformer.model.norm.weight.device
