"""What a family is: how to recognise it, its token table, its prompts, its image tokenizer."""

from __future__ import annotations

import logging
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import nn

from ..errors import CheckpointError, InputError
from ..image import nearest_size
from ..prompts import Prompt, Template, encode_conversation, fill, without_size
from ..text import IMAGE, Tokenizer
from ..unirep import TokenGrid, Vocabulary

if TYPE_CHECKING:
    from .model import Model

log = logging.getLogger(__name__)

IMAGE_START, IMAGE_END, ROW_END, SEPARATOR = "<racm3:break>", "<eoss>", "<reserved08799>", "<reserved08706>"
GRID_NAME = re.compile(r"<reserved0(8[89]\d\d)>")  # its last four digits less 8800 are the size in units


@dataclass(frozen=True)
class Defaults:
    """Sampling settings upstream recommends for a family or one of its tasks."""

    cfg: float
    image_top_k: int
    text_top_k: int
    temperature: float
    max_tokens: int


@dataclass(frozen=True)
class Source:
    """A checkpoint as found on disk: parsed configuration and tensor shapes, no weights yet."""

    path: Path
    config: Mapping
    tokenizer: Tokenizer
    shapes: Mapping[str, tuple[int, ...]]
    files: tuple[Path, ...]

    def names(self) -> dict[str, int]:
        """Every token name with its id: the tokenizer's, and the configuration's `vocabulary_map` where it has one."""
        extra = self.config.get("vocabulary_map")
        extra = extra if isinstance(extra, Mapping) else {}
        return {**{name: n for name, n in extra.items() if type(n) is int}, **self.tokenizer.names()}


class Names:
    """Token names of a checkpoint, with the published numbers as fallback and check where the size is the published."""

    def __init__(self, source: Source, title: str, published: Mapping[str, int] | None, grid_0: int):
        self.source, self.title = source, title
        self.size = source.config["vocab_size"]
        self.published = published or {}
        self.table = source.names()
        self.grid_0 = grid_0

    def find(self, name: str) -> int:
        """The id of a control token, or a `CheckpointError` when there is none that the transformer knows."""
        published = self.published.get(name)
        token = self.table.get(name, published)
        if token is None or not 0 <= token < self.size:
            raise CheckpointError(
                f"{self.source.tokenizer.source} has no usable token '{name}'; it is not that of {self.title}. "
                "Take tokenizer.json from the checkpoint's own repository."
            )
        if published is not None and token != published:
            log.warning("Lumina-mGPT: '%s' is token %d, not %d as published", name, token, published)
        return token

    def matching(self, pattern: re.Pattern) -> dict[str, int]:
        """First group of the pattern -> id, of every name that fits the pattern and that the transformer knows."""
        found = ((pattern.fullmatch(name), token) for name, token in self.table.items())
        return {m[1]: token for m, token in found if m and 0 <= token < self.size}

    def grid(self) -> dict[int, int]:
        """Grid size in units -> id of its token."""
        sizes = {int(digits) - 8800: token for digits, token in self.matching(GRID_NAME).items()}
        sizes.pop(0, None)
        if not sizes and self.published:
            sizes = {n: self.grid_0 + n for n in range(1, 129)}
        if not sizes:
            raise CheckpointError(
                f"{self.source.tokenizer.source} has no size tokens '<reserved08801>' and on."
            )
        return sizes

    def vocabulary(self, code_ids: torch.Tensor, latents_per_unit: int) -> Vocabulary:
        """The token table of the checkpoint, with these ids of its codes."""
        bos = self.source.tokenizer.bos_name
        return Vocabulary(
            bos=self.find(bos) if bos else self.table.get("<s>", 0),  # Chameleon's
            separator=self.find(SEPARATOR),
            separator_name=SEPARATOR,
            image_start=self.find(IMAGE_START),
            image_end=self.find(IMAGE_END),
            row_end=self.find(ROW_END),
            placeholder=self.table[IMAGE],
            grid=self.grid(),
            code_ids=code_ids,
            latents_per_unit=latents_per_unit,
        )


class Family(ABC):
    """One line of checkpoints: how to recognise it, its token table, its prompts, its image tokenizer."""

    id: str
    title: str
    defaults: Defaults
    task_defaults: Mapping[str, Defaults] = {}
    templates: Mapping[str, Template]
    vq_hint: str  # the usual file of the image tokenizer, its size, where it comes from
    latents_per_unit: int
    entropy_top_k: tuple[int, int] | None = None  # limits of an image top-k that follows the entropy
    guidance_decay = False  # whether upstream lowers the guidance scale as a picture is drawn
    answers = "text_then_image"  # what a turn of free conversation expects

    @abstractmethod
    def detect(self, source: Source) -> bool:
        """Whether a checkpoint is of this family, from configuration, token names and shapes; never from file names."""

    @abstractmethod
    def vocabulary(self, source: Source, codes: int) -> Vocabulary:
        """The control tokens and codes, by name, the published numbers being fallback and check."""

    @abstractmethod
    def vq_from_shapes(self, shapes: Mapping[str, tuple[int, ...]], ops) -> nn.Module | None:
        """The image tokenizer these tensors belong to, or None when they are not this family's."""

    @abstractmethod
    def prompt(
        self,
        model: Model,
        text: str,
        *,
        task: str = "text_to_image",
        size: tuple[int, int] | None = None,
        images: Sequence[Image.Image | TokenGrid] = (),
        template: str | None = None,
        subject: str = "",
        fit: str = "crop",
        crop_seed: int | None = None,
    ) -> Prompt:
        """The token prefix of a task, or an `InputError` where the checkpoint has no such task or lacks its input.

        `size` is (width, height) in pixels of one panel; None lets the model choose, or keeps the size of the picture
        given where the task is about that picture. `template` replaces the task's wording, `subject` fills its
        {subject}. Pictures are stretched or, with `fit` "crop", cut at the centre; with `crop_seed`, where upstream's
        random cut may fall. A `TokenGrid` among the pictures is taken as it is, and gives its own size.
        """

    def defaults_for(self, task: str) -> Defaults:
        """The settings upstream recommends for a task."""
        return self.task_defaults.get(task, self.defaults)

    def input_size(self, width: int, height: int, sizes: list[tuple[int, int]]) -> tuple[int, int]:
        """The one of the allowed sizes that a picture of a prompt is cut to."""
        return nearest_size(width, height, sizes)

    def check(self, entry: Template, text: str, images: Sequence, template: str | None) -> None:
        """Raises an `InputError` when a task lacks its text or has another number of pictures than it takes."""
        if entry.needs_text(template or entry.text) and not text.strip():
            raise InputError(f"The prompt is empty; say {entry.asks}.")
        if entry.images is not None and len(images) != entry.images:
            count = f"{entry.images} picture{'s' * (entry.images != 1)}"
            way = f"Connect {count} to" if entry.images else "Leave out"
            raise InputError(
                f"Task '{entry.task}' takes {count}; {len(images)} given. {way} the input image (on the command line: "
                "--image FILE)."
            )

    def word(
        self, entry: Template, text: str, units: tuple[int, int] | None, template: str | None, subject: str
    ) -> str:
        """The question of a task, with its size named where `units` are known and the wording names one."""
        wording = template or entry.text
        if units is None:
            wording = without_size(wording)
        return fill(wording, text, units, subject or entry.subject)

    def converse(
        self,
        model: Model,
        turns: Sequence[str | None],
        pictures: Sequence[TokenGrid | Image.Image] = (),
        *,
        target: int | None = None,
        size: tuple[int, int] | None = None,
        crop_seed: int | None = None,
    ) -> Prompt:
        """The prefix of a conversation: question, answer, question, ...; a last None is to be answered.

        `<|image|>` in any turn stands for one of the pictures, in order; without a mark they go before the first turn.
        A picture is cut to the allowed sizes of `target` (default: the model's), an earlier answer's grid is taken as
        it is. `size` (width, height) is forced on the pictures of the answer; None lets the model choose.
        """
        turns = [*turns, None] if len(turns) % 2 else list(turns)
        rng = random.Random(crop_seed) if crop_seed is not None else None
        grids = [self._grid(model, p, target, rng) for p in pictures]
        units = model.check_size(*size) if size else None
        return self.compose(model, turns, grids, task="chat", expects=self.answers, units=units)

    def own(self, model: Model, grid: TokenGrid) -> TokenGrid:
        """The grid, or an `InputError` where another family drew it."""
        if grid.family != self.id:
            raise InputError(
                f"The tokens are of family {grid.family}; '{model.name}' is of family {self.id}. Give it the picture "
                "instead of the tokens."
            )
        return grid

    def _grid(
        self, model: Model, picture: TokenGrid | Image.Image, target: int | None, rng: random.Random | None
    ) -> TokenGrid:
        if isinstance(picture, TokenGrid):
            return picture
        return model.encode(picture, self.input_size(*picture.size, model.sizes(target)), rng=rng)

    def compose(
        self,
        model: Model,
        turns: Sequence[str | None],
        grids: Sequence[TokenGrid],
        *,
        task: str,
        expects: str,
        units: tuple[int, int] | None = None,
        panels: int = 1,
    ) -> Prompt:
        """The prompt of turns and pictures as they are. `units` (height, width) is the size of the whole picture."""
        v = model.vocabulary
        if units:
            v.header(units)  # says which side has no size token
        pictures = [v.encode(g.codes) for g in grids]
        ids = encode_conversation(turns, pictures, model.tokenizer, v)
        return self._finish(model, ids, turns[0] or "", task, expects, units, None, panels)

    def compose_open(
        self, model: Model, question: str, first_panel: TokenGrid, *, task: str, panels: int = 2
    ) -> Prompt:
        """The prompt of a question whose answer's first panel is given: it ends inside the open picture."""
        v = model.vocabulary
        picture = v.open_panel(first_panel.codes, panels)
        ids = encode_conversation([question, IMAGE], [picture], model.tokenizer, v)
        ids.pop()  # the separator that would close the answer
        h, w = v.units(first_panel.codes)
        at = len(ids) - len(picture)
        return self._finish(model, ids, question, task, "image", (h * panels, w), at, panels)

    def _finish(self, model: Model, ids, question, task, expects, units, open_at, panels) -> Prompt:
        if max(ids) >= model.config.vocab_size:
            raise CheckpointError(
                f"{model.tokenizer.source} makes token {max(ids)} of the prompt; the transformer of '{model.name}' "
                f"knows {model.config.vocab_size}. They do not belong together; take both from one repository."
            )
        most = model.config.max_position_embeddings
        if len(ids) >= most:
            raise InputError(
                f"The prompt takes {len(ids)} tokens, pictures included; this checkpoint has {most} positions. "
                "Shorten the text, give fewer or smaller pictures, or ask for a smaller size or resolution."
            )
        return Prompt(
            self.id,
            task,
            tuple(ids),
            expects,
            units,
            open_at,
            panels,
            question,
            self.entropy_top_k,
            self.guidance_decay,
            numbering=model.vocabulary.numbering,
        )
