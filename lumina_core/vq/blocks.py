"""Layers that the three image tokenizers share: residual block, attention, resampling, the usual encoder and decoder.

Key names and arithmetic follow the VQGAN line (taming-transformers `diffusionmodules/model.py`), which Chameleon and
MoVQGAN keep. Every layer is built from the injected `ops` (default `torch.nn`), so a host may supply its own classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

GROUPS = 32  # every GroupNorm of the published tokenizers has 32 groups
GROUPS_MARK = "decoder.norm_groups"  # a tensor as long as the decoder has groups, where they are not 32


@dataclass(frozen=True)
class VQConfig:
    """Sizes of one image tokenizer; each tokenizer reads them from the shapes of its tensors."""

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_levels: frozenset[int]  # levels counted from the finest
    z_channels: int
    embed_dim: int
    n_embed: int
    decoder_ch_mult: tuple[int, ...] | None = None  # LlamaGen names it apart; None: as ch_mult
    # A group of one channel loses what a picture is like all over, which a narrow decoder has no other way to say.
    decoder_groups: int = GROUPS

    @property
    def factor(self) -> int:
        """Pixels a side of one code."""
        return 2 ** (len(self.ch_mult) - 1)


MOST_BLOCKS = 8  # levels, and residual blocks of one; published tokenizers have 5 and 2 at most


def count_blocks(shapes: Mapping[str, tuple[int, ...]], name: str) -> int:
    """How many consecutive numbers, from 0, fit into `name` so that the tensor exists."""
    n = 0
    while name.format(n) in shapes:
        n += 1
        if n > MOST_BLOCKS:
            raise ValueError(f"more than {MOST_BLOCKS} of {name}")
    return n


def config_from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> VQConfig:
    """The sizes of a checkpoint under the VQGAN names (Chameleon, MoVQ), read from the shapes of its tensors."""
    ch = shapes["encoder.conv_in.weight"][0]
    levels = count_blocks(shapes, "encoder.down.{}.block.0.conv1.weight")
    return VQConfig(
        ch=ch,
        ch_mult=tuple(shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] // ch for i in range(levels)),
        num_res_blocks=count_blocks(shapes, "encoder.down.0.block.{}.conv1.weight"),
        attn_levels=frozenset(i for i in range(levels) if f"encoder.down.{i}.attn.0.q.weight" in shapes),
        z_channels=shapes["encoder.conv_out.weight"][0],
        embed_dim=shapes["quantize.embedding.weight"][1],
        n_embed=shapes["quantize.embedding.weight"][0],
        decoder_groups=shapes.get(GROUPS_MARK, (GROUPS,))[0],
    )


def config_from_json(config: Mapping) -> VQConfig:
    """The sizes in the `ddconfig`, `n_embed` and `embed_dim` of a VQGAN's own configuration."""
    dd = config["ddconfig"]
    mult = tuple(dd["ch_mult"])
    marked = set(dd["attn_resolutions"])
    return VQConfig(
        ch=dd["ch"],
        ch_mult=mult,
        num_res_blocks=dd["num_res_blocks"],
        attn_levels=frozenset(i for i in range(len(mult)) if dd["resolution"] // 2**i in marked),
        z_channels=dd["z_channels"],
        embed_dim=config["embed_dim"],
        n_embed=config["n_embed"],
    )


class SpatialNorm(nn.Module):
    """GroupNorm(f) * conv_y(zq) + conv_b(zq), with zq resized (nearest) to f. MoVQ, arXiv 2209.09002."""

    def __init__(self, channels: int, zq_channels: int, ops, groups: int = GROUPS):
        super().__init__()
        self.norm_layer = ops.GroupNorm(groups, channels, eps=1e-6)
        self.conv_y = ops.Conv2d(zq_channels, channels, 1)
        self.conv_b = ops.Conv2d(zq_channels, channels, 1)

    def forward(self, f: torch.Tensor, zq: torch.Tensor) -> torch.Tensor:
        # The 1x1 convolutions commute with nearest resizing; doing them first costs 4^level times less.
        size = f.shape[-2:]
        scale, shift = (
            F.interpolate(conv(zq), size=size, mode="nearest") for conv in (self.conv_y, self.conv_b)
        )
        return torch.addcmul(shift, self.norm_layer(f), scale)


class NormFactory:
    """Makes the norm a network uses: plain GroupNorm, or SpatialNorm when `zq_channels` is given."""

    def __init__(self, ops, zq_channels: int | None = None, groups: int = GROUPS):
        self.ops, self.zq_channels, self.groups = ops, zq_channels, groups

    def __call__(self, channels: int) -> nn.Module:
        if self.zq_channels is None:
            return self.ops.GroupNorm(self.groups, channels, eps=1e-6)
        return SpatialNorm(channels, self.zq_channels, self.ops, self.groups)


def mark_groups(decoder: nn.Module, groups: int) -> None:
    """Lets the decoder's tensors tell a number of groups that is not the usual one."""
    if groups != GROUPS:
        decoder.register_buffer("norm_groups", torch.zeros(groups))


def normed(norm: nn.Module, x: torch.Tensor, zq: torch.Tensor | None) -> torch.Tensor:
    return norm(x, zq) if isinstance(norm, SpatialNorm) else norm(x)


class ResBlock(nn.Module):
    """norm, swish, conv, norm, swish, conv, plus the (1x1-projected) input."""

    def __init__(self, cin: int, cout: int, ops, norm: NormFactory):
        super().__init__()
        self.norm1 = norm(cin)
        self.conv1 = ops.Conv2d(cin, cout, 3, padding=1)
        self.norm2 = norm(cout)
        self.conv2 = ops.Conv2d(cout, cout, 3, padding=1)
        if cin != cout:
            self.nin_shortcut = ops.Conv2d(cin, cout, 1)
        self.same = cin == cout

    def forward(self, x: torch.Tensor, zq: torch.Tensor | None = None) -> torch.Tensor:
        h = self.conv1(F.silu(normed(self.norm1, x, zq)))
        h = self.conv2(F.silu(normed(self.norm2, h, zq)))
        return (x if self.same else self.nin_shortcut(x)) + h


class AttnBlock(nn.Module):
    """Single-head self-attention over all places of the map, with a residual."""

    def __init__(self, channels: int, ops, norm: NormFactory):
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (ops.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: torch.Tensor, zq: torch.Tensor | None = None) -> torch.Tensor:
        b, c, h, w = x.shape
        f = normed(self.norm, x, zq)
        # contiguous: fused kernels take nothing else, and without them a table of (h*w, h*w) is built
        q, k, v = (
            conv(f).reshape(b, 1, c, h * w).transpose(2, 3).contiguous() for conv in (self.q, self.k, self.v)
        )
        out = F.scaled_dot_product_attention(q, k, v)  # (b, 1, h*w, c), scaled by c^-1/2
        return x + self.proj_out(out.transpose(2, 3).reshape(b, c, h, w))


class Downsample(nn.Module):
    """Zero-pad right and bottom by one, then a 3x3 convolution of stride 2."""

    def __init__(self, channels: int, ops):
        super().__init__()
        self.conv = ops.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest doubling, then a 3x3 convolution."""

    def __init__(self, channels: int, ops):
        super().__init__()
        self.conv = ops.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Middle(nn.Module):
    """block, attention, block at the coarsest resolution."""

    def __init__(self, channels: int, ops, norm: NormFactory):
        super().__init__()
        self.block_1 = ResBlock(channels, channels, ops, norm)
        self.attn_1 = AttnBlock(channels, ops, norm)
        self.block_2 = ResBlock(channels, channels, ops, norm)

    def forward(self, x: torch.Tensor, zq: torch.Tensor | None = None) -> torch.Tensor:
        return self.block_2(self.attn_1(self.block_1(x, zq), zq), zq)


class Level(nn.Module):
    """One resolution: residual blocks, each followed by attention where the level has it, and maybe a resampling."""

    def __init__(
        self, cin: int, cout: int, blocks: int, attn: bool, ops, norm: NormFactory, resample: str | None
    ):
        super().__init__()
        self.block = nn.ModuleList(ResBlock(cin if i == 0 else cout, cout, ops, norm) for i in range(blocks))
        self.attn = nn.ModuleList(AttnBlock(cout, ops, norm) for _ in range(blocks if attn else 0))
        if resample == "down":
            self.downsample = Downsample(cout, ops)
        elif resample == "up":
            self.upsample = Upsample(cout, ops)
        self.resample = resample

    def forward(self, x: torch.Tensor, zq: torch.Tensor | None = None) -> torch.Tensor:
        for i, block in enumerate(self.block):
            x = block(x, zq)
            if self.attn:
                x = self.attn[i](x, zq)
        if self.resample is None:
            return x
        return self.downsample(x) if self.resample == "down" else self.upsample(x)


class Encoder(nn.Module):
    """Picture (B, 3, H, W) in [-1, 1] to features (B, z_channels, H/f, W/f)."""

    def __init__(self, cfg: VQConfig, ops):
        super().__init__()
        norm = NormFactory(ops)
        widths = [cfg.ch * m for m in cfg.ch_mult]
        last = len(widths) - 1
        self.conv_in = ops.Conv2d(3, cfg.ch, 3, padding=1)
        self.down = nn.ModuleList(
            Level(
                widths[max(i - 1, 0)] if i else cfg.ch,
                width,
                cfg.num_res_blocks,
                i in cfg.attn_levels,
                ops,
                norm,
                "down" if i < last else None,
            )
            for i, width in enumerate(widths)
        )
        self.mid = Middle(widths[-1], ops, norm)
        self.norm_out = norm(widths[-1])
        self.conv_out = ops.Conv2d(widths[-1], cfg.z_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        x = self.mid(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """Features (B, z_channels, h, w), and zq where the norms are spatial, to a picture (B, 3, h*f, w*f)."""

    def __init__(self, cfg: VQConfig, ops, zq_channels: int | None = None):
        super().__init__()
        norm = NormFactory(ops, zq_channels, cfg.decoder_groups)
        mark_groups(self, cfg.decoder_groups)
        widths = [cfg.ch * m for m in cfg.ch_mult]
        last = len(widths) - 1
        self.conv_in = ops.Conv2d(cfg.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], ops, norm)
        self.up = nn.ModuleList(
            Level(
                widths[min(i + 1, last)],
                width,
                cfg.num_res_blocks + 1,
                i in cfg.attn_levels,
                ops,
                norm,
                "up" if i else None,
            )
            for i, width in enumerate(widths)
        )
        self.norm_out = norm(widths[0])
        self.conv_out = ops.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: torch.Tensor, zq: torch.Tensor | None = None) -> torch.Tensor:
        x = self.mid(self.conv_in(z), zq)
        for level in reversed(self.up):
            x = level(x, zq)
        return self.conv_out(F.silu(normed(self.norm_out, x, zq)))


class Codebook(nn.Module):
    """The table of code vectors, `embedding.weight` (codes, dim)."""

    def __init__(self, codes: int, dim: int, ops):
        super().__init__()
        self.embedding = ops.Embedding(codes, dim)

    def nearest(self, z: torch.Tensor) -> torch.Tensor:
        """Index of the nearest code for each vector: (B, D, h, w) to (B, h, w). Distances in float32."""
        flat = z.movedim(1, -1).reshape(-1, z.shape[1]).float()
        table = self.vectors(z.device).float()
        codes = []
        for part in flat.split(4096):  # a full distance table of a large picture would need gigabytes
            distance = part.square().sum(1, keepdim=True) + table.square().sum(1) - 2 * part @ table.t()
            codes.append(distance.argmin(1))
        return torch.cat(codes).view(z.shape[0], *z.shape[-2:])

    def matched(self, z: torch.Tensor) -> torch.Tensor:
        """Encoder outputs (B, D, h, w) as they are held against the table."""
        return z

    def vectors(self, device: torch.device) -> torch.Tensor:
        # A partial load may leave this table on another device.
        return self.embedding.weight.to(device)

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """Code vectors of a grid: (B, h, w) to (B, D, h, w)."""
        return F.embedding(codes, self.vectors(codes.device)).movedim(-1, 1)


class ImageTokenizer(nn.Module):
    """Picture (B, 3, H, W) in [-1, 1] <-> codes (B, H/f, W/f); what the three tokenizers have in common.

    A subclass builds `encoder`, `decoder`, `quantize`, `quant_conv` and `post_quant_conv` under the released names.
    """

    def __init__(self, config: VQConfig):
        super().__init__()
        self.config = config

    def prequant(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encoder output before matching, (B, D, h, w)."""
        return self.quant_conv(self.encoder(pixels))

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Codes (B, h, w) of a picture (B, 3, H, W) in [-1, 1]; H and W divisible by the tokenizer's factor."""
        return self.quantize.nearest(self.prequant(pixels))

    def decode_vectors(self, zq: torch.Tensor) -> torch.Tensor:
        """Picture (B, 3, H, W), about [-1, 1], of code vectors (B, D, h, w)."""
        return self.decoder(self.post_quant_conv(zq))

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Picture (B, 3, H, W), about [-1, 1], of codes (B, h, w)."""
        return self.decode_vectors(self.quantize.lookup(codes).to(self.post_quant_conv.weight.dtype))

    @staticmethod
    def to_uint8(pixels: torch.Tensor) -> torch.Tensor:
        """(B, H, W, 3) bytes of a decoded picture: clamp, scale, truncate, as upstream 1.0 and PURE do."""
        return ((pixels.float().clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8).movedim(1, -1)
