"""Draws many prompts side by side, each as the library draws it alone with the same seed: what makes judging fast.

Plain decoding with the noise of `sampling` (a function of seed and place), rows of different lengths in one cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..families import Model
from ..prompts import Prompt
from ..sampling import Sampling
from ..sampling.logits import draw, guide, gumbel, keep_by_entropy, keep_top, noise_key

WORDS = 96  # tokens of text that an answer may take


@dataclass(frozen=True, eq=False)
class Drawn:
    """One answer: its text tokens, and the codes (h, w) of its picture where it has one."""

    words: tuple[int, ...]
    codes: torch.Tensor | None


class Rows:
    """Token rows of different lengths in one cache; `last` holds the state (R, hidden) of each row's newest token."""

    def __init__(self, model: Model, prefixes: Sequence[Sequence[int]], room: int):
        self.transformer = model.transformer
        weight = self.transformer.model.embed_tokens.weight
        self.device = weight.device
        lengths = [len(p) for p in prefixes]
        self.cache = self.transformer.new_cache(len(prefixes), max(lengths) + room, self.device, weight.dtype)
        filled = torch.zeros(len(prefixes), max(lengths), dtype=torch.int64)
        for row, tokens in enumerate(prefixes):
            filled[row, : len(tokens)] = torch.tensor(list(tokens))
        # What stands behind a shorter row is written over before anything may look at it.
        hidden = self.transformer(filled.to(self.device), 0, self.cache)
        self.cursor = torch.tensor(lengths, device=self.device)
        self.last = hidden[torch.arange(len(prefixes), device=self.device), self.cursor - 1]

    def feed(self, tokens: torch.Tensor, moving: torch.Tensor | None = None) -> None:
        """Appends tokens (R, T) to the rows, or to those where `moving` (R,) is true."""
        length = int(self.cursor.max()) + tokens.shape[1]
        hidden = self.transformer(tokens.to(self.device), self.cursor, self.cache, length=length)[:, -1]
        if moving is None:
            self.last, self.cursor = hidden, self.cursor + tokens.shape[1]
        else:
            self.last = torch.where(moving[:, None], hidden, self.last)
            self.cursor = self.cursor + tokens.shape[1] * moving


def noise_of(seeds: Sequence[int], places: Sequence[int], count: int, device) -> torch.Tensor:
    """Gumbel noise (R, count) of one place of each row."""
    keys = [noise_key(seed, place) for seed, place in zip(seeds, places, strict=True)]
    return gumbel(torch.tensor(keys, device=device), count)


@torch.inference_mode()
def answer_many(
    model: Model, prompts: Sequence[Prompt], seeds: Sequence[int], sampling: Sampling
) -> list[Drawn]:
    """The answers to prompts that expect the same: pictures of one known size, text, or text and such a picture."""
    words: list[list[int]] = [[] for _ in prompts]
    drawing = [True] * len(prompts)
    if prompts[0].expects != "image":
        words = _write(model, prompts, seeds, sampling)
        start = model.vocabulary.image_start
        drawing = [prompts[0].units is not None and start in w for w in words]
    chosen = [i for i, wanted in enumerate(drawing) if wanted]
    codes = _pictures(
        model, [prompts[i] for i in chosen], [words[i] for i in chosen], [seeds[i] for i in chosen], sampling
    )
    found = dict(zip(chosen, codes, strict=True))
    ends = (model.vocabulary.separator, model.vocabulary.image_start)
    return [Drawn(tuple(t for t in w if t not in ends), found.get(i)) for i, w in enumerate(words)]


def _write(
    model: Model, prompts: Sequence[Prompt], seeds: Sequence[int], sampling: Sampling
) -> list[list[int]]:
    """The text tokens of each answer, up to and including a separator or the start of a picture."""
    ends = {model.vocabulary.separator, model.vocabulary.image_start}
    rows = Rows(model, [p.tokens for p in prompts], WORDS)
    words: list[list[int]] = [[] for _ in prompts]
    for place in range(WORDS):
        scores = keep_top(model.transformer.scores(rows.last), sampling.text_top_k)
        noise = noise_of(seeds, [place] * len(seeds), scores.shape[-1], scores.device)
        tokens = draw(scores, sampling.temperature, noise)
        going = torch.tensor([not w or w[-1] not in ends for w in words], device=scores.device)
        for row, token in enumerate(tokens.tolist()):
            if going[row]:
                words[row].append(token)
        if all(w[-1] in ends for w in words):
            break
        rows.feed(tokens[:, None], going)
    return words


def _pictures(
    model: Model,
    prompts: Sequence[Prompt],
    words: Sequence[Sequence[int]],
    seeds: Sequence[int],
    sampling: Sampling,
) -> list[torch.Tensor]:
    """Codes (h, w) of each prompt's picture; sizes are all the same."""
    if not prompts:
        return []
    v, units = model.vocabulary, prompts[0].units
    height, width = v.codes_shape(units)
    stride, header = width + 1, v.header(units)
    prefixes, opened = [], []
    for prompt, text in zip(prompts, words, strict=True):
        if prompt.open_at is None:
            prefixes.append([*prompt.tokens, *(t for t in text if t != v.image_start), *header])
            opened.append(header)
        else:
            prefixes.append(list(prompt.tokens))
            opened.append(list(prompt.tokens[prompt.open_at :]))
    given = len(opened[0]) - 3
    guided = sampling.cfg != 1.0
    rows = Rows(model, [*prefixes, *(opened if guided else [])], height * stride)
    ids = v.code_ids.to(rows.device)
    head = model.transformer.head_rows(ids, rows.device, rows.last.dtype)
    # As in `sampling`: the number of a drawn token among all that were drawn names its noise.
    firsts = [
        len(text) + 2 * (v.image_start in text) if text else 3 * (prompts[0].open_at is None) - given
        for text in words
    ]
    drawn: list[torch.Tensor] = []
    for place in range(given, height * stride):
        if place % stride == width:
            continue
        scores = model.transformer.scores(rows.last, head)
        if guided:
            scores = guide(*scores.chunk(2), sampling.cfg)
        limits = prompts[0].entropy_top_k
        scores = keep_by_entropy(scores, *limits) if limits else keep_top(scores, sampling.image_top_k)
        noise = noise_of(seeds, [first + place for first in firsts], scores.shape[-1], scores.device)
        code = draw(scores, sampling.temperature, noise)
        drawn.append(code)
        tokens = ids[code][:, None]
        if place % stride == width - 1:
            tokens = torch.cat([tokens, torch.full_like(tokens, v.row_end)], 1)
        if place < height * stride - 2:
            rows.feed(tokens.repeat(2, 1) if guided else tokens)
    fresh = torch.stack(drawn, 1).cpu()
    out = []
    for row, tokens in enumerate(opened):
        kept = [v.code_of(t) for t in tokens[3:] if t != v.row_end]
        whole = torch.cat([torch.tensor(kept, dtype=torch.int64), fresh[row]])
        out.append(whole.view(height, width))
    return out
