"""Products of small float32 weights on a CPU, from a copy that oneDNN has laid out for itself.

A library that gets a weight as files have it lays it out anew for every product, which for a few inputs takes about as
long as the product. The copy is kept while the layer lives, for weights so small that its memory does not matter.
"""

from __future__ import annotations

from functools import cache
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .devices import has_onednn

LARGEST = 1 << 19  # numbers of a weight, 2 MB
FEW = 4  # inputs up to which the weight as it lies is multiplied faster
USUAL = 24  # inputs that the copy is laid out for; with others it is as good
_kept: WeakKeyDictionary[nn.Module, tuple[tuple[int, int], torch.Tensor]] = WeakKeyDictionary()


def fits(weight: torch.Tensor) -> bool:
    """Whether a weight (rows, columns) may be kept twice, and oneDNN lays weights out here."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.numel() <= LARGEST
        and weight.is_contiguous()
        and weight.shape[1] % 2 == weight.storage_offset() % 2 == 0  # its bits are read 64 at a time
        and _works()
    )


@cache
def _works() -> bool:
    """Whether oneDNN is here, with the products that torch's own compiler takes from it."""
    ops = torch.ops.mkldnn
    return has_onednn() and hasattr(ops, "_linear_pointwise") and hasattr(ops, "_reorder_linear_weight")


def copy_of(weight: torch.Tensor, owner: nn.Module) -> torch.Tensor:
    """The copy of a weight that is kept for a layer: of its own, of a part of it, or of one that it begins.

    It is made anew when the sum of the weight's bits is another: hosts patch weights in place, past the count that
    torch keeps of that.
    """
    numbers = (len(weight), int(weight.view(torch.int64).sum()))
    kept = _kept.get(owner)
    if kept is None or kept[0] != numbers:
        kept = _kept[owner] = (numbers, torch.ops.mkldnn._reorder_linear_weight(weight, USUAL))
    return kept[1]


def multiply(x: torch.Tensor, copy: torch.Tensor) -> torch.Tensor:
    """x (n, columns) @ weight.T, (n, rows), of the copy of a weight (rows, columns)."""
    return torch.ops.mkldnn._linear_pointwise(x, copy, None, "none", [], "")
