"""What is measured of a checkpoint's answers, task by task, against exact truth; and the table of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from . import maps, measures, questions, world
from .examples import Example
from .judge import judge


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of an example: pictures (H, W, 3) in bytes from top to bottom, none where none was drawn; the text."""

    example: Example
    panels: tuple[np.ndarray, ...]
    text: str

    @property
    def picture(self) -> np.ndarray:
        """The last panel; black where nothing was drawn."""
        s = self.example.scene
        return self.panels[-1] if self.panels else np.zeros((s.height, s.width, 3), np.uint8)


@dataclass(frozen=True)
class Figure:
    """One measured number, of how many things, and the goal set for it."""

    task: str
    name: str
    value: float
    count: int
    unit: str = "%"
    goal: float | None = None
    low_is_good: bool = False
    of_text: bool = False  # judged by the words of an answer: pictures have no part in it

    @property
    def shown(self) -> str:
        return f"{self.value:.1%}" if self.unit == "%" else f"{self.value:.3g} {self.unit}".strip()

    @property
    def goal_shown(self) -> str:
        if self.goal is None:
            return ""
        goal = f"{self.goal:.0%}" if self.unit == "%" else f"{self.goal:g} {self.unit}".strip()
        return ("at most " if self.low_is_good else "at least ") + goal

    @property
    def met(self) -> bool | None:
        if self.goal is None:
            return None
        return self.value <= self.goal if self.low_is_good else self.value >= self.goal


Judge = Callable[[str, Sequence[Outcome]], list[Figure]]


def _share(task: str, name: str, hits: Sequence[bool], goal: float | None = None, of_text=False) -> Figure:
    return Figure(
        task, name, float(np.mean(hits)) if len(hits) else 0.0, len(hits), goal=goal, of_text=of_text
    )


def _mean(task, name, values, unit, goal=None, low=True) -> Figure:
    return Figure(task, name, float(np.mean(values)) if len(values) else 0.0, len(values), unit, goal, low)


def judge_text_to_image(task: str, done: Sequence[Outcome]) -> list[Figure]:
    verdicts = [v for o in done for v in judge(o.example.scene, o.picture)]
    return [
        _share(task, "colour at the named place", [v.colour for v in verdicts], 0.9),
        _share(task, "shape", [v.shape for v in verdicts], 0.85),
    ]


def judge_depth(task: str, done: Sequence[Outcome]) -> list[Figure]:
    errors = [measures.depth_error(o.example.scene, o.picture) for o in done]
    return [_mean(task, "mean absolute error of the range", errors, "", 0.05)]


def judge_segment(task: str, done: Sequence[Outcome]) -> list[Figure]:
    table = sum(measures.confusion(o.example.scene, o.picture) for o in done)
    return [
        Figure(task, "mean IoU of ground and shapes", measures.mean_iou(table), len(done), "", 0.85),
        Figure(task, "mean IoU of the shapes alone", measures.mean_iou(table, ground=False), len(done), ""),
    ]


def judge_normals(task: str, done: Sequence[Outcome]) -> list[Figure]:
    errors = [measures.normal_error(o.example.scene, o.picture) for o in done]
    shapes = [measures.normal_error(o.example.scene, o.picture, ground=False) for o in done]
    return [
        _mean(task, "mean angle error", errors, "degrees", 10.0),
        _mean(task, "mean angle error on the shapes", shapes, "degrees"),
    ]


def _found(task: str, name: str, pairs: Sequence[tuple[int, int]]) -> list[Figure]:
    hits, total = (sum(column) for column in zip(*pairs, strict=True))
    return [Figure(task, name, hits / max(total, 1), total, goal=0.85)]


def judge_pose(task: str, done: Sequence[Outcome]) -> list[Figure]:
    pairs = [measures.keypoints_found(o.example.scene, o.picture) for o in done]
    return _found(task, "keypoints within 4 px", pairs)


def judge_detect(task: str, done: Sequence[Outcome]) -> list[Figure]:
    pairs = [
        measures.boxes_found(o.example.scene, o.example.objects, o.picture, o.example.given[0]) for o in done
    ]
    return _found(task, "boxes over IoU 0.6", pairs)


def judge_edges(task: str, done: Sequence[Outcome]) -> list[Figure]:
    scores = []
    for o in done:
        truth = maps.map_picture(o.example.scene, o.example.map_kind)
        scores.append(measures.edge_score(truth[..., 0] > 110, o.picture.mean(-1) > 110))
    return [_mean(task, "F1 of edge pixels", scores, "", low=False)]


def judge_edit(task: str, done: Sequence[Outcome]) -> list[Figure]:
    told = [o for o in done if o.example.edit is not None]
    moved = [measures.unrelated_change(o.example.edit, o.picture) for o in told]
    kept = [k for o in told for k in measures.others_kept(o.example.edit, o.picture)]
    still = [o for o in done if o.example.edit is None]
    figures = [
        _share(task, "edits that land", [measures.lands(o.example.edit, o.picture) for o in told], 0.85),
        _mean(task, "change of unrelated pixels", [m for m in moved if m is not None], "", 0.05),
        _share(task, "other objects in their colours", kept),
    ]
    if still:
        gains = [measures.psnr(o.picture, o.example.drawn[-1]) for o in still]
        figures.append(_mean(task, "picture kept when nothing is to change", gains, "dB", low=False))
    return figures


def judge_control(task: str, done: Sequence[Outcome]) -> list[Figure]:
    ious = [measures.shape_iou(o.example.scene, o.picture) for o in done]
    verdicts = [v for o in done for v in judge(o.example.scene, o.picture)]
    return [
        _mean(task, "IoU of shapes with the given map", ious, "", 0.8, low=False),
        _share(task, "colour as told", [v.colour for v in verdicts]),
    ]


def judge_pair(task: str, done: Sequence[Outcome]) -> list[Figure]:
    verdicts = [v for o in done for v in judge(o.example.scene, (o.panels or (o.picture,))[0])]
    fits = [
        measures.agreement(o.example.map_kind, o.panels[0], o.panels[1]) if o.panels else 0.0 for o in done
    ]
    return [
        _share(task, "colour at the named place", [v.colour for v in verdicts]),
        _share(task, "shape", [v.shape for v in verdicts]),
        _mean(task, "map fits the picture drawn with it (IoU or F1)", fits, "", low=False),
    ]


def judge_subject(task: str, done: Sequence[Outcome]) -> list[Figure]:
    kept = []
    for o in done:
        every = dict(zip(o.example.scene.objects, judge(o.example.scene, o.picture), strict=True))
        kept += [every[p].colour and every[p].shape for p in o.example.objects]
    return [_share(task, "colour and shape of the subject kept", kept, 0.85)]


def _said(text: str) -> str:
    return text.strip().rstrip(".").lower()


def judge_questions(task: str, done: Sequence[Outcome]) -> list[Figure]:
    right = [_said(o.text) == _said(o.example.truth[-1]) for o in done]
    return [_share(task, "answers right", right, 0.9 if task == "question" else 0.85, of_text=True)]


def judge_views(task: str, done: Sequence[Outcome]) -> list[Figure]:
    verdicts = []
    for o in done:
        pictures = o.panels if len(o.panels) == 2 else (np.zeros_like(o.picture),) * 2
        sides = (o.example.scene, world.from_behind(o.example.scene))
        verdicts += [v for s, p in zip(sides, pictures, strict=True) for v in judge(s, p)]
    return [
        _share(task, "colour at the place of either view", [v.colour for v in verdicts], 0.9),
        _share(task, "shape in either view", [v.shape for v in verdicts], 0.85),
        _share(task, "answers of two pictures", [len(o.panels) == 2 for o in done]),
    ]


def judge_describe(task: str, done: Sequence[Outcome]) -> list[Figure]:
    named = [measures.names_every_object(o.example.scene, o.text) for o in done]
    whole = [_said(o.text) == _said(o.example.truth[-1]) for o in done]
    return [
        _share(task, "captions that name every object", named, 0.85, of_text=True),
        _share(task, "captions right in all, places and ground too", whole, of_text=True),
    ]


def judge_restore(task: str, done: Sequence[Outcome]) -> list[Figure]:
    spoiled = [o for o in done if o.example.given[0].tobytes() != o.example.drawn[0].tobytes()]
    gains = [
        measures.psnr(o.picture, o.example.drawn[0]) - measures.psnr(o.example.given[0], o.example.drawn[0])
        for o in spoiled
    ]
    told = [f"degradation: {o.example.degradation.words}." in o.text.lower() for o in done]
    seen = [f"content: {questions.content(o.example.scene)}." in o.text.lower() for o in done]
    return [
        _mean(task, "PSNR over bicubic", gains, "dB", 2.0, low=False),
        _share(task, "degradation named right", told, 0.8, of_text=True),
        _share(task, "content right", seen, of_text=True),
    ]


JUDGES: dict[str, Judge] = {
    "text_to_image": judge_text_to_image,
    "depth": judge_depth,
    "segment": judge_segment,
    "normals": judge_normals,
    "pose": judge_pose,
    "detect": judge_detect,
    "edit": judge_edit,
    "control": judge_control,
    "describe": judge_describe,
    "question": judge_questions,
    "yes or no": judge_questions,
    "second question": judge_questions,
    "conversation": judge_questions,
    "later picture": judge_questions,
    "several pictures": judge_questions,
    "views": judge_views,
    "restore": judge_restore,
    "restore_tile": judge_restore,
    "depth_panel": judge_depth,
    "canny_panel": judge_edges,
    "hed_panel": judge_edges,
    "pose_panel": judge_pose,
    "edit_panel": judge_edit,
    "subject": judge_subject,
    "subject_described": judge_subject,
    **{f"pair_{kind}": judge_pair for kind in ("depth", "canny", "hed", "pose")},
    **{f"control_{kind}": judge_control for kind in ("depth", "canny", "hed", "pose")},
}


def judged(kind: str, done: Sequence[Outcome]) -> list[Figure]:
    """The figures of a kind; none of things that there are not among the examples."""
    return [f for f in JUDGES[kind](kind, done) if f.count]


def table(figures: Sequence[Figure], limits: Sequence[Figure] = ()) -> list[str]:
    """The figures as the lines of a Markdown table, with the image tokenizer's limits where they are known."""
    most = {(f.task, f.name): f for f in limits}
    lines = ["| task | measured | result | goal | image tokenizer alone |", "|---|---|---|---|---|"]
    for f in figures:
        limit = most.get((f.task, f.name))
        mark = {True: " (met)", False: " (missed)", None: ""}[f.met]
        lines.append(
            f"| {f.task.replace('_', ' ')} | {f.name}, {f.count} | {f.shown}{mark} | {f.goal_shown} | "
            f"{limit.shown if limit else ''} |"
        )
    return lines
