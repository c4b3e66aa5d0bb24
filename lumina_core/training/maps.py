"""Maps of a scene as the pictures a model draws: depth, segmentation, normals, edges, pose and found boxes.

All are exact functions of the scene. Keypoints stand in for a human pose: every object has a head and two feet (or
arms), coloured by kind as OpenPose colours joints, joined to its middle by grey limbs, on black.
"""

from __future__ import annotations

import numpy as np

from . import world

JOINTS = {  # of each shape: head, left, right, from the middle, in radii
    "circle": ((0.0, -1.0), (-0.71, 0.71), (0.71, 0.71)),
    "square": ((0.0, -0.88), (-0.88, 0.88), (0.88, 0.88)),
    "triangle": ((0.0, -1.0), (-0.95, 0.9), (0.95, 0.9)),
    "cross": ((0.0, -1.0), (-1.0, 0.0), (1.0, 0.0)),
}
JOINT_COLOURS = {"head": (255, 0, 0), "left": (0, 255, 0), "right": (0, 0, 255)}
LIMB = 160
JOINT_RADIUS = 0.045  # as a fraction of the shorter side
BOX_COLOUR = (0, 255, 0)
KINDS = ("depth", "segmentation", "normals", "hed", "canny", "pose")


def map_picture(s: world.Scene, kind: str) -> np.ndarray:
    """The map `kind` (one of `KINDS`) of a scene as bytes (H, W, 3)."""
    if kind == "segmentation":
        return world.segmentation(s)
    if kind == "normals":
        return (world.normals(s) * 127.5 + 128).clip(0, 255).astype(np.uint8)
    if kind == "pose":
        return pose(s)
    grey = {"depth": world.depth, "hed": world.edges, "canny": canny}[kind](s)
    return np.repeat((grey * 255 + 0.5).astype(np.uint8)[..., None], 3, -1)


def canny(s: world.Scene) -> np.ndarray:
    """Outlines (H, W), 0 or 1, one to two pixels wide, without the soft flanks of `world.edges`."""
    return (world.edges(s) > 0.7).astype(np.float64)


def keypoints(s: world.Scene) -> list[tuple[str, float, float]]:
    """Kind, x and y in pixels of every object's joints."""
    return [
        (kind, o.x + dx * o.radius, o.y + dy * o.radius)
        for o in s.objects
        for kind, (dx, dy) in zip(JOINT_COLOURS, JOINTS[o.shape], strict=True)
    ]


def pose(s: world.Scene) -> np.ndarray:
    """Bytes (H, W, 3): the skeletons of all objects on black."""
    side = min(s.width, s.height)
    out = np.zeros((s.height, s.width, 3))
    joints = keypoints(s)
    for i, (_, x, y) in enumerate(joints):
        o = s.objects[i // len(JOINT_COLOURS)]
        out = _laid(out, _stroke(s, (o.x, o.y), (x, y), 0.014 * side), (LIMB,) * 3)
    for kind, x, y in joints:
        out = _laid(out, _stroke(s, (x, y), (x, y), JOINT_RADIUS * side), JOINT_COLOURS[kind])
    return (out + 0.5).astype(np.uint8)


def found(s: world.Scene, objects: tuple[world.Object, ...]) -> np.ndarray:
    """Bytes (H, W, 3): the boxes of some objects as outlines on black; their outer edges are the boxes' own."""
    out = np.zeros((s.height, s.width, 3), np.uint8)
    thick = max(2, round(0.035 * min(s.width, s.height)))
    every = dict(zip(s.objects, world.boxes(s), strict=True))
    for o in objects:
        left, top, right, bottom = (int(edge) for edge in every[o])
        inside = np.zeros(out.shape[:2], bool)
        inside[top:bottom, left:right] = True
        inside[top + thick : bottom - thick, left + thick : right - thick] = False
        out[inside] = BOX_COLOUR
    return out


def _stroke(s: world.Scene, a: tuple[float, float], b: tuple[float, float], reach: float) -> np.ndarray:
    """How much of each pixel (H, W) lies within `reach` of the line from a to b, edges smoothed over one pixel."""
    x = np.arange(s.width) + 0.5 - a[0]
    y = (np.arange(s.height) + 0.5 - a[1])[:, None]
    dx, dy = b[0] - a[0], b[1] - a[1]
    along = np.clip((x * dx + y * dy) / max(dx * dx + dy * dy, 1e-9), 0, 1)
    return np.clip(reach + 0.5 - np.hypot(x - along * dx, y - along * dy), 0, 1)


def _laid(out: np.ndarray, cover: np.ndarray, colour: tuple[int, ...]) -> np.ndarray:
    a = cover[..., None]
    return out * (1 - a) + a * np.array(colour)
