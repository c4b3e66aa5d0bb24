"""What the bundled checkpoints can do, on one contact sheet: held-out examples of every task each was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from PIL import Image

from .families import Model, bundled, load
from .request import settings
from .sheet import Cell, Section, contact_sheet
from .text import IMAGE
from .training import world
from .training.evaluate import outcomes
from .training.examples import Example, Size, example, task_of
from .training.figures import Outcome
from .training.recipes import RECIPES

DENOISE = "denoise"  # a kind that the checkpoints are not trained on: it is an edit that changes nothing
TITLES = {  # of kinds whose names do not say it
    "restore_tile": "Restore, a piece of a larger picture",
    DENOISE: "Denoise, the image tokenizer's own noise",
}
EACH = {"text_to_image": 2, "edit_panel": 4, "edit": 3, "restore": 6}  # examples of a kind and size; else one

Report = Callable[[str, int, int], object]


def demo(report: Report = lambda kind, done, total: None) -> tuple[Image.Image, int]:
    """The sheet of all checkpoints that are bundled, and how many examples are on it.

    They are the first held-out scenes in a row. `report(kind, done, total)` counts them.
    """
    models = [load(name) for name in RECIPES if name in bundled()]
    pools = [(model, kind, size) for model in models for kind, size in pools_of(model)]
    total, done = sum(EACH.get(kind, 1) for _, kind, _ in pools), 0
    cells: dict[str, list[Cell]] = {model.name: [] for model in models}
    for model, kind, size in pools:
        numbers = range(done, done + EACH.get(kind, 1))
        cells[model.name] += [cell(model, kind, outcome) for outcome in drawn(model, kind, size, numbers)]
        done = numbers.stop
        report(kind.replace("_", " "), done, total)
    sections = [Section(f"{model.name}, a small {model.family.title}", cells[model.name]) for model in models]
    return contact_sheet(sections), total


def pools_of(model: Model) -> list[tuple[str, Size]]:
    """The kinds of examples the checkpoint's tasks have, each at its first size; text to image at all sizes."""
    first: dict[str, Size] = {}
    for kind, size in RECIPES[model.name].examples:
        if task_of(kind) in model.tasks:
            first.setdefault(kind, size)
    if DENOISE in model.tasks:
        first[DENOISE] = first["edit"]
    sizes = RECIPES[model.name].sizes
    return [(kind, s) for kind, size in first.items() for s in (sizes if kind == "text_to_image" else [size])]


def drawn(model: Model, kind: str, size: Size, numbers: range) -> Iterator[Outcome]:
    """What the checkpoint makes of held-out examples of a kind."""
    examples = [held_out(model, kind, n, size) for n in numbers]
    return outcomes(model, examples, numbers, lambda task: settings(model, task))


def held_out(model: Model, kind: str, number: int, size: Size) -> Example:
    """Example `number` of a kind. One to denoise is a picture that went through the image tokenizer once."""
    if kind != DENOISE:
        return example(kind, "held-out", number, size)
    scene = world.scene("held-out", number, *size)
    picture = world.picture(scene)
    noisy = model.decode(model.encode(Image.fromarray(picture), size).codes)
    return Example(DENOISE, "", size, scene, (noisy,), drawn=(picture,))


def cell(model: Model, kind: str, outcome: Outcome) -> Cell:
    """An example as it is shown: the pictures given and drawn, and the words said and written."""
    e = outcome.example
    new = outcome.panels[1:] if model.template(e.task).given_panel else outcome.panels
    said = " · ".join(part.replace(IMAGE, "").strip() for part in (*e.earlier, e.text)).strip()
    written = outcome.text.strip()
    title = TITLES.get(kind, kind.removesuffix("_panel").replace("_", " ").capitalize())
    return Cell(title, said, (*e.given, *new), given=len(e.given), written=written)
