"""How a picture goes to the size that a model works at, and how what the model drew comes back to lie on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .image import plan_crop


@dataclass(frozen=True)
class Placement:
    """A picture of `source` pixels brought to `size`, both (width, height), by "stretch" or "crop" (at the centre)."""

    source: tuple[int, int]
    size: tuple[int, int]
    fit: str

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The part (left, top, right, bottom) of the source that the model sees, in whole pixels, never empty."""
        if self.fit == "stretch":
            return (0, 0, *self.source)
        plan = plan_crop(*self.source, self.size)
        edges = []
        for side, full, cut, seen in zip(self.source, plan.resize, plan.centre, self.size, strict=True):
            first = min(round(cut * side / full), side - 1)
            edges.append((first, max(first + 1, round((cut + seen) * side / full))))
        (left, right), (top, bottom) = edges
        return left, top, right, bottom

    def back(self, picture: np.ndarray, onto: np.ndarray | None = None, smooth: bool = True) -> np.ndarray:
        """A drawn picture (h, w, 3) in bytes at the source's size, lying on the source pixel for pixel.

        What a crop cut away is that of `onto` (H, W, 3), or black. `smooth` resizes bicubically; otherwise every pixel
        keeps a colour of the drawn picture, as maps of labels need.
        """
        left, top, right, bottom = self.box
        width, height = self.source
        out = np.zeros((height, width, 3), np.uint8) if onto is None else onto.copy()
        size = (right - left, bottom - top)
        part = Image.fromarray(picture)
        if part.size != size:
            part = part.resize(size, Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST)
        out[top:bottom, left:right] = np.asarray(part)
        return out
