"""The norms of the decoder: root-mean-square norm of states, LayerNorm of each head's queries and keys."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

HEAD_NORM_EPS = 1e-5  # fixed upstream, whatever the config says
_rms_norm = getattr(F, "rms_norm", None)  # of torch 2.4 and later


class RMSNorm(nn.Module):
    """The weight of a root-mean-square norm."""

    def __init__(self, size: int, eps: float, dtype=None, device=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size, dtype=dtype, device=device))
        self.eps = eps

    def ready(self, device, dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
        """What computes the norm, its weight looked up once."""
        weight = self.weight.to(device, dtype)  # a partial load may leave it elsewhere
        if weight.device.type == "cpu" and dtype == torch.float32 and not torch.is_grad_enabled():
            size = weight.shape[-1]
            least = torch.tensor((size * self.eps) ** 0.5, device=weight.device)
            return partial(short_rms_norm, scaled=weight * size**0.5, least=least)
        return partial(rms_norm, weight=weight, eps=self.eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ready(x.device, x.dtype)(x)


def short_rms_norm(x: torch.Tensor, scaled: torch.Tensor, least: torch.Tensor) -> torch.Tensor:
    """`rms_norm` in four operations where torch makes nine of it; it has no gradient.

    `scaled` is the weight times the root of the size n, `least` the root of n * eps.
    """
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(least)
    return (x / length).mul_(scaled)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root-mean-square norm: statistics in float32, cast back, then the weight."""
    if _rms_norm is not None and (x.device.type != "cpu" or x.dtype == torch.float32):
        return _rms_norm(x, x.shape[-1:], weight, eps)  # in 16 bit on a CPU it is slower
    f = x.float()
    scale = torch.linalg.vecdot(f, f).unsqueeze(-1).mul_(1 / x.shape[-1]).add_(eps).rsqrt_()
    return (f * scale).to(x.dtype) * weight


class HeadNorm(nn.Module):
    """The affine of a LayerNorm of each head; row s of (shards, head_dim) serves that shard's consecutive heads."""

    def __init__(self, shards: int, heads: int, head_dim: int, dtype=None, device=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shards, head_dim, dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.zeros(shards, head_dim, dtype=dtype, device=device))
        self.repeat = heads // shards


def head_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """LayerNorm of x (..., heads, head_dim), affine (heads, head_dim) in float32."""
    f = F.layer_norm(x.float(), x.shape[-1:], eps=HEAD_NORM_EPS)
    return torch.addcmul(bias, f, weight).to(x.dtype)
