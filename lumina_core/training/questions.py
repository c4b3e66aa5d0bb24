"""Questions with their exact answers: about a scene, about what the last one named, about one of several pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from . import world
from .edits import named, reference

NUMBERS = ("zero", "one", "two", "three")
ORDINALS = ("first", "second", "third")
TURNS = 4  # of a long conversation
Turns = tuple[str, ...]  # question, answer, question, answer ...
Table = dict[str, tuple[Callable[[world.Scene, np.random.Generator], Turns], float]]  # what asks, how often


def describe(s: world.Scene) -> str:
    """The caption of a scene in a fixed order: objects from top left to bottom right, sizes unsaid."""
    order = _in_order(s)
    return world.caption(replace(s, objects=order, says_size=(False,) * len(order)))


def content(s: world.Scene) -> str:
    """A scene in as many tokens whatever it shows: "two shapes, first a red circle, white background"."""
    number = len(s.objects)
    first = named(_in_order(s)[0]) if s.objects else f"a {s.ground} ground"
    return f"{NUMBERS[number]} shape{'s' * (number != 1)}, first {first}, {s.ground} background"


def _in_order(s: world.Scene) -> tuple[world.Object, ...]:
    return tuple(sorted(s.objects, key=lambda o: list(world.PLACES).index(o.place)))


def _count(s: world.Scene, rng: np.random.Generator) -> Turns:
    return "How many objects are there?", NUMBERS[len(s.objects)]


def _count_shape(s: world.Scene, rng: np.random.Generator) -> Turns:
    shape = str(rng.choice(world.SHAPES))
    return f"How many {_plural(shape)} are there?", NUMBERS[sum(o.shape == shape for o in s.objects)]


def _colour(s: world.Scene, rng: np.random.Generator) -> Turns:
    o = _one(s, rng)
    if sum(p.shape == o.shape for p in s.objects) > 1:
        return f"What colour is the {o.shape} {o.place}?", o.colour
    return f"What colour is the {o.shape}?", o.colour


def _at_place(s: world.Scene, rng: np.random.Generator) -> Turns:
    o = _one(s, rng)
    return f"What is {o.place}?", named(o)


def _shape(s: world.Scene, rng: np.random.Generator) -> Turns:
    return _shape_of(_one(s, rng))


def _shape_of(o: world.Object) -> Turns:
    return f"What shape is {o.place}?", f"a {o.shape}"


def _ground(s: world.Scene, rng: np.random.Generator) -> Turns:
    return "What colour is the background?", s.ground


def ask_whether(s: world.Scene, rng: np.random.Generator) -> Turns:
    """Whether the picture shows something: yes or no, each half of the time; a no is nearly right."""
    o, true = _one(s, rng), bool(rng.random() < 0.5)
    if rng.random() < 0.3:
        return _shows_all(s, o, true, rng)
    if not true:
        o = _wrong(s, o, rng)
    place = f" {o.place}" if rng.random() < 0.3 else ""
    return f"Does the picture show {named(o)}{place}?", "yes" if true else "no"


def _shows_all(s: world.Scene, o: world.Object, true: bool, rng: np.random.Generator) -> Turns:
    if not true:
        wrong = _wrong(s, o, rng)
        s = replace(s, objects=tuple(wrong if p is o else p for p in s.objects))
    return f"Does the picture show {world.caption(s)}?", "yes" if true else "no"


def _then_colour(s: world.Scene, rng: np.random.Generator) -> Turns:
    o = _one(s, rng)
    return *_shape_of(o), "And what colour is it?", o.colour


def _then_place(s: world.Scene, rng: np.random.Generator) -> Turns:
    alone = [o for o in s.objects if reference(s, o) == o.shape]
    if not alone:
        return _then_colour(s, rng)
    o = alone[rng.integers(len(alone))]
    return f"What colour is the {o.shape}?", o.colour, "And where is it?", o.place


SINGLE: Table = {
    "count": (_count, 0.12),
    "count shape": (_count_shape, 0.12),
    "colour": (_colour, 0.18),
    "shape": (_shape, 0.1),
    "place": (_at_place, 0.16),
    "ground": (_ground, 0.06),
    "yes or no": (ask_whether, 0.26),
}
DOUBLE: Table = {
    "then colour": (_then_colour, 0.6),
    "then place": (_then_place, 0.4),
}


def ask(s: world.Scene, rng: np.random.Generator) -> Turns:
    """A random question with its answer."""
    return _drawn(SINGLE, s, rng)


def ask_twice(s: world.Scene, rng: np.random.Generator) -> Turns:
    """Two questions, the second about what the first named."""
    return _drawn(DOUBLE, s, rng)


def ask_often(s: world.Scene, rng: np.random.Generator) -> Turns:
    """`TURNS` different questions, each of which stands for itself."""
    turns: dict[str, str] = {}
    while len(turns) < TURNS:
        question, answer = ask(s, rng)
        turns[question] = answer
    return tuple(part for turn in turns.items() for part in turn)


def ask_of_several(scenes: Sequence[world.Scene], rng: np.random.Generator) -> Turns:
    """A question about one of several pictures, which it names by number, or which of them shows something."""
    which = int(rng.integers(len(scenes)))
    o = _one(scenes[which], rng)
    others = {(p.colour, p.shape) for i, s in enumerate(scenes) if i != which for p in s.objects}
    if rng.random() < 0.25 and (o.colour, o.shape) not in others:
        return f"Which picture shows {named(o)}?", f"the {ORDINALS[which]}"
    question, answer = ask(scenes[which], rng)
    picture = f"the {ORDINALS[which]} picture"
    if "the picture" in question:
        return question.replace("the picture", picture), answer
    if rng.random() < 0.3:
        return f"In {picture}, {question[0].lower()}{question[1:]}", answer
    return f"{question.removesuffix('?')} in {picture}?", answer


def _drawn(table: Table, s: world.Scene, rng: np.random.Generator) -> Turns:
    weights = np.array([weight for _, weight in table.values()])
    make, _ = list(table.values())[rng.choice(len(table), p=weights / weights.sum())]
    return make(s, rng)


def _one(s: world.Scene, rng: np.random.Generator) -> world.Object:
    return s.objects[rng.integers(len(s.objects))]


def _wrong(s: world.Scene, o: world.Object, rng: np.random.Generator) -> world.Object:
    """The object with another colour or shape, as nothing in the scene is."""
    there = {(p.colour, p.shape) for p in s.objects}
    while True:
        if rng.random() < 0.5:
            wrong = replace(o, colour=str(rng.choice(list(world.COLOURS))))
        else:
            wrong = replace(o, shape=str(rng.choice(world.SHAPES)))
        if (wrong.colour, wrong.shape) not in there:
            return wrong


def _plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")
