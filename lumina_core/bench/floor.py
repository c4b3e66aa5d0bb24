"""What a pass has to read at least, and how fast the device reads."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from .. import Model, Prompt, Sampling
from .measure import copy_speed

# Bytes a second by the maker's data sheet, by name of the device; the first that fits counts.
DATA_SHEETS = (
    (r"\bH200\b", 4800e9),
    (r"\bH100 NVL", 3938e9),
    (r"\bH100 PCIe", 2039e9),
    (r"\bH100\b", 3350e9),
    (r"\bA100.*80GB PCIe", 1935e9),
    (r"\bA100.*PCIe.*80GB", 1935e9),
    (r"\bA100.*80GB", 2039e9),
    (r"\bA100\b", 1555e9),
    (r"RTX 5090(?! .*(D|Laptop))", 1792e9),
    (r"RTX 4090(?! .*(D|Laptop))", 1008e9),
    (r"RTX 3090 Ti", 1008e9),
    (r"RTX 3090", 936e9),
)
CACHED = 64 << 20  # bytes of weights that a CPU may keep in its own caches


@dataclass(frozen=True)
class Floor:
    """Bytes of one pass and bytes a second; no bandwidth where it would tell nothing."""

    weights: int
    cache: int  # mean over the passes for the tokens drawn, all rows
    bandwidth: float | None
    source: str  # where the bandwidth comes from, or why there is none

    @property
    def bytes(self) -> int:
        return self.weights + self.cache

    def share(self, seconds: float) -> float | None:
        """Of the bandwidth, what a pass that takes so long uses."""
        return self.bytes / seconds / self.bandwidth if self.bandwidth else None


def floor_of(model: Model, prompt: Prompt, sampling: Sampling, tokens: int) -> Floor:
    """The floor of a pass of this model over this prompt, while the first `tokens` of the picture are drawn."""
    weights, cache = weights_read(model), cache_read(model, prompt, sampling, tokens)
    device = model.transformer.model.norm.weight.device
    if device.type == "cpu" and weights < CACHED:
        why = f"no floor: {weights / 1e6:.0f} MB of weights may stay in the processor's caches"
        return Floor(weights, cache, None, why)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        speed = published(name)
        if speed is not None:
            return Floor(weights, cache, speed, f"{speed / 1e9:.0f} GB/s by the data sheet of {name}")
    speed = copy_speed(device)
    return Floor(weights, cache, speed, f"{speed / 1e9:.0f} GB/s in a plain copy")


def published(name: str) -> float | None:
    """Bytes a second by the data sheet of a device of this name."""
    return next((speed for pattern, speed in DATA_SHEETS if re.search(pattern, name)), None)


def weights_read(model: Model) -> int:
    """Bytes of weights that a pass reads: layers, last norm, and the head's rows of the codes."""
    body, head = model.transformer.model, model.transformer.lm_head.weight
    layers = sum(p.nbytes for p in (*body.layers.parameters(), *body.norm.parameters()))
    return layers + len(model.vocabulary.code_ids) * head.shape[1] * head.dtype.itemsize


def cache_read(model: Model, prompt: Prompt, sampling: Sampling, tokens: int) -> int:
    """Bytes of keys and values that a pass reads, of all rows: the mean over the first `tokens` of a picture."""
    c = model.config
    dtype = model.transformer.model.embed_tokens.weight.dtype
    place = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * dtype.itemsize
    header = 3 if prompt.open_at is None else 0
    starts = [len(prompt.tokens) + header]
    if sampling.cfg != 1.0:
        starts.append(3 if prompt.open_at is None else len(prompt.tokens) - prompt.open_at)
    return sampling.batch * place * sum(start + tokens // 2 for start in starts)
