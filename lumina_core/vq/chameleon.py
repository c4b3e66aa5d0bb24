"""Chameleon's VQGAN, the image tokenizer of Lumina-mGPT 1.0: f16, a raw 256-dim codebook of 8,192, plain GroupNorm.

Paper: arXiv 2405.09818. Upstream file: `lumina_mgpt/model/chameleon_vae_ori/vqgan.py` (class VQModel) of Lumina-mGPT.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from . import movq
from .blocks import Codebook, Decoder, Encoder, ImageTokenizer, VQConfig, config_from_shapes

MARK = "decoder.up.0.block.0.norm1.weight"  # MoVQ has a spatial norm there, LlamaGen other names

__all__ = ["MARK", "ChameleonVQ", "config_from_shapes", "matches"]


def matches(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether these tensors are a Chameleon VQGAN."""
    return MARK in shapes and movq.MARK not in shapes and "quantize.embedding.weight" in shapes


class ChameleonVQ(ImageTokenizer):
    """Picture (B, 3, H, W) in [-1, 1] <-> codes (B, H/16, W/16)."""

    def __init__(self, config: VQConfig, ops=nn):
        super().__init__(config)
        self.encoder = Encoder(config, ops)
        self.decoder = Decoder(config, ops)
        self.quantize = Codebook(config.n_embed, config.embed_dim, ops)
        self.quant_conv = ops.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = ops.Conv2d(config.embed_dim, config.z_channels, 1)
