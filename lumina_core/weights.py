"""Opens weight files: headers first, tensors on demand; safetensors preferred, pickles only as plain data.

Nothing in a file is trusted: header sizes, shapes and offsets are checked against the file before anything is read.
Tensors are read with plain file reads into memory of their own, so a load holds the weights and one tensor more.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn

from .errors import CheckpointError

PART, READERS = 32 << 20, 4  # bytes a reader takes at a time; filling fresh memory is slower than a fast disk
MAX_HEADER = 100 << 20  # bytes; the limit of the safetensors library
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.\w+)")
# what training programs pickle beside the weights; none of it is needed
BESIDE_WEIGHTS = re.compile(
    r"(pytorch_lightning|lightning|lightning_fabric|omegaconf|numpy)\.|_codecs\.encode$"
)
AGAIN = "Download it again."


@dataclass(frozen=True)
class Entry:
    """Where a tensor is: its file, shape, dtype, and its first byte there; of a pickle, the tensor mapped from it.

    `stamp` is what the file was when it was opened: who replaces or cuts it before it is read is noticed.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int | None = None
    mapped: torch.Tensor | None = field(default=None, repr=False, compare=False)
    stamp: tuple[int, ...] | None = field(default=None, repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Header:
    """What stands in front of a safetensors file: its tensors by name, and its metadata."""

    entries: dict[str, Entry]
    metadata: dict[str, str]


def read_header(file: Path) -> Header:
    """The header of a safetensors file; every offset is checked against the file's size."""
    try:
        with file.open("rb") as f:
            stamp = _stamp(os.fstat(f.fileno()))
            size = stamp[0]
            start = f.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                raise CheckpointError(f"{file} is no whole safetensors file ({size} bytes). {AGAIN}")
            header = json.loads(f.read(length))
        metadata = header.pop("__metadata__", None) or {}
        entries = {name: _entry(file, name, info, 8 + length, stamp) for name, info in header.items()}
    except OSError as e:
        raise CheckpointError(f"{file} cannot be read ({e.strerror or e}).") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise CheckpointError(f"{file} has a damaged safetensors header ({e!r}). {AGAIN}") from None
    return Header(entries, {str(k): str(v) for k, v in metadata.items()})


def _stamp(stat: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is written to or replaced; its size first."""
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _entry(file: Path, name: str, info: Mapping, start: int, stamp: tuple[int, ...]) -> Entry:
    size = stamp[0]
    shape, (begin, end) = tuple(info["shape"]), info["data_offsets"]
    if info["dtype"] not in DTYPES or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise CheckpointError(
            f"{file}: tensor '{name}' has dtype {info['dtype']} and shape {shape}; not usable."
        )
    entry = Entry(file, shape, DTYPES[info["dtype"]], start + begin, stamp=stamp)
    if not 0 <= begin <= end or end - begin != entry.nbytes:
        raise CheckpointError(f"{file}: tensor '{name}' has inconsistent offsets. {AGAIN}")
    if start + end > size:
        raise CheckpointError(
            f"{file} is cut short: tensor '{name}' ends {start + end - size} bytes past the end of the file. {AGAIN}"
        )
    return entry


def shard_names(folder: Path) -> list[str]:
    """Names of the transformer's files of a checkpoint folder, whether they are there or not.

    A `CheckpointError` says so when the folder holds no weights, or an index that cannot be trusted.
    """
    for index in (folder / name for name in INDEXES):
        if not index.exists():
            continue
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index} has no 'weight_map'. {AGAIN}")
        names = sorted({str(v) for v in weight_map.values()})
        odd = [n for n in names if n in ("", ".", "..") or re.search(r"[/\\:\0]", n)]
        if odd:
            raise CheckpointError(
                f"{index} points outside its folder ('{odd[0]}') and cannot be trusted. Delete the folder and download "
                "the checkpoint from its own repository."
            )
        return names
    names = {p.name for p in folder.glob("model*.safetensors")} or {
        p.name for p in folder.glob("pytorch_model*.bin")
    }
    for m in [
        m for name in names if (m := SHARD.fullmatch(name))
    ]:  # without an index the names tell the count
        names |= {f"{m[1]}-{i:05d}-of-{m[3]}{m[4]}" for i in range(1, int(m[3]) + 1)}
    if not names:
        raise CheckpointError(
            f"No weights in {folder}: 'model.safetensors', or 'model.safetensors.index.json' with its shards, "
            "is expected there. Download them into that folder."
        )
    return sorted(names)


def transformer_files(folder: Path) -> list[Path]:
    """The transformer's files of a checkpoint folder, all present; a `CheckpointError` names what lacks."""
    names = shard_names(folder)
    missing = [n for n in names if not (folder / n).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(names)} weight files: {', '.join(missing[:4])}"
            f"{' ...' if len(missing) > 4 else ''}. Download them into that folder."
        )
    return [folder / n for n in names]


def read_json(file: Path) -> dict:
    """A JSON object from a file, or a `CheckpointError` naming the file."""
    try:
        return parse_json(file.read_text("utf-8"), str(file))
    except FileNotFoundError:
        raise CheckpointError(
            f"{file.name} is missing in {file.parent}; a checkpoint folder needs it. Download it into that folder."
        ) from None
    except (OSError, UnicodeDecodeError) as e:
        raise CheckpointError(f"{file} cannot be read as JSON ({e}). {AGAIN}") from None


def parse_json(text: str, source: str) -> dict:
    """A JSON object from text, or a `CheckpointError` naming where it stands."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{source} cannot be read as JSON ({e}). {AGAIN}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{source} holds no JSON object. {AGAIN}")
    return value


class _Inert:
    """Stands for classes a training program pickled beside its weights; holds whatever it is given, runs nothing."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


def read_pickle(file: Path) -> dict[str, torch.Tensor]:
    """The state dict of a `.ckpt` or `.pt` file, bare or under 'state_dict' or 'model'; no code in it is run.

    Tensors are memory-mapped where the file allows it. Lightning's and numpy's own objects, which published files carry
    beside the weights, are replaced by inert stand-ins; anything else that is not plain data is refused.
    """
    try:
        with _stand_ins(file):
            try:
                data = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # files in the format before torch 1.6 cannot be mapped
                data = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        found = re.search(r"(?:GLOBAL|global|class|function) ([\w.]+\.[\w.]+)", str(e))
        what = f"opening it would run code ({found[1]})" if found else "it is damaged or holds other objects"
        raise CheckpointError(
            f"{file} is not plain tensors: {what}; nothing of it was run. Take the file from its own repository, or "
            "a .safetensors version of it."
        ) from None
    except (
        RuntimeError,
        ValueError,
        EOFError,
        OSError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
    ) as e:
        line = (str(e).strip() or repr(e)).splitlines()[0][:120]
        raise CheckpointError(f"{file} cannot be opened as plain tensors ({line}). {AGAIN}") from None
    for key in ("state_dict", "model"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    if not isinstance(data, dict) or not any(isinstance(v, torch.Tensor) for v in data.values()):
        raise CheckpointError(f"{file} holds no tensors by name; another file is expected here.")
    return {str(k): v for k, v in data.items() if isinstance(v, torch.Tensor)}


def _stand_ins(file: Path):
    if not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):  # came with torch 2.6
        return nullcontext()
    names = torch.serialization.get_unsafe_globals_in_checkpoint(file) if _is_zip(file) else []
    harmless = [n for n in names if BESIDE_WEIGHTS.match(n)]
    return torch.serialization.safe_globals([(_Inert, name) for name in harmless])


def _is_zip(file: Path) -> bool:
    with file.open("rb") as f:
        return f.read(4) == b"PK\x03\x04"


def entries_of(files: Iterable[Path], prefix: str = "") -> dict[str, Entry]:
    """Every tensor of some files whose name starts with `prefix`, by its name behind it; headers only."""
    entries = {}
    for file in files:
        if file.suffix == ".safetensors":
            found = read_header(file).entries
        else:
            stamp = _stamp(file.stat()) if file.exists() else None
            found = {
                n: Entry(file, tuple(t.shape), t.dtype, mapped=t, stamp=stamp)
                for n, t in read_pickle(file).items()
            }
        entries |= {name[len(prefix) :]: e for name, e in found.items() if name.startswith(prefix)}
    return entries


def shapes_of(files: Iterable[Path], prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in some files; see `entries_of`."""
    return {name: entry.shape for name, entry in entries_of(files, prefix).items()}


def read_tensors(entries: Mapping[str, Entry]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of some entries, file by file in the order they lie there, each in memory of its own.

    Several threads fill a large tensor, so no memory is needed beyond it. A `CheckpointError` says so when a file is
    not what it was when its header was read: before any of it is taken, and again when all of it was.
    """
    with ThreadPoolExecutor(READERS) as readers:
        for file in dict.fromkeys(e.file for e in entries.values()):
            own = [(name, e) for name, e in entries.items() if e.file == file]
            if any(e.mapped is not None for _, e in own):
                for (
                    name,
                    entry,
                ) in own:  # a mapped file that was cut would end the process when it is looked at
                    _check_unchanged(entry)
                    yield name, entry.mapped.clone(memory_format=torch.contiguous_format)
            else:
                _check_unchanged(own[0][1])
                for name, entry in sorted(own, key=lambda item: item[1].offset):
                    yield name, _read(readers, name, entry)
            _check_unchanged(own[0][1])


def _check_unchanged(entry: Entry) -> None:
    try:
        now = _stamp(entry.file.stat())
    except OSError as e:
        raise CheckpointError(f"{entry.file} cannot be read any more ({e.strerror or e}).") from None
    if entry.stamp not in (None, now):
        raise CheckpointError(
            f"{entry.file} was changed while it was read. Load it again when nothing writes to it any more."
        )


def _read(readers: ThreadPoolExecutor, name: str, entry: Entry) -> torch.Tensor:
    tensor = torch.empty(entry.shape, dtype=entry.dtype)
    room = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
    parts = [(entry.offset + first, room[first : first + PART]) for first in range(0, len(room), PART)]
    read = partial(_read_part, entry.file, name)
    for _ in map(read, parts) if len(parts) < 2 else readers.map(read, parts):
        pass
    return tensor


def _read_part(file: Path, name: str, part: tuple[int, memoryview]) -> None:
    offset, room = part
    try:
        with file.open("rb", buffering=0) as f:
            f.seek(offset)
            while len(room):
                got = f.readinto(room)
                if not got:
                    raise CheckpointError(f"{file} ends inside tensor '{name}'. {AGAIN}")
                room = room[got:]
    except OSError as e:
        raise CheckpointError(f"{file} cannot be read at tensor '{name}' ({e.strerror or e}).") from None


def compare(
    expected: Mapping[str, tuple[int, ...]], entries: Mapping[str, Entry]
) -> tuple[list[str], list[str], list[str]]:
    """Names that lack, names too many, and one line for each wrong shape, of files against what a module needs."""
    missing = [name for name in expected if name not in entries]
    unexpected = [name for name in entries if name not in expected]
    wrong = [
        f"'{name}' is {list(entries[name].shape)} in {entries[name].file.name}, {list(shape)} is expected"
        for name, shape in expected.items()
        if name in entries and tuple(entries[name].shape) != tuple(shape)
    ]
    return missing, unexpected, wrong


def check(
    expected: Mapping[str, tuple[int, ...]], entries: Mapping[str, Entry], what: str, where: Path
) -> None:
    """A `CheckpointError` naming the first fault when files do not hold what a module needs."""
    missing, _, wrong = compare(expected, entries)
    if missing or wrong:
        first = f"'{missing[0]}' is missing" if missing else wrong[0]
        more = len(missing) + len(wrong) - 1
        raise CheckpointError(
            f"{where} does not hold the {what}: {first}{f', and {more} more faults' if more else ''}. "
            "Check that its files belong together, or download it again."
        )


class Bare:
    """The layers of `torch.nn` without their initialisation, for modules whose weights come from files.

    On the `meta` device initialising is not only useless: it makes torch import its symbolic shapes, 75 MB in 2 s.
    """

    class Linear(nn.Linear):
        def reset_parameters(self) -> None:
            pass

    class Embedding(nn.Embedding):
        def reset_parameters(self) -> None:
            pass

    class Conv2d(nn.Conv2d):
        def reset_parameters(self) -> None:
            pass

    class GroupNorm(nn.GroupNorm):
        def reset_parameters(self) -> None:
            pass


def shapes_in(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors a module needs."""
    return {name: tuple(t.shape) for name, t in module.state_dict().items()}


def fill(
    module: nn.Module,
    entries: Mapping[str, Entry],
    expected: Iterable[str],
    place: Callable[[str, torch.Tensor], Mapping[str, torch.Tensor]],
    report: Callable[[int], None] = lambda done: None,
) -> None:
    """Gives a module built on the `meta` device its tensors, one at a time, in the order they lie in the files.

    `place(name, tensor)` turns a tensor as read into what the module keeps (device, dtype, perhaps quantised).
    A layer is handed its tensors once all have come, through its own `load_state_dict`: a host's layers hook in there.
    `report` is told the bytes read so far after each tensor.
    """
    module.requires_grad_(False)
    wanted = {name: entries[name] for name in expected}
    waiting: dict[str, int] = {}
    for name in wanted:
        owner = name.rpartition(".")[0]
        waiting[owner] = waiting.get(owner, 0) + 1
    ready: dict[str, dict[str, torch.Tensor]] = {}
    done = 0
    for name, tensor in read_tensors(wanted):
        owner, _, leaf = name.rpartition(".")
        ready.setdefault(owner, {}).update(place(name, tensor))
        waiting[owner] -= 1
        if not waiting[owner]:
            module.get_submodule(owner).load_state_dict(ready.pop(owner), strict=False, assign=True)
        done += wanted[name].nbytes
        report(done)
    module.requires_grad_(False).eval()
