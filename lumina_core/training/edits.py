"""Instructions that change a scene, with the scene before and after: the truth of editing."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from . import world

KINDS = {  # how often each is drawn
    "recolour": 0.34,
    "remove": 0.24,
    "reshape": 0.12,
    "ground": 0.14,
    "add": 0.08,
    "move": 0.08,
}
NOTHING = "Change nothing."  # upstream noticed that this instruction removes the noise of the image tokenizer


@dataclass(frozen=True)
class Edit:
    """What is asked, and the scene before and after. `old` became `new`; None where there is no such object."""

    kind: str
    instruction: str
    before: world.Scene
    after: world.Scene
    old: world.Object | None = None
    new: world.Object | None = None


def edit(scene: world.Scene, rng: np.random.Generator) -> Edit:
    """An instruction of a random kind that fits the scene."""
    kinds = [k for k in KINDS if k != "add" or len(scene.objects) < 3]
    weights = np.array([KINDS[k] for k in kinds])
    kind = kinds[rng.choice(len(kinds), p=weights / weights.sum())]
    if kind == "ground":
        ground = _other(rng, world.GROUNDS, scene.ground)
        text = f"Make the background {ground}."
        return Edit(kind, text, scene, replace(scene, ground=ground))
    if kind == "add":
        new = _place_free(scene, None, rng)
        if new is None:
            return edit(scene, rng)
        text = f"Add {named(new)} {new.place}."
        after = replace(scene, objects=(*scene.objects, new), says_size=(*scene.says_size, False))
        return Edit(kind, text, scene, after, None, new)
    old = scene.objects[rng.integers(len(scene.objects))]
    name = f"the {reference(scene, old)}"
    if kind == "remove":
        keep = [i for i, o in enumerate(scene.objects) if o is not old]
        after = replace(
            scene,
            objects=tuple(scene.objects[i] for i in keep),
            says_size=tuple(scene.says_size[i] for i in keep),
        )
        return Edit(kind, f"Remove {name}.", scene, after, old, None)
    if kind == "recolour":
        new = replace(old, colour=_other(rng, world.COLOURS, old.colour))
        text = f"Make {name} {new.colour}."
    elif kind == "reshape":
        new = replace(old, shape=_other(rng, world.SHAPES, old.shape))
        text = f"Turn {name} into a {new.shape}."
    else:
        new = _place_free(scene, old, rng)
        if new is None:
            return edit(scene, rng)
        text = f"Move {name} {_towards(new.place)}."
    if any((o.shape, o.colour) == (new.shape, new.colour) for o in scene.objects if o is not old):
        return edit(scene, rng)  # two objects would share a name
    after = replace(scene, objects=tuple(new if o is old else o for o in scene.objects))
    return Edit(kind, text, scene, after, old, new)


def casual(instruction: str) -> str:
    """An instruction as people also type it: no capital and no full stop."""
    return instruction[0].lower() + instruction[1:].removesuffix(".")


def reference(scene: world.Scene, o: world.Object) -> str:
    """The shortest words that name one object of a scene: its shape, with its colour where that is needed."""
    alone = sum(other.shape == o.shape for other in scene.objects) == 1
    return o.shape if alone else f"{o.colour} {o.shape}"


def named(o: world.Object) -> str:
    """An object in words: "a red circle"."""
    return f"{'an' if o.colour[0] in 'aeiou' else 'a'} {o.colour} {o.shape}"


def _other(rng: np.random.Generator, names, but: str) -> str:
    return str(rng.choice([n for n in names if n != but]))


def _towards(place: str) -> str:
    return "to" + place[place.index(" ") :]


def _place_free(
    scene: world.Scene, old: world.Object | None, rng: np.random.Generator
) -> world.Object | None:
    """A new object, or `old` elsewhere, at a random place that is free; None where there is no room."""
    side = min(scene.width, scene.height)
    others = [o for o in scene.objects if o is not old]
    for place in rng.permutation(list(world.PLACES)):
        fx, fy = world.PLACES[str(place)]
        if old is None:
            base = world.Object(
                shape=str(rng.choice(world.SHAPES)),
                colour=str(rng.choice(list(world.COLOURS))),
                place="",
                size="small",
                x=0.0,
                y=0.0,
                radius=rng.uniform(*world.RADII["small"]) * side,
            )
        else:
            base = old
        new = replace(base, place=str(place), x=fx * scene.width, y=fy * scene.height)
        if (old is None or place != old.place) and all(world.apart(new, o) for o in others):
            return new
    return None
