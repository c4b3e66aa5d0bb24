"""Ways to damage a file, all following from the file's bytes alone: the same cases in every run."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

DEEP = 100_000  # brackets within brackets
ODD = (  # values of wrong types, sizes and signs
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**9, 10**18, 10**30),
    *(float("nan"), float("inf"), float("-inf"), -0.5, 0.5, 1e308, 1e-308),
    *("", "x", "10", "../../x", "\0", "\u202e\x1b[31m", "x" * 5000, "\ud800"),
    *([], [1], [[]], ["x"], [None], {}, {"x": 1}, {"": {"": {}}}),
)


@dataclass(frozen=True)
class Case:
    """Files that differ from a sound folder: their new bytes, or None for one that is taken away.

    `must` is "refused" where opening all the same would be a fault.
    """

    name: str
    files: Mapping[str, bytes | None] = field(repr=False)
    must: str = ""


def shown(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)})"


def truncated(file: str, data: bytes, times: int) -> Iterator[Case]:
    """The file cut at places all over it, most of them near its beginning, where headers are."""
    rng = random.Random(f"cut {file}")
    near = {0, 1, 2, 4, 7, 8, 9, 10, 16, 64, len(data) - 1, len(data) - 8, len(data) // 2}
    while len(near) < times:
        near.add(int(len(data) * rng.random() ** 3))
    for at in sorted(n for n in near if 0 <= n < len(data)):
        yield Case(f"{file}: cut at {at} of {len(data)}", {file: data[:at]})


def flipped(file: str, data: bytes, times: int, first: int = 0, last: int | None = None) -> Iterator[Case]:
    """Single bits, and runs of bytes, changed between two places."""
    rng = random.Random(f"flip {file} {first}")
    last = len(data) if last is None else min(last, len(data))
    for n in range(times):
        at = rng.randrange(first, last)
        new = bytearray(data)
        if n % 4:
            new[at] ^= 1 << rng.randrange(8)
            yield Case(f"{file}: a bit of byte {at}", {file: bytes(new)})
        else:
            run = rng.choice((2, 8, 64, 512))
            new[at : at + run] = rng.randbytes(min(run, len(new) - at))
            yield Case(f"{file}: {run} bytes from {at}", {file: bytes(new)})


def foreign(file: str) -> Iterator[Case]:
    """Other things under the file's name."""
    contents = {
        "nothing": b"",
        "zeros": bytes(4096),
        "text": b"not a model\n" * 10,
        "a web page": b"<!DOCTYPE html><html><body>404</body></html>",
        "a pointer of git": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n",
        "noise": random.Random(file).randbytes(2000),
        "a zip": b"PK\x03\x04" + bytes(200),
        "an end of zip": b"PK\x05\x06" + bytes(18),
        "JSON null": b"null",
        "JSON list": b"[]",
        "JSON object": b"{}",
        "deep JSON": b"[" * DEEP,
        "deep objects": b'{"a":' * DEEP,
        "UTF-16": "{}".encode("utf-16"),
        "no UTF-8": b'{"a": "\xff\xfe"}',
        "a byte order mark": b"\xef\xbb\xbf{}",
        "many digits": b'{"a": ' + b"9" * 10_000 + b"}",
        "surrogates": b'{"a": "\\ud800"}',
    }
    for name, content in contents.items():
        yield Case(f"{file}: {name}", {file: content})


# JSON


def dumped(value) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def places(value, path: tuple = ()) -> Iterator[tuple]:
    """The paths of every value inside a JSON value, long lists and objects by their first three."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in list(inside)[:40]:
        yield from places(part, (*path, key))


def changed(value, path: Sequence, new):
    """A copy with another value at a path."""
    if not path:
        return new
    out = copy.copy(value)
    out[path[0]] = changed(value[path[0]], path[1:], new)
    return out


def without(value, path: Sequence):
    """A copy without what stands at a path."""
    out = copy.copy(value)
    if len(path) > 1:
        out[path[0]] = without(value[path[0]], path[1:])
    else:
        del out[path[0]]
    return out


def json_cases(file: str, value, times: int, odd: Sequence = ODD) -> Iterator[Case]:
    """Every value taken away once, and `times` of all odd values in all places."""
    rng = random.Random(f"json {file}")
    every = [p for p in places(value) if p]
    for path in every[:30]:
        yield Case(f"{file}: without {path}", {file: dumped(without(value, path))})
    pairs = [(path, new) for path in every for new in odd]
    for path, new in rng.sample(pairs, min(times, len(pairs))):
        yield Case(f"{file}: {path} = {shown(new)}", {file: dumped(changed(value, path, new))})


# safetensors


def split(data: bytes) -> tuple[dict, bytes]:
    """Header and data of a safetensors file."""
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header, body: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else dumped(header)
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def safetensors_cases(file: str, data: bytes, times: int) -> Iterator[Case]:
    """Headers that lie: about lengths, types, shapes, places, names; and damage of every other kind."""
    header, body = split(data)
    names = [n for n in header if n != "__metadata__"]
    rng = random.Random(f"safetensors {file}")
    head = len(data) - len(body)
    for length in (0, 1, 2, 7, head - 9, head - 7, len(data) - 8, len(data) - 7, len(data), 10**7, 100 << 20):
        yield Case(
            f"{file}: header of {length} bytes", {file: struct.pack("<Q", length) + data[8:]}, "refused"
        )
    for power in (31, 32, 40, 53, 62, 63):
        yield Case(
            f"{file}: header of 2^{power}", {file: struct.pack("<Q", 1 << power) + data[8:]}, "refused"
        )
    yield Case(f"{file}: header of 2^64 - 1", {file: b"\xff" * 8 + data[8:]}, "refused")
    for new in (b"[]", b"null", b"{", b'{"a":1}', b"[" * DEEP, b'{"a":' * DEEP, b'"x"', b"\xff\xfe"):
        yield Case(f"{file}: header {new[:12]!r}", {file: joined(new, body)}, "refused")
    for new in (None, [], "x", 5, {"a": 1}, {"a": []}, {"a": "x" * 100_000}, {"format": None}):
        yield Case(f"{file}: metadata {shown(new)}", {file: joined({**header, "__metadata__": new}, body)})
    yield from lies(file, header, body, rng.sample(names, min(times, len(names))))
    yield from bombs(file, header, body, names[0])


def lies(file: str, header: dict, body: bytes, names: Sequence[str]) -> Iterator[Case]:
    """What may be wrong with the entry of one tensor."""
    dtypes = (None, 5, "", "F31", "f32", [], {}, "F32\0", "I4", "C64", "F8_E8M0", "BOOL", "F64", "x" * 10_000)
    shapes = (
        *(None, 5, "4", [-1], [-1, -1], [2.5], ["4"], [None], [[4]], [True], {}, [10**10], [2**62], [2**63]),
        *([2**32, 2**32], [2**64, 0], [0], [0, 10**18], [], [1] * 100, [1] * 10_000, {"0": 4}),
    )
    offsets = (
        *(None, 5, "0", [], [0], [0, 0, 0], [-8, 0], [8, 0], [0, -1], ["0", "4"], [0.0, 4.0], [None, 4]),
        *([0, 10**10], [10**10, 2 * 10**10], [2**63, 2**64], [0, 2**64], [float("nan"), 4], [True, 5], {}),
    )
    for i, name in enumerate(names):
        info = header[name]
        other = names[i - 1]
        begin, end = info["data_offsets"]
        entries = [("dtype", d) for d in dtypes[i % 3 :: 3]]
        entries += [("shape", s) for s in shapes[i % 3 :: 3]]
        entries += [("data_offsets", o) for o in offsets[i % 3 :: 3]]
        entries += [
            ("data_offsets", [begin + 1, end + 1]),
            ("data_offsets", [begin, end - 1]),
            ("data_offsets", [len(body), len(body) + end - begin]),
            ("shape", [*info["shape"], 2]),
            ("shape", [*info["shape"], 1]),
            ("shape", info["shape"][::-1]),
            ("dtype", "F16"),
        ]
        for field_, new in entries:
            yield Case(
                f"{file}: {name} {field_} = {shown(new)}",
                {file: joined({**header, name: {**info, field_: new}}, body)},
            )
        for part in info:
            entry = {k: v for k, v in info.items() if k != part}
            yield Case(
                f"{file}: {name} without {part}", {file: joined({**header, name: entry}, body)}, "refused"
            )
        rest = {k: v for k, v in header.items() if k != name}
        yield Case(f"{file}: without {name}", {file: joined(rest, body)})
        yield Case(f"{file}: {name} under another name", {file: joined({**rest, name + "x": info}, body)})
        where = {**info, "data_offsets": header[other]["data_offsets"]}
        same = {**where, "shape": header[other]["shape"], "dtype": header[other]["dtype"]}
        yield Case(f"{file}: {name} lies on {other}", {file: joined({**header, name: same}, body)}, "refused")
        for odd in (None, [], "x", 5):
            yield Case(f"{file}: {name} is {odd!r}", {file: joined({**header, name: odd}, body)}, "refused")


def bombs(file: str, header: dict, body: bytes, name: str) -> Iterator[Case]:
    """Small files that ask for much."""
    big = {"dtype": "F32", "shape": [10 * (1 << 28)], "data_offsets": [0, 10 << 30]}
    yield Case(f"{file}: 10 GB in 1 KB", {file: joined({name: big}, bytes(1000))}, "refused")
    yield Case(f"{file}: 10 GB of one tensor", {file: joined({**header, name: big}, body)}, "refused")
    layers = {}
    for n in range(4000):  # all of them the same bytes
        for key, info in header.items():
            if ".layers.0." in key:
                layers[key.replace(".layers.0.", f".layers.{n}.")] = info
        if len(layers) > 8000:
            break
    if layers:
        yield Case(
            f"{file}: {len(layers)} tensors in one place",
            {file: joined({**header, **layers}, body)},
            "refused",
        )
    many = {f"x{n}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in range(60_000)}
    yield Case(f"{file}: 60,000 more tensors", {file: joined({**header, **many}, body)}, "refused")
    some = dict(list(many.items())[:15_000])
    yield Case(f"{file}: 15,000 more tensors", {file: joined({**header, **some}, body)})
    lists = b'{"a":[' + b"[]," * 3_000_000 + b"[]]}"
    yield Case(f"{file}: 3,000,000 lists", {file: joined(lists, b"")}, "refused")
    long = {**header, "x" * 1_000_000: {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}
    yield Case(f"{file}: a name of 1,000,000 letters", {file: joined(long, body)}, "refused")
    for odd in (
        "\n\n\n",
        "\x1b[2J",
        "\0",
        "../../../etc/passwd",
        "\ud800",
        "",
        "model",
        "model.layers.999999999.x",
    ):
        extra = {**header, odd: {"dtype": "F32", "shape": [1], "data_offsets": [0, 99]}}
        yield Case(f"{file}: a tensor named {odd!r}", {file: joined(extra, body)}, "refused")
