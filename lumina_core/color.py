"""Colour of one picture given to another: PURE's wavelet fix and its AdaIN variant. Float tensors (B, C, H, W) in 0..1.

Source: upstream `pure/utils/wavelet_color_fix.py`, after StableSR (arXiv 2305.07015).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .errors import InputError

LEVELS = 5


def blur(image: torch.Tensor, radius: int) -> torch.Tensor:
    """The 3x3 binomial blur with taps `radius` pixels apart; the border is repeated."""
    taps = torch.tensor([0.25, 0.5, 0.25], dtype=image.dtype, device=image.device)
    kernel = torch.outer(taps, taps).expand(image.shape[1], 1, 3, 3)
    padded = F.pad(image, (radius,) * 4, mode="replicate")
    return F.conv2d(padded, kernel, groups=image.shape[1], dilation=radius)


def low_band(image: torch.Tensor, levels: int = LEVELS) -> torch.Tensor:
    """What is left of a picture after `levels` blurs, level i with radius 2^i."""
    for level in range(levels):
        image = blur(image, 2**level)
    return image


def wavelet_fix(content: torch.Tensor, style: torch.Tensor, levels: int = LEVELS) -> torch.Tensor:
    """`content` with the low band of `style`; both (B, C, H, W). Not clamped.

    The high bands of all levels add up to the picture less its last low band, so they need not be kept.
    """
    _same_size(content, style)
    return content - low_band(content, levels) + low_band(style, levels)


def adain_fix(content: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """`content` with mean and deviation of each channel taken from `style`; both (B, C, H, W). Not clamped."""
    _same_size(content, style)

    def moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.mean((2, 3), keepdim=True), (x.var((2, 3), keepdim=True) + 1e-5).sqrt()

    (mean, deviation), (new_mean, new_deviation) = moments(content), moments(style)
    return (content - mean) / deviation * new_deviation + new_mean


def to_bytes(image: torch.Tensor) -> torch.Tensor:
    """(B, H, W, C) bytes: clamped to 0..1, scaled, truncated, as upstream saves a fixed picture."""
    return (image.clamp(0, 1) * 255).to(torch.uint8).movedim(1, -1)


def _same_size(content: torch.Tensor, style: torch.Tensor) -> None:
    if content.shape != style.shape:
        raise InputError(
            f"The colour fix needs two pictures of one size; they are {tuple(content.shape)} and {tuple(style.shape)}."
        )
