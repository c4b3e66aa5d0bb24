"""Codes of a picture that are kept while the others are drawn again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ..prompts import Prompt


def kept_codes(prompt: Prompt, pictures: range, shape: tuple[int, int]) -> torch.Tensor | None:
    """The codes (pictures, h, w) that a prompt keeps, -1 where one is drawn; None where it keeps nothing."""
    if not prompt.kept:
        return None
    return torch.tensor([prompt.kept[i % len(prompt.kept)] for i in pictures]).unflatten(1, shape)


def rows_kept(kept: torch.Tensor, given: int) -> int:
    """How many rows from the top are known: the `given` ones and those that all pictures keep alike and whole.

    At least the last row is left to be drawn, kept or not, so that there is something to draw from.
    """
    whole = ((kept >= 0) & (kept == kept[:1])).all(0).all(1).long()  # (h,)
    whole[:given] = 1
    return max(given, min(int(whole.cumprod(0).sum()), len(whole) - 1))
