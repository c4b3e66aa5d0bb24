"""Heads that begin by looking back a fixed distance: at the place of a given picture that the answer's stands for.

Heads find such places by themselves, but late: after 1,600 steps of tasks whose answer stands in the panel given, one
of the 35 of `nano-mgpt2` had, in the last layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..transformer import Attention, Transformer

SHARPEST, SHARP = 5.0, 3.5  # of the two fastest turning pairs in use, and of those slower down to `SLOWEST`
SLOWEST = 0.05  # radians a token; slower pairs tell the neighbours of a place apart no more
CONTENT = 0.25  # how much such a head still sees of the tokens themselves


@dataclass(frozen=True)
class LookBack:
    """A head and how far back it looks, in tokens from the one before the token that is drawn."""

    layer: int
    head: int
    distance: int


@torch.no_grad()
def look_back(model: Transformer, look: LookBack) -> None:
    """Sets the norms of a head so that its scores peak `look.distance` tokens back.

    With c of a rotary pair in the biases of query and key, the query's turned by -w * distance, the scores add up to
    c^2 cos(w * (tokens back - distance)). Needs norms of its own for every head (`model_parallel_size` = heads).
    """
    attention = model.model.layers[look.layer].self_attn
    half = model.config.head_dim // 2
    speed = model.config.rope_theta ** (-torch.arange(half) / half)
    strength = torch.where(speed < SLOWEST, 0.0, SHARP)
    strength[:2] = SHARPEST
    turn = -speed * look.distance
    query = torch.cat([strength * turn.cos(), strength * turn.sin()])
    key = torch.cat([strength, torch.zeros(half)])
    for norm, bias in ((attention.q_norm, query), (attention.k_norm, key)):
        norm.weight[look.head] = CONTENT
        norm.bias[look.head] = bias


def looks_back(attention: Attention, head: int) -> bool:
    """Whether a head was made to look back; what heads learn by themselves leaves their biases far smaller."""
    return len(attention.k_norm.bias) > head and bool(attention.k_norm.bias[head].abs().max() > SHARP / 2)
