"""The judge of drawn objects: looks at pixels only and tells whether a picture shows what its caption says."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from . import world

PALETTE = {**world.COLOURS, **world.GROUNDS}
CORE = (
    0.065  # radius, as a fraction of the shorter side, of the disc around a place that must show the colour
)
WINDOW = 0.25  # half the side of the square around a place in which the shape is looked at
TEMPLATE = 48  # side of the normalised masks that shapes are compared by


@dataclass(frozen=True)
class Verdict:
    """What the judge saw of one object."""

    colour: bool
    shape: bool


def judge(scene: world.Scene, picture: np.ndarray) -> list[Verdict]:
    """One verdict for each object of the caption, for a picture (H, W, 3) in bytes."""
    return [
        Verdict(_colour_there(scene, o, picture), _shape_seen(scene, o, picture) == o.shape)
        for o in scene.objects
    ]


def _colour_there(scene: world.Scene, o: world.Object, picture: np.ndarray) -> bool:
    """Whether most of the middle of the named place is nearest to the named colour, of all colours of the world."""
    x, y = _anchor(scene, o)
    yy, xx = np.mgrid[: scene.height, : scene.width] + 0.5
    inside = np.hypot(xx - x, yy - y) <= CORE * min(scene.width, scene.height)
    table = np.array(list(PALETTE.values()), float)
    seen = np.linalg.norm(picture[inside][:, None].astype(float) - table, axis=-1).argmin(1)
    return bool((seen == list(PALETTE).index(o.colour)).mean() > 0.5)


def _shape_seen(scene: world.Scene, o: world.Object, picture: np.ndarray) -> str | None:
    """The shape that the region of the named colour around the named place looks like most, or None."""
    x, y = _anchor(scene, o)
    reach = WINDOW * min(scene.width, scene.height)
    top, left = max(0, round(y - reach)), max(0, round(x - reach))
    part = picture[top : round(y + reach), left : round(x + reach)].astype(float)
    others = [
        world.GROUNDS[scene.ground],
        *(world.COLOURS[p.colour] for p in scene.objects if p.colour != o.colour),
    ]
    away = np.min([np.linalg.norm(part - np.array(c), axis=-1) for c in others], axis=0)
    mask = np.linalg.norm(part - np.array(world.COLOURS[o.colour]), axis=-1) < away
    mask = _grown_from(mask, x - left, y - top, CORE * min(scene.width, scene.height))
    ys, xs = np.nonzero(mask)
    if len(ys) < 12:
        return None
    box = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    rows = (np.arange(TEMPLATE) * box.shape[0]) // TEMPLATE
    columns = (np.arange(TEMPLATE) * box.shape[1]) // TEMPLATE
    seen = box[rows][:, columns]
    overlap = {name: (seen & t).sum() / (seen | t).sum() for name, t in _templates().items()}
    best = max(overlap, key=overlap.get)
    return best if overlap[best] > 0.6 else None


def _grown_from(mask: np.ndarray, x: float, y: float, radius: float) -> np.ndarray:
    """The part of a mask that hangs together with the disc around (x, y)."""
    yy, xx = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
    grown = mask & (np.hypot(xx - x, yy - y) <= radius)
    while True:
        wider = np.pad(grown, 1)
        wider = wider[1:-1, 1:-1] | wider[:-2, 1:-1] | wider[2:, 1:-1] | wider[1:-1, :-2] | wider[1:-1, 2:]
        wider &= mask
        if (wider == grown).all():
            return grown
        grown = wider


def _anchor(scene: world.Scene, o: world.Object) -> tuple[float, float]:
    fx, fy = world.PLACES[o.place]
    return fx * scene.width, fy * scene.height


@cache
def _templates() -> dict[str, np.ndarray]:
    """Each shape as a mask filling its box."""
    out = {}
    steps = np.linspace(-1.2, 1.2, 241)
    for name in world.SHAPES:
        mask = world.signed_distance(name, steps, steps[:, None], 1.0) < 0
        ys, xs = np.nonzero(mask)
        box = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
        rows = (np.arange(TEMPLATE) * box.shape[0]) // TEMPLATE
        columns = (np.arange(TEMPLATE) * box.shape[1]) // TEMPLATE
        out[name] = box[rows][:, columns]
    return out
