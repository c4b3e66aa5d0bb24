"""One file of a whole checkpoint: transformer, image tokenizer, text tokenizer and configuration.

The file is plain safetensors. Transformer tensors keep the released names, those of the image tokenizer stand behind
`vq.`; the metadata holds `lumina_mgpt` (format, family, precision, name), `config`, `tokenizer` and `tokenizer_config`,
each the text of the released JSON file. Quantised layers are described in `quant.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from . import checkpoint, families, quant, weights
from .errors import CheckpointError, InputError
from .files import cannot_write, user_path
from .shortage import told
from .weights import Entry

FLOATS = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = (*FLOATS, *quant.FORMATS)
CODES = {dtype: code for code, dtype in weights.DTYPES.items()}


@dataclass(frozen=True)
class Plan:
    """What is written from what: source tensors, the tensors each becomes, and their places in the new file."""

    transformer: Mapping[str, Entry]
    vq: Mapping[str, Entry]
    make: Callable[[str, torch.Tensor], dict[str, torch.Tensor]]
    layout: Mapping[str, Entry]  # of the new file; offsets count from the end of its header
    metadata: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        return sum(e.nbytes for e in self.layout.values())

    def pieces(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor of the new file by name, in the order the sources are read."""
        for name, tensor in weights.read_tensors(self.transformer):
            yield from self.make(name, tensor).items()
        for name, tensor in weights.read_tensors(self.vq):
            yield checkpoint.VQ_PREFIX + name, tensor


def convert(
    folder: str | Path,
    out: str | Path,
    precision: str | None = None,
    *,
    folders: Sequence[str | Path] = (),
    vq_path: str | Path | None = None,
    vq_folders: Sequence[str | Path] = (),
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Writes a checkpoint as one file `out` and returns its path; memory stays at one tensor.

    `precision` is 'bf16', 'fp16', 'int8' or 'fp8'; None keeps what the files have. The image tokenizer keeps its own.
    The file is written as `out`.part, read back and compared, and only then given its name. `report(done, total)`
    counts bytes written and checked. Raises `InputError` for the arguments, `CheckpointError` for the checkpoint.
    """
    out = user_path(out)
    if precision not in (None, *PRECISIONS):
        raise InputError(f"precision is '{precision}'; it can be {', '.join(PRECISIONS)}.")
    if out.suffix != ".safetensors":
        raise InputError(f"The output '{out}' must end in .safetensors.")
    if out.exists():
        raise InputError(f"The output '{out}' exists; choose another name or delete it.")
    if not out.parent.is_dir():
        raise InputError(f"The output folder '{out.parent}' does not exist; make it or choose another.")
    plan = _plan(families.open_parts(folder, folders, vq_path, vq_folders), precision)
    free = shutil.disk_usage(out.parent).free
    if free < plan.nbytes:
        raise InputError(
            f"'{out.parent}' has {free / 1e9:.1f} GB free, the file needs {plan.nbytes / 1e9:.1f} GB. Free some room "
            "or choose another disk."
        )
    part = out.with_name(out.name + ".part")
    try:
        with told(f"writing '{out}'", "Close other programs."):
            sums = _write(part, plan, report)
            _verify(part, plan, sums, report)
        part.replace(out)
    except OSError as e:
        raise cannot_write(out, e) from None
    finally:
        with suppress(OSError):  # as in `write_whole`
            part.unlink(missing_ok=True)
    return out


def _plan(parts: families.Parts, precision: str | None) -> Plan:
    found = parts.found
    stored = quant.format_of(found.entries)
    if stored and precision not in (None, stored):
        raise InputError(
            f"{found.path} is {stored} already; convert to {precision} from the original checkpoint instead."
        )
    transformer = {name: found.entries[name] for name in parts.expected}
    transformer |= {name: e for name, e in found.entries.items() if name.endswith(quant.COMFY)}
    vq = {name: parts.vq_entries[name] for name in parts.vq_expected}
    small = set(quant.eligible(parts.plain)) if precision in quant.FORMATS and not stored else set()
    layout, make = _pieces(transformer, precision, small)
    layout |= {checkpoint.VQ_PREFIX + name: e for name, e in vq.items()}
    about = {
        "format": 1,
        "family": parts.family.id,
        "precision": precision or stored or _precision(transformer),
        "name": found.name,
    }
    metadata = {
        checkpoint.FORMAT_KEY: json.dumps(about),
        "config": json.dumps(dict(found.config)),
        "tokenizer": found.tokenizer_text(),
        "tokenizer_config": json.dumps(found.tokenizer_settings()),
        "format": "pt",
    }
    return Plan(transformer, vq, make, _placed(layout), metadata)


def _pieces(transformer: Mapping[str, Entry], precision: str | None, small: set[str]):
    """Shapes and types of the new transformer tensors, and the function that makes them from a source tensor."""

    def dtype_of(entry: Entry) -> torch.dtype:
        if not entry.dtype.is_floating_point or precision is None:
            return entry.dtype
        if precision in FLOATS:
            return FLOATS[precision]
        return torch.bfloat16 if entry.dtype.itemsize > 2 else entry.dtype

    layout = {}
    for name, entry in transformer.items():
        owner = name.removesuffix(".weight")
        if owner not in small:
            layout[name] = Entry(entry.file, entry.shape, dtype_of(entry))
            continue
        layout[name] = Entry(entry.file, entry.shape, quant.FORMATS[precision])
        scale = entry.shape[:1] if precision == "int8" else ()
        layout[owner + quant.SCALE] = Entry(entry.file, scale, torch.float32)
        if precision == "fp8":
            layout[owner + quant.COMFY] = Entry(entry.file, tuple(quant.comfy_note().shape), torch.uint8)

    def make(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        owner = name.removesuffix(".weight")
        if owner in small:
            weight, scale = quant.quantise(tensor, precision)
            made = {name: weight, owner + quant.SCALE: scale}
            return made | ({owner + quant.COMFY: quant.comfy_note()} if precision == "fp8" else {})
        new = tensor.to(layout[name].dtype)
        if new.dtype == torch.float16 and not bool(new.isfinite().all()):
            raise CheckpointError(f"'{name}' holds numbers too large for fp16; convert to bf16 instead.")
        return {name: new}

    return layout, make


def _placed(layout: Mapping[str, Entry]) -> dict[str, Entry]:
    # Wide types first: every tensor then starts at a multiple of its own size, which readers rely on.
    placed, at = {}, 0
    for name, entry in sorted(layout.items(), key=lambda item: -item[1].dtype.itemsize):
        placed[name] = Entry(entry.file, entry.shape, entry.dtype, at)
        at += entry.nbytes
    return placed


def _precision(entries: Mapping[str, Entry]) -> str:
    dtype = entries["model.layers.0.self_attn.q_proj.weight"].dtype
    return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}.get(dtype, str(dtype))


def _write(part: Path, plan: Plan, report: Callable[[int, int], None]) -> dict[str, int]:
    """Writes header and tensors; returns a checksum of each tensor."""
    header = {"__metadata__": dict(plan.metadata)}
    for name, e in plan.layout.items():
        header[name] = {
            "dtype": CODES[e.dtype],
            "shape": list(e.shape),
            "data_offsets": [e.offset, e.offset + e.nbytes],
        }
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    sums, done = {}, 0
    with part.open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        start = f.tell()
        f.truncate(start + plan.nbytes)
        for name, tensor in plan.pieces():
            data = _bytes(tensor)
            f.seek(start + plan.layout[name].offset)
            f.write(data)
            sums[name] = zlib.crc32(data)
            done += len(data)
            report(done, 2 * plan.nbytes)
        f.flush()
        os.fsync(f.fileno())
    return sums


def _verify(part: Path, plan: Plan, sums: Mapping[str, int], report: Callable[[int, int], None]) -> None:
    entries = weights.read_header(part).entries
    done = plan.nbytes
    for name, tensor in weights.read_tensors(entries):
        want = plan.layout.get(name)
        data = _bytes(tensor)
        if (
            want is None
            or (tensor.shape, tensor.dtype) != (want.shape, want.dtype)
            or zlib.crc32(data) != sums[name]
        ):
            raise CheckpointError(
                f"{part.name}: '{name}' reads back differently; the disk may be faulty. Try again."
            )
        done += len(data)
        report(done, 2 * plan.nbytes)
    if missing := plan.layout.keys() - entries.keys():
        raise CheckpointError(f"{part.name}: '{min(missing)}' was not written. Try again.")


def _bytes(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
