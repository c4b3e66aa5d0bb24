"""LlamaGen's VQ-8, the image tokenizer of PURE: f8, an l2-normalised 8-dim codebook of 16,384.

Paper: arXiv 2406.06525. Upstream file: `pure/tokenizer/tokenizer_image/vq_model.py` (class VQModel) of PURE.
The layers are those of the VQGAN line under other names; decoder levels are counted from the coarsest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from .blocks import (
    GROUPS,
    GROUPS_MARK,
    AttnBlock,
    Codebook,
    Downsample,
    ImageTokenizer,
    NormFactory,
    ResBlock,
    Upsample,
    VQConfig,
    count_blocks,
    mark_groups,
)

MARK = "decoder.conv_blocks.0.res.0.conv1.weight"  # only LlamaGen names its levels so
IGNORED = frozenset({"quantize.codebook_used"})  # a training statistic that is saved with the weights


def matches(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether these tensors are a LlamaGen VQ."""
    return MARK in shapes and "quantize.embedding.weight" in shapes


def config_from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> VQConfig:
    """The sizes of a LlamaGen checkpoint, read from the shapes of its tensors."""
    ch = shapes["encoder.conv_in.weight"][0]
    levels = count_blocks(shapes, "encoder.conv_blocks.{}.res.0.conv1.weight")
    widths = [shapes[f"encoder.conv_blocks.{i}.res.0.conv1.weight"][0] for i in range(levels)]
    rising = [shapes[f"decoder.conv_blocks.{i}.res.0.conv1.weight"][0] for i in range(levels)]
    deep = (i for i in range(levels) if f"encoder.conv_blocks.{i}.attn.0.q.weight" in shapes)
    return VQConfig(
        ch=ch,
        ch_mult=tuple(w // ch for w in widths),
        num_res_blocks=count_blocks(shapes, "encoder.conv_blocks.0.res.{}.conv1.weight"),
        attn_levels=frozenset(deep),
        z_channels=shapes["encoder.conv_out.weight"][0],
        embed_dim=shapes["quantize.embedding.weight"][1],
        n_embed=shapes["quantize.embedding.weight"][0],
        decoder_ch_mult=tuple(w // ch for w in reversed(rising)),
        decoder_groups=shapes.get(GROUPS_MARK, (GROUPS,))[0],
    )


def config_from_json(config: Mapping) -> VQConfig:
    """The sizes that LlamaGen's own model arguments name; attention stands at the coarsest level."""
    mult = tuple(config["encoder_ch_mult"])
    return VQConfig(
        ch=config["ch"],
        ch_mult=mult,
        num_res_blocks=config["num_res_blocks"],
        attn_levels=frozenset({len(mult) - 1}),
        z_channels=config["z_channels"],
        embed_dim=config["codebook_embed_dim"],
        n_embed=config["codebook_size"],
        decoder_ch_mult=tuple(config.get("decoder_ch_mult", mult)),
    )


class Stage(nn.Module):
    """One resolution: residual blocks, each followed by attention where the level has it, and maybe a resampling."""

    def __init__(
        self, cin: int, cout: int, blocks: int, attn: bool, ops, norm: NormFactory, resample: str | None
    ):
        super().__init__()
        self.res = nn.ModuleList(ResBlock(cin if i == 0 else cout, cout, ops, norm) for i in range(blocks))
        self.attn = nn.ModuleList(AttnBlock(cout, ops, norm) for _ in range(blocks if attn else 0))
        if resample == "down":
            self.downsample = Downsample(cout, ops)
        elif resample == "up":
            self.upsample = Upsample(cout, ops)
        self.resample = resample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, block in enumerate(self.res):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        if self.resample is None:
            return x
        return self.downsample(x) if self.resample == "down" else self.upsample(x)


def middle(channels: int, ops, norm: NormFactory) -> nn.ModuleList:
    """block, attention, block at the coarsest resolution."""
    return nn.ModuleList(
        (
            ResBlock(channels, channels, ops, norm),
            AttnBlock(channels, ops, norm),
            ResBlock(channels, channels, ops, norm),
        )
    )


class StageEncoder(nn.Module):
    """Picture (B, 3, H, W) in [-1, 1] to features (B, z_channels, H/f, W/f)."""

    def __init__(self, cfg: VQConfig, ops):
        super().__init__()
        norm = NormFactory(ops)
        widths = [cfg.ch * m for m in cfg.ch_mult]
        last = len(widths) - 1
        self.conv_in = ops.Conv2d(3, cfg.ch, 3, padding=1)
        self.conv_blocks = nn.ModuleList(
            Stage(
                widths[i - 1] if i else cfg.ch,
                width,
                cfg.num_res_blocks,
                i in cfg.attn_levels,
                ops,
                norm,
                "down" if i < last else None,
            )
            for i, width in enumerate(widths)
        )
        self.mid = middle(widths[-1], ops, norm)
        self.norm_out = norm(widths[-1])
        self.conv_out = ops.Conv2d(widths[-1], cfg.z_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for layer in (*self.conv_blocks, *self.mid):
            x = layer(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class StageDecoder(nn.Module):
    """Features (B, z_channels, h, w) to a picture (B, 3, h*f, w*f)."""

    def __init__(self, cfg: VQConfig, ops):
        super().__init__()
        norm = NormFactory(ops, groups=cfg.decoder_groups)
        mark_groups(self, cfg.decoder_groups)
        widths = [cfg.ch * m for m in reversed(cfg.decoder_ch_mult or cfg.ch_mult)]
        last = len(widths) - 1
        self.conv_in = ops.Conv2d(cfg.z_channels, widths[0], 3, padding=1)
        self.mid = middle(widths[0], ops, norm)
        self.conv_blocks = nn.ModuleList(
            Stage(
                widths[max(i - 1, 0)],
                width,
                cfg.num_res_blocks + 1,
                last - i in cfg.attn_levels,
                ops,
                norm,
                "up" if i < last else None,
            )
            for i, width in enumerate(widths)
        )
        self.norm_out = norm(widths[-1])
        self.conv_out = ops.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(z)
        for layer in (*self.mid, *self.conv_blocks):
            x = layer(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class UnitCodebook(Codebook):
    """A codebook whose vectors, and what is matched to them, lie on the unit sphere."""

    def nearest(self, z: torch.Tensor) -> torch.Tensor:
        """Index of the nearest code by direction: (B, D, h, w) to (B, h, w)."""
        return super().nearest(self.matched(z.float()))

    def matched(self, z: torch.Tensor) -> torch.Tensor:
        return F.normalize(z, dim=1)

    def vectors(self, device: torch.device) -> torch.Tensor:
        return F.normalize(super().vectors(device), dim=-1)


class LlamaGenVQ(ImageTokenizer):
    """Picture (B, 3, H, W) in [-1, 1] <-> codes (B, H/8, W/8)."""

    def __init__(self, config: VQConfig, ops=nn):
        super().__init__(
            dataclasses.replace(config, decoder_ch_mult=config.decoder_ch_mult or config.ch_mult)
        )
        self.encoder = StageEncoder(config, ops)
        self.decoder = StageDecoder(config, ops)
        self.quantize = UnitCodebook(config.n_embed, config.embed_dim, ops)
        self.quant_conv = ops.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = ops.Conv2d(config.embed_dim, config.z_channels, 1)
