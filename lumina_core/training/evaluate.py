"""Judges a checkpoint on held-out examples of every task, against exact truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from ..errors import InputError
from ..families import Model
from ..prompts import Prompt, fill
from ..sampling import PictureFinished, Sampling, TextPiece
from ..sampling.abreast import Abreast
from ..unirep import UNIT, TokenGrid
from . import maps, measures, questions, world
from .dataset import picture_codes
from .examples import Example, Size, example
from .judge import judge

AT_ONCE = 32  # examples that are drawn together
WORDS = 96  # tokens of text that an answer may take


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


def evaluate(
    model: Model,
    pools: Sequence[tuple[str, Size]],
    count: int,
    settings: Callable[[str], Sampling],
    report: Callable[[str, int], object] = lambda kind, done: None,
) -> list[Figure]:
    """Figures of every kind among `pools` (kind, size), `count` held-out examples each, sizes in turn.

    `settings` gives the sampling settings of a task; example n is drawn with its seed + n. `report(kind, examples)`
    is told what was drawn.
    """
    if count < 1:
        raise InputError("There is nothing to judge: the number of captions must be at least 1.")
    figures = []
    for kind, numbers in shared_out(pools, count).items():
        done = []
        for size, mine in numbers.items():
            for first in range(0, len(mine), AT_ONCE):
                part = mine[first : first + AT_ONCE]
                done += outcomes(model, [example(kind, "held-out", n, size) for n in part], part, settings)
                report(kind, len(part))
        figures += judged(kind, done)
    return figures


def shared_out(pools: Sequence[tuple[str, Size]], count: int) -> dict[str, dict[Size, list[int]]]:
    """Which of the first `count` held-out examples of each kind are judged at which of its sizes."""
    out = {}
    for kind in dict.fromkeys(kind for kind, _ in pools):
        sizes = [size for other, size in pools if other == kind]
        out[kind] = {size: list(range(i, count, len(sizes))) for i, size in enumerate(sizes)}
    return out


def judged(kind: str, done: Sequence[Outcome]) -> list[Figure]:
    """The figures of a kind; none of things that there are not among the examples."""
    return [f for f in JUDGES[kind](kind, done) if f.count]


def outcomes(
    model: Model, examples: Sequence[Example], numbers: Sequence[int], settings: Callable[[str], Sampling]
) -> Iterator[Outcome]:
    """What the model makes of examples of one kind and size."""
    sampling = settings(examples[0].task)
    prompts = prompts_of(model, examples)
    seeds = [sampling.seed + n for n in numbers]
    words: list[list[int]] = [[] for _ in examples]
    panels: list[tuple[np.ndarray, ...]] = [()] * len(examples)
    # So many together are quicker without windows, which give the same pictures.
    sampling = replace(sampling, decode="ar", max_tokens=WORDS)
    drawing = Abreast(model.transformer, model.vocabulary, prompts, seeds, sampling)
    for event in drawing.draw(len(prompts)):
        if isinstance(event, TextPiece):
            words[event.index] += event.tokens
        elif isinstance(event, PictureFinished):
            panels[event.index] = tuple(model.decode(panel.codes) for panel in event.grid.split())
    for e, seen, said in zip(examples, panels, words, strict=True):
        yield Outcome(e, seen, model.tokenizer.decode(said))


def prompts_of(model: Model, examples: Sequence[Example]) -> list[Prompt]:
    """The prompts the library makes of examples; pictures are encoded at their own size."""
    codes = picture_codes(model.vq, [p for e in examples for p in e.given])
    out = []
    for e in examples:
        entry = model.family.templates[e.task]
        if entry.expects == "image" and not e.given:
            out.append(model.prompt(e.text, task=e.task, size=e.size))
            continue
        grids = [TokenGrid(codes[p.tobytes()], model.family.id) for p in e.given]
        h, w = e.size[1] // UNIT, e.size[0] // UNIT
        if entry.given_panel:
            question = fill(entry.text, e.text, (h * entry.panels, w), e.subject or entry.subject)
            prompt = model.family.compose_open(model, question, grids[0], task=e.task, panels=entry.panels)
            out.append(prompt)
            continue
        question = fill(entry.text, e.text, None)
        turns, units = [*e.earlier, question, None], (h, w) if e.drawn else None
        out.append(model.family.compose(model, turns, grids, task=e.task, expects=_expects(e), units=units))
    return out


def _expects(e: Example) -> str:
    if not e.drawn:
        return "text"
    return "text_then_image" if e.truth else "image"


@dataclass(frozen=True)
class Ceiling:
    """How well the image tokenizer alone does: PSNR in dB of held-out pictures, and what the judge sees through it."""

    psnr: float
    colour: float
    shape: float


def evaluate_tokenizer(model: Model, sizes: Sequence[Size], pictures: int = 200) -> Ceiling:
    """The image tokenizer on held-out pictures, without the transformer."""
    errors, verdicts = [], []
    for n in range(pictures):
        scene = world.scene("held-out", n, *sizes[n % len(sizes)])
        truth = world.picture(scene)
        rebuilt = model.decode(model.encode(Image.fromarray(truth)).codes)
        errors.append(measures.psnr(rebuilt, truth))
        verdicts += judge(scene, rebuilt)
    colour, shape = (float(np.mean([getattr(v, k) for v in verdicts])) for k in ("colour", "shape"))
    return Ceiling(float(np.mean(errors)), colour, shape)


def ceilings(pools: Sequence[tuple[str, Size]], model: Model, count: int) -> list[Figure]:
    """What the judges say of the pictures that `evaluate` wants, through the image tokenizer alone: its limit."""
    figures = []
    for kind, numbers in shared_out(pools, count).items():
        done = []
        for size, mine in numbers.items():
            for e in (example(kind, "held-out", n, size) for n in mine):
                codes = picture_codes(model.vq, list(e.drawn))
                done.append(Outcome(e, tuple(model.decode(codes[p.tobytes()]) for p in e.drawn), ""))
        figures += [f for f in judged(kind, done) if not f.of_text]
    return figures


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
