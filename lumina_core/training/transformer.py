"""Trains the transformer on token sequences as upstream does: loss on the answer only, z-loss, dropped captions.

FP-SFT in small (arXiv 2408.02657): one low resolution first, then several aspect ratios. Sequences are those of
Lumina-mGPT 2.0: 10 % bare pictures for the unconditional row, 10 % of prompts without a size.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..prompts import IGNORE, NO_SIZE, TEXT_TO_IMAGE, encode_conversation
from ..text import Tokenizer
from ..transformer import Transformer
from ..unirep import Vocabulary
from . import world
from .objective import collate, cross_entropy, z_loss
from .pictures import Item, Pictures
from .runner import Stage
from .vq import learning_rate


@dataclass(frozen=True)
class Phase:
    """A part of training: it lasts until step `until`; a batch has one size, drawn with these weights."""

    until: int
    sizes: dict[tuple[int, int], float]


@dataclass(frozen=True)
class TransformerRecipe:
    """Training settings."""

    phases: tuple[Phase, ...]
    batch: int = 32
    lr: float = 1.5e-3
    warmup: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    z_loss: float = 1e-5
    drop_caption: float = 0.1
    drop_size: float = 0.1
    seed: int = 0

    @property
    def steps(self) -> int:
        return self.phases[-1].until


@dataclass(frozen=True)
class Language:
    """What turns a picture with its caption into a training sequence."""

    tokenizer: Tokenizer
    vocabulary: Vocabulary

    def sequence(self, item: Item, says_size: bool, bare: bool) -> tuple[list[int], list[int]]:
        """Tokens and labels of a text-to-image item; a bare one is the picture alone, from start to end."""
        picture = self.vocabulary.encode(item.codes)
        if bare:
            return picture, picture
        wording = TEXT_TO_IMAGE.text if says_size else NO_SIZE
        s = item.scene
        question = wording.format(width=s.width, height=s.height, prompt=world.caption(s))
        prompt = encode_conversation([question, None], [], self.tokenizer, self.vocabulary)
        answer = [*picture, self.vocabulary.separator]
        return prompt + answer, [IGNORE] * len(prompt) + answer


def initialise(model: Transformer, seed: int) -> None:
    """Normal weights of deviation 0.02, smaller on what feeds the residual stream; a function of the seed."""
    rng = torch.Generator().manual_seed(seed)
    depth = model.config.num_hidden_layers
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 2 and "norm" not in name:
                small = name.endswith(("o_proj.weight", "down_proj.weight"))
                p.normal_(0, 0.02 / (2 * depth) ** 0.5 if small else 0.02, generator=rng)


def batch_of(
    recipe: TransformerRecipe, step: int, pictures: Pictures, language: Language
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels (B, T) of one step, padded on the right; a function of the step alone."""
    rng = np.random.default_rng([recipe.seed, 7, step])
    phase = next(p for p in recipe.phases if step < p.until)
    sizes = list(phase.sizes)
    weights = np.array([phase.sizes[s] for s in sizes])
    size = sizes[rng.choice(len(sizes), p=weights / weights.sum())]
    rows = []
    for number in rng.integers(pictures.count(size), size=recipe.batch):
        bare, says_size = rng.random() < recipe.drop_caption, rng.random() >= recipe.drop_size
        rows.append(language.sequence(pictures.item(size, int(number)), says_size, bare))
    return collate(rows, most=1 << 20)


def train_transformer(
    model: Transformer,
    recipe: TransformerRecipe,
    pictures: Pictures,
    language: Language,
    stage: Stage,
    on_save: Callable[[nn.Module], None] | None = None,
) -> None:
    """Trains `model` in place, from where `stage` was left; `on_save` sees it every 500 steps."""
    decay = [p for n, p in model.named_parameters() if p.ndim == 2 and "norm" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "norm" in n]
    groups = [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.95), fused=True)
    first, began = 0, 0.0
    if state := stage.load():
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first, began = state["step"], state["seconds"]
    start = time.monotonic() - began

    def snapshot(done: int) -> dict:
        return {
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "step": done,
            "seconds": time.monotonic() - start,
        }

    model.train()
    recent = []
    for step in stage.steps(first, recipe.steps, snapshot):
        tokens, labels = batch_of(recipe, step, pictures, language)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, recipe.steps, recipe.lr, recipe.warmup)
        scores = model.scores(model(tokens))
        entropy = cross_entropy(scores, labels)
        loss = entropy + recipe.z_loss * z_loss(scores, labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimiser.step()
        recent.append(entropy.item())
        if (step + 1) % 50 == 0:
            stage.log(step + 1, recipe.steps, time.monotonic() - start, entropy=sum(recent) / len(recent))
            recent.clear()
        if on_save and (step + 1) % 500 == 0:
            on_save(model)
    model.eval()
