"""What spoils a picture, how much, and how that is called: the truth of restoring.

As in real-world super-resolution (Real-ESRGAN, arXiv 2107.10833) every spoiled picture went through the whole chain,
blur, half the resolution, noise, compression, and was enlarged again. One of the defects is strong; it is the named
one. At their heaviest, shapes and colours can still be told.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

LEVELS = ("light", "heavy")
CLEAN = "none"
SHRINK = 2  # how many times smaller the picture was
RANGES = {  # kind -> its strength where it is not the named one, and at each level where it is
    "blur": {"": (0.3, 0.6), "light": (1.8, 2.4), "heavy": (3.4, 4.2)},  # radius, pixels of a picture of 64
    "noise": {"": (3, 6), "light": (28, 38), "heavy": (60, 80)},  # deviation, of 255
    "compression": {"": (70, 85), "light": (8, 12), "heavy": (2, 4)},  # JPEG quality
}
KINDS = tuple(RANGES)


@dataclass(frozen=True)
class Degradation:
    """Kind and level; both are `CLEAN` for a picture left as it is."""

    kind: str
    level: str

    @property
    def words(self) -> str:
        """Two words in any case: what is written about a picture takes as many tokens for all."""
        return "not visible" if self.kind == CLEAN else f"{self.level} {self.kind}"


def draw(rng: np.random.Generator) -> Degradation:
    """A random degradation; one picture in sixteen is clean."""
    if rng.random() < 1 / 16:
        return Degradation(CLEAN, CLEAN)
    return Degradation(str(rng.choice(KINDS)), str(rng.choice(LEVELS)))


def spoil(picture: np.ndarray, d: Degradation, rng: np.random.Generator) -> np.ndarray:
    """The degraded picture (H, W, 3) in bytes, of the same size; bicubic filtering has enlarged it."""
    if d.kind == CLEAN:
        return picture
    radius, deviation, quality = (
        rng.uniform(*RANGES[kind][d.level if kind == d.kind else ""]) for kind in KINDS
    )
    image = Image.fromarray(picture)
    side = min(image.size) / 64
    soft = image.filter(ImageFilter.GaussianBlur(radius * side))
    small = np.asarray(soft.resize([max(1, n // SHRINK) for n in image.size], Image.Resampling.BOX))
    noisy = (small + rng.normal(0, deviation, small.shape)).clip(0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(noisy).save(out, "JPEG", quality=round(quality), subsampling=0)
    return np.asarray(Image.open(out).convert("RGB").resize(image.size, Image.Resampling.BICUBIC))


def answer(d: Degradation, content: str) -> str:
    """What a restored picture's text says of its degradation and content."""
    return f"Degradation: {d.words}. Content: {content}. "
