"""Trains an image tokenizer on the world of shapes: reconstruction, codebook and commitment loss, live codebook.

VQ-VAE (arXiv 1711.00937) with a raw codebook, as MoVQ uses it; codes that nobody chose for a while are moved to
encoder outputs, which keeps a small codebook in use.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from . import world
from .runner import Stage


@dataclass(frozen=True)
class VQRecipe:
    """Training settings; `sizes` are the picture sizes (width, height) drawn in turn, one size a batch."""

    steps: int
    batch: int = 24
    lr: float = 2e-3
    warmup: int = 50
    commitment: float = 0.25
    revive_every: int = 50
    sizes: tuple[tuple[int, int], ...] = ((64, 64),)
    map_share: float = 0.25  # part of a batch that shows dense maps instead of pictures
    seed: int = 0


def to_network(pictures: np.ndarray) -> torch.Tensor:
    """Bytes (B, H, W, 3) to floats (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pictures).movedim(-1, 1).float() / 127.5 - 1


def batch_of(recipe: VQRecipe, step: int) -> torch.Tensor:
    """Training pictures of one step; a function of the step alone."""
    width, height = recipe.sizes[step % len(recipe.sizes)]
    kinds = ("depth", "segmentation", "normals", "edges")
    maps = int(recipe.batch * recipe.map_share)
    out = []
    for i in range(recipe.batch):
        s = world.scene("train", step * recipe.batch + i, width, height)
        out.append(world.map_picture(s, kinds[(step + i) % len(kinds)]) if i < maps else world.picture(s))
    return to_network(np.stack(out))


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a half cosine down to a hundredth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    rest = (step - warmup) / max(steps - warmup, 1)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(rest, 1.0))))


def losses(
    vq: nn.Module, pixels: torch.Tensor, commitment: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training loss, mean squared error of the reconstruction, and the codes chosen."""
    z = vq.prequant(pixels)
    codes = vq.quantize.nearest(z.detach())
    zq = vq.quantize.lookup(codes)
    straight = z + (zq - z).detach()
    rebuilt = vq.decode_vectors(straight)
    mse = F.mse_loss(rebuilt, pixels)
    quant = F.mse_loss(zq, z.detach()) + commitment * F.mse_loss(z, zq.detach())
    return mse + 0.2 * F.l1_loss(rebuilt, pixels) + quant, mse.detach(), codes


@torch.no_grad()
def revive(vq: nn.Module, used: torch.Tensor, pixels: torch.Tensor, rng: torch.Generator) -> int:
    """Moves the codes nobody chose onto encoder outputs of this batch; returns how many."""
    dead = (used == 0).nonzero().flatten()
    if len(dead):
        z = vq.prequant(pixels).movedim(1, -1).reshape(-1, vq.config.embed_dim)
        pick = torch.randint(len(z), (len(dead),), generator=rng)
        noise = torch.randn(len(dead), z.shape[1], generator=rng) * 0.01
        vq.quantize.embedding.weight[dead] = z[pick] + noise
    return len(dead)


def train_vq(vq: nn.Module, recipe: VQRecipe, stage: Stage) -> None:
    """Trains `vq` in place, from where `stage` was left."""
    vq.to(memory_format=torch.channels_last)  # a fifth faster on a CPU
    optimiser = torch.optim.Adam(vq.parameters(), lr=recipe.lr, betas=(0.9, 0.95))
    used = torch.zeros(vq.config.n_embed)
    first, began = 0, 0.0
    if state := stage.load():
        vq.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        used, first, began = state["used"], state["step"], state["seconds"]
    start = time.monotonic() - began

    def snapshot(done: int) -> dict:
        return {
            "model": vq.state_dict(),
            "optimiser": optimiser.state_dict(),
            "used": used,
            "step": done,
            "seconds": time.monotonic() - start,
        }

    recent = []
    for step in stage.steps(first, recipe.steps, snapshot):
        pixels = batch_of(recipe, step)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, recipe.steps, recipe.lr, recipe.warmup)
        loss, mse, codes = losses(vq, pixels, recipe.commitment)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vq.parameters(), 1.0)
        optimiser.step()
        used += torch.bincount(codes.flatten(), minlength=len(used))
        recent.append(mse.item())
        if (step + 1) % recipe.revive_every == 0:
            dead = 0
            if step < 0.8 * recipe.steps:
                dead = revive(vq, used, pixels, torch.Generator().manual_seed(recipe.seed * 1_000_003 + step))
            used.zero_()
            psnr = 10 * math.log10(4 / (sum(recent) / len(recent)))
            stage.log(
                step + 1, recipe.steps, time.monotonic() - start, psnr=psnr, dead=dead, loss=loss.item()
            )
            recent.clear()
