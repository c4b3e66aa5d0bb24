"""Products of int8 weights taken in whole numbers, so that a pass reads a byte a weight and expands none.

Inputs are written as whole numbers of 24 bits, each row in steps of its own, and these in three digits of 8 bits. The
products of digits and weights are exact, so a row's result does not depend on the rows beside it; what is lost is what
the input loses, half a step, 2^-24 of the row's largest number. Source: `torch._int_mm`, which oneDNN and cuBLAS do.
"""

from __future__ import annotations

from functools import cache

import torch

from .devices import has_onednn

DIGITS = 3
LARGEST = 127 * 65536  # below the largest that digits from -128 to 127 can write, so that rounding stays in
MIDDLE = 128 * (1 + 256 + 65536)
CHUNK = 256  # inputs at a time: results of digits take 12 bytes for every number
WORTH_IT = 1 << 20  # weights from which a CPU is faster so; it expands fewer in no time
LEAST, STEP = 32, 8  # rows of digits on a graphics card: cuBLAS wants more than 16, and sizes in steps of 8


def multiply(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x (n, columns) @ (weight * scale[:, None]).T, (n, rows) in x's type, of an int8 weight and scale (rows,)."""
    if len(x) > CHUNK:
        return torch.cat([multiply(part, weight, scale) for part in x.split(CHUNK)])
    step = torch.linalg.vector_norm(x, float("inf"), dim=-1, keepdim=True, dtype=torch.float32)
    step = step.div_(LARGEST).clamp_(min=torch.finfo(torch.float32).tiny)
    sums = torch._int_mm(digits(x, step), weight.t())[: DIGITS * len(x)].view(DIGITS, len(x), -1)
    return ((sums * _worth(x.device)).sum(0).mul_(step) * scale).to(x.dtype)


def digits(x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """The lowest digits of x (n, columns), then the middle and highest ones, int8 (3 * n or more, columns).

    x / step, `step` being (n, 1), is at most `LARGEST`. On a graphics card rows of zeros follow.
    """
    n, columns = x.shape
    rows = DIGITS * n
    more = 0 if x.device.type == "cpu" else max(LEAST, -(-rows // STEP) * STEP) - rows
    whole = (x / step).round_().to(torch.int32)
    # with the middle added, bytes are the digits plus 128; that is their highest bit turned round
    parts = whole.add_(MIDDLE).bitwise_xor_(MIDDLE).view(torch.int8).view(n, columns, 4)[..., :DIGITS]
    out = parts.new_zeros(rows + more, columns)
    out[:rows].view(DIGITS, n, columns).copy_(parts.movedim(-1, 0))
    return out


def fits(weight: torch.Tensor, device: torch.device | str) -> bool:
    """Whether inputs on a device should be multiplied so: the int8 weight is there, and such a product works there."""
    device = torch.empty(0, device=device).device  # with its number
    if weight.dtype != torch.int8 or weight.device != device or any(size % STEP for size in weight.shape):
        return False
    if device.type == "cpu":
        return weight.numel() >= WORTH_IT and _works(device)
    return device.type == "cuda" and _works(device)


@cache
def _worth(device: torch.device) -> torch.Tensor:
    """What each digit counts, (3, 1, 1)."""
    with torch.inference_mode(False):
        return torch.tensor([256.0**place for place in range(DIGITS)], device=device)[:, None, None]


@cache
def _works(device: torch.device) -> bool:
    """Whether large products come out right there: old processors add them up in 16 bits, old cards have none."""
    if device.type == "cpu" and not has_onednn():
        return False  # there it is a plain loop, slower than expanding the weights
    with torch.inference_mode(False):
        one = torch.full((LEAST, 256), 127, dtype=torch.int8, device=device)
        _worth(device)  # made now: it cannot be while a graph is recorded
        try:
            return bool((torch._int_mm(one, -one.t()) == -(127**2) * 256).all())
        except (RuntimeError, AttributeError):  # older versions have no such product, or none there
            return False
