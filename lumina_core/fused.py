"""Products of layers at the least cost: Linears that read the same input as one, few inputs the other way round.

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

from . import int8, packed

FEW = 64  # inputs up to which a product on a CPU is taken the other way round
SORTED = 12  # and up to which it is much faster where each of them lies in one piece


@torch.no_grad()
def lay_together(linears: Sequence[nn.Linear]) -> None:
    """Moves the weights of plain or int8 Linears into one piece of memory; other layers stay as they are."""
    if not of_a_kind(linears):
        return
    weights = [linear.weight for linear in linears]
    if len({(w.device, w.dtype) for w in weights}) > 1 or weights[0].is_meta:
        return
    whole = torch.cat([w.detach() for w in weights])
    for weight, part in zip(weights, whole.split([len(w) for w in weights]), strict=True):
        weight.data = part


def is_plain(linear: nn.Module) -> bool:
    """Whether a layer's output is x @ weight.T and nothing else: no bias, hooks or quantised layer.

    A host's own layer is asked: its attribute `is_plain` says whether it does no more at the moment.
    """
    return (
        getattr(linear, "is_plain", type(linear).forward is nn.Linear.forward)
        and linear._parameters.get("weight") is not None
        and linear.bias is None
        and not is_hooked(linear)
    )


def is_int8(linear: nn.Module) -> bool:
    """Whether a layer multiplies by int8 numbers and a scale for each, and does nothing else."""
    return getattr(linear, "is_int8", False) and not is_hooked(linear)


def is_hooked(linear: nn.Module) -> bool:
    return bool(linear._forward_hooks or linear._forward_pre_hooks)


def of_a_kind(linears: Sequence[nn.Module]) -> bool:
    """Whether all are plain, or all are int8."""
    return all(map(is_plain, linears)) or all(map(is_int8, linears))


def product(linear: nn.Module, device) -> Callable[[torch.Tensor], torch.Tensor]:
    """What computes a layer of inputs (n, columns) on a device at the least cost."""
    return joined([linear], device) or linear


def products(linears: Sequence[nn.Module], device) -> Callable[[torch.Tensor], Sequence[torch.Tensor]]:
    """What computes the outputs (n, rows) of layers on the same input (n, columns), as one product where it can."""
    whole, rows = joined(linears, device), [linear.out_features for linear in linears]
    if whole is not None:
        return lambda x: whole(x).split_with_sizes(rows, -1)
    each = [product(linear, device) for linear in linears]
    return lambda x: [linear(x) for linear in each]


def side_by_side(linears: Sequence[nn.Module], device) -> Callable[[torch.Tensor], torch.Tensor]:
    """As `products`, the outputs as one tensor (n, rows of all)."""
    if (whole := joined(linears, device)) is not None:
        return whole
    each = products(linears, device)
    return lambda x: torch.cat(each(x), -1)


def joined(linears: Sequence[nn.Module], device) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What computes the outputs (n, rows of all) of layers as one product; None where their weights are none."""
    weight = one_weight(linears)
    if weight is None:
        return None
    if is_plain(linears[0]):
        return multiply(weight, linears[0])
    if not int8.fits(weight, device):
        return None
    scale = torch.cat([linear.weight_scale for linear in linears]).to(device)
    return partial(int8.multiply, weight=weight, scale=scale)


def one_weight(linears: Sequence[nn.Module]) -> torch.Tensor | None:
    """One weight (rows of all, columns) of like layers: a copy where gradients are wanted, else a view or None.

    That of one layer is its own.
    """
    if not of_a_kind(linears):
        return None
    weights = [linear.weight for linear in linears]
    if len(weights) == 1:
        return weights[0]
    if torch.is_grad_enabled() and any(w.requires_grad for w in weights):
        return torch.cat(weights)
    first = weights[0]
    storage, place = first.untyped_storage().data_ptr(), first.data_ptr()
    for w in weights:
        alike = w.dtype == first.dtype and w.shape[1] == first.shape[1] and w.is_contiguous()
        if not alike or w.untyped_storage().data_ptr() != storage or w.data_ptr() != place:
            return None
        place += w.nbytes
    return first.detach().as_strided((sum(map(len, weights)), first.shape[1]), first.stride())


def multiply(weight: torch.Tensor, owner: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """What computes x (n, columns) @ weight.T, (n, rows); `owner` is the layer that `packed` keeps a copy for."""
    if weight.device.type == "cpu" and weight.dtype == torch.float32 and not torch.is_grad_enabled():
        if packed.fits(weight):
            return partial(multiply_packed, weight=weight, copy=packed.copy_of(weight, owner))
        return partial(multiply_few, weight=weight)
    return partial(F.linear, weight=weight)


def multiply_packed(x: torch.Tensor, weight: torch.Tensor, copy: torch.Tensor) -> torch.Tensor:
    """x (n, columns) @ weight.T, (n, rows), from the weight or its copy."""
    return multiply_few(x, weight) if len(x) <= packed.FEW else packed.multiply(x, copy)


def multiply_few(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x (n, columns) @ weight.T, (n, rows), which a few inputs get column by column in memory.

    As the product of the weight with a few columns, a CPU reads it once, in the order in which it lies; with inputs as
    rows it takes up to three times as long. One column more costs less than the other way that libraries go for one.
    """
    if len(x) > FEW:
        return F.linear(x, weight)
    if len(x) == 1:
        return torch.mm(weight, F.pad(x, (0, 0, 0, 1)).t()).t()[:1]
    if len(x) < SORTED:
        x = x.contiguous()
    return torch.mm(weight, x.t()).t()
