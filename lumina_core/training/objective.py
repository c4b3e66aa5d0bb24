"""What training minimises: next-token cross entropy over the labelled places, and the z-loss. Pure functions.

Source: upstream `xllmx/solvers/finetune/finetune.py` and `model/modeling_xllmx_chameleon.py`; arXiv 2408.02657.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..prompts import IGNORE
from ..unirep import Vocabulary

PAD = 0


def collate(
    items: Sequence[tuple[Sequence[int], Sequence[int]]], most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels (B, T) of items, each cut to `most` tokens and filled up on the right."""
    length = min(most, max(len(tokens) for tokens, _ in items))
    tokens = torch.full((len(items), length), PAD)
    labels = torch.full((len(items), length), IGNORE)
    for row, (ids, marks) in enumerate(items):
        n = min(len(ids), length)
        tokens[row, :n] = torch.tensor(list(ids[:n]), dtype=torch.int64)
        labels[row, :n] = torch.tensor(list(marks[:n]), dtype=torch.int64)
    return tokens, labels


def cross_entropy(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over the labelled places of the batch; scores (B, T, V) at t are held against the label at t + 1."""
    return F.cross_entropy(scores[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORE)


def predicting(hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The states (N, hidden) of (B, T, hidden) that predict a label, and those labels (N,).

    Scores are then computed for these alone; a prompt takes no pass through the output head.
    """
    following = labels[:, 1:]
    learned = following != IGNORE
    return hidden[:, :-1][learned], following[learned]


def z_loss(scores: torch.Tensor, labels: torch.Tensor, shifted: bool = True) -> torch.Tensor:
    """Mean square of logsumexp(scores) over the places that predict a label.

    With `shifted` false, over the places that carry one themselves: upstream PURE forgot the shift.
    """
    if shifted:
        scores, labels = scores[:, :-1], labels[:, 1:]
    return scores[labels != IGNORE].float().logsumexp(-1).square().mean()


def objective(
    scores: torch.Tensor, labels: torch.Tensor, z_weight: float = 0.0, z_shifted: bool = True
) -> torch.Tensor:
    """Cross entropy plus the weighted z-loss."""
    loss = cross_entropy(scores, labels)
    return loss + z_weight * z_loss(scores, labels, z_shifted) if z_weight else loss


def without_prompt(tokens: Sequence[int], labels: Sequence[int], vocabulary: Vocabulary) -> list[int] | None:
    """The bare picture of an item whose answer is its only picture (labels are the same); None for other items.

    2.0 trains a tenth of such items so, which is what guidance takes for unconditional.
    """
    v = vocabulary
    if len(tokens) < 2 or labels[-2] != v.image_end or list(tokens).count(v.image_start) != 1:
        return None
    return [label for label in labels if label != IGNORE][:-1]


def nearness(codebook: torch.Tensor, softness: float) -> torch.Tensor:
    """How a code that is to be drawn is shared among those near it (codes, codes); rows sum to 1.

    Small codebooks have codes that show all but the same; telling them apart is most of the loss and of no use.
    """
    distance = torch.cdist(codebook.float(), codebook.float())
    nearest = distance.fill_diagonal_(torch.inf).min(1).values.median()
    distance.fill_diagonal_(0)
    return (-0.5 * (distance / (softness * nearest)).square()).softmax(1)
