"""The world of shapes: scenes we draw ourselves, so that every label is exact.

A scene is one to three objects (shape, colour, place, size) on a coloured ground. From a scene come its picture, its
caption, its depth, segmentation, normals, boxes and edges, and how it looks from behind. Scene number n of a split
is a function of (split, n) only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (220, 38, 38),
    "green": (34, 160, 70),
    "blue": (40, 80, 225),
    "yellow": (245, 215, 40),
    "orange": (245, 130, 25),
    "purple": (140, 60, 185),
    "cyan": (60, 200, 220),
    "pink": (250, 130, 185),
}
GROUNDS = {"white": (245, 245, 245), "black": (16, 16, 16), "gray": (128, 128, 128), "brown": (110, 72, 45)}
SEGMENT_COLOURS = {
    "circle": (255, 0, 0),
    "square": (0, 255, 0),
    "triangle": (0, 0, 255),
    "cross": (255, 255, 0),
}
PLACES = {  # (x, y) as a fraction of the width and height
    "in the top left": (0.23, 0.23),
    "at the top": (0.5, 0.23),
    "in the top right": (0.77, 0.23),
    "on the left": (0.23, 0.5),
    "in the center": (0.5, 0.5),
    "on the right": (0.77, 0.5),
    "in the bottom left": (0.23, 0.77),
    "at the bottom": (0.5, 0.77),
    "in the bottom right": (0.77, 0.77),
}
RADII = {"small": (0.135, 0.15), "large": (0.18, 0.21)}  # as a fraction of the shorter side
JITTER = 0.025
SHOWS = 0.01  # of the area of a piece: what shows less of an object is not named
SPLITS = {"train": 1, "held-out": 2}


@dataclass(frozen=True)
class Object:
    """One shape: centre and radius in pixels, and the words that name it."""

    shape: str
    colour: str
    place: str
    size: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """A picture's truth: size in pixels, ground colour, objects in the order the caption names them."""

    width: int
    height: int
    ground: str
    objects: tuple[Object, ...]
    says_size: tuple[bool, ...]  # whether the caption tells an object's size


def scene(split: str, number: int, width: int, height: int) -> Scene:
    """Scene `number` of a split ("train" or "held-out") at a picture size in pixels."""
    return random_scene(np.random.default_rng([SPLITS[split], number]), width, height)


def random_scene(rng: np.random.Generator, width: int, height: int) -> Scene:
    """The next scene of a random stream at a picture size in pixels."""
    count = int(rng.choice([1, 2, 3], p=[0.25, 0.45, 0.30]))
    ground = str(rng.choice(list(GROUNDS)))
    objects: list[Object] = []
    side = min(width, height)
    tries = 0
    while len(objects) < count:
        tries += 1
        if tries % 40 == 0:  # the objects placed so far may leave no room for another
            objects.clear()
        place = str(rng.choice(list(PLACES)))
        size = str(rng.choice(list(RADII)))
        fx, fy = PLACES[place]
        candidate = Object(
            shape=str(rng.choice(SHAPES)),
            colour=str(rng.choice(list(COLOURS))),
            place=place,
            size=size,
            x=fx * width + rng.uniform(-JITTER, JITTER) * side,
            y=fy * height + rng.uniform(-JITTER, JITTER) * side,
            radius=rng.uniform(*RADII[size]) * side,
        )
        if all(apart(candidate, other) for other in objects):
            objects.append(candidate)
    return Scene(width, height, ground, tuple(objects), tuple(bool(rng.random() < 0.4) for _ in objects))


def from_behind(s: Scene) -> Scene:
    """The same scene seen from behind: every shape is its own mirror image, left and right change sides."""
    swap = {"left": "right", "right": "left"}
    objects = (
        replace(o, x=s.width - o.x, place=" ".join(swap.get(word, word) for word in o.place.split()))
        for o in s.objects
    )
    return replace(s, objects=tuple(objects))


def enlarged(s: Scene, factor: float) -> Scene:
    """The same scene in a picture `factor` times as large."""
    width, height = round(s.width * factor), round(s.height * factor)
    objects = (replace(o, x=o.x * factor, y=o.y * factor, radius=o.radius * factor) for o in s.objects)
    return replace(s, width=width, height=height, objects=tuple(objects))


def window(s: Scene, left: int, top: int, width: int, height: int) -> Scene:
    """A piece of a scene: objects of which enough shows, cut by its border, each at the place of what shows of it."""
    objects, says = [], []
    for o, says_size in zip(s.objects, s.says_size, strict=True):
        moved = replace(o, x=o.x - left, y=o.y - top)
        ys, xs = np.nonzero(coverage(moved, width, height) > 0.5)
        if len(xs) >= SHOWS * width * height:
            middle = ((xs.mean() + 0.5) / width, (ys.mean() + 0.5) / height)
            place = min(PLACES, key=lambda name: math.dist(PLACES[name], middle))
            objects.append(replace(moved, place=place))
            says.append(says_size)
    return Scene(width, height, s.ground, tuple(objects), tuple(says))


def apart(a: Object, b: Object) -> bool:
    """Whether two objects of a scene have different names and places and do not touch."""
    distinct = (a.shape, a.colour) != (b.shape, b.colour) and a.place != b.place
    return distinct and max(abs(a.x - b.x), abs(a.y - b.y)) > a.radius + b.radius + 1


def caption(s: Scene) -> str:
    """The scene in words: "a red circle on the left and a large blue square on the right, white background"."""
    names = []
    for o, says_size in zip(s.objects, s.says_size, strict=True):
        words = f"{o.size} {o.colour} {o.shape}" if says_size else f"{o.colour} {o.shape}"
        names.append(f"{'an' if words[0] in 'aeiou' else 'a'} {words} {o.place}")
    listed = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    return f"{listed}, {s.ground} background"


def signed_distance(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """About the signed distance in pixels to the outline of a shape at the origin; negative inside."""
    if shape == "circle":
        return np.hypot(dx, dy) - radius
    if shape == "square":
        return np.maximum(abs(dx), abs(dy)) - 0.88 * radius
    if shape == "triangle":  # pointing up, base 2r wide
        sides = (2 * abs(dx) - dy - radius) / np.sqrt(5.0)
        return np.maximum(sides, dy - 0.9 * radius)
    arm = 0.33 * radius  # cross
    return np.minimum(
        np.maximum(abs(dx) - radius, abs(dy) - arm), np.maximum(abs(dx) - arm, abs(dy) - radius)
    )


def coverage(o: Object, width: int, height: int) -> np.ndarray:
    """How much of each pixel an object covers, (H, W) in 0..1, edges smoothed over one pixel."""
    dx = np.arange(width) + 0.5 - o.x
    dy = (np.arange(height) + 0.5 - o.y)[:, None]
    return np.clip(0.5 - signed_distance(o.shape, dx, dy, o.radius), 0, 1)


def picture(s: Scene) -> np.ndarray:
    """The scene as bytes (H, W, 3)."""
    out = np.full((s.height, s.width, 3), GROUNDS[s.ground], np.float64)
    for o in s.objects:
        a = coverage(o, s.width, s.height)[..., None]
        out = out * (1 - a) + a * COLOURS[o.colour]
    return (out + 0.5).astype(np.uint8)


def depth(s: Scene) -> np.ndarray:
    """Nearness (H, W) in 0..1, 1 is nearest: a floor rising to the horizon, and objects nearer the larger they are."""
    floor = 0.05 + 0.25 * (np.arange(s.height) + 0.5) / s.height
    out = np.repeat(floor[:, None], s.width, 1)
    for o in s.objects:
        inside = coverage(o, s.width, s.height) > 0.5
        out[inside] = np.clip(0.35 + 3.2 * o.radius / min(s.width, s.height), 0, 1)
    return out


def segmentation(s: Scene) -> np.ndarray:
    """Bytes (H, W, 3): the colour of each object's shape (`SEGMENT_COLOURS`) on black."""
    out = np.zeros((s.height, s.width, 3), np.uint8)
    for o in s.objects:
        out[coverage(o, s.width, s.height) > 0.5] = SEGMENT_COLOURS[o.shape]
    return out


def normals(s: Scene) -> np.ndarray:
    """Unit normals (H, W, 3), x right, y up, z to the viewer: circles are balls, the rest stands flat on a floor."""
    out = np.empty((s.height, s.width, 3))
    out[:] = (0.0, 0.6, 0.8)
    dx = np.arange(s.width) + 0.5
    dy = (np.arange(s.height) + 0.5)[:, None]
    for o in s.objects:
        inside = coverage(o, s.width, s.height) > 0.5
        if o.shape == "circle":
            nx, ny = np.broadcast_arrays((dx - o.x) / o.radius, (o.y - dy) / o.radius)
            nz = np.sqrt(np.clip(1 - nx**2 - ny**2, 0, 1))
            ball = np.stack([nx, ny, nz], -1)
            out[inside] = (ball / np.linalg.norm(ball, axis=-1, keepdims=True))[inside]
        else:
            out[inside] = (0.0, 0.0, 1.0)
    return out


def boxes(s: Scene) -> list[tuple[float, float, float, float]]:
    """Box of each object, (left, top, right, bottom) in pixels, of the pixels it mostly covers."""
    out = []
    for o in s.objects:
        ys, xs = np.nonzero(coverage(o, s.width, s.height) > 0.5)
        out.append((float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1)))
    return out


def edges(s: Scene) -> np.ndarray:
    """Outlines (H, W) in 0..1, one to two pixels wide."""
    out = np.zeros((s.height, s.width))
    dx = np.arange(s.width) + 0.5
    dy = (np.arange(s.height) + 0.5)[:, None]
    for o in s.objects:
        out = np.maximum(
            out, np.clip(1.5 - abs(signed_distance(o.shape, dx - o.x, dy - o.y, o.radius)), 0, 1)
        )
    return out
