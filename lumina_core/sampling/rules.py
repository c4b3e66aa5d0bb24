"""What may come next at any place of an answer, over the whole vocabulary, as upstream's logits processors rule it.

The engine draws pictures from a fixed plan and never asks; these rules say the same of any sequence of tokens. They
serve where a finished answer is judged: its probabilities, conformance with upstream, tests of the engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..errors import PictureError
from ..unirep import Vocabulary
from .events import Sampling
from .logits import decayed, entropy, guide, keep_by_entropy, keep_top, top_k_of_entropy

if TYPE_CHECKING:
    from ..prompts import Prompt
    from ..transformer import Transformer


@dataclass(frozen=True)
class Place:
    """Where the next token stands: in text, or in a picture whose start is at index `start`."""

    kind: str  # "text", "size", "code", "row_end" or "end"
    start: int = -1
    after_start: int = 0  # tokens between the start and this place
    units: tuple[int, int] | None = None  # (height, width), once both are known

    @property
    def in_picture(self) -> bool:
        return self.kind != "text"

    @property
    def guided(self) -> bool:
        """Whether guidance applies here, where there is any."""
        return self.kind in ("code", "row_end", "end")

    def forced(self, vocabulary: Vocabulary) -> int | None:
        """The only token that may stand here, or None when it is drawn."""
        return {"row_end": vocabulary.row_end, "end": vocabulary.image_end}.get(self.kind)


def place_after(tokens: Sequence[int], vocabulary: Vocabulary) -> Place:
    """The place behind `tokens` (prompt included): a picture is open when one more was started than ended."""
    tokens = list(tokens)
    v = vocabulary
    if tokens.count(v.image_start) != tokens.count(v.image_end) + 1:
        return Place("text")
    start = len(tokens) - 1 - tokens[::-1].index(v.image_start)
    n = len(tokens) - 1 - start
    if n < 2:
        return Place("size", start, n)
    units = (v.size_of(tokens[start + 1]), v.size_of(tokens[start + 2]))
    if None in units:
        raise PictureError(
            f"The tokens after the image start, {tokens[start + 1 : start + 3]}, are no sizes."
        )
    rows, columns = v.codes_shape(units)
    drawn = n - 2
    if drawn == rows * (columns + 1):
        return Place("end", start, n, units)
    return Place("code" if (drawn + 1) % (columns + 1) else "row_end", start, n, units)


class Rules:
    """Turns raw scores of successive places of one answer into the scores that are drawn from.

    Keeps what upstream keeps between steps: the guidance scale, and how far the unconditional branch was fed.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        sampling: Sampling,
        entropy_top_k: tuple[int, int] | None = None,
        guidance_decay: bool = False,
    ):
        self.vocabulary, self.sampling = vocabulary, sampling
        self.entropy_top_k = entropy_top_k
        self.decays = guidance_decay and sampling.upstream_exact
        self.scale = sampling.cfg
        self._fed: tuple[int, int] | None = None  # start of the picture, tokens of it that were fed

    def unconditional_tokens(self, tokens: Sequence[int], place: Place) -> list[int]:
        """What the unconditional branch is fed before this place; nothing where there is no guidance.

        A picture is a context of its own from its start on, so the first feeding of each is the whole of it so far.
        """
        if self.sampling.cfg == 1.0 or not place.guided:
            return []
        known = self._fed[1] if self._fed and self._fed[0] == place.start else 0
        self._fed = (place.start, len(tokens) - place.start)
        return list(tokens[place.start + known :])

    def guided(self, place: Place, cond: torch.Tensor, uncond: torch.Tensor | None) -> torch.Tensor:
        """Scores (V) after guidance and constraint; codes alone stay inside a picture."""
        scores = cond
        if uncond is not None:
            if self.decays:
                self.scale = decayed(self.scale, place.after_start, place.units)
            scores = guide(cond, uncond, self.scale)
        forced = place.forced(self.vocabulary)
        if forced is not None:
            return torch.full_like(scores, float("-inf")).index_fill(
                -1, torch.tensor([forced], device=scores.device), 0.0
            )
        if place.kind == "code":
            allowed = torch.full_like(scores, float("-inf"))
            ids = self.vocabulary.code_ids.to(scores.device)
            return allowed.index_copy(-1, ids, scores[..., ids])
        return scores

    def top_k(self, place: Place, scores: torch.Tensor) -> int:
        """How many of the guided scores stay at this place."""
        if not place.in_picture:
            return self.sampling.text_top_k
        if self.entropy_top_k:
            return int(top_k_of_entropy(entropy(scores), *self.entropy_top_k))
        return self.sampling.image_top_k

    def limited(self, place: Place, scores: torch.Tensor) -> torch.Tensor:
        """Guided scores (V) after top-k and temperature."""
        if place.in_picture and self.entropy_top_k:
            scores = keep_by_entropy(scores, *self.entropy_top_k)
        else:
            scores = keep_top(scores, self.top_k(place, scores))
        return scores / self.sampling.temperature if self.sampling.temperature else scores

    def final(self, place: Place, cond: torch.Tensor, uncond: torch.Tensor | None) -> torch.Tensor:
        """Scores (V) whose softmax is drawn from: guidance, constraint, top-k, temperature."""
        return self.limited(place, self.guided(place, cond, uncond))


@torch.inference_mode()
def replay(
    transformer: Transformer,
    vocabulary: Vocabulary,
    prompt: Prompt,
    sampling: Sampling,
    answer: Sequence[int],
) -> Iterator[tuple[Place, torch.Tensor]]:
    """The place and final scores (V) that every token of `answer` was drawn from: its probabilities, one pass.

    `answer` are the tokens behind `prompt.tokens`; its pictures may have any size.
    """
    device = transformer.model.norm.weight.device
    tokens = [*prompt.tokens, *answer]
    rules = Rules(vocabulary, sampling, prompt.entropy_top_k, prompt.guidance_decay)
    hidden = transformer(torch.tensor([tokens], device=device))[0]
    opened, alone = -1, None
    for i in range(len(prompt.tokens), len(tokens)):
        place = place_after(tokens[:i], vocabulary)
        uncond = None
        if rules.unconditional_tokens(tokens[:i], place):
            if opened != place.start:
                opened = place.start
                alone = transformer(torch.tensor([tokens[opened:]], device=device))[0]
            uncond = transformer.scores(alone[i - 1 - opened])
        yield place, rules.final(place, transformer.scores(hidden[i - 1]), uncond)
