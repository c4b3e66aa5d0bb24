"""UniRep: a picture as tokens. Start, height, width, rows each closed by a row end, end. Source: arXiv 2408.02657.

Sizes inside are in *grid units* of 32 pixels; a unit holds 2 or 4 codes a side (`latents_per_unit`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from .errors import InputError, PictureError

UNIT = 32  # pixels a side of one grid unit, in all families


@dataclass(frozen=True, eq=False)
class TokenGrid:
    """The codes of one picture, (h, w) int64 on the CPU, and how many panels it stacks."""

    codes: torch.Tensor
    family: str
    panels: int = 1

    def __repr__(self) -> str:
        h, w = self.codes.shape
        return f"TokenGrid({self.family}, {w}x{h} codes, {self.panels} panel{'s' * (self.panels > 1)})"

    def split(self) -> list[TokenGrid]:
        """The panels from top to bottom, each a grid of its own."""
        return [TokenGrid(part, self.family) for part in self.codes.chunk(self.panels, 0)]


def check_codes(codes: torch.Tensor, count: int, whose: str = "this checkpoint") -> None:
    """Raises an `InputError` where codes (...) are not all among the `count` that a checkpoint has."""
    ends = (int(codes.min()), int(codes.max())) if codes.numel() else ()
    if odd := [code for code in ends if not 0 <= code < count]:
        raise InputError(
            f"The tokens hold code {odd[0]}; {whose} has {count} codes. Take the checkpoint that drew them, "
            "or encode their picture with this one."
        )


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Ids of the control tokens and of the codes of one checkpoint."""

    bos: int
    separator: int
    separator_name: str
    image_start: int
    image_end: int
    row_end: int
    placeholder: int  # the id of `<|image|>` in text
    grid: Mapping[int, int]  # grid size in units -> id
    code_ids: torch.Tensor  # (codes,) id of every code
    latents_per_unit: int

    def __post_init__(self):
        object.__setattr__(self, "_sizes", {i: n for n, i in self.grid.items()})
        object.__setattr__(self, "_codes", {i: c for c, i in enumerate(self.code_ids.tolist())})

    @property
    def numbering(self) -> tuple[int, ...]:
        """Ids by which checkpoints of one family that number their tokens differently can be told apart."""
        ends = (self.code_ids[0], self.code_ids[-1])
        return self.bos, self.separator, self.image_start, self.row_end, *map(int, ends), len(self.code_ids)

    def size_of(self, token: int) -> int | None:
        """Grid units that a size token stands for, or None when it is no size token."""
        return self._sizes.get(token)

    def code_of(self, token: int) -> int | None:
        return self._codes.get(token)

    def header(self, units: tuple[int, int]) -> list[int]:
        """Start and size tokens of a picture of (height, width) grid units."""
        for n in units:
            if n not in self.grid:
                most = max(self.grid)
                raise InputError(
                    f"A side of {n * UNIT} pixels has no size token in this checkpoint; the largest is {most * UNIT}."
                )
        return [self.image_start, self.grid[units[0]], self.grid[units[1]]]

    def codes_shape(self, units: tuple[int, int]) -> tuple[int, int]:
        """Codes (h, w) of a picture of (height, width) grid units."""
        return units[0] * self.latents_per_unit, units[1] * self.latents_per_unit

    def units(self, codes: torch.Tensor) -> tuple[int, int]:
        """Grid units (height, width) of a code grid (h, w)."""
        k = self.latents_per_unit
        h, w = codes.shape
        if h % k or w % k:
            raise PictureError(
                f"A grid of {w}x{h} codes is no whole number of {UNIT}-pixel units ({k} codes each)."
            )
        return h // k, w // k

    def rows(self, codes: torch.Tensor) -> list[int]:
        """The tokens of all rows of a code grid (h, w), each row closed; an `InputError` where it holds other codes."""
        check_codes(codes, len(self.code_ids))
        ids = self.code_ids[codes]
        ends = torch.full((len(ids), 1), self.row_end, dtype=ids.dtype)
        return torch.cat([ids, ends], 1).flatten().tolist()

    def encode(self, codes: torch.Tensor) -> list[int]:
        """The whole token sequence of a code grid (h, w)."""
        return [*self.header(self.units(codes)), *self.rows(codes), self.image_end]

    def open_panel(self, codes: torch.Tensor, panels: int = 2) -> list[int]:
        """The tokens of a picture of stacked panels up to the end of the first one, left open."""
        h, w = self.units(codes)
        return [*self.header((h * panels, w)), *self.rows(codes)]

    def decode(self, tokens: Sequence[int]) -> torch.Tensor:
        """The code grid (h, w) of a whole picture's tokens; anything else is a `PictureError` saying where."""
        if len(tokens) < 4 or tokens[0] != self.image_start or tokens[-1] != self.image_end:
            raise PictureError(
                "The tokens do not form a whole picture: they do not run from image start to image end."
            )
        h, w = self.size_of(tokens[1]), self.size_of(tokens[2])
        if h is None or w is None:
            raise PictureError(
                f"The tokens after the image start, {list(tokens[1:3])}, are not two size tokens."
            )
        rows, columns = self.codes_shape((h, w))
        body = tokens[3:-1]
        if len(body) != rows * (columns + 1):
            raise PictureError(
                f"A picture of {w * UNIT}x{h * UNIT} needs {rows * (columns + 1)} tokens between size and end; "
                f"there are {len(body)}."
            )
        codes = torch.empty(rows, columns, dtype=torch.int64)
        for r in range(rows):
            row = body[r * (columns + 1) : (r + 1) * (columns + 1)]
            if row[-1] != self.row_end:
                raise PictureError(f"Row {r + 1} of the picture is not closed by a row end.")
            values = [self.code_of(t) for t in row[:-1]]
            if None in values:
                odd = row[values.index(None)]
                raise PictureError(f"Row {r + 1} of the picture holds token {odd}, which is no code.")
            codes[r] = torch.tensor(values)
        return codes

    def pictures(self, tokens: Sequence[int]) -> list[tuple[int, int]]:
        """Where whole pictures stand in a sequence: (index of the start, index behind the end) of each."""
        spans, start = [], None
        for i, token in enumerate(tokens):
            if token == self.image_start:
                start = i
            elif token == self.image_end and start is not None:
                spans.append((start, i + 1))
                start = None
        return spans

    def fold(self, tokens: Sequence[int]) -> list[int]:
        """The sequence with every whole picture replaced by its placeholder, and an unfinished one left out."""
        ids, at = [], 0
        for first, last in self.pictures(tokens):
            ids += [*tokens[at:first], self.placeholder]
            at = last
        rest = list(tokens[at:])
        return ids + (rest[: rest.index(self.image_start)] if self.image_start in rest else rest)
