"""Overlapping tiles over a picture of any size: the plan, and how what came of the tiles becomes one picture again.

Neighbours share a strip, in which one fades out as the other fades in along a raised cosine. Where they agree nothing
changes; where they differ by a constant, the difference is spread over the strip and begins and ends with no step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

from .errors import InputError
from .unirep import UNIT

LONGEST = 4  # a picture narrower than a tile is stretched once its longer side would pass this many tiles
COLOURS = ("#ff3b30", "#34c759", "#0a84ff", "#ffcc00")  # of tile borders; neighbours differ


@dataclass(frozen=True)
class TilePlan:
    """Square tiles over a canvas of (width, height) pixels; tile number i is row i // columns, column i % columns."""

    size: tuple[int, int]  # (width, height) of the picture wanted
    canvas: tuple[int, int]  # where the tiles lie: the same, or larger where that is smaller than a tile
    tile: int  # pixels a side
    lefts: tuple[int, ...]
    tops: tuple[int, ...]

    @property
    def boxes(self) -> list[tuple[int, int, int, int]]:
        """(left, top, right, bottom) of every tile on the canvas, row by row."""
        t = self.tile
        return [(left, top, left + t, top + t) for top in self.tops for left in self.lefts]

    def __len__(self) -> int:
        return len(self.lefts) * len(self.tops)

    def weights(self) -> Iterator[torch.Tensor]:
        """The share (tile, tile) float64 of each tile in its pixels, row by row; the shares of a pixel add up to 1."""
        across = _shares(self.lefts, self.tile, self.canvas[0])
        down = _shares(self.tops, self.tile, self.canvas[1])
        return (y[:, None] * x for y in down for x in across)


def plan_tiles(size: tuple[int, int], tile: int, overlap: int) -> TilePlan:
    """The fewest tiles of `tile` pixels a side over (width, height), neighbours sharing `overlap` pixels or more.

    Where a side is shorter than a tile, the canvas is the picture enlarged until the side is as long as one; a picture
    of an extreme ratio is stretched instead of enlarged past `LONGEST` tiles.
    """
    if tile < UNIT or tile % UNIT:
        raise InputError(f"tile is {tile}; it must be a multiple of {UNIT} pixels from {UNIT} on.")
    if not 0 <= overlap <= tile // 2:
        raise InputError(f"overlap is {overlap}; it may be from 0 to {tile // 2}, half of a tile.")
    if min(size) < 1:
        raise InputError(f"The picture would have {size[0]}x{size[1]} pixels; it needs one at least.")
    factor = max(1.0, tile / min(size))
    canvas = tuple(max(tile, min(round(side * factor), max(side, LONGEST * tile))) for side in size)
    lefts, tops = (_starts(side, tile, overlap) for side in canvas)
    return TilePlan(size, canvas, tile, lefts, tops)


def one_tile(size: tuple[int, int], tile: int) -> TilePlan:
    """The picture stretched to one tile whatever its proportions, as upstream's script does with every picture."""
    return TilePlan(size, (tile, tile), tile, (0,), (0,))


def blend(plan: TilePlan, pieces: Sequence[torch.Tensor]) -> torch.Tensor:
    """The canvas (C, H, W) of what came of the tiles, each (C, tile, tile), in their order."""
    if len(plan) == 1:
        return pieces[0]
    width, height = plan.canvas
    canvas = pieces[0].new_zeros(pieces[0].shape[0], height, width)
    for piece, share, (left, top, right, bottom) in zip(pieces, plan.weights(), plan.boxes, strict=True):
        canvas[:, top:bottom, left:right] += piece * share.to(piece)
    return canvas


def outlined(plan: TilePlan, picture: np.ndarray) -> np.ndarray:
    """The picture (H, W, 3) in bytes with the tiles' borders drawn on it, and their numbers from 1."""
    image = Image.fromarray(picture.copy())
    pen = ImageDraw.Draw(image)
    across, down = image.width / plan.canvas[0], image.height / plan.canvas[1]
    thick = max(1, min(image.size) // 256)
    for i, (left, top, right, bottom) in enumerate(plan.boxes):
        row, column = divmod(i, len(plan.lefts))
        colour = COLOURS[row % 2 * 2 + column % 2]
        x, y = round(left * across), round(top * down)
        end = (max(x, round(right * across) - 1), max(y, round(bottom * down) - 1))
        pen.rectangle([(x, y), end], outline=colour, width=thick)
        pen.text((x + 2 * thick + 1, y + 2 * thick), str(i + 1), fill=colour)
    return np.asarray(image)


def _starts(length: int, tile: int, overlap: int) -> tuple[int, ...]:
    """Where tiles begin along a side, spread evenly."""
    if length == tile:
        return (0,)
    gaps = math.ceil((length - tile) / (tile - overlap))
    return tuple(round(i * (length - tile) / gaps) for i in range(gaps + 1))


def _shares(starts: Sequence[int], tile: int, length: int) -> list[torch.Tensor]:
    """The share (tile,) float64 of each tile along a side."""
    places = torch.arange(tile, dtype=torch.float64) + 0.5
    shares = [torch.ones(tile, dtype=torch.float64) for _ in starts]
    for i in range(len(starts) - 1):
        strip = starts[i] + tile - starts[i + 1]
        if strip > 0:
            rising = (torch.pi / 2 * (places / strip).clamp(max=1)).sin().square()
            shares[i + 1] *= rising
            shares[i] *= rising.flip(0)
    total = torch.zeros(length, dtype=torch.float64)
    for start, share in zip(starts, shares, strict=True):
        total[start : start + tile] += share
    return [share / total[start : start + tile] for start, share in zip(starts, shares, strict=True)]
