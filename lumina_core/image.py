"""Pictures between the outside (PIL, bytes) and the networks: transparency, allowed sizes, crops, value range.

Source: upstream `data/convertsation.py`, `data/item_processor.py` (`var_center_crop`, `generate_crop_size_list`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from .errors import InputError
from .unirep import UNIT

LARGEST = (
    1 << 26
)  # pixels that a whole picture is resized to before it is cut; beyond, only the part that stays is
MOST_PIXELS = 62_000_000  # of a picture file, in memory 250 MB; cameras have up to 60 million
STRIP = 1 << 20  # pixels that are blended at a time
FORMATS = (
    "PNG",
    "JPEG",
    "MPO",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
    "PPM",
    "TGA",
    "AVIF",
)  # none that runs a program


def allowed_sizes(target: int, unit: int = UNIT, max_ratio: float = 4.0) -> list[tuple[int, int]]:
    """Sizes (width, height) of about target x target pixels that a checkpoint was trained on, widest first."""
    units = (target // unit) ** 2
    sizes, w, h = [], units, 1
    while w > 0:
        if max(w, h) / min(w, h) <= max_ratio:
            sizes.append((w * unit, h * unit))
        if (h + 1) * w <= units:
            h += 1
        else:
            w -= 1
    return sizes


def nearest_size(width: int, height: int, sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """The allowed size that cuts away least; ties go to the larger width, then the larger height."""

    def kept(size: tuple[int, int]) -> float:
        a, b = size[0] / width, size[1] / height
        return min(a, b) / max(a, b)

    return max(sizes, key=lambda size: (kept(size), size))


@dataclass(frozen=True)
class CropPlan:
    """How a picture becomes `size`: BOX halvings, one BICUBIC resize, a cut."""

    size: tuple[int, int]
    halvings: tuple[tuple[int, int], ...]
    resize: tuple[int, int]

    @property
    def slack(self) -> tuple[int, int]:
        """Pixels (horizontal, vertical) that the cut leaves over."""
        return self.resize[0] - self.size[0], self.resize[1] - self.size[1]

    @property
    def centre(self) -> tuple[int, int]:
        """Left and upper edge of a cut in the middle."""
        return self.slack[0] // 2, self.slack[1] // 2

    def anywhere(self, rng: random.Random) -> tuple[int, int]:
        """Left and upper edge of a random cut, drawn in this order as upstream 1.0 and PURE do."""
        return rng.randint(0, self.slack[0]), rng.randint(0, self.slack[1])


def plan_crop(width: int, height: int, size: tuple[int, int]) -> CropPlan:
    """The steps from a picture's size to `size`, as upstream takes them."""
    halvings = []
    while width >= 2 * size[0] and height >= 2 * size[1]:
        width, height = width // 2, height // 2
        halvings.append((width, height))
    scale = max(size[0] / width, size[1] / height)
    return CropPlan(size, tuple(halvings), (round(width * scale), round(height * scale)))


def crop(
    picture: Image.Image,
    size: tuple[int, int],
    at: tuple[int, int] | None = None,
    rng: random.Random | None = None,
) -> Image.Image:
    """A picture cut to `size` (width, height): at the centre, at the edges `at`, or where `rng` says."""
    if picture.size == size:
        return picture
    plan = plan_crop(*picture.size, size)
    if plan.resize[0] * plan.resize[1] > LARGEST:
        left, top = at or (plan.anywhere(rng) if rng else plan.centre)
        x, y = picture.width / plan.resize[0], picture.height / plan.resize[1]
        box = (
            left * x,
            top * y,
            min((left + size[0]) * x, picture.width),
            min((top + size[1]) * y, picture.height),
        )
        return picture.resize(size, Image.Resampling.BICUBIC, box=box)
    for step in plan.halvings:
        picture = picture.resize(step, Image.Resampling.BOX)
    picture = picture.resize(plan.resize, Image.Resampling.BICUBIC)
    left, top = at or (plan.anywhere(rng) if rng else plan.centre)
    return picture.crop((left, top, left + size[0], top + size[1]))


def stretch(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A picture resized (BICUBIC) to exactly `size`; its proportions are not kept."""
    return picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC)


def open_picture(file: Path, formats: Sequence[str] = FORMATS) -> Image.Image:
    """The picture in a file, decoded; a `ValueError` in one line says why a file is none that can be taken.

    Upright as its camera says, and of the first frame where there are several.
    """
    Image.init()
    try:
        with Image.open(file, formats=[f for f in formats if f in Image.OPEN]) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise ValueError(f"it has {picture.width}x{picture.height} pixels, more than {MOST_PIXELS:,}")
            picture.load()
            return ImageOps.exif_transpose(picture)
    except FileNotFoundError:
        raise
    except Exception as e:  # damaged files make the decoders fail in every way
        raise ValueError((str(e).strip() or repr(e)).splitlines()[0]) from None


def on_white(picture: Image.Image) -> Image.Image:
    """RGB of any picture; transparency is blended on white in float and truncated, as upstream does.

    Raises `InputError` for a grey picture of decimals above 255.
    """
    if picture.mode == "RGB":
        return picture
    if picture.mode == "F" or picture.mode.startswith("I"):
        picture = _in_bytes(picture)
    rgba = np.asarray(picture.convert("RGBA"))
    if rgba[..., 3].min() == 255:
        return picture.convert("RGB")
    blended = np.empty((*rgba.shape[:2], 3), np.uint8)
    rows = max(1, STRIP // rgba.shape[1])
    for first in range(0, len(rgba), rows):
        strip = rgba[first : first + rows]
        alpha = strip[..., 3:] / 255.0
        blended[first : first + rows] = (strip[..., :3] * alpha + 255.0 * (1 - alpha)).astype(np.uint8)
    return Image.fromarray(blended, "RGB")


def _in_bytes(picture: Image.Image) -> Image.Image:
    """A grey picture of larger numbers or decimals in mode L; NaN and what is below 0 count as 0.

    Whole numbers have 16 bits, though Pillow reads some of them as 32: those up to 255 have 8. Decimals go up to 1, or
    up to 255; an `InputError` says that they go further.
    """
    values = np.nan_to_num(np.asarray(picture, np.float32), posinf=np.inf).clip(0)
    most = float(values.max())
    if picture.mode != "F":
        scale = 1 if picture.mode == "I" and most <= 255 else 1 / 257
    elif most <= 255:
        scale = 255 if most <= 1 else 1
    else:
        raise InputError(
            f"The picture's grey levels are decimals up to {most:g}; they may go up to 1 or up to 255. Save it with 8 "
            "or 16 bits."
        )
    return Image.fromarray((values * scale).round().clip(0, 255).astype(np.uint8))


def to_network(picture: Image.Image) -> torch.Tensor:
    """An RGB picture as (1, 3, H, W) float32 in [-1, 1]."""
    values = np.asarray(picture, np.float64) / 255.0 * 2 - 1
    return torch.from_numpy(values).float().movedim(-1, 0)[None]


def from_tensor(images: torch.Tensor) -> list[Image.Image]:
    """RGB pictures of a float batch (B, H, W, C) in 0..1, C 1, 3 or 4 (alpha blends on white); NaN counts as 0."""
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4) or 0 in images.shape:
        raise InputError(
            f"The image has shape {tuple(images.shape)}; (batch, height, width, 1, 3 or 4) is expected."
        )
    # One at a time: whole batches take five times longer, in which a host cannot cancel.
    return [_picture(values.detach()) for values in images]


def _picture(values: torch.Tensor) -> Image.Image:
    whole = (values.float().cpu().nan_to_num(0.0, 1.0, 0.0).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[whole.shape[-1]]
    return on_white(Image.fromarray(whole.squeeze(-1) if mode == "L" else whole, mode))


def to_mask(images: torch.Tensor) -> torch.Tensor:
    """The brightness (B, H, W) in 0..1 of a float batch (B, H, W, 3)."""
    return images.float().mean(-1)


def to_tensor(pictures: list[np.ndarray]) -> torch.Tensor:
    """A float batch (B, H, W, 3) in 0..1 of pictures of one size in bytes (H, W, 3)."""
    return torch.from_numpy(np.stack(pictures)).float() / 255
