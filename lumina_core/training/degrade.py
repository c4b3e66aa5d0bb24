"""What spoils a picture, how much, and how that is called: the truth of restoring."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

KINDS = ("blur", "noise", "low resolution", "compression")
LEVELS = ("light", "heavy")
CLEAN = "none"


@dataclass(frozen=True)
class Degradation:
    """Kind and level; both are `CLEAN` for a picture left as it is."""

    kind: str
    level: str

    @property
    def words(self) -> str:
        return CLEAN if self.kind == CLEAN else f"{self.level} {self.kind}"


def draw(rng: np.random.Generator) -> Degradation:
    """A random degradation; one picture in sixteen is clean."""
    if rng.random() < 1 / 16:
        return Degradation(CLEAN, CLEAN)
    return Degradation(str(rng.choice(KINDS)), str(rng.choice(LEVELS)))


def spoil(picture: np.ndarray, d: Degradation, rng: np.random.Generator) -> np.ndarray:
    """The degraded picture (H, W, 3) in bytes, of the same size."""
    image, heavy = Image.fromarray(picture), d.level == "heavy"
    side = min(picture.shape[:2]) / 64  # strengths are those of a picture of 64 pixels
    if d.kind == "blur":
        radius = rng.uniform(2.4, 3.2) if heavy else rng.uniform(1.2, 1.6)
        return np.asarray(image.filter(ImageFilter.GaussianBlur(radius * side)))
    if d.kind == "noise":
        deviation = rng.uniform(44, 60) if heavy else rng.uniform(18, 26)
        noisy = picture + rng.normal(0, deviation, picture.shape)
        return noisy.clip(0, 255).astype(np.uint8)
    if d.kind == "low resolution":
        factor = 6 if heavy else 3.5
        small = tuple(max(2, round(length / (factor * side))) for length in image.size)
        shrunk = image.resize(small, Image.Resampling.BOX)
        return np.asarray(shrunk.resize(image.size, Image.Resampling.BICUBIC))
    if d.kind == "compression":
        out = io.BytesIO()
        quality = int(rng.integers(2, 5)) if heavy else int(rng.integers(12, 20))
        image.save(out, "JPEG", quality=quality)
        return np.asarray(Image.open(out).convert("RGB"))
    return picture


def answer(d: Degradation, content: str) -> str:
    """What a restored picture's text says of its degradation and content."""
    return f"Degradation: {d.words}. Content: {content}. "
