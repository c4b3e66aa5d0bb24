"""Boxes that a model drew into a picture: found by what differs from the picture it was given, and drawn anew."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

CHANGED = 48  # of 255: a channel that moved by more was painted over; the VQ's own noise stays below
COVERED = 0.6  # share of each side of a box that must be painted
CROSSING = 0.8  # the same where frames touch and cross
SAME = 0.7  # boxes that overlap more (intersection over union) are one
LINES = 24  # of each direction in one region; with more it is no drawing of frames
COLOURS = ((230, 30, 30), (30, 160, 60), (40, 90, 230), (240, 150, 20), (170, 50, 200), (20, 180, 190))


@dataclass(frozen=True)
class Box:
    """Edges in pixels, left and top inside, right and bottom outside."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def area(self) -> int:
        return (self.right - self.left) * (self.bottom - self.top)

    def overlap(self, other: Box) -> float:
        """Intersection over union."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        shared = max(0, wide) * max(0, high)
        return shared / (self.area + other.area - shared)

    def scaled(self, x: float, y: float, left: int = 0, top: int = 0) -> Box:
        """The box in a picture `x` and `y` times as large, of which this one is the part beginning at (left, top)."""
        first = (round(self.left * x) + left, round(self.top * y) + top)
        right, bottom = round(self.right * x) + left, round(self.bottom * y) + top
        return Box(*first, max(right, first[0] + 1), max(bottom, first[1] + 1))

    def within(self, size: tuple[int, int]) -> Box:
        """What of the box lies in a picture of this size (width, height); a pixel of it at the least."""
        left, top = min(self.left, size[0] - 1), min(self.top, size[1] - 1)
        return Box(
            left, top, max(left + 1, min(self.right, size[0])), max(top + 1, min(self.bottom, size[1]))
        )


def drawn_boxes(drawn: np.ndarray, given: np.ndarray, least: int = 4) -> list[Box]:
    """Boxes in a drawn picture (h, w, 3) that are not in the given one: frames or filled ones, read from top left.

    `given` is the picture as the model was given it, of the same size and through the same VQ. A drawing on black
    alone is understood too. Boxes of fewer than `least` pixels a side are taken for noise.
    """
    painted = np.abs(drawn.astype(int) - given).max(-1) > CHANGED
    bright = given.max(-1) > CHANGED
    if bright.any() and (painted & bright).sum() > bright.sum() / 2:
        painted = drawn.max(-1) > CHANGED  # not drawn over the picture but on a ground of its own, black
    found = [box for region, x, y in _regions(painted, least) for box in _boxes_of(region, least, x, y)]
    return sorted(found, key=lambda b: (b.top, b.left, b.bottom, b.right))


def draw(picture: Image.Image, boxes: Sequence[Box], label: str = "") -> Image.Image:
    """The picture with crisp frames of its boxes, each of its own colour, and the label where there is room."""
    out = picture.convert("RGB")
    pen, thick = ImageDraw.Draw(out), max(1, round(min(out.size) / 200))
    for n, box in enumerate(boxes):
        colour = COLOURS[n % len(COLOURS)]
        pen.rectangle((box.left, box.top, box.right - 1, box.bottom - 1), outline=colour, width=thick)
        if label and min(out.size) >= 256:
            pen.text((box.left + thick + 1, box.top + thick), label, fill=colour)
    return out


def to_json(pictures: Sequence[tuple[tuple[int, int], Sequence[Box]]], label: str) -> str:
    """JSON of a batch: for each picture its width, height and boxes [left, top, right, bottom] in pixels."""
    said = [
        {
            "width": size[0],
            "height": size[1],
            "boxes": [{"label": label, "box": [b.left, b.top, b.right, b.bottom]} for b in boxes],
        }
        for size, boxes in pictures
    ]
    return json.dumps(said)


def mask(size: tuple[int, int], boxes: Sequence[Box]) -> np.ndarray:
    """Bools (H, W), true inside any box."""
    out = np.zeros(size[::-1], bool)
    for b in boxes:
        out[b.top : b.bottom, b.left : b.right] = True
    return out


def _regions(painted: np.ndarray, least: int) -> list[tuple[np.ndarray, int, int]]:
    """The connected regions (8 neighbours) of a mask (h, w): cut out, each with its left and upper edge.

    Those of fewer than `least` pixels are left out.
    """
    runs = []  # (row, first, behind the last) of painted pixels; runs that touch are joined
    for y, row in enumerate(painted):
        edges = np.flatnonzero(np.diff(np.pad(row.astype(np.int8), 1)))
        runs += [(y, int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    parent = list(range(len(runs)))

    def root(n: int) -> int:
        while parent[n] != n:
            parent[n] = n = parent[parent[n]]
        return n

    above = 0
    for n, (y, first, last) in enumerate(runs):
        while runs[above][0] < y - 1 or (runs[above][0] == y - 1 and runs[above][2] < first):
            above += 1
        m = above
        while runs[m][0] == y - 1 and runs[m][1] <= last:
            parent[root(m)] = root(n)
            m += 1
    groups: dict[int, list[tuple[int, int, int]]] = {}
    for n, run in enumerate(runs):
        groups.setdefault(root(n), []).append(run)
    found = []
    for group in groups.values():
        left, right = min(r[1] for r in group), max(r[2] for r in group)
        top, bottom = group[0][0], group[-1][0] + 1
        if sum(b - a for _, a, b in group) >= least:
            region = np.zeros((bottom - top, right - left), bool)
            for y, a, b in group:
                region[y - top, a - left : b - left] = True
            found.append((region, left, top))
    return found


def _boxes_of(region: np.ndarray, least: int, x: int, y: int) -> list[Box]:
    """The boxes that make up a connected region lying at (x, y): one, or frames that touch and cross."""
    whole = Box(0, 0, region.shape[1], region.shape[0])
    if min(whole.right - whole.left, whole.bottom - whole.top) < least:
        return []
    if _cover(region, whole) >= COVERED and not 0.25 < _inside(region, whole, 2) <= 0.8:
        return [whole.scaled(1, 1, x, y)]
    if (frame := _trimmed(region)) and _cover(region, frame) >= COVERED and _inside(region, frame, 4) < 0.5:
        return [frame.scaled(1, 1, x, y)]
    across, down = _lines(region, least), _lines(region.T, least)
    if len(across) > LINES or len(down) > LINES:
        return []
    found = []
    for i, (top, _) in enumerate(across):
        for _, bottom in [(a, b) for a, b in across[i + 1 :] if b - top >= least]:
            for j, (left, _) in enumerate(down):
                for _, right in [(a, b) for a, b in down[j + 1 :] if b - left >= least]:
                    box = Box(left, top, right, bottom)
                    if _cover(region, box) >= CROSSING:
                        found.append(box)
    return [box.scaled(1, 1, x, y) for box in _explaining(found, region)]


def _explaining(found: list[Box], region: np.ndarray) -> list[Box]:
    """The boxes, largest first, whose frame is not made of the frames of others: crossing frames enclose more."""
    explained, best = np.zeros_like(region), []
    for box in sorted(found, key=lambda b: -b.area):
        frame = np.zeros_like(region)
        frame[box.top : box.bottom, box.left : box.right] = True
        frame[box.top + 2 : box.bottom - 2, box.left + 2 : box.right - 2] = False
        new = (frame & region & ~explained).sum() > frame.sum() / 4
        if new and all(box.overlap(other) <= SAME for other in best):
            best.append(box)
            explained |= frame
    return best


def _inside(region: np.ndarray, box: Box, least: int) -> float:
    """The share of the inside of a box that is painted, its frame taken to be `least` pixels wide or more."""
    inset = max(least, min(box.right - box.left, box.bottom - box.top) // 6)
    part = region[box.top + inset : box.bottom - inset, box.left + inset : box.right - inset]
    return float(part.mean()) if part.size else 0.0


def _trimmed(region: np.ndarray) -> Box | None:
    """The box without what a stained frame juts out: its edges moved in to lines painted by half, or None."""
    edges = []
    for lines in (region.mean(1), region.mean(0)):
        most = max(1, len(lines) // 5)
        full = np.flatnonzero(lines >= 0.5)
        if not len(full) or full[0] > most or len(lines) - 1 - full[-1] > most:
            return None
        edges.append((int(full[0]), int(full[-1]) + 1))
    (top, bottom), (left, right) = edges
    return Box(left, top, right, bottom)


def _cover(region: np.ndarray, box: Box) -> float:
    """The least share of a side of a box that is painted, looked at two pixels deep."""
    part = region[box.top : box.bottom, box.left : box.right]
    sides = (part[:2].any(0), part[-2:].any(0), part[:, :2].any(1), part[:, -2:].any(1))
    return float(min(side.mean() for side in sides))


def _lines(region: np.ndarray, least: int) -> list[tuple[int, int]]:
    """Rows (first, behind the last) of the horizontal lines in a region: rows with a run of painted pixels."""
    longest = np.zeros(len(region), int)
    for y, row in enumerate(region):
        edges = np.flatnonzero(np.diff(np.pad(row.astype(np.int8), 1)))
        runs = edges[1::2] - edges[::2]
        longest[y] = runs.max(initial=0)
    on = longest >= max(least, longest.max() * 0.3)
    edges = np.flatnonzero(np.diff(np.pad(on.astype(np.int8), 1)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
