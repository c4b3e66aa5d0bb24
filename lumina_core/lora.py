"""LoRA files: which layers of the transformer they change, and by how much.

A layer's weight W becomes W + strength * (alpha / rank) * up @ down (arXiv 2106.09685). Two ways of naming are read:
PEFT's (`base_model.model.model.layers.0.mlp.up_proj.lora_A.weight`, alpha in adapter_config.json beside the file) and
kohya's (`lora_unet_model_layers_0_mlp_up_proj.lora_down.weight`, alpha as a tensor).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from . import weights
from .documents import read_json
from .errors import CheckpointError, InputError
from .files import user_path
from .nf4 import NF4Linear
from .quant import quantise, restore

SUFFIXES = (".safetensors", *weights.PICKLES)
ENDINGS = (  # how a key ends, and which part of the change its tensor is
    (re.compile(r"(.+)\.lora_A(?:\.[^.]+)?\.weight"), "down"),
    (re.compile(r"(.+)\.lora_B(?:\.[^.]+)?\.weight"), "up"),
    (re.compile(r"(.+)\.lora_embedding_A(?:\.[^.]+)?"), "embedding_a"),
    (re.compile(r"(.+)\.lora_embedding_B(?:\.[^.]+)?"), "embedding_b"),
    (re.compile(r"(.+)(?:\.lora_down|[._]lora\.down)\.weight"), "down"),
    (re.compile(r"(.+)(?:\.lora_up|[._]lora\.up)\.weight"), "up"),
    (re.compile(r"(.+)\.alpha"), "alpha"),
)
OTHER_KINDS = re.compile(
    r"hada_|lokr_|dora_scale|lora_magnitude|lora_mid|oft_|\.diff(_b)?$|\.lora_B\.(.+\.)?bias$"
)
IN_FRONT = re.compile(
    r"^(base_model\.model\.|transformer\.|diffusion_model\.|lora_(unet_|te\d?_|transformer_|llm_)?)"
)
SOME = 3  # keys that an error names
MOST_PATTERNS = 1000
PATTERN = re.compile(r"(?:\(\?:|[\w.\\|()\[\]^$-]|(?<!\))[*+?]){1,500}")  # no group is repeated
REPETITION = re.compile(r"(?<!\()[*+?]")
MOST_REPETITIONS = 3  # in a pattern
PLACES = 40  # letters of a layer's name, each of which a repetition may end at
MOST_WAYS = 1_000_000  # in which the patterns of a configuration may be tried on a layer


@dataclass(frozen=True)
class Delta:
    """The change of one layer's weight (rows, columns): up (rows, rank) @ down (rank, columns) * scale."""

    up: torch.Tensor
    down: torch.Tensor
    scale: float

    def of(self, strength: float, device: torch.device) -> torch.Tensor:
        """The change in float32 on a device."""
        up, down = (t.to(device, torch.float32) for t in (self.up, self.down))
        return up @ down * (strength * self.scale)


@dataclass(frozen=True)
class Lora:
    """A LoRA that fits a transformer: changes by the names of its layers."""

    name: str
    deltas: Mapping[str, Delta]

    @torch.no_grad()
    def merge(self, transformer: nn.Module, strength: float = 1.0) -> None:
        """Adds the changes to the weights where they lie; quantised layers get new numbers and scales."""
        for name, delta in self.deltas.items():
            layer = transformer.get_submodule(name)
            weight, change = layer.weight.data, delta.of(strength, layer.weight.device)
            if isinstance(layer, NF4Linear):
                layer.set_restored(layer.restored() + change)
                continue
            kind = getattr(layer, "kind", None)
            if kind is None:
                weight.copy_(weight.float() + change)
                continue
            small, scale = quantise(restore(weight, layer.weight_scale, torch.float32) + change, kind)
            weight.copy_(small)
            layer.weight_scale.data.copy_(scale)

    def tensors(self, transformer: nn.Module) -> dict[str, torch.Tensor]:
        """The changes under kohya's endings and the released names, for a host that patches weights by itself.

        They are in the units of the numbers stored: those of an int8 or fp8 layer are divided by its scale. An
        `InputError` for nf4 layers, whose packed weights a host cannot patch.
        """
        out = {}
        for name, delta in self.deltas.items():
            layer, up = transformer.get_submodule(name), delta.up.float()
            if isinstance(layer, NF4Linear):
                raise InputError(
                    f"LoRA '{self.name}' cannot be applied to a model loaded in nf4. Load the model in int8, fp8 or "
                    "bf16."
                )
            if hasattr(layer, "weight_scale"):  # whatever a LoRA that is on it now has made of the weight
                scale = layer.weight_scale.detach().cpu()
                up = up / (scale[:, None] if scale.ndim else scale)
            out[f"{name}.lora_up.weight"], out[f"{name}.lora_down.weight"] = up, delta.down.float()
            out[f"{name}.alpha"] = torch.tensor(delta.scale * len(delta.down))
        return out


def read(path: str | Path, transformer: nn.Module) -> Lora:
    """Reads a LoRA file, or the folder that PEFT writes, for a transformer.

    Raises `InputError` when there is no such file, `CheckpointError` naming keys when any of it does not fit.
    """
    file = _file(user_path(path))
    shapes = {
        name: (m.out_features, m.in_features) if isinstance(m, nn.Linear) else tuple(m.weight.shape)
        for name, m in transformer.named_modules()
        if isinstance(m, nn.Linear | nn.Embedding)
    }
    entries = weights.entries_of([file])
    parts = _parts(file, entries, shapes)
    tensors = dict(weights.read_tensors(entries))
    config = _config(file)
    deltas = {}
    for layer, keys in parts.items():
        delta = _delta(file, layer, {part: tensors[key] for part, key in keys.items()}, config)
        got = len(delta.up), delta.down.shape[1]
        if got != shapes[layer] or delta.up.shape[1] != len(delta.down):
            a, b = (keys[p] for p in keys if p != "alpha")
            raise CheckpointError(
                f"{file} was made for another model: '{a}' {list(tensors[a].shape)} and '{b}' {list(tensors[b].shape)} "
                f"do not change a weight of {list(shapes[layer])}. Take a LoRA that was trained on this checkpoint."
            )
        deltas[layer] = delta
    return Lora(file.parent.name if file.stem == "adapter_model" else file.stem, deltas)


def _file(path: Path) -> Path:
    if path.is_dir():
        found = [
            f for name in ("adapter_model.safetensors", "adapter_model.bin") if (f := path / name).is_file()
        ]
        if found:
            return found[0]
        raise InputError(
            f"The folder {path} holds no adapter_model.safetensors; give a LoRA's file, or PEFT's folder."
        )
    if not path.is_file():
        raise InputError(f"There is no LoRA '{path}'.")
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} is no LoRA file; one of {', '.join(SUFFIXES)} is expected.")
    return path


def _parts(file: Path, keys: Iterable[str], shapes: Mapping) -> dict[str, dict[str, str]]:
    """Layer -> part -> key of every change; a `CheckpointError` names keys that are no such part or of no layer."""
    flat = {}
    for name in shapes:
        for known in (name, name.removeprefix("model.")):
            flat[known.replace(".", "_")] = name
    parts: dict[str, dict[str, str]] = {}
    strange, other = [], []
    for key in keys:
        hit = next(((m[1], part) for ending, part in ENDINGS if (m := ending.fullmatch(key))), None)
        layer = hit and flat.get(IN_FRONT.sub("", hit[0]).replace(".", "_"))
        if layer:
            parts.setdefault(layer, {})[hit[1]] = key
        else:
            (other if OTHER_KINDS.search(key) else strange).append(key)
    if other:
        raise CheckpointError(
            f"{file} holds {_some(other)}; plain LoRA in PEFT's or kohya's naming can be used, other kinds (DoRA, "
            "LoHa, LoKr, whole weights) cannot. Merge it into the checkpoint with the program that trained it."
        )
    if strange:
        raise CheckpointError(
            f"{file} is no LoRA for this model: it has no place for {_some(strange)}. Take a LoRA that was trained on "
            "a Lumina-mGPT or PURE checkpoint; only layers of the transformer can be changed."
        )
    whole = ({"up", "down"}, {"embedding_a", "embedding_b"})
    if halves := [keys for keys in parts.values() if keys.keys() - {"alpha"} not in whole]:
        key = next(iter(halves[0].values()))
        raise CheckpointError(f"{file} is not whole: '{key}' lacks its other half. Download it again.")
    if not parts:
        raise CheckpointError(f"{file} holds no LoRA: it has no tensors.")
    return parts


def _some(keys: Sequence[str]) -> str:
    named = ", ".join(f"'{key}'" for key in keys[:SOME])
    return f"{named} and {len(keys) - SOME} more" if len(keys) > SOME else named


def _delta(file: Path, layer: str, tensors: dict[str, torch.Tensor], config: Mapping) -> Delta:
    """The change of a layer, an embedding's turned to its weight's (rows, columns)."""
    if "embedding_a" in tensors:
        up, down = tensors["embedding_a"].T, tensors["embedding_b"].T
    else:
        up, down = tensors["up"], tensors["down"]
    if up.ndim == down.ndim == 4:  # 1x1 convolutions, as some programs save linear layers
        up, down = up.flatten(1), down.flatten(1)
    if up.ndim != 2 or down.ndim != 2 or not up.is_floating_point() or not down.is_floating_point():
        raise CheckpointError(
            f"{file}: the tensors of layer '{layer}' are no matrices of numbers. Download it again."
        )
    rank = len(down)
    if not rank or ("alpha" in tensors and tensors["alpha"].numel() != 1):
        raise CheckpointError(
            f"{file}: layer '{layer}' has rank {rank}, or an alpha that is no number. Download it again."
        )
    if "alpha" in tensors:
        scale = float(tensors["alpha"].float()) / rank
    elif (alpha := _alpha(file, config, layer)) is not None:
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    else:
        scale = 1.0
    if not math.isfinite(scale):
        raise CheckpointError(f"{file}: alpha of layer '{layer}' is no finite number. Download it again.")
    return Delta(up, down, scale)


def _alpha(file: Path, config: Mapping, layer: str) -> float | None:
    """The alpha that PEFT's configuration gives a layer; None where nobody says."""
    source, patterns = file.with_name("adapter_config.json"), config.get("alpha_pattern") or {}
    alpha = config.get("lora_alpha")
    if not isinstance(patterns, Mapping) or len(patterns) > MOST_PATTERNS:
        raise CheckpointError(f"{source}: 'alpha_pattern' is no table of up to {MOST_PATTERNS} layers.")
    if sum(map(_ways, patterns)) > MOST_WAYS:
        raise CheckpointError(
            f"{source}: the patterns in 'alpha_pattern' would be searched for too long. Write fewer alternatives or "
            "repetitions, or the names of the layers."
        )
    for pattern, value in patterns.items():
        if _names(source, pattern, layer):
            alpha = value
            break
    if alpha is not None and (type(alpha) not in (int, float) or not abs(alpha) < 1e30):
        raise CheckpointError(f"{source}: the alpha of layer '{layer}' is {alpha!r}; a number is expected.")
    return alpha


def _ways(pattern: str) -> int:
    """In how many ways a pattern may be tried on a layer's name, at most; 0 for one that is refused."""
    repetitions = len(REPETITION.findall(pattern))
    if repetitions > MOST_REPETITIONS or not PATTERN.fullmatch(pattern):
        return 0
    return PLACES**repetitions * math.prod(part.count("|") + 1 for part in pattern.split("("))


def _names(source: Path, pattern: str, layer: str) -> bool:
    """Whether a layer is what a pattern of PEFT's configuration names.

    A regular expression can be made to search for years; no more is taken than what names layers.
    """
    try:
        if _ways(pattern):
            return re.fullmatch(rf"(.*\.)?({pattern})", layer) is not None
    except re.error:
        pass
    raise CheckpointError(f"{source}: the pattern '{pattern}' in 'alpha_pattern' is none that names layers.")


def _config(file: Path) -> dict:
    beside = file.with_name("adapter_config.json")
    return read_json(beside) if file.stem == "adapter_model" and beside.is_file() else {}
