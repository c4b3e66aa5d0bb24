"""Int8 layers and inputs that are hard on them, for tests on a CPU and on a GPU."""

from __future__ import annotations

import torch

from lumina_core import quant


def layer(rows: int = 64, columns: int = 96, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return quant.quantise(torch.randn(rows, columns, generator=rng), "int8")


def inputs(count: int, columns: int = 96) -> torch.Tensor:
    """Rows of very different lengths; in the first one number is 3,000 times as large as others, the last is empty."""
    x = torch.randn(count, columns, generator=torch.Generator().manual_seed(count))
    x *= torch.logspace(-4, 2, count)[:, None]
    x[0, 0] *= 3000
    x[-1] = 0
    return x
