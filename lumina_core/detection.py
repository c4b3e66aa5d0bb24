"""What a detection found: boxes in pixels of the pictures asked about, pictures with them drawn, JSON and masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from . import boxes
from .boxes import Box
from .families import Model
from .image import crop, stretch
from .request import Request
from .unirep import TokenGrid


@dataclass(frozen=True, eq=False)
class Detections:
    """Boxes of each picture of a batch of one size, in its own pixels."""

    label: str
    pictures: tuple[Image.Image, ...] = field(repr=False)
    boxes: tuple[tuple[Box, ...], ...]

    def drawn(self) -> list[np.ndarray]:
        """The pictures (H, W, 3) in bytes with their boxes drawn."""
        pairs = zip(self.pictures, self.boxes, strict=True)
        return [np.asarray(boxes.draw(picture, found, self.label)) for picture, found in pairs]

    def masks(self) -> torch.Tensor:
        """(B, H, W) in 0..1, 1 inside a box."""
        pairs = zip(self.pictures, self.boxes, strict=True)
        return torch.from_numpy(
            np.stack([boxes.mask(picture.size, found) for picture, found in pairs])
        ).float()

    def json(self) -> str:
        """For each picture its width, height and boxes [left, top, right, bottom] in pixels, as JSON."""
        pairs = zip(self.pictures, self.boxes, strict=True)
        return boxes.to_json([(picture.size, found) for picture, found in pairs], self.label)


def detections(
    model: Model,
    answers: Sequence[tuple[Request, TokenGrid]],
    label: str,
    watched: Callable[[Sequence], Iterator] = iter,
) -> Detections:
    """The boxes that a model drew in answer to "detect", compared with each picture as its codes show it."""
    every = []
    for request, grid in watched(answers):
        place = request.placement
        fitted = (stretch if place.fit == "stretch" else crop)(request.picture, place.size)
        given = model.decode(model.encode(fitted).codes)
        left, top, right, bottom = place.box
        x, y = (right - left) / place.size[0], (bottom - top) / place.size[1]
        found = boxes.drawn_boxes(model.decode(grid.codes), given)
        every.append(tuple(box.scaled(x, y, left, top).within(request.picture.size) for box in found))
    return Detections(label, tuple(request.picture for request, _ in answers), tuple(every))
