"""Several prompts at once, each answered by text, a picture, or text and then a picture; all side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from ..shortage import told
from ..unirep import TokenGrid, Vocabulary
from .contexts import Contexts, transformer_device
from .events import Event, PictureFinished, Progress, RowFinished, Sampling, TextPiece
from .finite import Finite
from .logits import noise_key
from .room import a_picture, check_bytes, free_bytes, in_words, tokens_needed
from .smaller import ADVICE, once_more
from .text import drawn_tokens
from .window import painter_of

if TYPE_CHECKING:
    from ..prompts import Prompt
    from ..transformer import Transformer

WORDS = 512  # tokens of text in an answer, at most
MOST = 8  # answers side by side; more bring little


@dataclass
class Text:
    """The tokens of an answer's text so far, and whether they are all."""

    tokens: list[int]
    ended: bool


@dataclass(frozen=True)
class Abreast:
    """Answers to prompts that expect the same, with pictures of one size or none, each drawn with a seed of its own.

    An answer is the one `generate` gives with that seed, but where a size is set a picture comes in any case: where
    the text ends without one, or after `WORDS` tokens, its picture is begun.
    """

    transformer: Transformer
    vocabulary: Vocabulary
    prompts: Sequence[Prompt]
    seeds: Sequence[int]
    sampling: Sampling

    @property
    def picture(self) -> int:
        """Tokens of one picture behind its prompt, 0 where the answers are text alone."""
        prompt = self.prompts[0]
        return tokens_needed(prompt, self.vocabulary) - len(prompt.tokens) if prompt.units else 0

    @property
    def words(self) -> int:
        """Tokens of text that an answer may have."""
        if self.prompts[0].expects == "image":
            return 0
        most = self.transformer.config.max_position_embeddings
        room = most - self.picture - max(len(p.tokens) for p in self.prompts)
        return max(1, min(WORDS, room, self.sampling.max_tokens))

    @property
    def capacity(self) -> int:
        """Positions of the cache that an answer may take."""
        longest = max(len(p.tokens) for p in self.prompts)
        return longest + self.words + self.picture + self.sampling.spare

    def nbytes(self) -> int:
        """Bytes of key-value cache that each answer takes of those drawn side by side."""
        return Contexts.nbytes(self.transformer, 1, self.sampling.cfg != 1.0, self.capacity)

    def at_once(self, free: int | None = None) -> int:
        """How many pictures are drawn side by side in `free` bytes, which the device is asked for when None.

        One where nobody knows what is free. An `InputError` where not even one fits.
        """
        device = transformer_device(self.transformer)
        free = free_bytes(device) if free is None else free
        units = self.prompts[0].units
        check_bytes(self.nbytes(), free, device, a_picture(units) if units else "A text")
        fits = 1 if free is None else int(free * 0.8) // self.nbytes()
        return max(1, min(fits, MOST, len(self.prompts)))

    @torch.inference_mode()
    def draw(self, at_once: int = 1) -> Iterator[Event]:
        """Yields text pieces, rows and pictures, `index` being the prompt's, and the progress of all together."""
        for first in range(0, len(self.prompts), at_once):
            group = range(first, min(first + at_once, len(self.prompts)))
            texts = [Text([], not self.words) for _ in group]
            again = partial(self._one_by_one, group, texts)
            first_try = self._answers(group, texts)
            yield from once_more(first_try, again, self.transformer, self.sampling, len(group))

    def _one_by_one(self, group: range, texts: Sequence[Text], less: Sampling) -> Iterator[Event]:
        """Goes on with each answer alone, behind what was handed out, with other settings and without CUDA graphs."""
        alone = replace(self, sampling=less)
        for i, text in zip(group, texts, strict=True):
            yield from alone._answers(range(i, i + 1), [text], with_graphs=False)

    def _answers(self, group: range, texts: Sequence[Text], with_graphs: bool = True) -> Iterator[Event]:
        """Writes the rest of some texts, then draws the pictures behind them."""
        prompt = self.prompts[0]
        what = in_words(len(group), prompt.units) if self.picture else f"{len(group)} texts"
        with told(f"making room for {what}", ADVICE):
            guided = self.sampling.cfg != 1.0
            contexts = Contexts(self.transformer, len(group), guided, self.capacity, with_graphs)
        try:
            with told(f"reading the prompts of {what}", ADVICE):
                known = [[*self.prompts[i].tokens, *t.tokens] for i, t in zip(group, texts, strict=True)]
                hidden = contexts.prefill(known)
            with told(f"writing the text of {what}", ADVICE):
                yield from self._texts(contexts, hidden, group, texts)
            if not self.picture:
                return
            with told(f"drawing {what}", ADVICE):
                pictures = yield from self._pictures(contexts, hidden, group, texts)
        finally:
            contexts.free()
        for i, codes in zip(group, pictures, strict=True):
            yield PictureFinished(i, TokenGrid(codes, prompt.family, prompt.panels))

    def _texts(
        self, contexts: Contexts, hidden: torch.Tensor, group: range, texts: Sequence[Text]
    ) -> Iterator[Event]:
        """Yields pieces until every text has ended."""
        ends = (self.vocabulary.separator, self.vocabulary.image_start)
        settings = (self.sampling.temperature, self.sampling.text_top_k)
        finite = Finite(contexts.device, contexts.dtype)
        while not all(text.ended for text in texts):
            keys = [noise_key(self.seeds[i], len(t.tokens)) for i, t in zip(group, texts, strict=True)]
            tokens = drawn_tokens(self.transformer, self.vocabulary, hidden, keys, finite, *settings)
            going = []
            for i, text, token in zip(group, texts, finite.checked(tokens), strict=True):
                going.append(not text.ended and token not in ends)
                text.ended |= token in ends
                if going[-1]:
                    text.tokens.append(token)
                    text.ended = len(text.tokens) >= self.words
                    yield TextPiece(i, (token,))
            if any(going):
                moving = torch.tensor(going, device=contexts.device)
                hidden = contexts.advance(tokens[:, None], unconditional=False, going=moving)

    def _pictures(
        self, contexts: Contexts, hidden: torch.Tensor, group: range, texts: Sequence[Text]
    ) -> Iterator[Event]:
        """Draws the pictures behind the texts, or behind what the prompts give of them; gives their codes."""
        prompt, v = self.prompts[group.start], self.vocabulary
        header = v.header(prompt.units)
        if prompt.open_at is None:
            opened, drawn = [header] * len(group), len(header)
            hidden = contexts.advance(torch.tensor(opened, device=contexts.device), unconditional=False)
        else:
            opened, drawn = [self.prompts[i].tokens[self.prompts[i].open_at :] for i in group], 0
        painter = painter_of(contexts, v, prompt, self.sampling, group, v.codes_shape(prompt.units))
        streams = [(self.seeds[i], len(t.tokens) + drawn) for i, t in zip(group, texts, strict=True)]
        painter.start(hidden, opened, drawn, streams=streams)
        for event in painter.paint():
            if isinstance(event, Progress):
                done = group.start * self.picture + len(group) * event.done
                yield Progress(done, len(self.prompts) * self.picture)
            elif isinstance(event, RowFinished):
                yield event
        return painter.codes.cpu()
