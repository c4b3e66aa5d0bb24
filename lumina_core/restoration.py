"""PURE on pictures of any size: tiles, each told and restored by the model, colours set right, made one again.

A picture of one tile goes the way of upstream's script: stretched to a square, restored, colours of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from .color import adain_fix, to_bytes, wavelet_fix
from .errors import InputError
from .families import Model
from .image import on_white, stretch
from .prompts import Prompt
from .sampling import Event, PictureFinished, Sampling, TextPiece
from .sampling.abreast import Abreast
from .sampling.logits import noise_key
from .sampling.text import legible
from .tiles import TilePlan, blend, one_tile, outlined, plan_tiles
from .unirep import UNIT, TokenGrid

COLOURS = {"wavelet": wavelet_fix, "adain": adain_fix, "none": None}
TILING = ("tiles", "one tile")
OVERLAP = 6  # of a tile, neighbours share one part
SCALES = (0.1, 16.0)
MOST_TILES = 1024
MOST_PIXELS = 1 << 28  # of a result, 16384x16384: 0.8 GB in bytes, 3.2 GB as ComfyUI's IMAGE
TEXT = 64  # tokens left for what is written about a tile, at least
SMALLEST = UNIT


@dataclass(frozen=True)
class Restored:
    """A restored picture and how it came about."""

    picture: np.ndarray  # (H, W, 3) bytes
    plan: TilePlan
    texts: tuple[str, ...]  # what the model wrote about each tile; no codes, as none are drawn in text

    def outlined(self) -> np.ndarray:
        """The picture with the tiles' borders and numbers drawn on it."""
        return outlined(self.plan, self.picture)

    def lines(self) -> list[str]:
        """A line for each tile: its number, where it lies on the picture, and its text."""
        across, down = (s / c for s, c in zip(self.plan.size, self.plan.canvas, strict=True))
        out = []
        for n, (text, box) in enumerate(zip(self.texts, self.plan.boxes, strict=True), 1):
            left, top, right, bottom = (
                round(edge * by) for edge, by in zip(box, (across, down) * 2, strict=True)
            )
            out.append(f"tile {n} (x {left}-{right}, y {top}-{bottom}): {' '.join(text.split())}")
        return out


class Restoration:
    """One picture on its way: `prompts` encodes it, `draw` restores its tiles, `finish` joins them."""

    def __init__(
        self,
        model: Model,
        picture: Image.Image,
        scale: float = 4.0,
        *,
        seed: int = 0,
        tiling: str = "tiles",
        colour: str = "wavelet",
    ):
        """`scale` is the result's size by the picture's; `tiling` one of `TILING`, `colour` one of `COLOURS`.

        An `InputError` where the model has no task "restore", a setting is not one that there is, or the result would
        take too many tiles or pixels.
        """
        model.template("restore")
        low, high = SCALES
        if not low <= scale <= high:
            raise InputError(f"scale is {scale}; it may be from {low} to {high}.")
        for name, value, allowed in (("tiling", tiling, TILING), ("color_fix", colour, COLOURS)):
            if value not in allowed:
                raise InputError(f"{name} is '{value}'; it may be {', '.join(allowed)}.")
        self.model, self.seed, self.colour = model, seed, COLOURS[colour]
        picture = on_white(picture)
        size = tuple(max(1, round(side * scale)) for side in picture.size)
        tile = tile_side(model)
        self.plan = one_tile(size, tile) if tiling == "one tile" else plan_tiles(size, tile, tile // OVERLAP)
        if len(self.plan) > MOST_TILES:
            raise InputError(
                f"A picture of {size[0]}x{size[1]} pixels takes {len(self.plan)} tiles of {tile} pixels; at most "
                f"{MOST_TILES} are done. Lower scale, or make the picture smaller first."
            )
        if size[0] * size[1] > MOST_PIXELS:
            raise InputError(
                f"scale {scale} makes {size[0]}x{size[1]} pixels of a picture of {picture.width}x{picture.height}; a "
                f"result may have {MOST_PIXELS:,}, as many as 16384x16384. Lower scale, or make the picture smaller "
                "first."
            )
        self.canvas = stretch(picture, self.plan.canvas)
        self.tiles = [self.canvas.crop(box) for box in self.plan.boxes]
        self.grids: dict[int, TokenGrid] = {}
        self.words: dict[int, list[int]] = {}

    def prompts(self, watched: Callable[[Sequence], Iterator] = iter) -> list[Prompt]:
        """The prompt of every tile, which is encoded; `watched` passes the tiles on as they are taken."""
        square = (self.plan.tile, self.plan.tile)
        return [
            self.model.prompt("", task="restore", size=square, images=[tile]) for tile in watched(self.tiles)
        ]

    def abreast(self, prompts: Sequence[Prompt], sampling: Sampling) -> Abreast:
        """What draws the tiles of these prompts."""
        seeds = [tile_seed(self.seed, i) for i in range(len(prompts))]
        return Abreast(self.model.transformer, self.model.vocabulary, prompts, seeds, sampling)

    def draw(self, abreast: Abreast, at_once: int = 1) -> Iterator[Event]:
        """Restores the tiles, `at_once` side by side, and yields the sampler's events."""
        for event in abreast.draw(at_once):
            if isinstance(event, TextPiece):
                words = legible(event.tokens, self.model.vocabulary)
                self.words.setdefault(event.index, []).extend(words)
            elif isinstance(event, PictureFinished):
                self.grids[event.index] = event.grid
            yield event

    def finish(self, watched: Callable[[Sequence], Iterator] = iter) -> Restored:
        """Decodes the tiles, gives them the colours of the input, and joins them."""
        pieces = [self._tile(i) for i in watched(range(len(self.plan)))]
        joined = blend(self.plan, pieces)
        if self.colour is None:
            values = (joined.clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1)
        else:
            values = to_bytes(joined[None])[0]
        picture = np.asarray(stretch(Image.fromarray(values.numpy()), self.plan.size))
        texts = (self.model.tokenizer.decode(self.words.get(i, [])).strip() for i in range(len(self.plan)))
        return Restored(picture, self.plan, tuple(texts))

    def _tile(self, i: int) -> torch.Tensor:
        """Tile number i restored, (3, tile, tile) in 0..1 or little outside."""
        content = _floats(self.model.decode(self.grids[i].codes))
        return content if self.colour is None else self.colour(content[None], _floats(self.tiles[i])[None])[0]


def tile_side(model: Model) -> int:
    """Pixels a side of a tile: the square the checkpoint was trained on, or less where two and some text do not fit."""
    largest = max((w for w, h in model.sizes() if w == h), default=SMALLEST)
    entry = model.template("restore")
    words = len(model.tokenizer.encode(entry.text)) + TEXT
    for side in range(largest, SMALLEST, -UNIT):
        height, width = model.vocabulary.codes_shape((side // UNIT, side // UNIT))
        if words + 2 * (height * (width + 1) + 4) <= model.config.max_position_embeddings:
            return side
    return SMALLEST


def tile_seed(seed: int, tile: int) -> int:
    """The seed of tile number `tile`; that of the first is the picture's own."""
    if tile == 0:
        return seed
    low, high = noise_key(seed, -1 - tile)
    return high << 32 | low


def _floats(picture: Image.Image | np.ndarray) -> torch.Tensor:
    """(3, H, W) in 0..1 of bytes (H, W, 3)."""
    return torch.from_numpy(np.array(picture)).movedim(-1, 0).float() / 255
