"""Linears that read the same input, computed as one product.

Weights keep their names and shapes, as state dicts, LoRA and hosts know them; `lay_together` only places them one
behind the other in one piece of memory, so that one tensor over all of them needs no copy. Whatever moves or replaces
one of them undoes that, and the Linears are computed one by one again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn


@torch.no_grad()
def lay_together(linears: Sequence[nn.Linear]) -> None:
    """Moves the weights of plain Linears into one piece of memory; other layers stay as they are.

    A CPU's float32 weights lie by columns there, unless they are wider than high: products with a few rows of input,
    as drawing makes them, then read each weight once, in order, instead of making a sorted copy first.
    """
    if not all(map(is_plain, linears)):
        return
    weights = [linear.weight for linear in linears]
    if len({(w.device, w.dtype) for w in weights}) > 1 or weights[0].is_meta:
        return
    if len(weights) == 1 and weights[0].device.type != "cpu":
        return
    whole = torch.cat([w.detach() for w in weights])
    if whole.device.type == "cpu" and whole.dtype == torch.float32 and len(whole) >= whole.shape[1]:
        whole = whole.t().contiguous().t()
    for weight, part in zip(weights, whole.split([len(w) for w in weights]), strict=True):
        weight.data = part


def is_plain(linear: nn.Module) -> bool:
    """Whether a layer's output is x @ weight.T and nothing else: no bias, hooks, quantised or host's own layer."""
    return (
        type(linear).forward is nn.Linear.forward
        and linear._parameters.get("weight") is not None
        and linear.bias is None
        and not linear._forward_hooks
        and not linear._forward_pre_hooks
    )


def product(linear: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """What computes a layer at the least cost."""
    return partial(F.linear, weight=linear.weight) if is_plain(linear) else linear


def products(linears: Sequence[nn.Module]) -> Callable[[torch.Tensor], Sequence[torch.Tensor]]:
    """What computes the outputs (..., rows) of layers on the same input (..., columns), as one product where it can."""
    weight = one_weight(linears)
    if weight is None:
        each = [product(linear) for linear in linears]
        return lambda x: [linear(x) for linear in each]
    rows = [linear.out_features for linear in linears]
    return lambda x: F.linear(x, weight).split_with_sizes(rows, -1)


def side_by_side(linears: Sequence[nn.Module]) -> Callable[[torch.Tensor], torch.Tensor]:
    """As `products`, the outputs as one tensor (..., rows of all)."""
    weight = one_weight(linears)
    if weight is not None:
        return partial(F.linear, weight=weight)
    each = products(linears)
    return lambda x: torch.cat(each(x), -1)


def one_weight(linears: Sequence[nn.Module]) -> torch.Tensor | None:
    """One weight (rows of all, columns) of plain layers: a copy where gradients are wanted, else a view or None."""
    if not all(map(is_plain, linears)):
        return None
    weights = [linear.weight for linear in linears]
    if torch.is_grad_enabled() and any(w.requires_grad for w in weights):
        return torch.cat(weights)
    first = weights[0]
    strides, storage = first.stride(), first.untyped_storage().data_ptr()
    place, rows = first.data_ptr(), sum(map(len, weights))
    if strides not in ((first.shape[1], 1), (1, rows)):
        return None
    for w in weights:
        alike = w.dtype == first.dtype and w.shape[1] == first.shape[1] and w.stride() == strides
        if not alike or w.untyped_storage().data_ptr() != storage or w.data_ptr() != place:
            return None
        place += len(w) * strides[0] * w.itemsize
    return first.detach().as_strided((rows, first.shape[1]), strides)
