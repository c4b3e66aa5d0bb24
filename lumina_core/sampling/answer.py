"""A free answer: text and pictures, in any order and number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from ..errors import PictureError
from ..shortage import told
from ..unirep import TokenGrid, Vocabulary
from .contexts import Contexts
from .events import AnswerFinished, Event, PictureFinished, Progress, Sampling, TextPiece
from .finite import Finite
from .logits import noise_key
from .room import a_picture, check_bytes
from .smaller import ADVICE, once_more
from .text import DRAFTS, Writer, drawn_tokens
from .window import painter_of

if TYPE_CHECKING:
    from ..prompts import Prompt
    from ..transformer import Transformer


ROOM = 256  # positions of the cache behind the text so far


class Answer:
    """One free answer: text and pictures, as the model chooses."""

    def __init__(
        self,
        transformer: Transformer,
        vocabulary: Vocabulary,
        prompt: Prompt,
        sampling: Sampling,
        index: int,
        free: int | None = None,
    ):
        self.transformer, self.vocabulary, self.prompt = transformer, vocabulary, prompt
        self.sampling, self.index, self.free = sampling, index, free
        self.most = min(transformer.config.max_position_embeddings, len(prompt.tokens) + sampling.max_tokens)
        self.stop = vocabulary.image_end if prompt.expects == "image" else vocabulary.separator
        self.tokens: list[int] = []
        self.total = self.most - len(prompt.tokens)  # tokens there will be, as far as that is known
        self.whole = 0  # how many of them were handed out: not those of a picture that is begun

    def write(self) -> Iterator[Event]:
        """Yields pieces of text and pictures until the stop token or a limit, then how it ended."""
        reason = yield from once_more(self._written(), self._again, self.transformer, self.sampling)
        if self.prompt.expects == "image" and not self.vocabulary.pictures(self.tokens):
            raise PictureError(
                f"The model drew no whole picture within {len(self.tokens)} tokens. Try another seed or prompt, set "
                "the size, or allow more tokens."
            )
        yield AnswerFinished(self.index, tuple(self.tokens), reason)

    def _again(self, less: Sampling) -> Iterator[Event]:
        """Goes on behind what was handed out, with other settings."""
        self.sampling = less
        del self.tokens[self.whole :]
        return (yield from self._written(with_graphs=False))

    def _written(self, with_graphs: bool = True) -> Iterator[Event]:
        """Writes in a cache of its own."""
        with told("making room for an answer", ADVICE):  # guidance begins with a picture
            self.contexts = Contexts(self.transformer, 1, False, self._end() + ROOM, with_graphs)
        try:
            self.finite = Finite(self.contexts.device, self.contexts.dtype)
            with told(f"reading the prompt ({self._end()} tokens) of an answer", ADVICE):
                hidden = self.contexts.prefill([[*self.prompt.tokens, *self._read()]])
            with told("writing an answer", ADVICE):
                reason = yield from self._write(hidden)
        finally:
            self.contexts.free()
        return reason

    def _read(self) -> list[int]:
        """The tokens to be read where the answer goes on: a picture's start is fed by the picture."""
        begun = self.tokens[-1:] == [self.vocabulary.image_start]
        return self.tokens[:-1] if begun else self.tokens

    def _write(self, hidden: torch.Tensor | None) -> Iterator[Event]:
        """Goes on behind the tokens there are; `hidden` is the state behind the last that was read."""
        v = self.vocabulary
        writer = Writer(self.contexts, self._drawn_text, self.sampling.decode != "ar")
        writer.drafts.extend([*self.prompt.tokens, *self.tokens])
        token = self.tokens[-1] if self.tokens else None
        while True:
            if token != v.image_start:
                self._go_on()
                if hidden is None:
                    run = self._cut(writer.run(len(self.tokens), self._left()))
                    self.contexts.move(len(run), unconditional=False)
                else:
                    run, hidden = self._drawn_text(hidden, len(self.tokens)), None
                writer.drafts.extend(run)
                for token in run:
                    self.tokens.append(token)
                    self.whole = len(self.tokens)
                    yield self._progress(len(self.tokens))
                    if token == self.stop:
                        return "stop"
                    if token != v.image_start:
                        yield TextPiece(self.index, (token,))
            if token == v.image_start:
                begun = len(self.tokens)
                hidden = yield from self._picture()
                if hidden is None:
                    return "picture"
                if v.image_end == self.stop:
                    return "stop"
                writer.drafts.extend(self.tokens[begun:])
                token = None
            if self._left() <= 0:
                return "limit"

    def _cut(self, run: list[int]) -> list[int]:
        """The run up to the token behind which something else than text begins."""
        for i, token in enumerate(run):
            if token in (self.stop, self.vocabulary.image_start):
                return run[: i + 1]
        return run

    def _picture(self) -> Iterator[Event]:
        """Draws sizes, unless they are set, and codes; gives the state behind the picture, None if it cannot fit."""
        v = self.vocabulary
        hidden = None
        if self.prompt.units is not None:
            units = self.prompt.units
            header = v.header(units)
            if len(header) - 1 + self._needs(units) <= self._left():
                self._reserve(units)
                self.tokens += header[1:]
                hidden = self._feed(header)
        else:
            units, hidden = self._sizes()
        if hidden is None:
            return None
        if self.transformer.config.mask_image_logits:
            raise PictureError(
                "The model began a picture, but its config.json sets 'mask_image_logits', which keeps codes from being "
                "drawn. Load a checkpoint that was trained to draw."
            )
        mine = range(self.index, self.index + 1)
        painter = painter_of(self.contexts, v, self.prompt, self.sampling, mine, v.codes_shape(units))
        painter.start(hidden, [self.tokens[-3:]], len(self.tokens))
        self.total = len(self.tokens) + self._needs(units)
        for event in painter.paint():
            yield self._progress(event.done) if isinstance(event, Progress) else event
        codes = painter.codes[0].cpu()
        self.tokens += [*v.rows(codes), v.image_end]
        self.whole = len(self.tokens)
        yield PictureFinished(self.index, TokenGrid(codes, self.prompt.family, self.prompt.panels))
        if self.stop == v.image_end or self._left() <= 0:
            return painter.hidden  # nothing is drawn behind it, so its last tokens need no pass
        end = torch.tensor([[v.image_end]], device=painter.tail.device)
        return self.contexts.advance(torch.cat([painter.tail, end], 1), unconditional=False)

    def _sizes(self) -> tuple[tuple[int, int], torch.Tensor | None]:
        """Draws height and width freely; with them the state behind them, or None where the picture cannot fit."""
        units = []
        token = self.vocabulary.image_start
        for side in ("height", "width"):
            if self._left() <= 0:
                return (0, 0), None
            hidden = self._feed([token])
            [token] = self._drawn(
                hidden, len(self.tokens), self.sampling.image_top_k, self.prompt.entropy_top_k
            )
            size = self.vocabulary.size_of(token)
            if size is None:
                raise PictureError(
                    f"The model gave token {token} as a picture's {side}; that is no size token. Try another seed, or "
                    "set the size."
                )
            self.tokens.append(token)
            units.append(size)
        fits = self._needs(tuple(units)) <= self._left()
        if fits:
            self._reserve(tuple(units))
        return tuple(units), self._feed([token]) if fits else None

    def _reserve(self, units: tuple[int, int]) -> None:
        """Makes room for a picture whose start was drawn, or raises `InputError` when there is none."""
        capacity = self._end() + 2 + self._needs(units) + self.sampling.spare
        guided = self.sampling.cfg != 1.0
        self._check_room(capacity, guided, a_picture(units))
        self.contexts.reserve(capacity)
        if guided:
            self.contexts.guide()

    def _go_on(self) -> None:
        """Makes room for the next run of text, or raises `InputError` when there is none.

        Of a picture that begins with the run's last token start and height are fed before its size is known.
        """
        capacity = self._end() + DRAFTS + 2
        if capacity > self.contexts.cache.capacity:
            what = f"Text behind token {len(self.tokens):,} of an answer"
            less = f"Set max_tokens to {len(self.tokens)} or less, or free memory."
            self._check_room(capacity + ROOM, self.contexts.guided, what, lambda free: less)
            self.contexts.reserve(capacity, ROOM)

    def _check_room(self, capacity: int, guided: bool, *what) -> None:
        """Refuses what makes the cache grow by more than is free; `what` as `check_bytes` takes it."""
        held, has = self.contexts, self.contexts.cache.capacity
        nbytes = Contexts.nbytes(self.transformer, 1, guided or held.guided, max(capacity, has))
        grown = nbytes - Contexts.nbytes(self.transformer, 1, held.guided, has)
        if grown > 0:
            check_bytes(grown, self.free, held.device, *what)

    def _needs(self, units: tuple[int, int]) -> int:
        """Tokens of a picture behind its sizes."""
        h, w = self.vocabulary.codes_shape(units)
        return h * (w + 1) + 1

    def _progress(self, done: int) -> Progress:
        return Progress(done, max(done, self.total))

    def _end(self) -> int:
        """Positions taken so far, prompt included."""
        return len(self.prompt.tokens) + len(self.tokens)

    def _left(self) -> int:
        """Tokens that may still be drawn."""
        return self.most - self._end()

    def _feed(self, tokens: list[int]) -> torch.Tensor:
        ids = torch.tensor([tokens], device=self.contexts.device)
        return self.contexts.advance(ids, unconditional=False)

    def _drawn_text(self, hidden: torch.Tensor, place: int) -> list[int]:
        return self._drawn(hidden, place, self.sampling.text_top_k, None)

    def _drawn(
        self, hidden: torch.Tensor, place: int, top_k: int, entropy_top_k: tuple[int, int] | None
    ) -> list[int]:
        """Tokens drawn from states (T, hidden) at places `place`, `place` + 1, ... of the answer."""
        seed = self.sampling.seed + self.index
        keys = [noise_key(seed, place + i) for i in range(len(hidden))]
        settings = (self.sampling.temperature, top_k, entropy_top_k)
        tokens = drawn_tokens(self.transformer, self.vocabulary, hidden, keys, self.finite, *settings)
        return self.finite.checked(tokens)
