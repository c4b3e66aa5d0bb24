"""A static key-value cache: allocated once, written by index; a rollback is a cursor that does not advance."""

from __future__ import annotations

import torch


class KVCache:
    """Keys and values of every layer, each (rows, capacity, kv_heads, head_dim)."""

    def __init__(self, layers: int, rows: int, capacity: int, kv_heads: int, head_dim: int, *, device, dtype):
        shape = (rows, capacity, kv_heads, head_dim)
        self.rows, self.capacity = rows, capacity
        self._number(device)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]

    def _number(self, device) -> None:
        self.steps = torch.arange(self.capacity, device=device)
        rows = torch.arange(self.rows, device=device)
        self.firsts = rows[:, None] * self.capacity  # of each row in a flat table

    @staticmethod
    def nbytes(
        layers: int, rows: int, capacity: int, kv_heads: int, head_dim: int, dtype: torch.dtype
    ) -> int:
        """Bytes the cache will take; nothing else is allocated."""
        return 2 * layers * rows * capacity * kv_heads * head_dim * dtype.itemsize

    def places(self, rows: slice, positions: torch.Tensor) -> torch.Tensor:
        """Where positions (R, T) of a range of rows stand in the flat cache: (R * T,), for `write`."""
        return (self.firsts[rows] + positions).view(-1)

    def write(self, layer: int, places: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Stores k and v (R * T, kv_heads, head_dim) at `places` (R * T,)."""
        for table, new in ((self.keys[layer], k), (self.values[layer], v)):
            flat = table.view(-1, *new.shape[1:])
            if flat.device.type == "mps":  # there index_copy_ came with torch 2.8, and is very slow
                flat[places] = new
            else:
                flat.index_copy_(0, places, new)

    def read(self, layer: int, rows: slice, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first `length` keys and values of a range of rows, (R, length, kv_heads, head_dim), without a copy."""
        return self.keys[layer][rows, :length], self.values[layer][rows, :length]

    def grow(self, capacity: int) -> None:
        """Makes room for more positions, table by table, so that one table is all that stands twice."""
        for tables in (self.keys, self.values):
            for i, old in enumerate(tables):
                tables[i] = old.new_zeros(self.rows, capacity, *old.shape[2:])
                tables[i][:, : self.capacity] = old
        self.capacity = capacity
        self._number(self.steps.device)

    def add_rows(self, count: int) -> None:
        """Adds empty rows behind the others, table by table as `grow`."""
        for tables in (self.keys, self.values):
            for i, old in enumerate(tables):
                tables[i] = torch.cat([old, old.new_zeros(count, *old.shape[1:])])
        self.rows += count
        self._number(self.steps.device)

    def free(self) -> None:
        """Lets the memory go at once, whoever still holds the cache."""
        self.keys.clear()
        self.values.clear()

    def copy_row(self, source: int, targets: slice, length: int) -> None:
        """Gives every row of `targets` the first `length` entries of row `source`."""
        for table in (*self.keys, *self.values):
            table[targets, :length] = table[source : source + 1, :length]
