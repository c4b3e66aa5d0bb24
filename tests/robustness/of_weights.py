"""Weights as safetensors: of a transformer, in shards, of an image tokenizer, of a converted checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from lumina_core import families, load
from lumina_core.convert import convert
from lumina_core.inspection import inspect
from tests import tiny
from tests.core import checkpoints as ck
from tests.robustness import mutations as m
from tests.robustness.mutations import Case
from tests.robustness.opening import Target, draw

# the weights of a transformer


def weight_cases(home: Path) -> Iterator[Case]:
    name = "model.safetensors"
    data = (home / name).read_bytes()
    header, body = m.split(data)
    head = len(data) - len(body)
    yield from m.truncated(name, data, 40)
    yield from m.foreign(name)
    yield from m.flipped(name, data, 24, 0, 8)
    yield from m.flipped(name, data, 150, 8, head)
    yield from m.flipped(name, data, 16, head)
    yield from m.safetensors_cases(name, data, 5)


# shards and their index


def build_shards(home: Path) -> None:
    ck.build(home, "mgpt2", shards=3)


def index_cases(home: Path) -> Iterator[Case]:
    name = "model.safetensors.index.json"
    index = json.loads((home / name).read_text("utf-8"))
    outside = (
        *("../x.safetensors", "/etc/passwd", "..", ".", "", "a/b.safetensors", "..\\x", "C:\\x", "C:x", "\0"),
        *(
            "//host/share/x",
            "file:///etc/passwd",
            "~/x",
            "~",
            "a\nb",
            "model.safetensors/.",
            "CON",
            "x:stream",
        ),
        *(None, 5, [], {}, True, "x" * 5000, "\ud800", "config.json", "tokenizer.json", name),
    )
    first = next(iter(index["weight_map"]))
    for odd in outside:
        new = {"weight_map": {**index["weight_map"], first: odd}}
        yield Case(f"{name}: {first} in {m.shown(odd)}", {name: m.dumped(new)}, "refused")
        yield Case(
            f"{name}: all in {m.shown(odd)}", {name: m.dumped({"weight_map": {first: odd}})}, "refused"
        )
    yield from m.json_cases(name, index, 60)
    yield from m.foreign(name)
    yield from m.truncated(name, (home / name).read_bytes(), 20)
    shards = sorted(p.name for p in home.glob("model-*.safetensors"))
    for shard in shards:
        data = (home / shard).read_bytes()
        yield Case(f"{shard} taken away", {shard: None}, "refused")
        yield Case(f"{shard} is the first one", {shard: (home / shards[0]).read_bytes()})
        yield from m.truncated(shard, data, 8)
    far = "model-00001-of-99999.safetensors"
    yield Case(f"{far}, no index", {name: None, far: (home / shards[0]).read_bytes()}, "refused")
    huge = {"weight_map": {f"x{n}": f"x{n}.safetensors" for n in range(100_000)}}
    yield Case(f"{name}: 100,000 shards", {name: m.dumped(huge)}, "refused")


# image tokenizers


def build_vq(family: str, file: str = "") -> Callable[[Path], None]:
    def build(home: Path) -> None:
        ck.build(home, family, shards=1, vq=False)
        ck.save_vq(family, home / (file or ck.VQ[family][2]))

    return build


def vq_cases(home: Path) -> Iterator[Case]:
    name = "movqgan.safetensors"
    data = (home / name).read_bytes()
    yield from m.truncated(name, data, 15)
    yield from m.flipped(name, data, 60, 8, len(data) - len(m.split(data)[1]))
    yield from m.safetensors_cases(name, data, 4)


# a converted checkpoint: one file


def build_converted(home: Path) -> None:
    home.mkdir()
    convert(tiny.build(home.parent / "to-convert"), home / "one.safetensors", "int8")


def open_converted(home: Path) -> None:
    families.listing([home])
    draw(load(home / "one.safetensors"))


def open_converted_report(home: Path) -> None:
    inspect(home / "one.safetensors").lines()


def converted_cases(home: Path) -> Iterator[Case]:
    name = "one.safetensors"
    data = (home / name).read_bytes()
    header, body = m.split(data)
    told = header["__metadata__"]
    for key in told:
        rest = {k: v for k, v in told.items() if k != key}
        for what, new in {
            "missing": rest,
            **{f"= {m.shown(odd)}": {**told, key: odd} for odd in m.ODD[::3]},
            "cut": {**told, key: told[key][: len(told[key]) // 2]},
            "deep": {**told, key: "[" * m.DEEP},
        }.items():
            yield Case(f"{name}: {key} {what}", {name: m.joined({**header, "__metadata__": new}, body)})
    about = json.loads(told["lumina_mgpt"])
    for case in m.json_cases("lumina_mgpt", about, 30):
        new = {**told, "lumina_mgpt": case.files["lumina_mgpt"].decode("utf-8", "replace")}
        yield Case(f"{name}: {case.name}", {name: m.joined({**header, "__metadata__": new}, body)})
    scales = [n for n in header if n.endswith("weight_scale")]
    for scale in scales[::3]:
        rest = {k: v for k, v in header.items() if k != scale}
        weight = scale.removesuffix("_scale")
        yield Case(f"{name}: without {scale}", {name: m.joined(rest, body)})
        bare = {k: v for k, v in header.items() if k != weight}
        yield Case(f"{name}: without {weight}", {name: m.joined(bare, body)}, "refused")
        for code in ("F8_E4M3", "U8", "BOOL"):
            odd = {**header, weight: {**header[weight], "dtype": code}}
            yield Case(f"{name}: {weight} as {code}", {name: m.joined(odd, body)})
        odd = {**header, "x.weight_scale": header[scale]}
        yield Case(f"{name}: a scale of nothing", {name: m.joined(odd, body)})
    yield from m.safetensors_cases(name, data, 3)
    yield from m.truncated(name, data, 15)


TARGETS = (
    Target("weights", tiny.build, load, weight_cases),
    Target("shards", build_shards, load, index_cases),
    Target("vq", build_vq("mgpt2", "movqgan.safetensors"), load, vq_cases),
    Target("converted", build_converted, open_converted, converted_cases),
    Target("converted-report", build_converted, open_converted_report, converted_cases, every=3),
)
