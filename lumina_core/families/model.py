"""What a loaded checkpoint can do: prompts for its tasks, pictures to codes and back."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..errors import CheckpointError, InputError
from ..image import CropPlan, allowed_sizes, crop, on_white, stretch, to_network
from ..prompts import Prompt, Template
from ..shortage import told
from ..text import Tokenizer
from ..transformer import Transformer, TransformerConfig
from ..unirep import UNIT, TokenGrid, Vocabulary, check_codes
from ..vq.decoding import decode
from .base import Defaults, Family
from .trained import able

FITS = ("crop", "stretch")  # how a picture comes to a size
READ = 512  # upstream's side of the square of a picture that is described, and where no other is known


@dataclass(eq=False)
class Model:
    """A loaded checkpoint: transformer, image tokenizer, text tokenizer and the tables that join them."""

    name: str
    family: Family
    transformer: Transformer
    vq: nn.Module
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    sampling: Mapping[str, float] = field(
        default_factory=dict
    )  # config.json's own "sampling", where it has one; "tasks" in it holds those of single tasks
    trained: tuple[str, ...] | None = None  # tasks it was trained for; None: all of the family
    picture_sizes: tuple[tuple[int, int], ...] = ()  # sizes (width, height) of one panel that it names itself
    side: int | None = None  # pixels a side of the square that its pictures are as large as
    config: TransformerConfig = field(init=False)

    def __post_init__(self):
        self.config = self.transformer.config

    def defaults_for(self, task: str) -> Defaults:
        """The recommended settings of a task, with those that this checkpoint names for itself or for the task."""
        settings = self._own(self.family.defaults_for(task), self.sampling)
        by_task = self.sampling.get("tasks")
        by_task = by_task if isinstance(by_task, Mapping) else {}
        entry = self.family.templates.get(task)
        mine = by_task.get(task, by_task.get(entry.like) if entry else None)
        return self._own(settings, mine) if isinstance(mine, Mapping) else settings

    def _own(self, defaults: Defaults, settings: Mapping) -> Defaults:
        own = {f.name: settings[f.name] for f in fields(Defaults) if f.name in settings}
        for name, value in own.items():
            whole = Defaults.__dataclass_fields__[name].type == "int"
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                raise CheckpointError(
                    f"config.json of '{self.name}': sampling '{name}' is {value!r}, no {'whole ' * whole}number."
                )
        return replace(defaults, **own)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks it can be asked for."""
        every = tuple(self.family.templates)
        if self.trained is None:
            return every
        return tuple(t for t in every if {t, self.family.templates[t].like} & set(self.trained))

    def template(self, task: str) -> Template:
        """The entry of a task, or an `InputError` that lists the tasks there are and says what to load."""
        if task in self.tasks:
            return self.family.templates[task]
        known = task in self.family.templates
        lacks = "was not trained on" if known else f"is of {self.family.title}, which has no task"
        other = able(task)
        load = f" Load {' or '.join(other)} for it." if other else ""
        raise InputError(f"'{self.name}' {lacks} '{task}'; it has {', '.join(self.tasks)}.{load}")

    @property
    def target(self) -> int:
        """Pixels a side of the square whose allowed sizes pictures of a prompt are cut to.

        The checkpoint's own, that which it is named after, or upstream's default of 512; less where such a picture
        would take half of the positions.
        """
        own = self.sampling.get("target_size")
        return self.square(own if isinstance(own, int) and own >= UNIT else self.side or READ)

    def square(self, side: int) -> int:
        """`side`, or less where a picture of side x side pixels would take half of the positions."""
        k, room = self.vocabulary.latents_per_unit, self.config.max_position_embeddings // 2
        most = min(side // UNIT, max(self.vocabulary.grid))
        fits = (n for n in range(most, 1, -1) if k * n * (k * n + 1) + 4 <= room)
        return next(fits, 1) * UNIT

    def own_size(self, task: str = "text_to_image") -> tuple[int, int]:
        """Width and height in pixels of a panel where nobody asks for a size: its own first, or a square.

        The square is the one that the checkpoint is named after, or 768, or 512, with room for text and the other
        panels of the task.
        """
        entry, grid = self.family.templates.get(task), self.vocabulary.grid
        panels = entry.panels if entry else 1
        named = next((size for size in self.picture_sizes if size[1] // UNIT * panels in grid), None)
        if named:
            return named
        for side in (*([self.side] if self.side else ()), 768, 512):
            units = side // UNIT
            rows, columns = self.vocabulary.codes_shape((units * panels, units))
            if units * panels in grid and rows * (columns + 1) + 256 <= self.config.max_position_embeddings:
                return side, side
        return 64, 64

    def size_for(self, task: str, width: int = 0, height: int = 0) -> tuple[int, int]:
        """The size asked for, each side of 0 being that of the `own_size` of the task."""
        own_width, own_height = self.own_size(task)
        return width or own_width, height or own_height

    def sizes(self, target: int | None = None) -> list[tuple[int, int]]:
        """The allowed sizes (width, height) of a target square, those that this checkpoint has size tokens for.

        Without a target those it names for itself, or those of its own target.
        """
        if target is None and self.picture_sizes:
            return list(self.picture_sizes)
        grid = self.vocabulary.grid
        return [s for s in allowed_sizes(target or self.target) if all(side // UNIT in grid for side in s)]

    def sizes_given(self, task: str) -> list[tuple[int, int]]:
        """The allowed sizes of pictures that a task is given; upstream describes one at 512 whatever is loaded."""
        described = self.template(task).expects == "text" and not self.picture_sizes
        return self.sizes(min(self.target, READ) if described else None)

    def prompt(self, text: str, **options) -> Prompt:
        """The token prefix for a text; see `Family.prompt`."""
        return self.family.prompt(self, text, **options)

    def converse(self, turns: Sequence[str | None], pictures: Sequence = (), **options) -> Prompt:
        """The token prefix of a conversation of several turns; see `Family.converse`."""
        return self.family.converse(self, turns, pictures, **options)

    def check_size(self, width: int, height: int) -> tuple[int, int]:
        """Grid units (height, width) of a size in pixels, or an `InputError` saying what is allowed."""
        most = max(self.vocabulary.grid)
        for name, side in (("width", width), ("height", height)):
            if side <= 0 or side % UNIT or side // UNIT > most:
                low = max(UNIT, min(side // UNIT, most) * UNIT)
                raise InputError(
                    f"{name} is {side}; it must be a multiple of {UNIT} from {UNIT} to {most * UNIT}. Try {low}."
                )
        return height // UNIT, width // UNIT

    @torch.inference_mode()
    def encode(
        self,
        picture: Image.Image,
        size: tuple[int, int] | None = None,
        fit: str = "crop",
        rng: random.Random | None = None,
    ) -> TokenGrid:
        """The codes of a picture at `size` (width, height): stretched, or cropped at the centre or where `rng` says.

        Without a size a crop cuts each side down to whole units and resamples nothing, unless a side is shorter than
        one; a stretch takes the nearest whole units.
        """
        picture = on_white(picture)
        if fit not in FITS:
            raise InputError(f"fit is '{fit}'; it may be {' or '.join(FITS)}.")
        if size is None:
            whole = int if fit == "crop" else round
            size = tuple(max(1, whole(side / UNIT)) * UNIT for side in picture.size)
            if fit == "crop" and min(picture.size) >= UNIT:
                plan = CropPlan(size, (), picture.size)
                left, top = plan.anywhere(rng) if rng else plan.centre
                picture = picture.crop((left, top, left + size[0], top + size[1]))
        pixels = to_network(stretch(picture, size) if fit == "stretch" else crop(picture, size, rng=rng))
        weight = self.vq.quant_conv.weight
        what = f"encoding a {size[0]}x{size[1]} picture"
        with told(what, "Give a smaller picture, or close other programs."), without_tf32():
            codes = self.vq.encode(pixels.to(vq_device(self.vq), weight.dtype))
        return TokenGrid(codes[0].cpu(), self.family.id)

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> np.ndarray:
        """The picture (H, W, 3) in bytes of a code grid (h, w)."""
        check_codes(codes, self.vq.config.n_embed, f"'{self.name}'")
        pixels = decode(self.vq, codes[None].to(vq_device(self.vq)))
        return self.vq.to_uint8(pixels)[0].cpu().numpy()


_encoding = threading.Lock()


@contextmanager
def without_tf32() -> Iterator[None]:
    """Convolutions in float32 on CUDA without cutting their factors to 10 bits, which is PyTorch's default.

    The setting is that of the whole process, so one thread at a time may be in here.
    """
    cudnn = torch.backends.cudnn
    if hasattr(cudnn, "conv"):  # torch 2.9 and later; the other name may not be read once this one was set
        place, name, off = cudnn.conv, "fp32_precision", "ieee"
    else:
        place, name, off = cudnn, "allow_tf32", False
    with _encoding:
        before = getattr(place, name)
        setattr(place, name, off)
        try:
            yield
        finally:
            setattr(place, name, before)


def vq_device(vq: nn.Module) -> torch.device:
    """Where the image tokenizer computes: a host may hold offloaded weights elsewhere and says so in `device`."""
    return getattr(vq, "device", None) or vq.quant_conv.weight.device
