"""How right a drawn map, edit or text is, held against exact truth. Pixels and words only; no model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import numpy as np

from ..boxes import Box, drawn_boxes
from . import edits, maps, world
from .judge import PALETTE, Verdict, judge

PIXELS_OFF = 4.0  # a keypoint may lie so far from its place
OVERLAP = 0.6  # intersection over union from which a box counts as found
CLASSES = {"": (0, 0, 0), **world.SEGMENT_COLOURS}
SPECK = 12  # pixels: what is smaller is no shape, but noise of the image tokenizer
BRIGHT = 110  # of 255: a channel of a line on black that is above it belongs to the line


def depth_error(s: world.Scene, drawn: np.ndarray) -> float:
    """Mean absolute error of the depth in 0..1."""
    return float(np.abs(drawn.mean(-1) / 255 - world.depth(s)).mean())


def confusion(s: world.Scene, drawn: np.ndarray) -> np.ndarray:
    """Pixels of each true (row) and drawn (column) class; ground first, then the shapes."""
    colours = np.array(list(CLASSES.values()), float)

    def classes(picture: np.ndarray) -> np.ndarray:
        return np.linalg.norm(picture[:, :, None].astype(float) - colours, axis=-1).argmin(-1)

    pairs = classes(world.segmentation(s)) * len(colours) + classes(drawn)
    return np.bincount(pairs.ravel(), minlength=len(colours) ** 2).reshape(len(colours), -1)


def mean_iou(table: np.ndarray, ground: bool = True) -> float:
    """Mean over the classes that there are of intersection over union, of summed confusions."""
    union = table.sum(0) + table.sum(1) - table.diagonal()
    there = union > 0
    there[0] &= ground
    return float((table.diagonal()[there] / union[there]).mean())


def normal_error(s: world.Scene, drawn: np.ndarray, ground: bool = True) -> float:
    """Mean angle in degrees between drawn and true normals, of all pixels or of those of shapes."""
    n = (drawn.astype(float) - 128) / 127.5
    n /= np.maximum(np.linalg.norm(n, axis=-1, keepdims=True), 1e-6)
    angles = np.degrees(np.arccos((n * world.normals(s)).sum(-1).clip(-1, 1)))
    return float(angles.mean() if ground else angles[covered(s)].mean())


def covered(s: world.Scene) -> np.ndarray:
    """The pixels (H, W) that shapes cover."""
    return np.max([world.coverage(o, s.width, s.height) for o in s.objects], axis=0) > 0.5


def regions(mask: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows and columns of the pixels of each connected part (4 neighbours) of a mask."""
    left = mask.copy()
    out = []
    while left.any():
        y, x = (int(i[0]) for i in np.nonzero(left))
        left[y, x] = False
        part, edge = [(y, x)], [(y, x)]
        while edge:
            y, x = edge.pop()
            for ny, nx in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= ny < left.shape[0] and 0 <= nx < left.shape[1] and left[ny, nx]:
                    left[ny, nx] = False
                    part.append((ny, nx))
                    edge.append((ny, nx))
        ys, xs = zip(*part, strict=True)
        out.append((np.array(ys), np.array(xs)))
    return out


def boxes_found(
    s: world.Scene, objects: tuple[world.Object, ...], drawn: np.ndarray, given: np.ndarray
) -> tuple[int, int]:
    """Boxes that overlap a true one by more than `OVERLAP`; how many there are, true or drawn, whichever is more.

    They are read from what was drawn about the picture `given` as users' are.
    """
    every = dict(zip(s.objects, (Box(*edges) for edges in world.boxes(s)), strict=True))
    waiting = [every[o] for o in objects]
    seen, hits = drawn_boxes(drawn, given), 0
    for box in seen:
        best = max(waiting, key=box.overlap, default=None)
        if best is not None and box.overlap(best) > OVERLAP:
            waiting.remove(best)
            hits += 1
    return hits, max(len(objects), len(seen))


def keypoints_found(s: world.Scene, drawn: np.ndarray) -> tuple[int, int]:
    """Keypoints within `PIXELS_OFF` of their place, and how many there are, true or drawn, whichever is more."""
    hits = total = 0
    least = 0.3 * np.pi * (maps.JOINT_RADIUS * min(s.width, s.height)) ** 2  # smaller specks are no joints
    joints = maps.keypoints(s)
    for kind, colour in maps.JOINT_COLOURS.items():
        seen = [
            (xs.mean() + 0.5, ys.mean() + 0.5)
            for ys, xs in regions(of_joints(drawn, colour))
            if len(ys) >= least
        ]
        waiting = [(x, y) for name, x, y in joints if name == kind]
        total += max(len(waiting), len(seen))
        for x, y in seen:
            near = min(waiting, key=lambda p, x=x, y=y: np.hypot(p[0] - x, p[1] - y), default=None)
            if near is not None and np.hypot(near[0] - x, near[1] - y) <= PIXELS_OFF:
                waiting.remove(near)
                hits += 1
    return hits, total


def of_joints(drawn: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """The pixels (H, W) of keypoints of one colour."""
    channel = int(np.argmax(colour))
    others = np.delete(drawn.astype(int), channel, axis=-1).max(-1)
    return (drawn[..., channel] > BRIGHT) & (drawn[..., channel] > others + 70)


def lands(e: edits.Edit, drawn: np.ndarray) -> bool:
    """Whether the named object (or the ground) is as told."""
    if e.kind == "ground":
        return ground_of(drawn) == e.after.ground
    if e.kind in ("remove", "move") and not _gone(e.after, e.old, drawn):
        return False
    if e.new is None:
        return True
    [verdict] = [v for o, v in _verdicts(e, drawn) if o is e.new]
    return verdict.colour and verdict.shape


def others_kept(e: edits.Edit, drawn: np.ndarray) -> list[bool]:
    """Of every object that was not named, whether it has its colour still."""
    return [verdict.colour for o, verdict in _verdicts(e, drawn) if o is not e.new]


def _verdicts(e: edits.Edit, drawn: np.ndarray) -> Iterator[tuple[world.Object, Verdict]]:
    """Every object that is there after the edit, and what the judge saw of it."""
    return zip(e.after.objects, judge(e.after, drawn), strict=True)


def _gone(after: world.Scene, old: world.Object, drawn: np.ndarray) -> bool:
    """Whether most of what an object covered shows the ground."""
    place = world.coverage(old, after.width, after.height) > 0.5
    for o in after.objects:
        place &= world.coverage(o, after.width, after.height) < 0.05
    seen = nearest_names(drawn)[place]
    return bool((seen == after.ground).mean() > 0.8) if len(seen) else True


def nearest_names(picture: np.ndarray) -> np.ndarray:
    """The name of the world's colour that is nearest to each pixel."""
    table = np.array(list(PALETTE.values()), float)
    nearest = np.linalg.norm(picture[:, :, None].astype(float) - table, axis=-1).argmin(-1)
    return np.array(list(PALETTE))[nearest]


def ground_of(picture: np.ndarray) -> str:
    """The name of the colour along most of the border."""
    names = nearest_names(picture)
    border = np.concatenate([names[0], names[-1], names[:, 0], names[:, -1]])
    return str(Counter(border.tolist()).most_common(1)[0][0])


def unrelated_change(e: edits.Edit, drawn: np.ndarray) -> float | None:
    """Mean change, in 0..1, of the pixels that the edit leaves alone; None where it leaves none."""
    before, after = world.picture(e.before), world.picture(e.after)
    kept = (before == after).all(-1)
    if kept.mean() < 0.02:
        return None
    return float(np.abs(drawn[kept].astype(float) - before[kept]).mean() / 255)


def shapes_seen(picture: np.ndarray, ground: str) -> np.ndarray:
    """The pixels (H, W) of a picture that are not of its ground's colour."""
    return nearest_names(picture) != ground


def shape_iou(s: world.Scene, drawn: np.ndarray) -> float:
    """How well the shapes drawn on the ground lie on those of the scene, whatever their colours."""
    truth = covered(s)
    seen = shapes_seen(drawn, ground_of(drawn))
    return float((truth & seen).sum() / max((truth | seen).sum(), 1))


def edge_score(true: np.ndarray, drawn: np.ndarray) -> float:
    """F1 of edge pixels, two masks (H, W); each may be off by a pixel to any side."""
    if not true.any() or not drawn.any():
        return float(true.any() == drawn.any())
    precision = (drawn & _wider(true)).sum() / drawn.sum()
    recall = (true & _wider(drawn)).sum() / true.sum()
    return _f1(precision, recall)


def _f1(precision: float, recall: float) -> float:
    return float(2 * precision * recall / max(precision + recall, 1e-9))


def agreement(kind: str, picture: np.ndarray, drawn: np.ndarray) -> float:
    """How well a map (of `kind`) drawn beside a picture fits that picture, 0 to 1."""
    seen = shapes_seen(picture, ground_of(picture))
    if kind == "depth":
        near = drawn.mean(-1) / 255 > 0.45  # the floor is below, every object above
        return float((seen & near).sum() / max((seen | near).sum(), 1))
    if kind == "pose":
        return _joints_on_shapes(seen, drawn)
    outline = seen & ~_narrower(seen)
    return edge_score(outline, drawn.mean(-1) > BRIGHT)


def _joints_on_shapes(seen: np.ndarray, drawn: np.ndarray) -> float:
    """F1 of the keypoints' pixels that lie on shapes, and of keypoints of every kind that the shapes have."""
    kinds = [of_joints(drawn, colour) for colour in maps.JOINT_COLOURS.values()]
    joints, radius = np.logical_or.reduce(kinds), round(maps.JOINT_RADIUS * min(seen.shape)) + 1
    wanted = []
    for ys, xs in regions(seen):
        if len(ys) >= SPECK:
            shape = np.zeros_like(seen)
            shape[ys, xs] = True
            wanted += [(kind & _wider(shape, radius)).any() for kind in kinds]
    precision, recall = (joints & _wider(seen, radius)).sum() / max(joints.sum(), 1), np.mean(wanted or [0.0])
    return _f1(precision, recall)


def names_every_object(s: world.Scene, words: str) -> bool:
    """Whether a caption names the objects there are, with their colours, and no others."""
    said = re.findall(rf"({'|'.join(world.COLOURS)}) ({'|'.join(world.SHAPES)})\b", words)
    return Counter(said) == Counter((o.colour, o.shape) for o in s.objects)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two pictures in bytes; 60 where they are equal."""
    error = np.square(a.astype(float) - b).mean()
    return float(min(60.0, 10 * np.log10(255**2 / max(error, 1e-9))))


def _wider(mask: np.ndarray, pixels: int = 1) -> np.ndarray:
    """The mask with the pixels (8 neighbours) around it, so many times."""
    for _ in range(pixels):
        p = np.pad(mask, 1)
        h, w = mask.shape
        mask = np.logical_or.reduce([p[y : y + h, x : x + w] for y in range(3) for x in range(3)])
    return mask


def _narrower(mask: np.ndarray) -> np.ndarray:
    return ~_wider(~mask)
