"""Trains an image tokenizer on the world of shapes: reconstruction, codebook and commitment loss, live codebook.

VQ-VAE (arXiv 1711.00937); now and then codes are moved to where the encoder's outputs lie, which keeps all in use.
With frozen codes only the decoder learns: a transformer trained on the codes stays valid.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from . import degrade, maps, world
from .dataset import to_network
from .runner import Stage


@dataclass(frozen=True)
class VQRecipe:
    """Training settings; `sizes` are the picture sizes (width, height) drawn in turn, one size a batch."""

    steps: int
    batch: int = 24
    lr: float = 2e-3
    warmup: int = 50
    commitment: float = 0.25
    refit_every: int = 50  # steps after which codes are moved to where the encoder's outputs lie
    sizes: tuple[tuple[int, int], ...] = ((64, 64),)
    maps: tuple[str, ...] = ("depth", "segmentation", "normals", "hed")
    map_share: float = 0.25  # part of a batch that shows maps instead of pictures
    spoiled_share: float = 0.0  # part of a batch that shows degraded pictures
    # Pixels a side of squares cut from pictures until step `crop_until`: cheaper than whole ones, and what tiles show.
    crop: int = 0
    crop_until: int = 0
    unquantized: int = 0  # first steps in which the decoder is shown the encoder's outputs, not codes
    frozen_codes: bool = False  # only what stands behind the codes is trained
    seed: int = 0


def batch_of(recipe: VQRecipe, step: int) -> torch.Tensor:
    """Training pictures (B, 3, H, W) of one step; a function of the step alone."""
    width, height = recipe.sizes[step % len(recipe.sizes)]
    shown = int(recipe.batch * recipe.map_share)
    spoiled = shown + int(recipe.batch * recipe.spoiled_share)
    rng = np.random.default_rng([recipe.seed, 11, step])
    cut = recipe.crop if step < recipe.crop_until else 0
    out = []
    for i in range(recipe.batch):
        s = world.scene("train", step * recipe.batch + i, width, height)
        if i < shown:
            picture = picture_of_kind(s, recipe.maps[(step + i) % len(recipe.maps)], rng)
        else:
            picture = world.picture(s)
            if i < spoiled:
                picture = degrade.spoil(picture, degrade.draw(rng), rng)
        if cut:
            top, left = rng.integers(height - cut + 1), rng.integers(width - cut + 1)
            picture = picture[top : top + cut, left : left + cut]
        out.append(picture)
    return to_network(np.stack(out))


def picture_of_kind(s: world.Scene, kind: str, rng: np.random.Generator) -> np.ndarray:
    """A map of the scene, or with "found" the boxes of a random part of its objects."""
    if kind == "found":
        return maps.found(s, tuple(o for o in s.objects if rng.random() < 0.7) or s.objects[:1])
    return maps.map_picture(s, kind)


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a half cosine down to a hundredth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    rest = (step - warmup) / max(steps - warmup, 1)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(rest, 1.0))))


def losses(
    vq: nn.Module, pixels: torch.Tensor, commitment: float, quantized: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training loss, mean squared error of the reconstruction, and the encoder's outputs (N, dims)."""
    z = vq.quantize.matched(vq.prequant(pixels))
    zq = vq.quantize.lookup(vq.quantize.nearest(z.detach()))
    rebuilt = vq.decode_vectors(z + (zq - z).detach() if quantized else z)
    mse = F.mse_loss(rebuilt, pixels)
    loss = mse + 0.2 * F.l1_loss(rebuilt, pixels)
    if quantized:
        loss = loss + F.mse_loss(zq, z.detach()) + commitment * F.mse_loss(z, zq.detach())
    return loss, mse.detach(), z.detach().movedim(1, -1).flatten(0, -2)


@torch.no_grad()
def refit(vq: nn.Module, z: torch.Tensor, rng: torch.Generator, rounds: int = 3) -> int:
    """Moves every code to the mean of those encoder outputs (N, dims) that it is nearest to (Lloyd's algorithm).

    Codes that are nearest to none move onto a random one. Returns how many those were at first.
    """
    table, dead = vq.quantize.embedding.weight, 0
    for turn in range(rounds):
        codes = vq.quantize.nearest(z.t()[None, :, None]).flatten()
        counts = torch.bincount(codes, minlength=len(table))
        none = (counts == 0).nonzero().flatten()
        table.copy_(torch.zeros_like(table).index_add_(0, codes, z) / counts.clamp(min=1)[:, None])
        pick = torch.randint(len(z), (len(none),), generator=rng).to(z.device)
        table[none] = z[pick] + torch.randn(len(none), z.shape[1], generator=rng).to(z.device) * 0.01
        dead = len(none) if turn == 0 else dead
    return dead


def freeze_codes(vq: nn.Module) -> None:
    """Leaves only the decoder and the convolution before it to learn."""
    vq.requires_grad_(False)
    vq.decoder.requires_grad_(True)
    vq.post_quant_conv.requires_grad_(True)


def train_vq(vq: nn.Module, recipe: VQRecipe, stage: Stage, device: torch.device | str = "cpu") -> None:
    """Trains `vq` in place, from where `stage` was left, and leaves it on `device`."""
    vq.to(device, memory_format=torch.channels_last)  # a fifth faster on a CPU
    if recipe.frozen_codes:
        freeze_codes(vq)
    learning = [p for p in vq.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(learning, lr=recipe.lr, betas=(0.9, 0.95))
    outputs, recent = [], []  # of the encoder since the codes were last moved; errors since the last report
    first, began = 0, 0.0
    with stage.resuming() as state:
        if state:
            vq.load_state_dict(state["model"])
            optimiser.load_state_dict(state["optimiser"])
            outputs, first, began = [state["outputs"].to(device)], state["step"], state["seconds"]
    start = time.monotonic() - began

    def snapshot(done: int) -> dict:
        return {
            "model": vq.state_dict(),
            "optimiser": optimiser.state_dict(),
            "outputs": torch.cat([torch.zeros(0, vq.config.embed_dim, device=device), *outputs]),
            "step": done,
            "seconds": time.monotonic() - start,
        }

    for step in stage.steps(first, recipe.steps, snapshot):
        pixels = batch_of(recipe, step).to(device, memory_format=torch.channels_last)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, recipe.steps, recipe.lr, recipe.warmup)
        loss, mse, z = losses(vq, pixels, recipe.commitment, step >= recipe.unquantized)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.step()
        outputs.append(z)
        recent.append(mse)
        if (step + 1) % recipe.refit_every == 0:
            dead = 0
            if recipe.unquantized <= step + 1 < 0.8 * recipe.steps and not recipe.frozen_codes:
                rng = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
                dead = refit(vq, torch.cat(outputs), rng)
            outputs.clear()
            psnr = 10 * math.log10(4 / torch.stack(recent).mean().item())
            stage.log(
                step + 1, recipe.steps, time.monotonic() - start, psnr=psnr, dead=dead, loss=loss.item()
            )
            recent.clear()
