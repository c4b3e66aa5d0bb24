"""A checkpoint as found on disk: a folder in the released layout, or one file written by `convert`. Headers only.

Sizes come from the tensors where they tell and from the configuration where they do not; where both speak they must
agree. File names decide nothing but where to look first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import hub, weights
from .documents import parse_json, read_json, read_text
from .errors import CheckpointError
from .text import beginning
from .transformer import TransformerConfig
from .weights import FORMAT_KEY, Entry, is_converted

VQ_PREFIX = "vq."  # image tokenizer inside a converted file
MARK = "model.layers.0.self_attn.q_norm.bias"  # no other published transformer has a bias on its query norm
ENCODER_ONLY = "model.vqmodel."  # a second image tokenizer without decoder, in files derived from Chameleon
TOKENIZERS = (
    "tokenizer.json",
    "text_tokenizer.json",
    "tokenizer/tokenizer.json",
    "tokenizer/text_tokenizer.json",
)
TOKEN = re.compile(r'"((?:<[^"\\<>]{1,40}>)|(?:IMGIMG[A-J]{1,8}Z))"\s*:\s*(\d{1,9})(?!\d)')
ADDED = re.compile(r'"id"\s*:\s*(\d{1,9})\s*,\s*"content"\s*:\s*"((?:[^"\\]|\\.){1,60})"')
VQ_SUFFIXES = (".safetensors", *weights.PICKLES)
# scales as other programs name them
FOREIGN = (".scale_weight", ".weight_scale_inv", ".weight_scale_2")
DEPTH = 3  # folders below a searched one that are looked into


@dataclass(frozen=True)
class Checkpoint:
    """What is on disk under one path: configuration, transformer tensors, where the rest lies."""

    path: Path
    name: str
    config: Mapping
    config_source: str
    entries: Mapping[str, Entry]  # the transformer's
    missing_files: tuple[str, ...] = ()  # shards that should be there
    metadata: Mapping[str, str] | None = None  # of a converted file; None for a folder

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.entries.items()}

    @property
    def tokenizer_file(self) -> Path | None:
        """Where tokenizer.json stands, or None when it is missing; the file itself when it is converted."""
        if self.metadata is not None:
            return self.path if "tokenizer" in self.metadata else None
        return next((f for name in TOKENIZERS if (f := self.path / name).is_file()), None)

    def tokenizer_text(self) -> str:
        """The text of tokenizer.json; a `CheckpointError` says where it should be."""
        file = self.tokenizer_file
        if file is None:
            raise CheckpointError(
                f"tokenizer.json is missing in {self.path}; a checkpoint needs it. Download it from the checkpoint's "
                "own repository into that folder."
            )
        if self.metadata is not None:
            return self.metadata["tokenizer"]
        return read_text(file)

    def tokenizer_settings(self) -> dict:
        """The object of tokenizer_config.json, beside the tokenizer or in the folder; empty where there is none."""
        if self.metadata is not None:
            return parse_json(self.metadata.get("tokenizer_config", "{}"), str(self.path))
        places = (self.tokenizer_file.parent, self.path) if self.tokenizer_file else (self.path,)
        files = (place / "tokenizer_config.json" for place in places)
        return next((read_json(file) for file in files if file.exists()), {})


@dataclass(frozen=True)
class TokenNames:
    """The special names of a tokenizer, picked from its text without building it; enough where only names matter."""

    special: Mapping[str, int]
    bos_name: str | None
    source: str

    def id(self, name: str) -> int | None:
        return self.special.get(name)

    def names(self) -> dict[str, int]:
        return dict(self.special)

    @classmethod
    def scan(cls, text: str, settings: Mapping, source: str) -> TokenNames:
        """Reads names like `<...>` and `IMGIMG...Z` out of a tokenizer.json; 11 MB take about 0.1 s."""
        special = {m[1]: int(m[2]) for m in TOKEN.finditer(text)}
        special |= {m[2]: int(m[1]) for m in ADDED.finditer(text)}
        special.setdefault("<|image|>", max(special.values(), default=-1) + 1)
        return cls(special, beginning(settings, source), source)


def find(path: Path, *, whole: bool = True) -> Checkpoint:
    """Opens a folder or a converted file. `whole=False` accepts missing shards, for reports.

    Raises `CheckpointError` for anything that is not a Chameleon-shaped transformer, saying what it looks like.
    """
    return _folder(path, whole) if path.is_dir() else _single(path, whole)


def _folder(path: Path, whole: bool) -> Checkpoint:
    config_file = path / "config.json"
    if not config_file.exists():
        if (path / "model_index.json").exists():
            raise _other(path, "a diffusion pipeline")
        files = [f for f in sorted(path.glob("*.safetensors")) if is_converted(f)]
        if len(files) == 1:
            return _single(files[0], whole)
    if whole:
        _check_files(path)
    config = read_json(config_file)
    names = weights.shard_names(path)
    present = [path / n for n in names if (path / n).is_file()]
    if whole or not present:
        present = weights.transformer_files(path)
    entries = weights.entries_of(present)
    missing = tuple(n for n in names if not (path / n).is_file())
    _check_kind(path, entries, config, missing)
    return Checkpoint(path, path.name, config, str(config_file), entries, missing)


def _check_files(folder: Path) -> None:
    """A `CheckpointError` that names every file which a folder lacks, with its size and where it comes from.

    Says nothing where the tokenizer alone lacks: whether it is needed shows when the rest is known.
    """
    names, release = weights.named_shards(folder), hub.release_of(folder.name)
    lacks = [] if (folder / "config.json").exists() else ["config.json"]
    size = f" (about {release.nbytes / max(1, len(names)) / 1e9:.1f} GB)" if release else ""
    missing = [n for n in names if not (folder / n).is_file()] if names else ["model*.safetensors"]
    lacks += [n + size for n in missing]
    if not lacks:
        return
    if not any((folder / name).is_file() for name in TOKENIZERS):
        lacks.append("tokenizer.json")
    source = "Download them from the checkpoint's own repository into that folder."
    if release:
        source = (
            f"They come from https://huggingface.co/{release.repo}; `python -m lumina_core download {release.name} "
            f"{folder.parent}` fetches what lacks."
        )
    raise CheckpointError(f"The folder {folder} lacks {', '.join(lacks)}. {source}")


def _single(path: Path, whole: bool) -> Checkpoint:
    header = weights.read_header(path)
    if FORMAT_KEY not in header.metadata:
        if (path.parent / "config.json").exists() and path.name in weights.shard_names(path.parent):
            return _folder(path.parent, whole)
        _check_kind(path, header.entries, {})
        raise CheckpointError(
            f"{path} holds weights but neither configuration nor tokenizer. Give the folder with its config.json, or "
            "make one file of that folder with `python -m lumina_core convert`."
        )
    about = parse_json(header.metadata[FORMAT_KEY], str(path))
    if about.get("format") != 1:
        raise CheckpointError(
            f"{path} is in format {about.get('format')!r} of `convert`; this version reads format 1. Update the "
            "extension, or convert the checkpoint again."
        )
    config = parse_json(header.metadata.get("config", ""), f"the configuration inside {path}")
    entries = {name: e for name, e in header.entries.items() if not name.startswith(VQ_PREFIX)}
    _check_kind(path, entries, config)
    source = f"the configuration inside {path}"
    return Checkpoint(path, str(about.get("name") or path.stem), config, source, entries, (), header.metadata)


def _check_kind(path: Path, entries: Mapping, config: Mapping, missing: Sequence[str] = ()) -> None:
    if MARK not in entries and not (missing and config.get("model_type") == "chameleon"):
        raise _other(path, kind_of(entries, config))
    sign = next((f"'{name}'" for name in entries if name.endswith(FOREIGN) or name == "scaled_fp8"), None)
    if sign is None and config.get("quantization_config") is not None:
        sign = "'quantization_config' in its configuration"
    if sign:  # its numbers without their scales would load, as noise
        raise CheckpointError(
            f"{path} is stored in a quantised form that is not read ({sign}). Take the original checkpoint, and make "
            "it small with `python -m lumina_core convert`."
        )


def _other(path: Path, kind: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is {kind}, not a Lumina-mGPT checkpoint. Supported: Lumina-mGPT 1.0, Lumina-mGPT 2.0, PURE; "
        "`python -m lumina_core download` fetches them."
    )


def kind_of(names: Iterable[str], config: Mapping) -> str:
    """What a file that is no Lumina-mGPT transformer looks like, in words."""
    names = list(names)
    if any(
        n.startswith(("model.diffusion_model.", "down_blocks.", "transformer_blocks.", "double_blocks."))
        for n in names
    ):
        return "a diffusion checkpoint"
    if any(".lora_" in n for n in names):
        return "a LoRA"
    if any(n.startswith(("encoder.conv_in.", "decoder.conv_in.")) for n in names):
        return "an image tokenizer (VQ or VAE)"
    named = config.get("architectures")
    kind = config.get("model_type") or (named[0] if isinstance(named, list) and named else None)
    if "model.layers.0.self_attn.q_proj.weight" in names:
        return f"a language model of another kind ({kind or 'Llama-like'})"
    return f"a model of another kind ({kind})" if kind else "a model of another kind"


def transformer_config(found: Checkpoint) -> TransformerConfig:
    """Sizes of a checkpoint, from its configuration and its tensors; a `CheckpointError` where the two disagree."""
    config = dict(found.config)
    rope = config.get("rope_parameters")
    if config.get("rope_theta") is None and isinstance(rope, Mapping):  # newer transformers write it there
        config["rope_theta"] = rope.get("rope_theta")
    scaling = config.get("rope_scaling") or rope
    if isinstance(scaling, Mapping) and scaling.get("rope_type", scaling.get("type", "default")) != "default":
        raise CheckpointError(
            f"{found.config_source} asks for rope scaling ({json.dumps(scaling)}), which no released checkpoint has."
        )
    for name, (value, tensor) in sizes_from_shapes(found.shapes).items():
        said = config.get(name)
        if said is None:
            config[name] = value
        elif said != value and not (name == "num_hidden_layers" and isinstance(said, int) and said > value):
            file = found.entries[tensor].file
            raise CheckpointError(
                f"{found.config_source} says {name} = {said!r}, but '{tensor}' in {file.name} is "
                f"{list(found.entries[tensor].shape)}, which makes it {value!r}. The files do not belong together; "
                "download config.json and the weights from one repository."
            )
    return TransformerConfig.from_json(config, found.config_source)


def sizes_from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int | bool, str]]:
    """Fields of the configuration that tensor shapes tell, each with the tensor it was read from."""
    sizes: dict[str, tuple[int | bool, str]] = {}
    layer = next((i for i in range(512) if f"model.layers.{i}.self_attn.q_norm.weight" in shapes), 0)
    attn, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."

    def size(field: str, tensor: str, axis: int, unit: int = 1) -> None:
        shape = shapes.get(tensor)
        if shape is not None and len(shape) == 2 and shape[axis] % unit == 0:
            sizes[field] = shape[axis] // unit, tensor

    size("vocab_size", "model.embed_tokens.weight", 0)
    size("hidden_size", "model.embed_tokens.weight", 1)
    size("intermediate_size", mlp + "gate_proj.weight", 0)
    size("model_parallel_size", attn + "q_norm.weight", 0)
    head = shapes.get(attn + "q_norm.weight", ())
    if len(head) == 2 and head[1]:
        size("num_attention_heads", attn + "q_proj.weight", 0, head[1])
        size("num_key_value_heads", attn + "k_proj.weight", 0, head[1])
    for field, tensor in (("attention_bias", attn + "q_proj"), ("mlp_bias", mlp + "gate_proj")):
        if f"{tensor}.weight" in shapes:
            sizes[field] = f"{tensor}.bias" in shapes, f"{tensor}.weight"
    layers = {int(m[1]): n for n in shapes if (m := re.match(r"model\.layers\.(\d{1,4})\.", n))}
    if layers:
        sizes["num_hidden_layers"] = max(layers) + 1, layers[max(layers)]
    return sizes


def vq_candidates(found: Checkpoint, folders: Sequence[Path], usual: str) -> Iterator[Path]:
    """Files that may hold the image tokenizer: in the checkpoint's folder, beside it, then in `folders`.

    Files whose usual name is in the text `usual` come first in each; what a file is, its tensors tell.
    """
    own = set() if found.metadata is not None else {e.file for e in found.entries.values()}
    home = found.path if found.path.is_dir() else found.path.parent
    seen: set[Path] = set()
    for folder, depth in ((home, DEPTH), (home.parent, 0), *((f, DEPTH) for f in folders)):
        files = [f for f in _files(folder, depth) if f not in own and f.suffix in VQ_SUFFIXES]
        for file in sorted(files, key=lambda f: (f.name not in usual, f.suffix != ".safetensors", str(f))):
            if file not in seen and not weights.SHARD.fullmatch(file.name):
                seen.add(file)
                yield file


def _files(folder: Path, depth: int) -> Iterator[Path]:
    try:
        inside = sorted(folder.iterdir())
    except OSError:
        return
    yield from (p for p in inside if p.is_file())
    for sub in (p for p in inside if depth and p.is_dir() and not p.name.startswith(".")):
        if not (sub / "config.json").exists() or not list(
            sub.glob("model*.safetensors*")
        ):  # another checkpoint
            yield from _files(sub, depth - 1)
