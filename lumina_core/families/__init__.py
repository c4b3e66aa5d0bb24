"""Which checkpoint is this, and how to load it. The only place where the parts are joined."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .. import checkpoint, quant, weights
from ..checkpoint import Checkpoint, TokenNames
from ..errors import CheckpointError, InputError
from ..files import user_path
from ..shortage import empty_caches, told
from ..text import Tokenizer
from ..transformer import Transformer
from ..unirep import Vocabulary
from ..weights import Entry
from .base import Defaults, Family, Source
from .mgpt1 import Mgpt1
from .mgpt2 import Mgpt2
from .model import Model
from .pure import Pure
from .trained import bundled, side_of, sizes_of, tasks_of

FAMILIES: tuple[Family, ...] = (Mgpt1(), Mgpt2(), Pure())
LARGE = 1 << 29  # numbers in a transformer from which 16 bit are worth their rounding
VQ_MARK = "quantize.embedding.weight"
WRAPPINGS = ("", "model.", "module.", "first_stage_model.", "vq_model.")
SMALLER = (
    "Load it in a smaller precision (bf16 takes half of fp32, int8 half of bf16, nf4 a quarter), or close other "
    "programs that use this memory."
)

__all__ = [
    "FAMILIES",
    "Defaults",
    "Family",
    "Model",
    "Parts",
    "Source",
    "bundled",
    "default_decode_dtype",
    "default_dtype",
    "find",
    "find_vq",
    "identify",
    "kept_kind",
    "listing",
    "load",
    "open_parts",
    "open_source",
    "source_of",
    "tasks",
    "vq_file",
]


def tasks() -> tuple[str, ...]:
    """The tasks of all families, each once, in their order."""
    return tuple(dict.fromkeys(task for family in FAMILIES for task in family.templates))


def listing(folders: Sequence[str | Path]) -> dict[str, Path]:
    """Checkpoints in some model folders by name: folders with a config.json, files written by `convert`.

    Names are paths inside a model folder, like owner/checkpoint. Looks at names and first bytes only and never raises;
    what a checkpoint really is shows on opening it.
    """
    found: dict[str, Path] = {}
    for said in folders:
        try:
            folder = user_path(said)
        except InputError:
            continue
        for path in _checkpoints_in(folder, checkpoint.DEPTH):
            found.setdefault(path.relative_to(folder).as_posix(), path)
    return found


def _checkpoints_in(folder: Path, depth: int) -> Iterator[Path]:
    try:
        inside = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError:
        return
    for path in inside:
        try:
            converted = path.suffix == ".safetensors" and checkpoint.is_converted(path)
            if converted or (path / "config.json").is_file():
                yield path
            elif depth > 1 and path.is_dir():
                yield from _checkpoints_in(path, depth - 1)
        except OSError:  # not ours to read
            continue


def default_dtype(
    name: str | Path, device: torch.device | str, folders: Sequence[str | Path] = ()
) -> torch.dtype:
    """The number format that "auto" stands for: bf16 for a large checkpoint on a device that computes in it, else fp32.

    A CPU computes in fp32. Reads headers only; parameters as in `load`.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return torch.float32
    entries = checkpoint.find(find(name, folders)).entries.values()
    large = sum(math.prod(e.shape) for e in entries) >= LARGE
    return torch.bfloat16 if large and _has_bf16(device) else torch.float32


def kept_kind(name: str | Path, quantise: str | None) -> str | None:
    """What `load` would make of `quantise`: layers stored small stay as they are. Reads headers only."""
    found = checkpoint.find(find(name))
    return quant.kept(found.entries, quantise, found.name)


def default_decode_dtype(dtype: torch.dtype, device: torch.device | str) -> torch.dtype:
    """The `decode_dtype` of a transformer in `dtype`: bf16 beside 16 bits on CUDA that computes in it, else fp32."""
    device = torch.device(device)
    small = dtype != torch.float32 and device.type == "cuda" and _has_bf16(device)
    return torch.bfloat16 if small else torch.float32


def _vq_placer(device: torch.device | str, decode_dtype: torch.dtype) -> Callable:
    """Moves the tensors of an image tokenizer, cast for decoding or to float32 (see `quant.placer`)."""
    decoding, rest = quant.placer(device, decode_dtype), quant.placer(device, torch.float32)
    parts = ("decoder.", "post_quant_conv.")
    return lambda name, tensor: (decoding if name.startswith(parts) else rest)(name, tensor)


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda" and torch.version.hip is None:
        # older cards take it, but compute it in fp32
        return torch.cuda.get_device_capability(device) >= (8, 0)
    try:
        one = torch.ones(1, 1, dtype=torch.bfloat16, device=device)
        return float(one @ one) == 1
    except (RuntimeError, TypeError, NotImplementedError):  # each backend refuses in its own way
        return False


def find(name: str | Path, folders: Sequence[str | Path] = ()) -> Path:
    """The folder or file of a checkpoint given by bundled name, by path, or by its name in one of the model folders."""
    inside = bundled()
    if str(name) in inside:
        return inside[str(name)]
    given, bases = user_path(name), [Path(), *map(user_path, folders)]
    for path in (base / given for base in bases):
        path = path.resolve() if path.name in ("", "..") else path  # else it has neither name nor parent
        for candidate in (path, path.with_name(path.name + ".safetensors") if path.name else path):
            candidate = user_path(candidate)
            if candidate.is_dir() or (candidate.is_file() and candidate.suffix == ".safetensors"):
                return candidate
            if candidate.is_file():
                raise CheckpointError(
                    f"{candidate} is not a checkpoint: a folder in the released layout, or a .safetensors file written "
                    "by `convert`, is expected."
                )
    places = f" in {', '.join(map(str, folders))}" if folders else ""
    raise CheckpointError(
        f"There is no checkpoint '{name}'{places}: it is neither a folder, nor a converted file, nor a bundled "
        f"checkpoint ({', '.join(inside) or 'none'})."
    )


def source_of(found: Checkpoint, tokenizer) -> Source:
    """What the families look at, of a checkpoint and its tokenizer (or `TokenNames` where names are enough)."""
    files = tuple(dict.fromkeys(e.file for e in found.entries.values()))
    said = found.config.get("vocab_size")
    size = checkpoint.sizes_from_shapes(found.shapes).get(
        "vocab_size", (said if type(said) is int else 0, "")
    )[0]
    return Source(found.path, {**found.config, "vocab_size": size}, tokenizer, found.shapes, files)


def open_source(path: Path) -> Source:
    """Configuration, tokenizer and tensor shapes of a checkpoint; reads headers only."""
    found = checkpoint.find(path)
    return source_of(found, _tokenizer(found))


def _tokenizer(found: Checkpoint) -> Tokenizer:
    text = found.tokenizer_text()
    return Tokenizer(text, found.tokenizer_settings(), str(found.tokenizer_file))


def identify(source: Source) -> Family:
    """The family of a checkpoint; a `CheckpointError` says what it looks like instead."""
    for family in FAMILIES:
        if family.detect(source):
            return family
    titles = ", ".join(f.title for f in FAMILIES)
    raise CheckpointError(
        f"{source.tokenizer.source} with a vocabulary of {source.config.get('vocab_size')} fits none of {titles}: the "
        "special names they need are not in it. Take tokenizer.json and config.json from the checkpoint's own "
        "repository."
    )


def vq_entries(file: Path) -> dict[str, Entry]:
    """The tensors of a file that may be an image tokenizer, without what a training program set before their names."""
    entries = weights.entries_of([file])
    prefix = next((p for p in WRAPPINGS if f"{p}{VQ_MARK}" in entries), "")
    return {name.removeprefix(prefix): e for name, e in entries.items() if name.startswith(prefix)}


def family_of_vq(entries: Mapping[str, Entry]) -> Family | None:
    """The family whose image tokenizer some tensors are, or None."""
    if VQ_MARK not in entries or "encoder.conv_in.weight" not in entries:
        return None
    shapes = {name: e.shape for name, e in entries.items()}
    with torch.device("meta"):
        return next((f for f in FAMILIES if _vq(f, shapes, weights.Bare) is not None), None)


def _vq(family: Family, shapes: Mapping[str, tuple[int, ...]], ops) -> nn.Module | None:
    try:
        return family.vq_from_shapes(shapes, ops)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
        return None  # its mark is there, but tensors that tell the sizes are not, or are out of their minds


def find_vq(
    found: Checkpoint,
    family: Family,
    vq_path: Path | None = None,
    vq_folders: Sequence[Path] = (),
) -> tuple[Path, dict[str, Entry]]:
    """The file with the image tokenizer of a checkpoint and its tensors; recognised by tensors, not by file names.

    A converted checkpoint holds its own. Otherwise `vq_path` (file or folder) alone is looked at, or else the
    checkpoint's folder, the files beside it and `vq_folders`. A `CheckpointError` says what to fetch and where to.
    """
    if found.metadata is not None and vq_path is None:
        inside = weights.entries_of([found.path], checkpoint.VQ_PREFIX)
        if inside and family_of_vq(inside) is not family:
            raise CheckpointError(
                f"The image tokenizer inside {found.path} is not that of {family.title}. Convert the checkpoint again."
            )
        if inside:
            return found.path, inside
    if vq_path is None:
        candidates = checkpoint.vq_candidates(found, vq_folders, family.vq_hint)
    elif vq_path.is_dir():
        candidates = iter(sorted(p for p in vq_path.iterdir() if p.suffix in checkpoint.VQ_SUFFIXES))
    elif vq_path.is_file():
        candidates = iter([vq_path])
    else:
        raise CheckpointError(f"The image tokenizer '{vq_path}' does not exist; expected {family.vq_hint}.")
    others, faults = [], []
    for file in candidates:
        try:
            entries = vq_entries(file)
        except CheckpointError as e:
            if vq_path == file:
                raise
            if file.name in family.vq_hint:
                faults.append(str(e))
            continue
        owner = family_of_vq(entries)
        if owner is family:
            return file, entries
        if owner is not None:
            others.append(f"{file} is the one of {owner.title}")
        elif file.name in family.vq_hint:
            faults.append(
                f"{file} holds no image tokenizer of {family.title}; replace it by {family.vq_hint}."
            )
    raise CheckpointError(faults[0] if faults else _no_vq(found, family, vq_path, vq_folders, others))


def vq_file(name: str | Path, vq_folders: Sequence[str | Path] = ()) -> Path:
    """Where the image tokenizer of a checkpoint is; parameters and errors as in `load`. Reads headers only."""
    found = checkpoint.find(find(name))
    names = TokenNames.scan(found.tokenizer_text(), found.tokenizer_settings(), str(found.tokenizer_file))
    return find_vq(found, identify(source_of(found, names)), None, [user_path(f) for f in vq_folders])[0]


def _no_vq(
    found: Checkpoint, family: Family, vq_path: Path | None, vq_folders: Sequence[Path], others: list[str]
) -> str:
    home = found.path if found.path.is_dir() else found.path.parent
    if vq_path is not None:
        seen = others[0] if others else f"{vq_path} is no image tokenizer"
        return f"{seen}; {family.title} needs {family.vq_hint}. Point vq_path to that file."
    seen = f" ({others[0]})" if others else ""
    more = ", ".join(map(str, vq_folders))
    also = f", or into one of the other folders searched: {more}" if more else ""
    return f"The image tokenizer of {family.title} is missing{seen}: put {family.vq_hint}, into {home}{also}."


@dataclass(frozen=True)
class Parts:
    """A checkpoint opened and checked, no weights read: every tensor needed is there and fits."""

    found: Checkpoint
    source: Source
    family: Family
    plain: Transformer  # of float layers, on the `meta` device
    expected: Mapping[str, tuple[int, ...]]  # the transformer's tensors that are read
    vq_file: Path
    vq_entries: Mapping[str, Entry]
    vq_expected: Mapping[str, tuple[int, ...]]
    vq: nn.Module  # of plain layers, on the `meta` device
    vocabulary: Vocabulary


def open_parts(
    name: str | Path,
    folders: Sequence[str | Path] = (),
    vq_path: str | Path | None = None,
    vq_folders: Sequence[str | Path] = (),
) -> Parts:
    """Opens a checkpoint with its tokenizers; parameters as in `load`. A `CheckpointError` names the first fault."""
    found = checkpoint.find(find(name, folders))
    config = checkpoint.transformer_config(found)
    source = source_of(found, _tokenizer(found))
    family = identify(source)
    with torch.device("meta"):
        plain = Transformer(config, weights.Bare)
    expected = quant.stored_shapes(plain, found.entries)
    weights.check(expected, found.entries, f"{family.title} transformer", found.path)
    given = user_path(vq_path) if vq_path else None
    file, entries = find_vq(found, family, given, [user_path(f) for f in vq_folders])
    with torch.device("meta"):
        vq = family.vq_from_shapes({n: e.shape for n, e in entries.items()}, weights.Bare)
    vq_expected = weights.shapes_in(vq)
    weights.check(vq_expected, entries, f"image tokenizer of {family.title}", file)
    vocabulary = family.vocabulary(source, vq.config.n_embed)
    return Parts(found, source, family, plain, expected, file, entries, vq_expected, vq, vocabulary)


def load(
    name: str | Path,
    *,
    folders: Sequence[str | Path] = (),
    vq_path: str | Path | None = None,
    vq_folders: Sequence[str | Path] = (),
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    decode_dtype: torch.dtype = torch.float32,
    quantise: str | None = None,
    ops=weights.Bare,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Model:
    """Loads a checkpoint: a folder in the released layout, a file written by `convert`, or a bundled one by name.

    `folders` are model folders to look for the name in, `vq_folders` further folders to look for the image tokenizer
    in, `vq_path` says which it is. `quantise` ('int8', 'fp8', or 'nf4' with bitsandbytes) keeps the layers' weights
    small; layers stored small stay as they are. `decode_dtype` is that of the half of the image tokenizer that makes
    pictures of codes; the other half stays in float32, TF32 off while it encodes, so that no code is chosen by
    rounding. Modules are built without memory and filled tensor by tensor, so the peak is the weights plus one tensor.
    `report(done, total)` counts bytes read, after each tensor; what it raises ends the loading. An `OutOfMemoryError`
    says that the weights do not fit.
    """
    if quantise not in (None, *quant.KINDS):
        raise InputError(f"quantise is {quantise!r}; it can be {', '.join(quant.KINDS)} or None.")
    parts = open_parts(name, folders, vq_path, vq_folders)
    found, family = parts.found, parts.family
    transformer, vq = parts.plain, parts.vq
    if ops is not weights.Bare:
        with torch.device("meta"):
            transformer = Transformer(parts.plain.config, ops, dtype=dtype)
            vq = family.vq_from_shapes({n: e.shape for n, e in parts.vq_entries.items()}, ops)
    scaled, kind = quant.prepare(transformer, parts.plain, found.entries, quantise, found.name, ops)
    mine = sum(found.entries[name].nbytes for name in parts.expected)
    total = mine + sum(parts.vq_entries[name].nbytes for name in parts.vq_expected)
    with told(f"loading '{found.name}', {total / 1e9:.2f} GB of files, onto {device}", SMALLER):
        place = quant.placer(device, dtype, scaled, kind)
        weights.fill(transformer, found.entries, parts.expected, place, lambda n: report(n, total))
        if ops is weights.Bare:  # a host moves weights one by one, and counts the memory of each as its own
            transformer.lay_weights_together()
            empty_caches(torch.device(device))  # of the weights as they lay before
        weights.fill(
            vq,
            parts.vq_entries,
            parts.vq_expected,
            _vq_placer(device, decode_dtype),
            lambda n: report(mine + n, total),
        )
    own = found.config.get("sampling")
    own = own if isinstance(own, Mapping) else {}
    return Model(
        found.name,
        family,
        transformer,
        vq,
        parts.source.tokenizer,
        parts.vocabulary,
        own,
        tasks_of(family.id, found.name, found.config)[0],
        sizes_of(found.config),
        side_of(family.id, found.name),
    )
