"""Weight-only quantised Linears: int8 with a scale a row, fp8 (e4m3) with one scale a tensor.

On disk `X.weight` holds the small numbers and `X.weight_scale` (float32; (rows,) for int8, one number for fp8) what to
multiply them by; `X.comfy_quant` repeats the format of fp8 in ComfyUI's convention. In memory the same two tensors
stay. int8 is multiplied as it is where that works (`int8`). Elsewhere, and with fp8, the product is taken in the
input's type and scaled after, so the weights are expanded in every pass, which saves memory but no time. In fp16, where
that product would overflow, the input is shortened before and the result made as much longer. Layers with a bias,
embeddings, norms and the output head are never quantised. A third kind, nf4, is made while loading and never stored;
see `nf4`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

from . import nf4
from .errors import CheckpointError

log = logging.getLogger(__name__)

FORMATS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
KINDS = (*FORMATS, "nf4")  # what float weights can be made into while they are loaded
LARGEST = {"int8": 127.0, "fp8": torch.finfo(torch.float8_e4m3fn).max}
SCALE, COMFY = ".weight_scale", ".comfy_quant"


def quantise(weight: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Small weight (rows, columns) and float32 scale, (rows,) for 'int8' and () for 'fp8', of a float weight."""
    w = weight.float()
    if kind == "int8":
        scale = w.abs().amax(1) / 127
        scale = torch.where(scale > 0, scale, 1.0)
        return (w / scale[:, None]).round_().clamp_(-127, 127).to(torch.int8), scale
    most = torch.finfo(FORMATS[kind]).max
    scale = w.abs().amax() / most
    scale = torch.where(scale > 0, scale, 1.0)
    return (w / scale).clamp_(-most, most).to(FORMATS[kind]), scale


def round_by_chance(numbers: torch.Tensor, kind: str, seed: int) -> torch.Tensor:
    """Small numbers next to these, up or down by chance so that small changes count in the mean; clamped.

    The seed makes it repeatable.
    """
    x = numbers.float()
    most, step = LARGEST[kind], 1.0
    if kind == "fp8":  # 3 bits behind the point; below 2^-6 the steps stay
        step = torch.exp2(x.frexp().exponent.clamp(min=-5).float() - 4)
    chance = torch.rand(x.shape, generator=torch.Generator(x.device).manual_seed(seed), device=x.device)
    return ((x / step + chance).floor_() * step).clamp_(-most, most).to(FORMATS[kind])


def restore(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The float weight that a small weight stands for."""
    return (weight.float() * (scale[:, None] if scale.ndim else scale)).to(dtype)


def comfy_note() -> torch.Tensor:
    """The `comfy_quant` tensor of an fp8 layer: JSON in bytes, padded to whole words."""
    text = json.dumps({"format": "float8_e4m3fn"}).encode()
    return torch.frombuffer(bytearray(text.ljust(-(-len(text) // 8) * 8)), dtype=torch.uint8)


def format_of(entries: Mapping) -> str | None:
    """'int8' or 'fp8' when some layers of a checkpoint are stored with scales, else None."""
    for name in entries:
        if name.endswith(SCALE):
            weight = entries.get(name.removesuffix(SCALE) + ".weight")
            if weight is None:
                raise CheckpointError(f"{entries[name].file}: '{name}' scales a weight that is not there.")
            dtype = weight.dtype
            kind = next((k for k, v in FORMATS.items() if v == dtype), None)
            if kind is None:
                raise CheckpointError(
                    f"{weight.file}: '{name}' scales weights of type {dtype}; int8 and float8_e4m3fn are known."
                )
            return kind
    return None


def kept(entries: Mapping, wanted: str | None, name: str) -> str | None:
    """The kind that the layers of checkpoint `name` are held in: as they are stored, else as wanted; None for floats.

    Where that is not the wanted one, a warning says so, once.
    """
    stored = format_of(entries)
    if stored and wanted not in (None, stored):
        _warn(f"Lumina-mGPT: {name} is stored as {stored}; precision {wanted} is not applied")
    return stored or wanted


@cache
def _warn(line: str) -> None:
    log.warning(line)


def eligible(module: nn.Module) -> list[str]:
    """Names of the Linears that may be quantised: those without bias inside the layers."""
    return [
        name
        for name, m in module.named_modules()
        if isinstance(m, nn.Linear) and getattr(m, "bias", None) is None and name != "lm_head"
    ]


def length_of(x: torch.Tensor) -> torch.Tensor:
    """Float32 lengths (..., 1) of vectors (..., columns), rounded up to powers of two.

    The product of a vector of length 1 with small numbers is at most 448 times the root of their count: within fp16 up
    to 21,000 columns. Dividing by a power of two is exact but for numbers 2^-14 times as long as the vector and less,
    whose error is 2^-25 of its length at most.
    """
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return length.clamp(min=2.0**-24).log2().ceil().exp2()


def scaled_linear(base: type[nn.Linear]) -> type[nn.Linear]:
    """A Linear class on top of the injected one, whose small weight is multiplied by `weight_scale` after the product.

    A host's class casts and moves the weight as it does any other; numbers up to 127 and fp8 are exact in 16 bit.
    """

    class ScaledLinear(base):
        comfy_cast_weights = True  # a host's class must cast: int8 has no product with the input's type

        def __init__(self, rows: int, columns: int, kind: str):
            # built as float, because some initialisers refuse small types; the real weight is assigned later
            super().__init__(columns, rows, bias=False, device="meta", dtype=torch.float32)
            shape = (rows,) if kind == "int8" else ()
            self.weight_scale = nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)
            self.requires_grad_(False)
            self.kind = kind

        @property
        def is_int8(self) -> bool:
            """Whether the weight is int8 and a host has nothing to do to it in passing."""
            return self.weight.dtype == torch.int8 and not getattr(self, "weight_function", ())

        def set_weight(
            self,
            weight: torch.Tensor,
            inplace_update: bool = False,
            seed: int = 0,
            return_weight: bool = False,
        ) -> torch.Tensor | None:
            """Takes a weight that a host has patched, in the small numbers' units; given back it stays unrounded.

            Where cutting off what is too large would lose more than rounding does, it is kept in 16 bit.
            """
            if return_weight:
                return weight
            small = round_by_chance(weight, self.kind, seed)
            off = (small.float() - weight).square_()
            cut = weight.abs() > LARGEST[self.kind]
            kept = weight.half() if off[cut].sum() > off[~cut].sum() else small
            self.weight = nn.Parameter(kept, requires_grad=False)
            return None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scale = self.weight_scale.to(x.device)
            if x.dtype != torch.float16:
                return (self.product(x) * scale).to(x.dtype)
            length = length_of(x)
            return (self.product((x / length).to(x.dtype)) * (length * scale)).to(x.dtype)

        def product(self, x: torch.Tensor) -> torch.Tensor:
            """x (..., columns) times the small numbers, (..., rows)."""
            if base.forward is nn.Linear.forward:
                return F.linear(x, self.weight.to(x.dtype))
            return super().forward(x)

        def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, *rest):
            # taken out first: a host's class may know nothing of it
            name = prefix + "weight_scale"
            scale = state_dict.pop(name, None)
            super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *rest)
            if scale is not None:
                self.weight_scale = nn.Parameter(scale, requires_grad=False)
                missing[:] = [m for m in missing if m != name]

    return ScaledLinear


def swap(module: nn.Module, names: Iterable[str], kind: str, ops=nn) -> None:
    """Replaces the named Linears of a module on the `meta` device by quantised ones, still empty.

    An `InputError` where nf4 is wanted and its package is missing.
    """
    if kind == "nf4":
        nf4.bitsandbytes()
    cls = None if kind == "nf4" else scaled_linear(ops.Linear)
    for name in names:
        owner, _, leaf = name.rpartition(".")
        parent = module.get_submodule(owner)
        old = getattr(parent, leaf)
        sizes = (old.out_features, old.in_features)
        setattr(parent, leaf, cls(*sizes, kind) if cls else nf4.NF4Linear(*sizes))


def stored_shapes(plain: nn.Module, entries: Mapping) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that should be read, with the scales of layers that are stored small.

    `plain` is the transformer of float layers. A `CheckpointError` names a layer that must not be stored so.
    """
    expected = {name: tuple(t.shape) for name, t in plain.state_dict().items()}
    kind = format_of(entries)
    scaled = [n.removesuffix(SCALE) for n in entries if n.endswith(SCALE)]
    if odd := sorted(set(scaled) - set(eligible(plain))):
        raise CheckpointError(
            f"{entries[odd[0] + SCALE].file}: layer '{odd[0]}' is stored as {kind}; only Linears without bias inside "
            "the layers can be. Convert the original checkpoint again."
        )
    for name in scaled:
        weight = entries.get(name + ".weight")
        if weight is None or weight.dtype != FORMATS[kind]:
            raise CheckpointError(
                f"{entries[name + SCALE].file}: layer '{name}' has a scale, but no {kind} weight as others have. "
                "Convert the original checkpoint again."
            )
        expected[name + SCALE] = expected[name + ".weight"][:1] if kind == "int8" else ()
    return expected


def prepare(
    transformer: nn.Module, plain: nn.Module, entries: Mapping, wanted: str | None, name: str, ops=nn
) -> tuple[set[str], str | None]:
    """Gives the empty transformer of checkpoint `name` its scaled Linears: those stored so, or with `wanted` all.

    Returns the names of the scaled layers and their kind (None when there are none).
    """
    kind = kept(entries, wanted, name)
    if kind is None:
        return set(), None
    scaled = {n.removesuffix(SCALE) for n in entries if n.endswith(SCALE)} or set(eligible(plain))
    swap(transformer, scaled, kind, ops)
    return scaled, kind


def placer(device, dtype: torch.dtype, scaled: set[str] = frozenset(), kind: str | None = None):
    """For `weights.fill`: moves a tensor, casts floats to `dtype`, keeps or makes small weights of scaled layers."""

    def place(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        owner, _, leaf = name.rpartition(".")
        if owner in scaled and leaf == "weight":
            if kind == "nf4":  # on the device, which is much faster where it is a graphics card
                small, scale = nf4.quantise(tensor.to(device))
                return {leaf: small, "weight_scale": scale}
            if tensor.dtype == FORMATS[kind]:
                return {leaf: tensor.to(device)}
            small, scale = quantise(tensor, kind)
            return {leaf: small.to(device), "weight_scale": scale.to(device)}
        if leaf == "weight_scale":
            return {leaf: tensor.to(device, torch.float32)}
        return {leaf: tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)}

    return place
