"""4-bit Linears (NF4) by the package bitsandbytes, which is asked for when they are, not before.

Every 64 numbers, row by row, share one float32 scale; each is the nearest of 16 values that suit normally distributed
weights, two a byte: 4.5 bits a weight, scales included. Source: QLoRA, arXiv 2305.14314.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from types import ModuleType

import torch
from torch import nn

from .errors import InputError

BLOCK = 64  # numbers that share a scale
AT_ONCE = 1 << 22  # numbers quantised at a time: each takes some hundred bytes meanwhile


def bitsandbytes() -> ModuleType:
    """The package; an `InputError` says how to get it."""
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError as e:
        raise InputError(
            f"Precision nf4 needs the package bitsandbytes ({e}). Install it with 'pip install bitsandbytes' in the "
            "Python that runs this, or choose int8, which needs nothing."
        ) from None


def sizes(rows: int, columns: int) -> tuple[tuple[int, int], tuple[int]]:
    """Shapes of the packed weight and of its scales."""
    count = rows * columns
    return (-(-count // 2), 1), (-(-count // BLOCK),)


def quantise(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed weight (bytes, 1), uint8, and scales (blocks,), float32, of a float weight, made on its device."""
    kind = {"blocksize": BLOCK, "quant_type": "nf4", "compress_statistics": False}
    quantize_4bit = bitsandbytes().functional.quantize_4bit
    made = [quantize_4bit(part, **kind) for part in weight.detach().float().reshape(-1).split(AT_ONCE)]
    return torch.cat([packed for packed, _ in made]), torch.cat([state.absmax for _, state in made])


class NF4Linear(nn.Linear):
    """A Linear without bias of a packed `weight` and its `weight_scale`.

    A host sees a layer whose weight it can move, but not cast, patch or load in part.
    """

    def __init__(self, rows: int, columns: int):
        super().__init__(columns, rows, bias=False, device="meta")
        packed, scales = sizes(rows, columns)
        for leaf, shape, dtype in (
            ("weight", packed, torch.uint8),
            ("weight_scale", scales, torch.float32),
        ):
            empty = torch.empty(shape, device="meta", dtype=dtype)
            setattr(self, leaf, nn.Parameter(empty, requires_grad=False))

    def reset_parameters(self) -> None:
        pass

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        packed = self.weight.to(x.device)
        return bitsandbytes().matmul_4bit(x, packed.t(), quant_state=self._state(x.device, x.dtype))

    def restored(self) -> torch.Tensor:
        """The float32 weight (rows, columns) that is stood for."""
        state = self._state(self.weight.device, torch.float32)
        return bitsandbytes().functional.dequantize_4bit(self.weight, state)

    def set_restored(self, weight: torch.Tensor) -> None:
        """Takes a float weight (rows, columns) in place of its own."""
        for mine, made in zip((self.weight, self.weight_scale), quantise(weight), strict=True):
            mine.data.copy_(made)

    def _state(self, device: torch.device, dtype: torch.dtype):
        return bitsandbytes().functional.QuantState(
            self.weight_scale.to(device),
            shape=torch.Size((self.out_features, self.in_features)),
            code=_values(device),
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=dtype,
        )


@lru_cache
def _values(device: torch.device) -> torch.Tensor:
    """The 16 values on a device, looked up by older versions of the package."""
    with torch.inference_mode(False):
        return bitsandbytes().functional.get_4bit_type("nf4", device=device)
