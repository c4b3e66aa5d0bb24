"""Trains the transformer on token sequences as upstream does: loss on the answer only, z-loss, dropped prompts.

FP-SFT and Omni-SFT in small (arXiv 2408.02657): one low resolution and few tasks first, then all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..devices import quick_in_bfloat16
from ..transformer import Transformer
from ..unirep import Vocabulary
from .batches import Batches, Phase, Plan
from .dataset import Dataset
from .muon import Muon
from .objective import nearness, predicting
from .runner import Stage
from .sequences import Language
from .vq import learning_rate


@dataclass(frozen=True)
class TransformerRecipe:
    """Training settings."""

    phases: tuple[Phase, ...]
    batch: int = 32
    lr: float = 1.2e-3
    warmup: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    z_loss: float = 1e-5
    text_weight: float = 1.0  # of a text token; a picture has many more tokens than an answer has words
    drop_prompt: float = 0.1
    guided: frozenset[str] = frozenset({"text_to_image"})  # kinds whose prompt is dropped
    # Reach of a code's share in its neighbours, by the usual distance of the nearest. In a codebook of many
    # dimensions the farthest are hardly farther than that: it must be smaller there.
    softness: float = 0.0
    seed: int = 0

    @property
    def steps(self) -> int:
        return self.phases[-1].until

    @property
    def plan(self) -> Plan:
        return Plan(self.phases, self.batch, self.drop_prompt, self.guided, self.seed)


def initialise(model: Transformer, seed: int) -> None:
    """Normal weights of deviation 0.02, smaller on what feeds the residual stream; a function of the seed."""
    rng = torch.Generator().manual_seed(seed)
    depth = model.config.num_hidden_layers
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 2 and "norm" not in name:
                small = name.endswith(("o_proj.weight", "down_proj.weight"))
                p.normal_(0, 0.02 / (2 * depth) ** 0.5 if small else 0.02, generator=rng)


def optimisers_of(model: nn.Module, recipe: TransformerRecipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest; matrices decay, norms and biases do not."""
    inside, outside, rest = [], [], []
    for name, p in model.named_parameters():
        matrix = p.ndim == 2 and "norm" not in name
        (rest if not matrix else inside if ".layers." in name else outside).append(p)
    groups = [
        {"params": outside, "weight_decay": recipe.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return [
        Muon(inside, recipe.lr, recipe.weight_decay),
        torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.95), fused=True),
    ]


class Losses:
    """The training loss of batches, and the mean cross entropy of picture and text tokens since the last `read`."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        tokens: int,
        text_weight: float,
        z_weight: float,
        device,
        near: torch.Tensor | None = None,
    ):
        """`near` (codes, codes), rows summing to 1, is what a code that is to be drawn is shared among."""
        v, self.z_weight = vocabulary, z_weight
        self.codes = v.code_ids.to(device)
        self.number = torch.full((tokens,), -1, device=device)  # of a token among the codes
        self.number[self.codes] = torch.arange(len(self.codes), device=device)
        self.near = None if near is None else near.to(device)
        text = torch.ones(tokens, dtype=torch.bool)
        text[v.code_ids] = False
        text[[v.image_start, v.image_end, v.row_end, *v.grid.values()]] = False
        self.is_text = text.to(device)
        self.weight = torch.where(text, text_weight, 1.0).to(device)
        self.sums = torch.zeros(2, 2, device=device)  # (picture, text) x (cross entropy, places)

    def __call__(self, model: Transformer, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        hidden, targets = predicting(model(tokens), labels)
        scores = model.scores(hidden)
        entropy = F.cross_entropy(scores, targets, reduction="none")
        loss = entropy if self.near is None else self._shared(scores, targets, entropy)
        weight = self.weight[targets]
        with torch.no_grad():
            kind = self.is_text[targets].long()
            counted = torch.stack([entropy.detach(), torch.ones_like(entropy)], 1)
            self.sums.index_add_(0, kind, counted)
        z = scores.logsumexp(-1).square().mean()
        return (loss * weight).sum() / weight.sum() + self.z_weight * z

    def _shared(self, scores: torch.Tensor, targets: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
        """Cross entropy with the shares of codes, and as it is elsewhere."""
        number = self.number[targets]
        is_code = number >= 0
        logs = scores[is_code].log_softmax(-1)[:, self.codes]
        return entropy.masked_scatter(is_code, -(self.near[number[is_code]] * logs).sum(-1))

    def read(self) -> dict[str, float]:
        sums = self.sums.tolist()
        self.sums.zero_()
        return {name: s / n for name, (s, n) in zip(("picture", "text"), sums, strict=True) if n}


def train_transformer(
    model: Transformer,
    recipe: TransformerRecipe,
    dataset: Dataset,
    language: Language,
    stage: Stage,
    on_save: Callable[[nn.Module], None] | None = None,
    device: torch.device | str = "cpu",
    codebook: torch.Tensor | None = None,
) -> None:
    """Trains `model` in place, from where `stage` was left; `on_save` sees it every 500 steps.

    The `codebook` (codes, dims) tells which codes are near each other; a recipe without `softness` needs none.

    Where the device is quick in bfloat16 the passes run in it (autocast); the weights stay float32.
    """
    device = torch.device(device)
    model.to(device)
    optimisers = optimisers_of(model, recipe)
    first, began = 0, 0.0
    with stage.resuming() as state:
        if state:
            model.load_state_dict(state["model"])
            for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(saved)
            first, began = state["step"], state["seconds"]
    start = time.monotonic() - began

    def snapshot(done: int) -> dict:
        return {
            "model": model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in optimisers],
            "step": done,
            "seconds": time.monotonic() - start,
        }

    batches = Batches(recipe.plan, dataset, language)
    near = nearness(codebook, recipe.softness) if recipe.softness else None
    losses = Losses(
        language.vocabulary, model.config.vocab_size, recipe.text_weight, recipe.z_loss, device, near
    )
    model.train()
    for step in stage.steps(first, recipe.steps, snapshot):
        tokens, labels = (t.to(device, non_blocking=True) for t in batches[step])
        for group in (g for optimiser in optimisers for g in optimiser.param_groups):
            group["lr"] = learning_rate(step, recipe.steps, recipe.lr, recipe.warmup)
        with torch.autocast(device.type, torch.bfloat16, enabled=quick_in_bfloat16(device)):
            loss = losses(model, tokens, labels)
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        for optimiser in optimisers:
            optimiser.step()
        if (step + 1) % 50 == 0:
            stage.log(step + 1, recipe.steps, time.monotonic() - start, **losses.read())
        if on_save and (step + 1) % 500 == 0:
            on_save(model)
    model.eval()
