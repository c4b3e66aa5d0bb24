"""Pictures of the world as codes, made once and kept: what upstream calls pre-tokenising."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..files import write_whole
from . import world
from .vq import to_network


@dataclass(frozen=True)
class Item:
    """One training picture: what it shows and its codes (h, w)."""

    scene: world.Scene
    codes: torch.Tensor


class Pictures:
    """`count` training scenes at each size, with their codes."""

    def __init__(self, codes: dict[tuple[int, int], torch.Tensor]):
        self._codes = codes

    def count(self, size: tuple[int, int]) -> int:
        return len(self._codes[size])

    def item(self, size: tuple[int, int], number: int) -> Item:
        return Item(world.scene("train", number, *size), self._codes[size][number].long())


def encode_world(
    vq: nn.Module, counts: dict[tuple[int, int], int], file: Path, report: Callable[[str], None]
) -> Pictures:
    """Draws and encodes the training scenes, size by size; a finished file is used again."""
    if file.exists():
        saved = torch.load(file, weights_only=True)
        return Pictures({tuple(map(int, name.split("x"))): codes for name, codes in saved.items()})
    tables = {}
    for (width, height), count in counts.items():
        parts = []
        for first in range(0, count, 64):
            numbers = range(first, min(first + 64, count))
            batch = np.stack([world.picture(world.scene("train", n, width, height)) for n in numbers])
            with torch.inference_mode():
                parts.append(vq.encode(to_network(batch)).to(torch.int16))
            if first // 64 % 50 == 0:
                report(f"encoding {width}x{height}: {first} of {count}")
        tables[f"{width}x{height}"] = torch.cat(parts).clone()
    write_whole(file, lambda part: torch.save(tables, part))
    return encode_world(vq, counts, file, report)
