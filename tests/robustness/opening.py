"""What opening a file means: a sound folder, how it is opened, how it is damaged; and models that are opened once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lumina_core import families, generate, load, settings
from tests.robustness.mutations import Case

HERE = "checkpoint"
_models: dict[str, families.Model] = {}


@dataclass(frozen=True)
class Target:
    name: str
    build: Callable[[Path], object]
    open: Callable[[Path], object]
    damage: Callable[[Path], Iterator[Case]]
    every: int = 1  # of the cases is taken, where another target takes them all or each is slow

    def cases(self, home: Path) -> Iterator[Case]:
        return itertools.islice(self.damage(home), None, None, self.every)


def draw(model: families.Model) -> None:
    """Everything that the settings of a checkpoint are used for: each task's, its sizes, a prompt, a picture."""
    for task in model.tasks:
        settings(model, task)
    assert model.own_size() and model.target and model.sizes()
    prompt = model.prompt("a red circle", size=(32, 32))
    for event in generate(model.transformer, model.vocabulary, prompt, settings(model, decode="ar")):
        if hasattr(event, "grid"):
            model.decode(event.grid.codes)


def model_of(home: Path) -> families.Model:
    if str(home) not in _models:
        _models[str(home)] = load(home / HERE)
    return _models[str(home)]
