"""Text in windows: several tokens a pass, each the one that plain decoding would draw.

Drafts are the continuation of the last place where the newest two tokens stood before, in prompt or answer (prompt
lookup, Saxena 2023), else what the pass before drew behind its first wrong draft (Jacobi decoding, Santilli et al.
2023, arXiv 2305.10427), else the continuation of the last place of the newest token alone. A draft holds if it is what
is drawn in its place with the noise of its place, so drafts change the speed only.

Upstream draws text from the whole vocabulary, so that a caption of a plain picture may end in hundreds of codes. Here
codes, row ends and image ends cannot be drawn outside a picture: a word is drawn where upstream would draw one of them.
An answer in which upstream draws none is upstream's, token for token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from ..unirep import Vocabulary
from .contexts import Contexts
from .finite import Finite
from .logits import draw, gumbel, keep_by_entropy, keep_top

if TYPE_CHECKING:
    from ..transformer import Transformer

DRAFTS = 7  # of a pass, at most
TRIAL = 6  # passes with and without drafts before their speeds are compared
PAUSE = 24  # tokens drawn one by one after drafts did not pay


def drawn_tokens(
    transformer: Transformer,
    vocabulary: Vocabulary,
    hidden: torch.Tensor,
    keys: Sequence[tuple[int, int]],
    finite: Finite,
    temperature: float,
    top_k: int,
    entropy_top_k: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Tokens (N,) that may stand outside a picture, drawn from states (N, hidden), each with the noise of its key.

    Size tokens are among them, as a picture that is begun draws its sizes here too; `legible` leaves them out of text.
    """
    scores = transformer.scores(hidden)
    finite.note(scores)
    if transformer.config.mask_image_logits:
        ids = vocabulary.code_ids.to(scores.device)
        scores = scores.index_fill(-1, ids, torch.finfo(scores.dtype).min)
    kept = keep_by_entropy(scores, *entropy_top_k) if entropy_top_k else keep_top(scores, top_k)
    scores = _words_kept(scores, kept, _picture_parts(vocabulary, scores.device))
    noise = gumbel(torch.tensor(keys, device=scores.device), scores.shape[-1])
    return draw(scores, temperature, noise)


def legible(tokens: Sequence[int], vocabulary: Vocabulary) -> list[int]:
    """Tokens of text without size tokens, which stand for nothing there."""
    return [token for token in tokens if vocabulary.size_of(token) is None]


def _words_kept(scores: torch.Tensor, kept: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
    """Scores (N, V) of what top-k kept without the `parts` of pictures; of the likeliest word where it kept no other.

    Top-k goes first, so that a draw without parts of pictures stays what it was.
    """
    words = scores.index_fill(-1, parts, float("-inf"))
    dropped = kept.isneginf() & (words < words.amax(-1, keepdim=True))
    return words.masked_fill(dropped, float("-inf"))


@lru_cache(maxsize=8)  # copied to a graphics card once, not for each token
def _picture_parts(vocabulary: Vocabulary, device: torch.device) -> torch.Tensor:
    """Ids of the tokens that stand inside pictures alone, sizes aside."""
    return torch.cat([vocabulary.code_ids, torch.tensor([vocabulary.row_end, vocabulary.image_end])]).to(
        device
    )


class Drafts:
    """Guesses of what follows a growing sequence."""

    def __init__(self):
        self.tokens: list[int] = []
        self.last: dict[tuple[int, ...], int] = {}  # the newest one or two tokens -> where they last ended
        self.left_over: list[int] = []

    def extend(self, tokens: Sequence[int]) -> None:
        """Told what the sequence goes on with; places are entered once something follows them."""
        for token in tokens:
            end = len(self.tokens)
            if end:
                self.last[(self.tokens[-1],)] = end
                self.last[tuple(self.tokens[-2:])] = end
            self.tokens.append(token)

    def propose(self, most: int) -> list[int]:
        """Guesses of the next tokens, `most` at most, perhaps none."""
        pair = self.last.get(tuple(self.tokens[-2:]))
        if pair is not None:
            return self.tokens[pair : pair + most]
        if self.left_over:
            return self.left_over[:most]
        one = self.last.get((self.tokens[-1],))
        return [] if one is None else self.tokens[one : one + most]


class Writer:
    """Draws runs of text tokens behind what the conditional row was fed."""

    def __init__(self, contexts: Contexts, drawn: Callable[[torch.Tensor, int], list[int]], drafting: bool):
        """`drawn` gives the tokens drawn from states (T, hidden) at places n, n + 1, ... of the answer."""
        self.contexts, self.drawn, self.drafting = contexts, drawn, drafting
        self.drafts = Drafts()
        self.pause = 0
        self.tokens = [0, 0]  # drawn in passes without and with drafts, while both are tried
        self.seconds = [0.0, 0.0]
        self.passes = [0, 0]

    def run(self, place: int, left: int) -> list[int]:
        """The next tokens, `left` at most: feeds the newest one, which was not fed yet, and drafts behind it.

        The cursor stays; the caller moves it on by as many tokens as it takes.
        """
        draft = self._draft(min(left - 1, DRAFTS))
        start = time.perf_counter()
        ids = torch.tensor([[self.drafts.tokens[-1], *draft]], device=self.contexts.device)
        tokens = self.drawn(self.contexts.peek_alone(ids)[0], place)
        held = 0
        while held < len(draft) and draft[held] == tokens[held]:
            held += 1
        self._note(bool(draft), held + 1, time.perf_counter() - start)
        self.drafts.left_over = tokens[held + 1 :]
        return tokens[: held + 1]

    def _draft(self, most: int) -> list[int]:
        """Drafts, unless they do not pay."""
        if not self.drafting or most <= 0 or self.pause > 0:
            self.pause -= 1
            return []
        return self.drafts.propose(most)

    def _note(self, with_drafts: bool, tokens: int, seconds: float) -> None:
        self.passes[with_drafts] += 1
        if self.passes[with_drafts] > 1:  # the first pass of a kind pays for warming up
            self.tokens[with_drafts] += tokens
            self.seconds[with_drafts] += seconds
        if self.passes[True] <= TRIAL:
            return
        # In 16 bit the width of a pass shows in its rounding, so there no clock may decide.
        timed = self.tokens[False] and self.contexts.dtype == torch.float32
        plain = self.seconds[False] * self.tokens[True] if timed else None
        slower = (
            self.tokens[True] < 2 * (self.passes[True] - 1)
            if plain is None
            else (self.seconds[True] * self.tokens[False] > plain)
        )
        if slower:
            self.pause = PAUSE
        self.passes[True], self.tokens[True], self.seconds[True] = 1, 0, 0.0
