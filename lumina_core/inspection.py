"""What a checkpoint is, what lacks, and what it needs: read from headers alone, without building anything in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from . import checkpoint, families, memory, quant, weights
from .checkpoint import Checkpoint, TokenNames
from .errors import CheckpointError
from .families import Family, Source
from .families.trained import tasks_of
from .files import user_path
from .transformer import Transformer, TransformerConfig
from .vq.blocks import VQConfig

VARIANTS = {(4096, 32): "7B", (8192, 48): "34B", (2048, 32): "2B"}  # hidden size, layers
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float8_e4m3fn: "fp8"}


@dataclass(frozen=True)
class Report:
    """What `inspect` found. `problems` are what keeps the checkpoint from loading, each with what to do about it."""

    path: Path
    kind: str  # "checkpoint" or "image tokenizer"
    family: str  # title
    variant: str = ""
    sizes: Mapping[str, object] | None = None
    precision: str = ""
    files: int = 0
    nbytes: int = 0
    tasks: tuple[str, ...] = ()
    tasks_basis: str = ""
    tokenizer: str = ""
    image_tokenizer: str = ""
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    memory: Mapping[str, Mapping[tuple[int, int], memory.Memory]] | None = None  # precision -> size -> bytes

    @property
    def usable(self) -> bool:
        """Whether `load` would open it."""
        return not self.problems

    def lines(self) -> list[str]:
        """The report as plain text."""
        rows = [
            ("path", str(self.path)),
            ("kind", self.kind),
            ("family", f"{self.family} {self.variant}".strip()),
        ]
        if self.sizes:
            rows.append(("sizes", ", ".join(f"{k} {v}" for k, v in self.sizes.items())))
        rows.append(
            (
                "precision",
                f"{self.precision}, {_size(self.nbytes)} in {self.files} file{'s'[: self.files - 1]}",
            )
        )
        if self.tasks:
            rows.append(("tasks", f"{', '.join(self.tasks)} ({self.tasks_basis})"))
        rows += [
            (k, v) for k, v in (("tokenizer", self.tokenizer), ("image codes", self.image_tokenizer)) if v
        ]
        for name, items in (
            ("missing", self.missing),
            ("wrong shape", self.wrong),
            ("unexpected", self.unexpected),
        ):
            if items:
                rows.append((name, f"{len(items)}: {', '.join(items[:3])}{' ...' if len(items) > 3 else ''}"))
        if self.kind == "checkpoint" and not (self.missing or self.wrong):
            rows.append(
                ("tensors", "all there" + (", the unexpected ones are ignored" if self.unexpected else ""))
            )
        text = [f"{name:<12} {value}" for name, value in rows]
        return [*text, *self._memory_lines(), *(f"to do: {p}" for p in self.problems)]

    def _memory_lines(self) -> list[str]:
        if not self.memory:
            return []
        some = next(iter(self.memory.values()))
        lines = [
            "memory       weights + key-value cache (guidance on) + image decoding; MB or GB of 10^6, 10^9 bytes",
            f"{'':<12} {'weights':>10}" + "".join(f"{f'{w}x{h}':>12}" for w, h in some),
        ]
        for precision, cells in self.memory.items():
            first = next(iter(cells.values()))
            line = f"  {precision:<10} {_size(first.weights + first.vq_weights):>10}"
            lines.append(line + "".join(f"{_size(m.total):>12}" for m in cells.values()))
        return lines


def inspect(
    path: str | Path,
    *,
    folders: Sequence[str | Path] = (),
    vq_path: str | Path | None = None,
    vq_folders: Sequence[str | Path] = (),
) -> Report:
    """A report on a checkpoint (folder, converted file, bundled name) or on an image tokenizer's file.

    Reads headers only. Raises `CheckpointError` for what is neither, saying what it looks like; a checkpoint that is
    merely incomplete or damaged is reported, with what to do in `problems`.
    """
    file = user_path(path)
    if file.is_file() and file.suffix in checkpoint.VQ_SUFFIXES and (report := _image_tokenizer(file)):
        return report
    found = checkpoint.find(families.find(path, folders), whole=False)
    problems = [f"{found.path / n} is missing; download it into that folder." for n in found.missing_files]
    source, tokenizer = _source(found, problems)
    family = families.identify(source) if tokenizer else _guess(source)
    try:
        config = checkpoint.transformer_config(found)
    except CheckpointError as e:
        return _report(found, family, problems=(*problems, str(e)))
    missing, unexpected, wrong = _compare(found, config, problems)
    vq, parameters, about = _vq(found, family, vq_path, vq_folders, problems)
    if tokenizer and vq:
        try:
            family.vocabulary(source, vq.n_embed)
        except CheckpointError as e:
            problems.append(str(e))
    tasks, basis = tasks_of(family.id, found.name, found.config)
    vq = vq or memory.PUBLISHED_VQ[family.id]
    return _report(
        found,
        family,
        config,
        tasks=tasks,
        tasks_basis=basis,
        tokenizer=tokenizer,
        image_tokenizer=about,
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        wrong=tuple(wrong),
        problems=tuple(problems),
        memory=_memory(config, vq, parameters, _precision(found)),
    )


def _report(found: Checkpoint, family: Family, config: TransformerConfig | None = None, **more) -> Report:
    files = {e.file for e in found.entries.values()}
    sizes = None
    if config:
        sizes = {
            "vocabulary": config.vocab_size,
            "hidden": config.hidden_size,
            "MLP": config.intermediate_size,
            "layers": config.num_hidden_layers,
            "heads": config.num_attention_heads,
            "key-value heads": config.num_key_value_heads,
            "positions": config.max_position_embeddings,
        }
        more["variant"] = variant(config)
    return Report(
        found.path,
        "checkpoint",
        family.title,
        sizes=sizes,
        precision=_precision(found),
        files=len(files),
        nbytes=sum(e.nbytes for e in found.entries.values()),
        **more,
    )


def variant(config: TransformerConfig) -> str:
    """'7B', '34B', '2B', or the number of parameters where the sizes are none of the published ones."""
    known = VARIANTS.get((config.hidden_size, config.num_hidden_layers))
    total = sum(memory.parameters(config))
    return known or (f"{total / 1e9:.1f}B parameters" if total > 5e8 else f"{total / 1e6:.1f}M parameters")


def _source(found: Checkpoint, problems: list[str]) -> tuple[Source, str]:
    """What the families look at, and the tokenizer in words ('' when it is missing)."""
    try:
        text, settings = found.tokenizer_text(), found.tokenizer_settings()
    except CheckpointError as e:
        problems.append(str(e))
        return families.source_of(found, TokenNames({"<|image|>": -1}, None, str(found.path))), ""
    names = TokenNames.scan(text, settings, str(found.tokenizer_file))
    where = "inside" if found.metadata is not None else found.tokenizer_file.name
    return families.source_of(found, names), f"{where}, {len(names.special)} special names"


def _guess(source: Source) -> Family:
    # without a tokenizer the published vocabulary sizes still tell
    try:
        return families.identify(source)
    except CheckpointError:
        size = source.config.get("vocab_size")
        guess = "pure" if isinstance(size, int) and size >= 73728 else "mgpt1"
        return next(f for f in families.FAMILIES if f.id == guess)


def _compare(found: Checkpoint, config: TransformerConfig, problems: list[str]):
    with torch.device("meta"):
        expected = quant.stored_shapes(Transformer(config, weights.Bare), found.entries)
    missing, unexpected, wrong = weights.compare(expected, found.entries)
    unexpected = [n for n in unexpected if not n.endswith(quant.COMFY)]
    encoder = [n for n in unexpected if n.startswith(checkpoint.ENCODER_ONLY)]
    if encoder:  # one line for hundreds
        unexpected = [n for n in unexpected if n not in set(encoder)]
        unexpected.append(
            f"{checkpoint.ENCODER_ONLY}* ({len(encoder)} tensors of an encoder-only image tokenizer)"
        )
    if wrong:
        problems.append(
            f"{wrong[0]}; the files do not belong together. Download them again from one repository."
        )
    if missing and not found.missing_files:
        problems.append(
            f"'{missing[0]}' is in none of the files of {found.path}; download the weights again."
        )
    return missing, unexpected, wrong


def _vq(found: Checkpoint, family: Family, vq_path, vq_folders, problems: list[str]):
    """Configuration and parameter count of the image tokenizer, and where it is in words."""
    try:
        file, entries = families.find_vq(
            found,
            family,
            user_path(vq_path) if vq_path else None,
            [user_path(f) for f in vq_folders],
        )
    except CheckpointError as e:
        problems.append(str(e))
        return None, memory.PUBLISHED_VQ_PARAMETERS[family.id], "missing"
    config, expected = _vq_sizes(family, entries)
    missing, _, wrong = weights.compare(expected, entries)
    if missing or wrong:
        problems.append(f"{file}: {wrong[0] if wrong else f'{missing[0]!r} is missing'}; download it again.")
    count = sum(torch.Size(shape).numel() for shape in expected.values())
    where = "inside" if file == found.path else str(file)
    return config, count, f"{where}, {config.n_embed} codes, {config.factor} pixels a side"


def _vq_sizes(
    family: Family, entries: Mapping[str, weights.Entry]
) -> tuple[VQConfig, dict[str, tuple[int, ...]]]:
    with torch.device("meta"):
        vq = family.vq_from_shapes({n: e.shape for n, e in entries.items()}, weights.Bare)
    return vq.config, weights.shapes_in(vq)


def _image_tokenizer(file: Path) -> Report | None:
    try:
        entries = families.vq_entries(file)
    except CheckpointError:
        if file.suffix == ".safetensors":
            return None
        raise
    family = families.family_of_vq(entries)
    if family is None:
        return None
    config, expected = _vq_sizes(family, entries)
    missing, unexpected, wrong = weights.compare(expected, entries)
    problems = [f"{file} is damaged: {(*wrong, *missing)[0]}; download it again."] if missing or wrong else []
    kept = [entries[n] for n in expected if n in entries]
    return Report(
        file,
        "image tokenizer",
        f"of {family.title}",
        sizes={"codes": config.n_embed, "dimensions": config.embed_dim, "pixels a side": config.factor},
        precision=NAMES.get(kept[0].dtype, str(kept[0].dtype)),
        files=1,
        nbytes=sum(e.nbytes for e in kept),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        wrong=tuple(wrong),
        problems=tuple(problems),
    )


def _precision(found: Checkpoint) -> str:
    kind = quant.format_of(found.entries)
    if kind:
        return kind
    layers = [e.dtype for n, e in found.entries.items() if n.endswith("_proj.weight")]
    most = max(set(layers), key=layers.count) if layers else None
    return NAMES.get(most, str(most))


def _memory(config: TransformerConfig, vq: VQConfig, vq_parameters: int, stored: str):
    precisions = [p for p in ("fp32", "bf16", "fp8", "int8", "nf4") if p != "fp32" or stored == "fp32"]
    if stored in quant.FORMATS:
        precisions = [stored]
    sizes = memory.sizes_offered(vq, config.max_position_embeddings)
    return {
        p: {size: memory.estimate(config, vq, vq_parameters, p, size) for size in sizes} for p in precisions
    }


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
