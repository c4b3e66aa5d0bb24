"""One task asked about one picture: what goes to the model, and how its answer comes back to lie on the picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import numpy as np
from PIL import Image

from .errors import CheckpointError, InputError
from .families import Model
from .image import on_white
from .placement import Placement
from .prompts import Prompt
from .sampling import Sampling
from .unirep import UNIT, TokenGrid

LABELS = ("segment",)  # tasks whose colours are names: resized without mixing them
EDITS = ("edit", "denoise")  # tasks that keep what a crop cut away
MOST = 16384  # pixels a side of a picture that is taken


@dataclass(frozen=True, eq=False)
class Request:
    """The prompt of a task and where its answer belongs."""

    prompt: Prompt
    placement: Placement
    picture: Image.Image = field(repr=False)  # the one asked about, RGB, at its own size

    def panel(self, grid: TokenGrid) -> TokenGrid:
        """The part of what was drawn that answers: the last panel."""
        return grid.split()[-1]

    def place(self, drawn: np.ndarray, keep_size: bool = True) -> np.ndarray:
        """The answer (h, w, 3) in bytes, brought to lie on the picture unless its own size is wanted."""
        if not keep_size:
            return drawn
        onto = np.asarray(self.picture) if self.prompt.task in EDITS else None
        return self.placement.back(drawn, onto, smooth=self.prompt.task not in LABELS)


def task_of(model: Model, name: str, kind: str = "depth", subject: str = "") -> str:
    """The task of the model's family that a name stands for: "control" and "pair" of a `kind` of map, "subject".

    Any other name is a task already.
    """
    every = model.family.templates
    if name == "control" and "control" not in every:
        return f"control_{kind}"
    if name == "pair":
        return f"pair_{kind}"
    if name == "subject" and "subject_described" in model.tasks:
        return "subject_described" if subject or "subject" not in model.tasks else "subject"
    return name


def working_size(model: Model, task: str, picture: Image.Image, side: int = 0) -> tuple[int, int]:
    """The size (width, height) that a task's picture is brought to: the one nearest in its proportions.

    `side` is that of the square whose area is kept; 0 takes the checkpoint's own sizes.
    """
    panels, grid = model.template(task).panels, model.vocabulary.grid
    most = max(grid) // panels * UNIT
    if side and (side % UNIT or not UNIT <= side <= most):
        raise InputError(
            f"resolution is {side}; it may be a multiple of {UNIT} from {UNIT} to {most}, or 0 (the checkpoint's own)."
        )
    own = None if model.picture_sizes else min(model.target, most)
    sizes = [s for s in model.sizes(side or own) if s[1] // UNIT * panels in grid]
    return model.family.input_size(*picture.size, sizes)


def ask(
    model: Model,
    task: str,
    picture: Image.Image,
    text: str = "",
    *,
    fit: str = "stretch",
    size: tuple[int, int] | None = None,
    side: int = 0,
    template: str = "",
    subject: str = "",
    tokens: TokenGrid | None = None,
) -> Request:
    """A task about one picture, for any family that has it; an `InputError` where the checkpoint has it not.

    The picture is brought to `size` (width, height), or to its `working_size`, by `fit` "stretch" or "crop". `template`
    replaces the wording, `subject` fills its {subject}. `tokens` are the picture as an earlier answer drew it, by
    the same `fit`, of several panels the last; they are taken as they are, so nothing is lost on the way.
    """
    entry = model.template(task)
    if entry.images != 1:
        raise InputError(f"Task '{task}' is not about one picture; it is asked by a prompt of its own.")
    picture = on_white(picture)
    if max(picture.size) > MOST:
        raise InputError(
            f"The image has {picture.width}x{picture.height} pixels; a side may have {MOST} at most."
        )
    if tokens is not None:
        tokens = tokens.split()[-1]
        factor = model.vq.config.factor
        size = tokens.codes.shape[1] * factor, tokens.codes.shape[0] * factor
    size = size or working_size(model, task, picture, side)
    given = picture if tokens is None else tokens
    wording = {"template": template or None, "subject": subject}
    prompt = model.prompt(text, task=task, size=size, images=[given], fit=fit, **wording)
    return Request(prompt, Placement(picture.size, size, fit), picture)


def settings(model: Model, task: str = "text_to_image", **given) -> Sampling:
    """Sampling settings of a task: what is not given, or None, is the checkpoint's own recommendation for it."""
    own = asdict(model.defaults_for(task))
    try:
        Sampling(**own)
    except InputError as e:
        raise CheckpointError(f"config.json of '{model.name}', sampling of '{task}': {e}") from None
    return Sampling(**own | {name: value for name, value in given.items() if value is not None})
