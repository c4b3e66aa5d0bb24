"""Opens weight files: headers first, tensors on demand; safetensors preferred, pickles as in `pickles`.

Nothing in a file is trusted: header sizes, shapes and offsets are checked against the file before anything is read.
Tensors are read with plain file reads into memory of their own, so a load holds the weights and one tensor more.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn

from .documents import AGAIN, parse_json, read_json
from .errors import CheckpointError
from .pickles import read_pickle

PART, READERS = 32 << 20, 4  # bytes a reader takes at a time; filling fresh memory is slower than a fast disk
MAX_HEADER = 32 << 20  # bytes; converted files hold their tokenizer in it, of 11 MB at most
MOST_FILES = 1000  # shards of a checkpoint
MOST_TENSORS = 20_000  # of a file; released ones have up to 1,000
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
FORMAT_KEY = (
    "lumina_mgpt"  # metadata of a converted file; stands first in its header, so that listings can peek
)
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
PLAIN_NAME = re.compile(r"[^/\\:]{1,255}")
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.\w+)")


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
            text = f.read(length).decode("utf-8")
        header = parse_json(text, f"The safetensors header of {file}")
        metadata = header.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict):
            raise CheckpointError(
                f"{file} has a damaged safetensors header: its metadata is no object. {AGAIN}"
            )
        if len(header) > MOST_TENSORS:
            raise CheckpointError(
                f"{file} holds {len(header)} tensors, more than any checkpoint has. {AGAIN}"
            )
        entries = {name: _entry(file, name, info, 8 + length, stamp) for name, info in header.items()}
    except OSError as e:
        raise CheckpointError(f"{file} cannot be read ({e.strerror or e}).") from None
    except (ValueError, KeyError, TypeError, OverflowError) as e:
        what = "it is no text" if isinstance(e, UnicodeDecodeError) else repr(e)
        raise CheckpointError(f"{file} has a damaged safetensors header ({what}). {AGAIN}") from None
    _check_places(file, entries, 8 + length, size)
    return Header(entries, {str(k): str(v) for k, v in metadata.items()})


def _stamp(stat: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is written to or replaced; its size first."""
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _entry(file: Path, name: str, info: Mapping, start: int, stamp: tuple[int, ...]) -> Entry:
    size = stamp[0]
    shape, (begin, end) = tuple(info["shape"]), info["data_offsets"]
    if info["dtype"] not in DTYPES or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
        raise CheckpointError(
            f"{file}: tensor '{name}' has dtype {info['dtype']} and shape {list(shape)}; not usable. {AGAIN}"
        )
    entry = Entry(file, shape, DTYPES[info["dtype"]], start + begin, stamp=stamp)
    if not 0 <= begin <= end or end - begin != entry.nbytes:
        raise CheckpointError(f"{file}: tensor '{name}' has inconsistent offsets. {AGAIN}")
    if start + end > size:
        raise CheckpointError(
            f"{file} is cut short: tensor '{name}' ends {start + end - size} bytes past the end of the file. {AGAIN}"
        )
    return entry


def _check_places(file: Path, entries: Mapping[str, Entry], start: int, size: int) -> None:
    """Tensors lie one behind the other up to the end; a small file could else be named as any amount of weights."""
    at = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if entry.offset != at:
            fault = "lies on another one" if entry.offset < at else "lies behind bytes that are no tensor's"
            raise CheckpointError(f"{file}: tensor '{name}' {fault}. {AGAIN}")
        at += entry.nbytes
    if at != size:
        raise CheckpointError(f"{file}: {size - at} bytes at its end are no tensor's. {AGAIN}")


def shard_names(folder: Path) -> list[str]:
    """Names of the transformer's files of a checkpoint folder, whether they are there or not.

    A `CheckpointError` says so when the folder holds no weights, or an index that cannot be trusted.
    """
    names = named_shards(folder)
    if not names:
        raise CheckpointError(
            f"No weights in {folder}: 'model.safetensors', or 'model.safetensors.index.json' with its shards, "
            "is expected there. Download them into that folder."
        )
    return names


def named_shards(folder: Path) -> list[str]:
    """As `shard_names`; none where the folder holds no weights."""
    for index in (folder / name for name in INDEXES):
        if not index.exists():
            continue
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index} has no 'weight_map'. {AGAIN}")
        # A name must stay in its folder: whoever made the index wrote it. What stands there under that name may well
        # be a link to elsewhere (huggingface_hub's cache is made of them): links are the user's own.
        names = sorted({str(v) for v in weight_map.values()})
        odd = [n for n in names if n in (".", "..") or not PLAIN_NAME.fullmatch(n) or not n.isprintable()]
        if odd:
            raise CheckpointError(
                f"{index} points outside its folder ('{odd[0]}') and cannot be trusted. Delete the folder and download "
                "the checkpoint from its own repository."
            )
        return _not_too_many(folder, names)
    names = _names_without_index(folder, "model", ".safetensors")
    names = names or _names_without_index(folder, "pytorch_model", ".bin")
    return _not_too_many(folder, sorted(names))


def _names_without_index(folder: Path, stem: str, suffix: str) -> set[str]:
    """The file called so, else shards, whose names tell their count, else the only file that begins so.

    What lies beside these is another checkpoint, or a copy of this one.
    """
    files = {p.name for p in folder.glob(f"{stem}*{suffix}") if not is_converted(p)}
    if stem + suffix in files:
        return {stem + suffix}
    shards = {
        f"{m[1]}-{i:05d}-of-{m[3]}{m[4]}"
        for m in map(SHARD.fullmatch, files)
        if m
        for i in range(1, min(int(m[3]), MOST_FILES + 1) + 1)
    }
    return shards or (files if len(files) == 1 else set())


def is_converted(file: Path) -> bool:
    """Whether a file was written by `convert`, from its first bytes; never raises."""
    if not file.is_file():  # a named pipe would be waited for
        return False
    try:
        with file.open("rb") as f:
            return f'"{FORMAT_KEY}"'.encode() in f.read(64)
    except OSError:
        return False


def _not_too_many(folder: Path, names: list[str]) -> list[str]:
    if len(names) > MOST_FILES:
        raise CheckpointError(
            f"{folder} is to hold more than {MOST_FILES} weight files ('{names[0]}' and on), more than any checkpoint "
            "has. Download it again from its own repository."
        )
    return names


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
                for name, entry in own:
                    _check_unchanged(entry)  # a mapped file that was cut would end the process when looked at
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
    wrong += [
        f"'{name}' is of type {entry.dtype} in {entry.file.name}, floating-point numbers are expected"
        for name in expected
        if (entry := entries.get(name))
        and not entry.dtype.is_floating_point
        and f"{name}_scale" not in entries
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
