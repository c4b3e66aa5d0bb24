"""The segments of a segmentation picture: regions of one colour, told apart although the VQ blurs and stains."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .errors import InputError
from .image import from_tensor

LEVELS = 32  # steps a channel that colours are counted in
STEP = 256 // LEVELS
ROUNDS = 3  # of moving a colour to the middle of what is near it
GROWTH = 64  # pixels a region grows at most; what lies further off goes to the kept region of nearest colour
BLOCK = 1024  # colours compared at once
MOST_COLOURS = 1536  # that are told apart
MOST = 256  # segments, bands of fading edges among them
Watched = Callable[[Sequence], Iterator]


@dataclass(frozen=True, eq=False)
class Segment:
    """A region of one colour over a batch of pictures: mean RGB in bytes, mask (B, H, W) of bools."""

    colour: tuple[int, int, int]
    mask: np.ndarray

    @property
    def area(self) -> float:
        """Its share of all pixels, 0 to 1."""
        return float(self.mask.mean())


def segments(
    pictures: np.ndarray, tolerance: float = 64.0, min_area: float = 0.005, watched: Watched = iter
) -> list[Segment]:
    """The segments of a batch (B, H, W, 3) in bytes: largest area first, ties by colour (red, green, blue).

    Colours within `tolerance` of each other (Euclidean, of 441) are one. A region that is smaller than `min_area` of
    the picture in every picture, and the thin band where one larger region fades into another, join what they touch.
    The masks share out every pixel. One colour is one segment wherever it stands, in all pictures of the batch.
    """
    if not 2 * STEP <= tolerance <= 441:
        raise InputError(
            f"tolerance is {tolerance}; it may be from {2 * STEP} to 441, 64 suits most pictures."
        )
    if not 0 <= min_area < 1:
        raise InputError(f"min_area is {min_area}; it is a share of the picture, from 0 to below 1.")
    values, cells = _cells(pictures)
    counts = np.bincount(cells.ravel(), minlength=len(values))
    colours = _colours(values, counts, tolerance, watched)
    labels = _nearest(values, colours)[cells]
    kept = _kept(labels, colours, tolerance, min_area, watched)
    frames = list(zip(labels, pictures, strict=True))
    grown = np.stack([_grown(*frame, colours, kept) for frame in watched(frames)])
    found = []
    for i in kept:
        r, g, b = (int(c) for c in np.median(pictures[labels == i], 0))
        found.append(Segment((r, g, b), grown == i))
    return sorted(found, key=lambda s: (-int(s.mask.sum()), s.colour))


def masks_of(
    images: torch.Tensor,
    tolerance: float = 64.0,
    min_area: float = 0.005,
    drop_black: bool = False,
    watched: Watched = iter,
) -> tuple[list[torch.Tensor], str]:
    """Masks (B, H, W) in 0..1 of the segments of a float batch (B, H, W, C), in their order, and their list as JSON.

    `drop_black` leaves black out, which stands for what has no label, unless it is all there is.
    """
    pictures = np.stack([np.asarray(picture) for picture in from_tensor(images)])
    found = segments(pictures, tolerance, min_area, watched)
    if drop_black:
        found = [s for s in found if np.linalg.norm(s.colour) > tolerance / 2] or found
    said = [
        {"index": n, "color": "#{:02x}{:02x}{:02x}".format(*s.colour), "area": round(s.area, 4)}
        for n, s in enumerate(found)
    ]
    return [torch.from_numpy(s.mask).float() for s in found], json.dumps(said)


def painted(found: list[Segment]) -> np.ndarray:
    """The batch (B, H, W, 3) in bytes with every segment in its one colour."""
    out = np.zeros((*found[0].mask.shape, 3), np.uint8)
    for segment in found:
        out[segment.mask] = segment.colour
    return out


def _cells(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean colours (N, 3) of the cells of colour space that occur, and the cell of every pixel (B, H, W)."""
    r, g, b = np.moveaxis(pictures // STEP, -1, 0).astype(np.int64)
    number = (r * LEVELS + g) * LEVELS + b
    used, cells = np.unique(number, return_inverse=True)
    cells = cells.reshape(number.shape)
    counts = np.bincount(cells.ravel(), minlength=len(used))
    channels = [np.bincount(cells.ravel(), weights=pictures[..., c].ravel()) / counts for c in range(3)]
    return np.stack(channels, -1), cells


def _nearest(values: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Which of the colours (K, 3) is nearest to each of the values (N, 3)."""
    blocks = (values[i : i + BLOCK, None] for i in range(0, len(values), BLOCK))
    return np.concatenate([_squares(block, colours).argmin(1) for block in blocks])


def _squares(values: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Squared distances of colours (..., 3); channel by channel, which takes a third of the time."""
    r, g, b = (np.square(values[..., c] - colour[..., c]) for c in range(3))
    return r + g + b


def _largest_share(labels: np.ndarray, count: int) -> np.ndarray:
    """The share of a picture that each label covers where it covers most."""
    return np.max([np.bincount(f.ravel(), minlength=count) / f.size for f in labels], 0)


def _colours(values: np.ndarray, counts: np.ndarray, tolerance: float, watched: Watched) -> np.ndarray:
    """Colours (K, 3) that pixels gather around, none within the tolerance of another: the most frequent first."""
    colours, left = np.empty((0, 3)), counts.astype(float)
    values = np.asfortranarray(values)
    for _ in watched(range(len(values))):
        most = left.argmax()
        colour = values[most]
        for _ in range(ROUNDS):  # to the middle of the cells around it, so noise does not shift it
            near = np.sqrt(_squares(values, colour)) <= tolerance / 2
            if not near.any():
                break
            colour = np.average(values[near], axis=0, weights=left[near])
        far = np.sqrt(_squares(values, colour)) > tolerance
        far[most] = False
        values, left = np.asfortranarray(values[far]), left[far]
        if (np.sqrt(_squares(colours, colour)) > tolerance).all():
            colours = np.concatenate([colours, colour[None]])
        if len(colours) > MOST_COLOURS:
            raise InputError(
                f"tolerance is {tolerance}, by which the picture has more than {MOST_COLOURS} colours. Raise it; 64 "
                "suits most pictures."
            )
        if not len(left):
            break
    return colours


def _kept(
    labels: np.ndarray, colours: np.ndarray, tolerance: float, min_area: float, watched: Watched
) -> list[int]:
    """The labels that are regions of their own: large enough, and no band of a fading edge."""
    shares = _largest_share(labels, len(colours))
    order = sorted(range(len(colours)), key=lambda i: (-shares[i], i))
    large = [i for i in order if shares[i] >= min_area and shares[i] > 0]
    if not large:
        raise InputError(
            f"min_area is {min_area}, but the largest segment covers {shares.max():.4f} of the picture. Lower it."
        )
    if len(large) > MOST:
        raise InputError(
            f"tolerance is {tolerance} and min_area {min_area}, which makes {len(large)} segments; at most {MOST} are "
            "told apart. Raise tolerance (64 suits most pictures) or min_area (0.005 does)."
        )
    reach = max(1, round(min(labels.shape[1:]) / 64))
    kept: list[int] = []
    for i in watched(large):
        if not (_between(colours[i], colours[kept], tolerance) and _thin(labels == i, reach)):
            kept.append(i)
    return kept


def _between(colour: np.ndarray, others: np.ndarray, tolerance: float) -> bool:
    """Whether a colour is a mixture of two of the others."""
    first, second = np.triu_indices(len(others), 1)
    a, way = others[first], others[second] - others[first]
    share = ((colour - a) * way).sum(-1) / np.square(way).sum(-1)
    off = np.sqrt(_squares(a + share[:, None] * way, colour))
    return bool(((share > 0) & (share < 1) & (off <= tolerance)).any())


def _thin(mask: np.ndarray, reach: int) -> bool:
    """Whether less than a tenth of a region (B, H, W) is left when `reach` pixels are taken off all around."""
    core = mask
    for _ in range(reach):
        p = np.pad(core, ((0, 0), (1, 1), (1, 1)), constant_values=True)
        core = core & p[:, :-2, 1:-1] & p[:, 2:, 1:-1] & p[:, 1:-1, :-2] & p[:, 1:-1, 2:]
        if core.sum() < mask.sum() / 10:
            return True
    return False


def _grown(labels: np.ndarray, picture: np.ndarray, colours: np.ndarray, kept: list[int]) -> np.ndarray:
    """Labels (H, W) with every pixel of a label that is not kept given to a kept region it touches, of nearest colour.

    A picture that holds nothing kept goes to the largest segment.
    """
    out = np.where(np.isin(labels, kept), labels, -1)
    if (out < 0).all():
        out[:] = kept[0]
    for _ in range(GROWTH):
        empty = out < 0
        if not empty.any():
            return out
        p = np.pad(out, 1, constant_values=-1)
        beside = (p[:-2, 1:-1], p[2:, 1:-1], p[1:-1, :-2], p[1:-1, 2:])
        edge = np.nonzero(empty & (np.maximum.reduce(beside) >= 0))
        around = np.stack([b[edge] for b in beside])  # (4, N)
        away = np.square(colours[around] - picture[edge]).sum(-1)
        away[around < 0] = np.inf
        out[edge] = np.take_along_axis(around, away.argmin(0)[None], 0)[0]
    far = out < 0
    out[far] = np.array(kept)[_nearest(picture[far].astype(float), colours[kept])] if far.any() else 0
    return out
