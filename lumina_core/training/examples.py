"""One training or held-out item of every task: the words, the pictures and the truth, before any tokenizer.

Example number n of a task and split is a function of (task, split, n, size) only. Training and judging make the same
examples; only the split differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..prompts import TEXT_TO_IMAGE, fill
from ..text import IMAGE
from ..unirep import UNIT
from . import degrade, edits, maps, questions, world

Size = tuple[int, int]  # width, height in pixels, of one panel
LARGEST_ZOOM = 2.5  # of a picture that a tile is a piece of
VIEWS = (
    "Generate two images of {width}x{height}, from the front and from behind, according to the following prompt:\n"
    "{caption}"
)
BOTH = f"{IMAGE} {IMAGE}"


@dataclass(frozen=True, eq=False)
class Example:
    """What the user gives and what should come of it.

    `text` fills the template of `task`; `given` are pictures of the question, `answer` the answer's words with a mark
    for each of its pictures, `drawn` those pictures (the panels from top to bottom where `task` has panels). `earlier`
    are turns (question, answer, ...) that stand before; pictures in them, marked too, are the first of those given.
    """

    task: str
    text: str
    size: Size
    scene: world.Scene
    given: tuple[np.ndarray, ...] = ()
    answer: str = IMAGE
    drawn: tuple[np.ndarray, ...] = ()
    earlier: tuple[str, ...] = ()
    subject: str = ""
    edit: edits.Edit | None = None
    objects: tuple[world.Object, ...] = ()  # those that are asked for
    degradation: degrade.Degradation | None = None
    map_kind: str = ""
    truth: tuple[str, ...] = field(default=())  # answers of all turns, the last among them


Maker = Callable[[world.Scene, np.random.Generator], Example]
MAKERS: dict[str, Maker] = {}


def example(kind: str, split: str, number: int, size: Size) -> Example:
    """Example `number` of a kind (a key of `MAKERS`) and split at a panel size."""
    rng = np.random.default_rng([world.SPLITS[split], number, sum(kind.encode()), len(kind)])
    return MAKERS[kind](world.scene(split, number, *size), rng)


def task_of(kind: str) -> str:
    """The task (a key of the family's templates) that a kind of example is of."""
    return example(kind, "train", 0, (64, 64)).task


def _maker(kind: str) -> Callable[[Maker], Maker]:
    def add(make: Maker) -> Maker:
        MAKERS[kind] = make
        return make

    return add


def _size(s: world.Scene) -> Size:
    return s.width, s.height


@_maker("text_to_image")
def _text_to_image(s: world.Scene, rng: np.random.Generator) -> Example:
    return Example("text_to_image", world.caption(s), _size(s), s, drawn=(world.picture(s),))


def _dense(task: str, kind: str) -> Maker:
    """Picture in, map out (1.0)."""

    def make(s: world.Scene, rng: np.random.Generator) -> Example:
        drawn = maps.map_picture(s, kind)
        return Example(task, "", _size(s), s, (world.picture(s),), drawn=(drawn,), map_kind=kind)

    return make


@_maker("detect")
def _detect(s: world.Scene, rng: np.random.Generator) -> Example:
    o = s.objects[rng.integers(len(s.objects))]
    if rng.random() < 0.5:
        name, objects = f"{o.colour} {o.shape}", (o,)
    else:
        name, objects = o.shape, tuple(p for p in s.objects if p.shape == o.shape)
    return Example(
        *("detect", name, _size(s), s, (world.picture(s),)),
        drawn=(maps.found(s, objects),),
        objects=objects,
    )


def _edit(
    s: world.Scene, rng: np.random.Generator, still: float
) -> tuple[str, edits.Edit | None, np.ndarray]:
    """Instruction, edit and picture after it; nothing is to change with the chance `still`."""
    if rng.random() < still:
        return edits.NOTHING, None, world.picture(s)
    e = edits.edit(s, rng)
    return e.instruction, e, world.picture(e.after)


@_maker("edit")
def _edit_one(s: world.Scene, rng: np.random.Generator) -> Example:
    text, e, after = _edit(s, rng, 0.05)
    if e is not None and rng.random() >= 0.5:
        text = edits.casual(text)
    return Example("edit", text, _size(s), s, (world.picture(s),), drawn=(after,), edit=e)


@_maker("control")
def _control(s: world.Scene, rng: np.random.Generator) -> Example:
    kind = ("depth", "segmentation")[rng.integers(2)]
    given, drawn = maps.map_picture(s, kind), world.picture(s)
    return Example("control", world.caption(s), _size(s), s, (given,), drawn=(drawn,), map_kind=kind)


@_maker("describe")
def _describe(s: world.Scene, rng: np.random.Generator) -> Example:
    words = questions.describe(s)
    return Example("describe", "", _size(s), s, (world.picture(s),), answer=words, truth=(words,))


def _chat(ask: Callable[[world.Scene, np.random.Generator], questions.Turns]) -> Maker:
    def make(s: world.Scene, rng: np.random.Generator) -> Example:
        first, *turns = ask(s, rng)
        return _talk(s, (s,), _with_pictures(first, 1, rng), *turns)

    return make


def _with_pictures(question: str, pictures: int, rng: np.random.Generator) -> str:
    # Where nobody places pictures they stand before the question; people also place them behind.
    marks = [IMAGE] * pictures
    return " ".join([question, *marks] if rng.random() < 0.3 else [*marks, question])


def _talk(s: world.Scene, shown: Sequence[world.Scene], *turns: str) -> Example:
    """A conversation (question, answer, ...) whose marks stand for pictures of the scenes `shown`."""
    return Example(
        *("chat", turns[-2], _size(s), s, tuple(world.picture(each) for each in shown)),
        answer=turns[-1],
        earlier=tuple(turns[:-2]),
        truth=tuple(turns[1::2]),
    )


@_maker("later picture")
def _later_picture(s: world.Scene, rng: np.random.Generator) -> Example:
    """A question about a picture that a later turn brings, or that the answer before it drew."""
    question, answer = questions.ask(s, rng)
    if rng.random() < 0.3:
        width, height = _size(s)
        drawing = fill(TEXT_TO_IMAGE.text, world.caption(s), (height // UNIT, width // UNIT))
        return _talk(s, (s,), drawing, IMAGE, question, answer)
    other = world.random_scene(rng, *_size(s))
    first, *turns = (questions.ask, questions.ask_twice)[rng.integers(2)](other, rng)
    before = (_with_pictures(first, 1, rng), *turns)
    return _talk(s, (other, s), *before, _with_pictures(question, 1, rng), answer)


def _asks_views(s: world.Scene) -> str:
    return VIEWS.format(width=s.width, height=s.height, caption=world.caption(s))


@_maker("several pictures")
def _several_pictures(s: world.Scene, rng: np.random.Generator) -> Example:
    """A question about one of two or three pictures: brought together, one in an earlier turn, or drawn before."""
    before: tuple[str, ...] = ()
    way = rng.choice(["together", "in turns", "drawn"], p=[0.55, 0.25, 0.2])
    if way == "drawn":
        shown = (s, world.from_behind(s))
        before = _asks_views(s), BOTH
    else:
        shown = (s, *(world.random_scene(rng, *_size(s)) for _ in range(rng.choice([1, 2], p=[0.7, 0.3]))))
    if way == "in turns":
        first, told = questions.ask(s, rng)
        before = _with_pictures(first, 1, rng), told
    question, answer = questions.ask_of_several(shown, rng)
    pictures = len(shown) - "".join(before).count(IMAGE)
    return _talk(s, shown, *before, _with_pictures(question, pictures, rng), answer)


@_maker("views")
def _views(s: world.Scene, rng: np.random.Generator) -> Example:
    """Two pictures in one answer: the scene from the front and from behind."""
    drawn = world.picture(s), world.picture(world.from_behind(s))
    return Example("chat", _asks_views(s), _size(s), s, answer=BOTH, drawn=drawn)


@_maker("restore")
def _restore(s: world.Scene, rng: np.random.Generator) -> Example:
    d, clean = degrade.draw(rng), world.picture(s)
    return _restored(s, d, degrade.spoil(clean, d, rng), clean)


@_maker("restore_tile")
def _restore_tile(s: world.Scene, rng: np.random.Generator) -> Example:
    """A piece of a larger picture that was spoiled as a whole: what a tile shows."""
    d, whole = degrade.draw(rng), world.enlarged(s, rng.uniform(1.0, LARGEST_ZOOM))
    left, top = (int(rng.integers(0, n - m + 1)) for n, m in zip(_size(whole), _size(s), strict=True))
    clean = world.picture(whole)
    spoiled = degrade.spoil(clean, d, rng)
    piece = world.window(whole, left, top, s.width, s.height)
    cut = (slice(top, top + s.height), slice(left, left + s.width))
    return _restored(piece, d, *(np.ascontiguousarray(p[cut]) for p in (spoiled, clean)))


def _restored(s: world.Scene, d: degrade.Degradation, spoiled: np.ndarray, clean: np.ndarray) -> Example:
    words = degrade.answer(d, questions.content(s))
    return Example(
        *("restore", "", _size(s), s, (spoiled,)),
        answer=words + IMAGE,
        drawn=(clean,),
        degradation=d,
        truth=(words,),
    )


def _pair(kind: str) -> Maker:
    def make(s: world.Scene, rng: np.random.Generator) -> Example:
        panels = (world.picture(s), maps.map_picture(s, kind))
        return Example(f"pair_{kind}", world.caption(s), _size(s), s, drawn=panels, map_kind=kind)

    return make


def _control_panel(kind: str) -> Maker:
    def make(s: world.Scene, rng: np.random.Generator) -> Example:
        panels = (maps.map_picture(s, kind), world.picture(s))
        return Example(
            *(f"control_{kind}", world.caption(s), _size(s), s, panels[:1]), drawn=panels, map_kind=kind
        )

    return make


def _dense_panel(kind: str) -> Maker:
    def make(s: world.Scene, rng: np.random.Generator) -> Example:
        panels = (world.picture(s), maps.map_picture(s, kind))
        return Example(kind, "", _size(s), s, panels[:1], drawn=panels, map_kind=kind)

    return make


def _subject(task: str) -> Maker:
    """One object alone, then the same shape and colour in another scene."""

    def make(s: world.Scene, rng: np.random.Generator) -> Example:
        o = s.objects[0]
        grounds = list(world.GROUNDS)
        alone = replace(
            o, place="in the center", x=s.width / 2, y=s.height / 2, radius=0.26 * min(s.width, s.height)
        )
        shown = world.Scene(s.width, s.height, str(rng.choice(grounds)), (alone,), (False,))
        first, *others = world.caption(replace(s, says_size=(False,) * len(s.objects))).split(
            f" {o.place}", 1
        )
        words = f"the object {o.place}{others[0]}"
        told = edits.named(o) if task == "subject_described" and rng.random() < 0.5 else ""
        panels = (world.picture(shown), world.picture(s))
        return Example(*(task, words, _size(s), s, panels[:1]), drawn=panels, subject=told, objects=(o,))

    return make


@_maker("edit_panel")
def _edit_panel(s: world.Scene, rng: np.random.Generator) -> Example:
    text, e, after = _edit(s, rng, 0.04)
    if e is not None and rng.random() >= 0.5:
        text = edits.casual(text)
    before = world.picture(s)
    # The wording of the task closes the instruction with a full stop of its own.
    return Example("edit", text.rstrip("."), _size(s), s, (before,), drawn=(before, after), edit=e)


MAKERS |= {
    **{task: _dense(task, kind) for task, kind in (("segment", "segmentation"), ("normals", "normals"))},
    **{task: _dense(task, task) for task in ("depth", "pose")},
    "question": _chat(questions.ask),
    "yes or no": _chat(questions.ask_whether),
    "second question": _chat(questions.ask_twice),
    "conversation": _chat(questions.ask_often),
    **{f"pair_{kind}": _pair(kind) for kind in ("depth", "canny", "hed", "pose")},
    **{f"control_{kind}": _control_panel(kind) for kind in ("depth", "canny", "hed", "pose")},
    **{f"{kind}_panel": _dense_panel(kind) for kind in ("depth", "canny", "hed", "pose")},
    **{task: _subject(task) for task in ("subject", "subject_described")},
}
