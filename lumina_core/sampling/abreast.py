"""Several prompts at once, each answered by some text and one picture: texts one by one, pictures side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ..errors import OutOfMemoryError
from ..shortage import told
from ..unirep import TokenGrid, Vocabulary
from .answer import Answer
from .contexts import Contexts, transformer_device
from .events import Event, PictureFinished, Progress, RowFinished, Sampling, TextPiece
from .room import check_bytes, free_bytes, in_words
from .smaller import ADVICE, let_go, smaller
from .window import painter_of

if TYPE_CHECKING:
    from ..prompts import Prompt
    from ..transformer import Transformer

WORDS = 512  # tokens of text before a picture, at most
MOST = 8  # pictures side by side; more bring little


class Preface(Answer):
    """The text of an answer up to where it begins its picture."""

    def text(self) -> Iterator[Event]:
        """Yields its pieces; `words` holds all its tokens then."""
        yield from (event for event in self.write() if isinstance(event, TextPiece))
        ended = self.tokens and self.tokens[-1] in (self.stop, self.vocabulary.image_start)
        self.words = self.tokens[:-1] if ended else self.tokens

    def _picture(self) -> Iterator[Event]:
        yield from ()
        return None


@dataclass(frozen=True)
class Abreast:
    """Answers to prompts of one picture size, each drawn with a seed of its own.

    An answer is the one `generate` gives with that seed, but a picture comes in any case: where the text ends without
    one, or after `WORDS` tokens, its picture is begun.
    """

    transformer: Transformer
    vocabulary: Vocabulary
    prompts: Sequence[Prompt]
    seeds: Sequence[int]
    sampling: Sampling

    @property
    def picture(self) -> int:
        """Tokens of one picture."""
        height, width = self.vocabulary.codes_shape(self.prompts[0].units)
        return height * (width + 1) + 4

    @property
    def words(self) -> int:
        """Tokens of text that an answer may begin with."""
        most = self.transformer.config.max_position_embeddings
        room = most - self.picture - max(len(p.tokens) for p in self.prompts)
        return max(1, min(WORDS, room, self.sampling.max_tokens))

    def nbytes(self) -> int:
        """Bytes of key-value cache that each picture takes of those drawn side by side."""
        longest = max(len(p.tokens) for p in self.prompts)
        capacity = longest + self.words + self.picture + self.sampling.spare
        return Contexts.nbytes(self.transformer, 1, self.sampling.cfg != 1.0, capacity)

    def at_once(self, free: int | None = None) -> int:
        """How many pictures are drawn side by side in `free` bytes, which the device is asked for when None.

        One where nobody knows what is free. An `InputError` where not even one fits.
        """
        device = transformer_device(self.transformer)
        free = free_bytes(device) if free is None else free
        check_bytes(self.nbytes(), free, device, self.prompts[0].units)
        fits = 1 if free is None else int(free * 0.8) // self.nbytes()
        return max(1, min(fits, MOST, len(self.prompts)))

    @torch.inference_mode()
    def draw(self, at_once: int = 1) -> Iterator[Event]:
        """Yields text pieces, rows and pictures, `index` being the prompt's, and the progress of all together."""
        for first in range(0, len(self.prompts), at_once):
            group = range(first, min(first + at_once, len(self.prompts)))
            words = []
            for i in group:
                sampling = replace(
                    self.sampling, seed=self.seeds[i] - i, cfg=1.0, batch=1, max_tokens=self.words
                )
                preface = Preface(self.transformer, self.vocabulary, self.prompts[i], sampling, i)
                yield from preface.text()
                words.append(preface.words)
            less = None
            try:
                yield from self._pictures(group, words)
            except OutOfMemoryError as e:
                less = smaller(e, self.transformer, self.sampling, len(group))
                if less is None:
                    raise
            if less is not None:
                let_go(self.transformer)
                alone = replace(self, sampling=less)
                for i, text in zip(group, words, strict=True):
                    yield from alone._pictures(range(i, i + 1), [text], with_graphs=False)

    def _pictures(
        self, group: range, words: Sequence[Sequence[int]], with_graphs: bool = True
    ) -> Iterator[Event]:
        prompt, v = self.prompts[group.start], self.vocabulary
        header = v.header(prompt.units)
        prefixes = [[*self.prompts[i].tokens, *text, *header] for i, text in zip(group, words, strict=True)]
        streams = [(self.seeds[i], len(text) + len(header)) for i, text in zip(group, words, strict=True)]
        capacity = max(map(len, prefixes)) + self.picture + self.sampling.spare
        what = in_words(len(group), prompt.units)
        with told(f"making room for {what}", ADVICE):
            contexts = Contexts(self.transformer, len(group), self.sampling.cfg != 1.0, capacity, with_graphs)
        try:
            with told(f"reading the prompts of {what}", ADVICE):
                shape = v.codes_shape(prompt.units)
                painter = painter_of(contexts, v, prompt, self.sampling, group, shape)
                painter.start(contexts.prefill_each(prefixes), header, len(header), streams=streams)
            with told(f"drawing {what}", ADVICE):
                for event in painter.paint():
                    if isinstance(event, Progress):
                        done = group.start * self.picture + len(group) * event.done
                        yield Progress(done, len(self.prompts) * self.picture)
                    elif isinstance(event, RowFinished):
                        yield event
                pictures = painter.codes.cpu()
        finally:
            contexts.free()
        for i, codes in zip(group, pictures, strict=True):
            yield PictureFinished(i, TokenGrid(codes, prompt.family, prompt.panels))
