"""Conversations of several turns with pictures in any of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

from .errors import InputError
from .families import Model
from .prompts import Prompt
from .sampling import AnswerFinished, Event, PictureFinished, TextPiece
from .sampling.text import legible
from .text import IMAGE
from .unirep import TokenGrid


@dataclass(frozen=True, eq=False)
class Chat:
    """Turns so far: question, answer, question, ...; `<|image|>` in them stands for one of the pictures, in order."""

    family: str
    turns: tuple[str, ...] = ()
    pictures: tuple[TokenGrid, ...] = field(default=(), repr=False)

    def ask(self, model: Model, question: str, images: Sequence[Image.Image] = ()) -> Chat:
        """The chat with one more question; its images are encoded.

        `<|image|>` in the question says where each belongs, otherwise they stand before it. An `InputError` where the
        model cannot chat, the question is empty, or marks and images differ in number.
        """
        model.template("chat")
        if self.family != model.family.id:
            raise InputError(
                f"The chat was begun with a checkpoint of family {self.family}; '{model.name}' is of family "
                f"{model.family.id}. Connect the same model, or begin a new chat."
            )
        if not question.replace(IMAGE, "").strip():
            raise InputError(
                "The question is empty; write what to ask, for example 'What is in the picture?'."
            )
        marks = question.count(IMAGE)
        if marks not in (0, len(images)):
            raise InputError(
                f"The question places {marks} picture{'s' * (marks != 1)} ({IMAGE}) but {len(images)} "
                f"{'are' if len(images) != 1 else 'is'} given; use none of the marks or one for each picture."
            )
        asked = question if marks else f"{IMAGE} " * len(images) + question
        sizes = model.sizes()
        grids = [model.encode(image, model.family.input_size(*image.size, sizes)) for image in images]
        return Chat(self.family, (*self.turns, asked), (*self.pictures, *grids))

    def prompt(self, model: Model, size: tuple[int, int] | None = None) -> Prompt:
        """The token prefix whose answer comes next. `size` (width, height) is set on the pictures of the answer."""
        return model.converse([*self.turns, None], self.pictures, size=size)

    def answered(self, answer: Answered) -> Chat:
        """The chat with an answer to its last question."""
        return Chat(self.family, (*self.turns, answer.marked), (*self.pictures, *answer.pictures))


class Answered:
    """An answer as it grows: text, and pictures between its words.

    No code stands in the text: the sampler draws none outside a picture. Size tokens drawn there are left out of it.
    """

    def __init__(self, model: Model):
        self.tokenizer, self.vocabulary = model.tokenizer, model.vocabulary
        self.words: list[list[int]] = [[]]  # tokens before, between and behind the pictures
        self.pictures: list[TokenGrid] = []
        self.reason = ""

    def note(self, event: Event) -> bool:
        """Takes one of the sampler's events; whether the text became longer."""
        if isinstance(event, TextPiece):
            self.words[-1] += legible(event.tokens, self.vocabulary)
        elif isinstance(event, PictureFinished):
            self.pictures.append(event.grid)
            self.words.append([])
        elif isinstance(event, AnswerFinished):
            self.reason = event.reason
        return isinstance(event, TextPiece | PictureFinished)

    @property
    def marked(self) -> str:
        """The text with `<|image|>` for every picture, as the next turn's prompt has it."""
        return IMAGE.join(self._text(ids) for ids in self.words)

    @property
    def text(self) -> str:
        """The text alone, without marks."""
        return " ".join(part for part in (self._text(ids).strip() for ids in self.words) if part)

    def _text(self, ids: Sequence[int]) -> str:
        # A mark the model wrote as words would claim a picture that is not there.
        return self.tokenizer.decode(ids).replace(IMAGE, "")
