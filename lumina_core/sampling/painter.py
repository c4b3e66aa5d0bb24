"""Draws the codes of a batch of pictures of one size, one place a pass: the reference for every other way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from ..unirep import Vocabulary
from .contexts import Contexts
from .events import Event, Progress, RowFinished, Sampling
from .finite import Finite
from .logits import decayed, draw, guide, gumbel, keep_by_entropy, keep_top, noise_key

if TYPE_CHECKING:
    from ..prompts import Prompt


class Painter:
    """Places of a picture are numbered through: row r, column c is place r * (w + 1) + c; column w is the row end."""

    def __init__(
        self,
        contexts: Contexts,
        vocabulary: Vocabulary,
        prompt: Prompt,
        sampling: Sampling,
        pictures: range,
        shape: tuple[int, int],
    ):
        self.contexts, self.vocabulary, self.sampling, self.pictures = (
            contexts,
            vocabulary,
            sampling,
            pictures,
        )
        self.entropy_top_k = prompt.entropy_top_k
        self.decays = sampling.upstream_exact and prompt.guidance_decay
        self.shape, self.stride = shape, shape[1] + 1
        self.places = shape[0] * self.stride
        self.guided = sampling.cfg != 1.0
        device = contexts.device
        self.code_ids = vocabulary.code_ids.to(device)
        self.head = contexts.transformer.head(vocabulary.code_ids, device, contexts.dtype)
        self.codes = torch.zeros(len(pictures), 0, shape[1], dtype=torch.int64, device=device)
        self.finite = Finite(device, contexts.dtype)

    def start(
        self,
        hidden: torch.Tensor,
        opened: Sequence[Sequence[int]],
        drawn: int,
        kept: torch.Tensor | None = None,
        streams: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        """Takes the conditional rows' last state, starts the unconditional rows on the opened picture.

        `opened` are each picture's tokens so far (start, sizes, codes given), the same number of all; `drawn` of them
        were generated. `kept` (pictures, h, w) holds codes that are set instead of drawn, -1 elsewhere. `streams` are
        the seed and `drawn` of every picture, where they do not follow from the first.
        """
        self.kept = kept
        self.hidden = hidden
        if self.guided:
            self.hidden = torch.cat([hidden, self.contexts.prefill(opened, unconditional=True)])
        device, v = self.contexts.device, self.vocabulary
        self.given = len(opened[0]) - 3
        codes = [[v.code_of(t) for t in tokens[3:] if t != v.row_end] for tokens in opened]
        given = torch.tensor(codes, dtype=torch.int64, device=device)
        whole = given.shape[1] // self.shape[1] * self.shape[1]
        self.codes = given[:, :whole].reshape(len(self.pictures), -1, self.shape[1])
        self.begun = given[:, whole:]  # of a row that was begun
        self.first = drawn - self.given  # place p is generated token number first + p, which names its noise
        keys = [
            [noise_key(seed, done - self.given + p) for p in range(self.given, self.places)]
            for seed, done in streams or [(self.sampling.seed + i, drawn) for i in self.pictures]
        ]
        self.keys = torch.tensor(keys, device=device)  # (pictures, places still to draw, 2)
        self.scales = torch.tensor(self._scales(), device=device) if self.decays else None

    def paint(self) -> Iterator[Event]:
        """Draws row by row; `codes` holds the pictures at the end, `tail` the tokens that were not fed."""
        height, width = self.shape
        row_end = torch.full((len(self.pictures), 1), self.vocabulary.row_end, device=self.contexts.device)
        while (row := self.codes.shape[1]) < height:
            drawn = list(self.begun.unbind(1))
            first = row * self.stride + len(drawn)
            noise = self.noise(slice(first, (row + 1) * self.stride - 1))
            for column in range(len(drawn), width):
                place = row * self.stride + column
                code = draw(
                    self.allowed(self.hidden, place), self.sampling.temperature, noise[:, place - first]
                )
                if self.kept is not None:
                    code = torch.where(self.kept[:, row, column] < 0, code, self.kept[:, row, column])
                drawn.append(code)
                self.tail = self.code_ids[code][:, None]
                if column == width - 1:
                    self.tail = torch.cat(
                        [self.tail, row_end], 1
                    )  # forced: shares the pass of the code before it
                if row < height - 1 or column < width - 1:
                    self.hidden = self.contexts.advance(self.tail)
                yield self.progress(place + 1 + (column == width - 1))
            self.codes = torch.cat([self.codes, torch.stack(drawn, 1)[:, None]], 1)
            self.begun = self.begun[:, :0]
            self.finite.check()
            yield RowFinished(self.codes, self.shape)
        yield self.progress(self.places + 1)

    def progress(self, places: int) -> Progress:
        return Progress(self.first + places, self.first + self.places + 1)

    def noise(self, places: slice) -> torch.Tensor:
        """Noise (pictures, places, codes) of a range of places."""
        keys = self.keys[:, places.start - self.given : places.stop - self.given]
        return gumbel(keys, len(self.code_ids))

    def allowed(self, hidden: torch.Tensor, places: int | torch.Tensor) -> torch.Tensor:
        """Scores (pictures, ..., codes) after guidance and top-k, of the states of all rows (rows, ..., hidden)."""
        scores = self.head(hidden)
        self.finite.note(scores)
        if self.guided:
            cond, uncond = scores.chunk(2)
            scale = self.sampling.cfg if self.scales is None else self.scales[places - self.given]
            scores = guide(cond, uncond, scale[..., None] if isinstance(scale, torch.Tensor) else scale)
        if self.entropy_top_k:
            return keep_by_entropy(scores, *self.entropy_top_k)
        return keep_top(scores, self.sampling.image_top_k)

    def _scales(self) -> list[float]:
        """Upstream 2.0's guidance scale of every place still to draw."""
        k, scale, out = self.vocabulary.latents_per_unit, self.sampling.cfg, []
        units = (self.shape[0] // k, self.shape[1] // k)
        for place in range(self.given, self.places):
            scale = decayed(scale, 2 + place, units)
            out.append(scale)
        return out
