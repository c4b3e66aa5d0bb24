"""Notices scores that are no numbers, as fp16 gives them where it overflows."""

from __future__ import annotations

import torch

from ..errors import PrecisionError

NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


class Finite:
    """A sum of all scores that stays on their device: inf and nan never leave it, and nobody waits for it meanwhile."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        """`dtype` is what the transformer computes in."""
        self.total, self.dtype = torch.zeros((), device=device), dtype

    def note(self, scores: torch.Tensor) -> None:
        """Takes float32 scores, before any of them is masked."""
        self.total += scores.sum()

    def flag(self) -> torch.Tensor:
        """1 while all were numbers, else 0: (1,) int64 on the device, to be read together with other numbers."""
        return self.total.isfinite().long()[None]

    def checked(self, tokens: torch.Tensor) -> list[int]:
        """Tokens (N,) read from the device together with the flag, which is checked."""
        *values, fine = torch.cat([tokens, self.flag()]).tolist()
        self.check(fine)
        return values

    def check(self, flag: int | None = None) -> None:
        """Raises `PrecisionError` where some were none; without a `flag` that was read the device is waited for."""
        if int(self.flag()) if flag is None else flag:
            return
        name = NAMES.get(self.dtype, str(self.dtype))
        if self.dtype == torch.float16:
            raise PrecisionError(
                "The transformer overflowed in fp16: its scores are inf or nan, and what would be drawn from them is "
                "noise. Load the checkpoint with precision bf16, or fp32 where the device has no bf16; if a LoRA is "
                "applied, a lower strength may do."
            )
        raise PrecisionError(
            f"The transformer's scores are inf or nan in {name}: the weights are damaged, or a LoRA is too strong. "
            f"Download the checkpoint again, or lower the LoRA's strength{'' if name == 'fp32' else ', or try fp32'}."
        )
