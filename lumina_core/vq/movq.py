"""MoVQGAN, the image tokenizer of Lumina-mGPT 2.0: f8, a raw 4-dim codebook, spatial norms in the decoder.

Paper: arXiv 2209.09002. Upstream file: `movqgan/models/vqgan.py` (class MOVQ) of Lumina-mGPT-2.0.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from .blocks import Codebook, Decoder, Encoder, ImageTokenizer, VQConfig, config_from_shapes

MARK = "decoder.norm_out.conv_y.weight"  # only MoVQ has spatial norms

__all__ = ["MARK", "MoVQ", "config_from_shapes", "matches"]


def matches(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether these tensors are a MoVQ."""
    return MARK in shapes and "quantize.embedding.weight" in shapes


class MoVQ(ImageTokenizer):
    """Picture (B, 3, H, W) in [-1, 1] <-> codes (B, H/8, W/8)."""

    def __init__(self, config: VQConfig, ops=nn):
        super().__init__(config)
        self.encoder = Encoder(config, ops)
        self.decoder = Decoder(config, ops, config.embed_dim)
        self.quantize = Codebook(config.n_embed, config.embed_dim, ops)
        self.quant_conv = ops.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = ops.Conv2d(config.embed_dim, config.z_channels, 1)

    def decode_vectors(self, zq: torch.Tensor) -> torch.Tensor:
        """Picture (B, 3, H, W), about [-1, 1], of code vectors (B, D, h, w)."""
        return self.decoder(self.post_quant_conv(zq), zq)

    @staticmethod
    def to_uint8(pixels: torch.Tensor) -> torch.Tensor:
        """(B, H, W, 3) bytes of a decoded picture: round half to even, then clamp (upstream `inference_solver.py`)."""
        return ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).movedim(1, -1)
