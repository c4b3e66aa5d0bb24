"""What a stranger's file can be given to: for each a sound folder, how it is opened, and the ways it is damaged."""

from __future__ import annotations

import functools
import io
import itertools
import json
import os
import pickle
import runpy
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

from lumina_core import Sampling, families, generate, load, many, read_lora, settings
from lumina_core.conformance import run as run_conformance
from lumina_core.convert import convert
from lumina_core.inspection import inspect
from lumina_core.talk import read_picture
from lumina_core.training.runner import Stage
from tests import tiny
from tests.core import checkpoints as ck
from tests.robustness import mutations as m
from tests.robustness.mutations import Case

HERE = "checkpoint"
_models: dict[str, families.Model] = {}


@dataclass(frozen=True)
class Target:
    name: str
    build: Callable[[Path], object]
    open: Callable[[Path], object]
    damage: Callable[[Path], Iterator[Case]]
    every: int = 1  # of the cases is taken, where another target takes them all or each is slow

    def cases(self, home: Path) -> Iterator[Case]:
        return itertools.islice(self.damage(home), None, None, self.every)


def draw(model: families.Model) -> None:
    """Everything that the settings of a checkpoint are used for: each task's, its sizes, a prompt, a picture."""
    for task in model.tasks:
        settings(model, task)
    assert model.own_size and model.target and model.sizes()
    prompt = model.prompt("a red circle", size=(32, 32))
    for event in generate(model.transformer, model.vocabulary, prompt, settings(model, decode="ar")):
        if hasattr(event, "grid"):
            model.decode(event.grid.codes)


# the weights of a transformer


def build_one(home: Path) -> None:
    tiny.build(home)


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


# config.json


SAID = {
    "sampling": {"cfg": 3.0, "temperature": 1.0, "image_top_k": 50, "target_size": 64, "max_tokens": 900},
    "tasks": ["text_to_image", "edit"],
    "picture_sizes": [[64, 64], [96, 64]],
    "vocabulary_map": {"<x>": 3},
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}


def build_config(home: Path) -> None:
    tiny.build(home)
    file = home / "config.json"
    config = json.loads(file.read_text("utf-8"))
    config |= {**SAID, "sampling": {**SAID["sampling"], "tasks": {"edit": {"cfg": 2.0}}}}
    file.write_text(json.dumps(config), "utf-8")


def config_cases(home: Path) -> Iterator[Case]:
    name = "config.json"
    config = json.loads((home / name).read_text("utf-8"))
    yield from m.json_cases(name, config, 120)
    for key in config:
        yield Case(f"{name}: {key} = 10**9", {name: m.dumped({**config, key: 10**9})})
    yield Case(f"{name}: deep inside", {name: m.dumped(config)[:-1] + b', "x": ' + b"[" * m.DEEP})
    yield Case(
        f"{name}: a million layers", {name: m.dumped({**config, "num_hidden_layers": 10**6})}, "refused"
    )
    sizes = {**config, "picture_sizes": [[32, 32]] * 200_000}
    yield Case(f"{name}: 200,000 sizes", {name: m.dumped(sizes)})
    yield Case(f"{name}: wide", {name: b'{"a":[' + b"[]," * 4_000_000 + b"[]]}"}, "refused")
    yield from m.foreign(name)
    yield from m.truncated(name, (home / name).read_bytes(), 20)
    yield from m.flipped(name, (home / name).read_bytes(), 30)


def open_drawing(home: Path) -> None:
    draw(load(home))


def open_report(home: Path) -> None:
    families.listing([home.parent])
    inspect(home).lines()


# tokenizers


def tokenizer_cases(home: Path) -> Iterator[Case]:
    name, beside = "tokenizer.json", "tokenizer_config.json"
    text = (home / name).read_text("utf-8")
    tokenizer = json.loads(text)
    few = {
        **tokenizer,
        "added_tokens": tokenizer["added_tokens"][:3],
    }  # most of the odd ones then fall elsewhere
    yield from m.json_cases(name, few, 60)
    yield from m.json_cases(beside, json.loads((home / beside).read_text("utf-8")), 20)
    yield from m.foreign(name)
    yield from m.foreign(beside)
    yield from m.truncated(name, text.encode(), 20)
    yield from m.flipped(name, text.encode(), 40)
    for key, value in odd_parts().items():
        part, _, what = key.partition(": ")
        yield Case(f"{name}: {part} {what}", {name: m.dumped({**tokenizer, part: value})})
    added = tokenizer["added_tokens"]
    for n in (-1, 2**31, 2**32, 2**63, 10**9, 0):
        wrong = [{**added[0], "id": n}, *added[1:]]
        yield Case(f"{name}: id {n}", {name: m.dumped({**tokenizer, "added_tokens": wrong})})
    digits = text.replace('"id": ', '"id": ' + "9" * 5000, 1).replace('"id":', '"id":' + "9" * 5000, 1)
    yield Case(f"{name}: an id of 5,000 digits", {name: digits.encode()})
    names = text.replace("<MOVQGAN00003>", "<MOVQGAN" + "9" * 4400 + ">")
    yield Case(f"{name}: a code of 4,400 digits", {name: names.encode()})
    for first in (5, ["x"], {"content": 5}, {}, {"content": "nobody"}, "nobody", "<|image|>", "\0"):
        yield Case(f"{beside}: begins with {first!r}", {beside: m.dumped({"bos_token": first})})


def odd_parts() -> dict[str, object]:
    """Parts of a tokenizer that are slow, endless or out of their minds."""
    slow = {
        "type": "Split",
        "pattern": {"Regex": "(.|.|..)*\\p{Han}"},
        "behavior": "Isolated",
        "invert": False,
    }
    grow = [{"type": "Replace", "pattern": {"String": c}, "content": c * 40} for c in "ar" * 4]
    empty = {"type": "Replace", "pattern": {"Regex": ""}, "content": "x"}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "pre_tokenizer: backtracks": slow,
        "pre_tokenizer: grows": {"type": "Sequence", "pretokenizers": [bytes_] * 40},
        "normalizer: doubles": {"type": "Sequence", "normalizers": [empty] * 30},
        "decoder: grows": {"type": "Sequence", "decoders": grow},
        "pre_tokenizer: of no regex": {**slow, "pattern": {"Regex": "("}},
        "pre_tokenizer: of a wide regex": {**slow, "pattern": {"Regex": "(a{1,1000}){1,1000}"}},
        "normalizer: grows": {"type": "Sequence", "normalizers": grow},
        "normalizer: of a charsmap": {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
        "normalizer: prepends": {"type": "Prepend", "prepend": "x" * 10_000},
        "post_processor: of nothing": {
            "type": "TemplateProcessing",
            "single": [],
            "pair": [],
            "special_tokens": {},
        },
        "decoder: strips": {"type": "Strip", "content": "a", "start": 2**31, "stop": 2**31},
        "decoder: of another kind": {
            "type": "CTC",
            "pad_token": "",
            "word_delimiter_token": "",
            "cleanup": True,
        },
        "model: without words": {"type": "BPE", "vocab": {}, "merges": []},
        "model: of words": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "b"},
        "model: of one piece": {"type": "Unigram", "unk_id": 5, "vocab": [["a", 0.0]]},
        "model: of NaN": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 1e400], ["b", -1e400]]},
        "model: of pieces": {
            "type": "WordPiece",
            "vocab": {},
            "unk_token": "x",
            "max_input_chars_per_word": 0,
        },
        "model: with far ids": {"type": "BPE", "vocab": {"a": 2**32 - 1, "b": 10**9}, "merges": []},
        "model: with merges of nothing": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]},
        "truncation: at none": {
            "max_length": 0,
            "strategy": "LongestFirst",
            "stride": 0,
            "direction": "Right",
        },
        "padding: to much": {
            **{"strategy": {"Fixed": 2**31}, "direction": "Right", "pad_to_multiple_of": None},
            **{"pad_id": 0, "pad_type_id": 0, "pad_token": "x"},
        },
    }


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


class Canary:
    """Pickled, it asks whoever opens it to make a file."""

    def __init__(self, how):
        self.how = how

    def __reduce__(self):
        return self.how


def harmful(home: Path) -> dict[str, object]:
    """What pickles ask for, by name; each would leave the file `canary`."""
    file = str(home / "canary")
    code = f"open({file!r}, 'w').close()"
    return {
        "os.system": Canary((os.system, (f"touch {file}",))),
        "exec": Canary((exec, (code,))),
        "eval": Canary((eval, (code,))),
        "open": Canary((open, (file, "w"))),
        "Path.touch": Canary((Path.touch, (Path(file),))),
        "getattr": Canary((getattr, (Path(file), "touch"))),
        "10 GB": Canary((bytearray, (10 << 30,))),
        "partial": Canary((functools.partial(exec, code), ())),
        "runpy": Canary((runpy.run_path, (str(home / "config.json"),))),
        "__import__": Canary((__import__, ("antigravity",))),
        "torch.load": Canary((torch.load, (file,))),
        "torch.save": Canary((torch.save, (1, file))),
        "pickle.loads": Canary((pickle.loads, (b"cos\nsystem\n(S'touch canary'\ntR.",))),
        "torch.hub": Canary((torch.hub.load, (str(home), "x"))),
    }


def pickle_cases(home: Path) -> Iterator[Case]:
    name = next(f.name for f in home.iterdir() if f.suffix in (".ckpt", ".pt"))
    data = (home / name).read_bytes()
    state = torch.load(home / name, weights_only=True)
    inner = next((k for k in ("state_dict", "model") if k in state), None)
    tensors = state[inner] if inner else state
    for what, object_ in harmful(home).items():
        for where, content in {
            "beside": {**tensors, "x": object_},
            "alone": object_,
            "deep": {"state_dict": {**tensors, "x": [object_]}},
        }.items():
            for zipped in (True, False):
                new = saved(content, zipped)
                yield Case(f"{name}: {what} {where}{' zipped' * zipped}", {name: new}, "refused")
        yield Case(
            f"{name}: {what} in a bare pickle", {name: pickle.dumps({**state, "x": object_})}, "refused"
        )
    for text in (b"cos\nsystem\n(S'touch canary'\ntR.", b"\x80\x02c__builtin__\neval\nq\0.", b"\x80\x04."):
        yield Case(f"{name}: {text!r}", {name: text}, "refused")
    for odd in (
        None,
        [],
        {},
        5,
        "x",
        {"state_dict": None},
        {"state_dict": {"state_dict": {}}},
        [tensors],
        {1: 2},
    ):
        yield Case(f"{name}: holds {m.shown(odd)}", {name: saved(odd)}, "refused")
    for key in list(tensors)[::24]:
        rest = {k: v for k, v in tensors.items() if k != key}
        t = tensors[key]
        for what, new in {
            "missing": None,
            "of another shape": t[None],
            "half": t.half(),
            "int": t.to(torch.int64),
            "bool": t > 0,
            "complex": t.to(torch.complex64),
            "sparse": t.to_sparse(),
            "10 GB": torch.zeros(1).expand(10 * (1 << 28)),
            "meta": torch.empty(1 << 40, device="meta"),
            "NaN": t * float("nan"),
            "a number": 5,
            "a list": [1],
            "quantised": torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
            "strided": torch.zeros(t.numel() * 2).as_strided(t.shape, [0] * t.ndim),
        }.items():
            yield Case(f"{name}: {key} {what}", {name: saved(rest if new is None else {**rest, key: new})})
    yield from m.foreign(name)
    yield from m.truncated(name, data, 25)
    yield from m.flipped(name, data, 40, 0, 3000)
    yield from m.flipped(name, data, 20, len(data) - 12_000)
    old = saved(state, zipped=False)
    yield Case(f"{name}: before torch 1.6", {name: old})
    yield from m.truncated(name, old, 12)
    yield from m.flipped(name, old, 30, 0, 4000)


def saved(content, zipped: bool = True) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=zipped)
    return out.getvalue()


# LoRAs


def build_lora(home: Path) -> None:
    model = load(tiny.build(home / HERE))
    tensors = {}
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"):
        layer = model.transformer.get_submodule(name)
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.ones(2, layer.in_features)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.ones(layer.out_features, 2)
    save_file(tensors, home / "adapter_model.safetensors")
    config = {"r": 2, "lora_alpha": 4, "alpha_pattern": {"layers.0.self_attn.q_proj": 8}, "use_rslora": False}
    (home / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    kohya = {
        "lora_unet_model_layers_0_mlp_up_proj.lora_down.weight": torch.ones(2, 32),
        "lora_unet_model_layers_0_mlp_up_proj.lora_up.weight": torch.ones(64, 2),
        "lora_unet_model_layers_0_mlp_up_proj.alpha": torch.tensor(2.0),
    }
    torch.save(kohya, home / "kohya.pt")
    save_file(kohya, home / "kohya.safetensors")


def model_of(home: Path) -> families.Model:
    if str(home) not in _models:
        _models[str(home)] = load(home / HERE)
    return _models[str(home)]


def open_loras(home: Path) -> None:
    transformer = model_of(home).transformer
    for name in ("adapter_model.safetensors", "kohya.pt", "kohya.safetensors"):
        lora = read_lora(home / name, transformer)
        lora.tensors(transformer)
        lora.merge(transformer, 0.0)


def lora_cases(home: Path) -> Iterator[Case]:
    config = json.loads((home / "adapter_config.json").read_text("utf-8"))
    odd = ("(", "(a+)+$", "(a|a)*" * 30 + "b", "x" * 100_000)
    for pattern in odd:
        new = {**config, "alpha_pattern": {pattern: 4, **config["alpha_pattern"]}}
        yield Case(f"adapter_config.json: pattern {m.shown(pattern)}", {"adapter_config.json": m.dumped(new)})
    backtracks = {**config, "alpha_pattern": {"(([a-z]|[_.0-9])+)+!": 4}}
    yield Case(
        "adapter_config.json: a pattern that backtracks", {"adapter_config.json": m.dumped(backtracks)}
    )
    yield from m.json_cases("adapter_config.json", config, 100)
    yield from m.foreign("adapter_config.json")
    for name in ("adapter_model.safetensors", "kohya.safetensors"):
        data = (home / name).read_bytes()
        yield from m.safetensors_cases(name, data, 2)
        yield from m.truncated(name, data, 20)
        yield from m.flipped(name, data, 30, 0, len(data) - len(m.split(data)[1]))
        yield from m.foreign(name)
    kohya = torch.load(home / "kohya.pt", weights_only=True)
    up, down, alpha = list(kohya)[1], list(kohya)[0], list(kohya)[2]
    for key, new in (
        *((alpha, torch.tensor(float(x))) for x in ("nan", "inf", "-1e38")),
        *((alpha, torch.zeros(s)) for s in ((0,), (2, 2))),
        *((alpha, torch.zeros(1, dtype=d)) for d in (torch.int64, torch.bool, torch.complex64)),
        *((up, torch.zeros(s)) for s in ((0, 2), (64, 0), (64, 3), (64,), (1, 64, 2), (64, 2, 1, 1))),
        *((down, torch.zeros(s)) for s in ((0, 32), (2, 0), (3, 32), ())),
        *(
            (down, torch.zeros(2, 32, dtype=d))
            for d in (torch.int8, torch.bool, torch.complex64, torch.float64)
        ),
        (up, torch.full((64, 2), float("nan"))),
    ):
        text = f"{tuple(new.shape)} {new.dtype} {new.flatten()[:1].tolist()}"
        yield Case(f"kohya.pt: {key} is {text}", {"kohya.pt": saved({**kohya, key: new})})
    none = {down: torch.zeros(0, 32), up: torch.zeros(64, 0), alpha: torch.tensor(1.0)}
    yield Case("kohya.pt: of rank 0", {"kohya.pt": saved(none)})
    for what, object_ in harmful(home).items():
        yield Case(f"kohya.pt: {what}", {"kohya.pt": saved({**kohya, "x": object_})}, "refused")
    yield from m.truncated("kohya.pt", (home / "kohya.pt").read_bytes(), 20)
    yield from m.flipped("kohya.pt", (home / "kohya.pt").read_bytes(), 40)
    yield from m.foreign("kohya.pt")


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


# pictures


def build_pictures(home: Path) -> None:
    home.mkdir()
    picture = Image.effect_noise((40, 30), 90).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix, options in PICTURES.items():
        kind = picture.convert("P") if suffix == "gif" else picture
        more = {"exif": exif} if suffix in ("jpg", "png", "webp", "tiff") else {}
        kind.save(home / f"picture.{suffix}", **options, **more)


PICTURES = {
    "png": {},
    "jpg": {},
    "webp": {},
    "gif": {},
    "bmp": {},
    "tiff": {"compression": "tiff_lzw"},
    "ppm": {},
}


def open_pictures(home: Path) -> None:
    for suffix in PICTURES:
        read_picture(home / f"picture.{suffix}").convert("RGBA")


def png(width: int, height: int, *chunks: tuple[bytes, bytes], kind: int = 2, depth: int = 8) -> bytes:
    """A PNG by hand, whatever it says."""
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    out = b"\x89PNG\r\n\x1a\n"
    for name, content in ((b"IHDR", head), *chunks, (b"IEND", b"")):
        out += (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )
    return out


def picture_cases(home: Path) -> Iterator[Case]:
    for suffix in PICTURES:
        name = f"picture.{suffix}"
        data = (home / name).read_bytes()
        yield from m.truncated(name, data, 16)
        yield from m.flipped(name, data, 40, 0, 200)
        yield from m.flipped(name, data, 12)
    yield from m.foreign("picture.png")
    empty = zlib.compress(bytes(1000))
    sides = (
        (0, 0),
        (0, 5),
        (2**31 - 1, 2**31 - 1),
        (100_000, 100_000),
        (1 << 20, 1),
        (1, 1 << 20),
        (20_000, 20_000),
    )
    for w, h in (*sides, (13_000, 13_000), (8000, 7700)):
        for depth, kind in ((8, 2), (1, 0), (16, 6)):
            yield Case(
                f"picture.png: {w}x{h} depth {depth} kind {kind}",
                {"picture.png": png(w, h, (b"IDAT", empty), kind=kind, depth=depth)},
            )
    bomb = zlib.compress(bytes(1 << 27), 9)
    for chunk in (b"zTXt", b"iCCP"):
        content = (b"k\0\0" if chunk == b"zTXt" else b"k\0\0") + bomb
        yield Case(
            f"picture.png: a bomb in {chunk!r}",
            {"picture.png": png(4, 4, (chunk, content), (b"IDAT", empty))},
        )
    yield Case("picture.png: more data than pixels", {"picture.png": png(4, 4, (b"IDAT", bomb))})
    exif = b"II*\0\x08\0\0\0" + b"\xff" * 200
    sound = (b"IDAT", zlib.compress(bytes(60)))
    yield Case("picture.png: odd exif", {"picture.png": png(4, 4, (b"eXIf", exif), sound)})
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) print\n"
    for magic in (program, b"<svg xmlns='x'/>", b"%PDF-1.4\n"):
        yield Case(f"picture.png: {magic[:9]!r}", {"picture.png": magic})
    packer, row = zlib.compressobj(1), bytes(1 + 3 * 7900)
    rows = b"".join(packer.compress(row) for _ in range(7800)) + packer.flush()
    yield Case(
        "picture.png: 61 million sound pixels", {"picture.png": png(7900, 7800, (b"IDAT", rows))}, "opened"
    )
    frames = [Image.new("P", (2000, 2000), n) for n in range(2)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=[frames[n % 2] for n in range(200)])
    yield Case("picture.gif: 200 frames of 2000x2000", {"picture.gif": out.getvalue()})


# prompts, and the pictures they resume from


def build_prompts(home: Path) -> None:
    tiny.build(home / HERE)
    (home / "out").mkdir()
    (home / "prompts.jsonl").write_text('{"prompt": "a red circle"}\n', "utf-8")


def open_prompts(home: Path) -> None:
    many.read(model_of(home), home / "prompts.jsonl", home / "out", Sampling(), (32, 32))


LINE = {
    **{
        "prompt": "a red circle",
        "size": "32x32",
        "task": "text_to_image",
        "name": "x",
        "seed": 1,
        "cfg": 2.0,
    },
    **{"temperature": 1.0, "image_top_k": 9, "text_top_k": 9, "decode": "ar", "batch": 2, "max_tokens": 100},
    **{"upstream_exact": False, "window": 4},
}


def prompt_cases(home: Path) -> Iterator[Case]:
    name = "prompts.jsonl"
    yield from m.json_cases(name, LINE, 400)
    for key in LINE:
        yield Case(f"{name}: {key} = 10**30", {name: m.dumped({**LINE, key: 10**30})})
        yield Case(f"{name}: {key} = -1", {name: m.dumped({**LINE, key: -1})})
    outside = ("../x", "/x", "x/../../y", "a\\b", "C:x", ".", "..")
    for odd in (*outside, "con", "NUL.png", "x" * 300, "a\0", "x.", " x", "\u202e"):
        yield Case(f"{name}: name {odd!r}", {name: m.dumped({**LINE, "name": odd})}, "refused")
    special = ("<racm3:break>" * 50, "<|image|>", "<MOVQGAN00001>", "{width} {x}")
    for text in (*special, "\ud800", "\0", "x" * 100_000, "😀" * 3000):
        yield Case(f"{name}: prompt {m.shown(text)}", {name: m.dumped({**LINE, "prompt": text})})
    for size in ("0x0", "99999x99999", "-1x5", "32x", "x", "32X32", "32x32x32", "٣٢x٣٢", "1e3x32", "31x32"):
        yield Case(f"{name}: size {size!r}", {name: m.dumped({**LINE, "size": size})})
    line = m.dumped(LINE)
    yield Case(f"{name}: 2000 lines, one name", {name: (line + b"\n") * 2000}, "refused")
    yield Case(f"{name}: a batch of 4096", {name: m.dumped({**LINE, "batch": 4096})})
    yield from m.foreign(name)
    yield from m.truncated(name, line, 20)
    yield from m.flipped(name, line, 60)


def open_resumed(home: Path) -> None:
    [job] = many.read(model_of(home), home / "prompts.jsonl", home / "out", Sampling(), (32, 32))
    many._is_there(job)


def build_resumed(home: Path) -> None:
    build_prompts(home)
    [job] = many.read(model_of(home), home / "prompts.jsonl", home / "out", Sampling(), (32, 32))
    many.save(job.file, Image.new("RGB", (32, 32)), job.info)


def resumed_cases(home: Path) -> Iterator[Case]:
    file = next((home / "out").glob("*.png"))
    name, data = f"out/{file.name}", file.read_bytes()
    pixels = (b"IDAT", zlib.compress(bytes(97 * 32)))
    deep = b"[" * m.DEEP
    for text in (
        b"null",
        b"[]",
        deep,
        b"{}",
        b'{"a":',
        b"9" * 5000,
        b"\xff",
        b"",
        b'{"prompt": NaN}',
        b"{" * 9,
    ):
        chunks = (b"tEXt", b"lumina_mgpt\0" + text), (b"zTXt", b"lumina_mgpt\0\0" + zlib.compress(text))
        for chunk in chunks:
            yield Case(f"{name}: says {text[:9]!r} in {chunk[0]!r}", {name: png(32, 32, chunk, pixels)})
    bomb = b"lumina_mgpt\0\0" + zlib.compress(bytes(1 << 27), 9)
    yield Case(f"{name}: a bomb of text", {name: png(32, 32, (b"zTXt", bomb), pixels)})
    more = [(b"zTXt", b"k%d\0\0" % n + zlib.compress(bytes(1 << 19), 9)) for n in range(500)]
    yield Case(f"{name}: many small bombs", {name: png(32, 32, *more, pixels)})
    yield Case(f"{name}: says its text with an odd size", {name: png(2**31 - 1, 2**31 - 1, pixels)})
    for kind in ("JPEG", "WEBP", "GIF", "TIFF"):
        out = io.BytesIO()
        Image.new("RGB", (8, 8)).save(out, kind)
        yield Case(f"{name}: is a {kind}", {name: out.getvalue()})
    info = PngImagePlugin.PngInfo()
    info.add_itxt("lumina_mgpt", "{" * 100_000)
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PNG", pnginfo=info)
    yield Case(f"{name}: deep text", {name: out.getvalue()})
    yield from m.foreign(name)
    yield from m.truncated(name, data, 30)
    yield from m.flipped(name, data, 80)


# a training run's state


def build_state(home: Path) -> None:
    home.mkdir()
    model = torch.nn.Linear(3, 2)
    optimiser = torch.optim.Adam(model.parameters())
    state = {"step": 3, "seconds": 1.0, "model": model.state_dict(), "optimiser": optimiser.state_dict()}
    Stage(home, "vq", print).save(state)


def open_state(home: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimiser = torch.optim.Adam(model.parameters())
    with Stage(home, "vq", print).resuming() as state:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        range(state["step"], 10), float(state["seconds"])


def state_cases(home: Path) -> Iterator[Case]:
    data = (home / "vq.pt").read_bytes()
    for what, object_ in harmful(home).items():
        for zipped in (True, False):
            new = saved({"step": 1, "x": object_}, zipped)
            yield Case(f"vq.pt: {what}{' zipped' * zipped}", {"vq.pt": new}, "refused")
    yield from m.foreign("vq.pt")
    yield from m.truncated("vq.pt", data, 30)
    yield from m.flipped("vq.pt", data, 60)
    for odd in (None, [], 5, "x", torch.ones(2)):
        yield Case(f"vq.pt: holds {odd!r}", {"vq.pt": saved(odd)}, "refused")


# golden cases


def build_golden(home: Path) -> None:
    home.mkdir()
    entries = [
        {"id": "a", "kind": "crop_size_list", "family": "lumina1", "files": {"case": "sizes.json"}},
        {"id": "b", "kind": "var_center_crop", "family": "lumina1", "files": {"case": "crops.json"}},
    ]
    (home / "index.json").write_text(json.dumps({"cases": entries}), "utf-8")
    sizes = [list(s) for s in families.model.allowed_sizes(64)]
    (home / "sizes.json").write_text(json.dumps({"patch": 32, "lists": {"64": sizes}}), "utf-8")
    record = {"in": [70, 64], "crop_size": [64, 64], "box_halvings": [], "bicubic_resize": [70, 64]}
    record |= {"crop_box": [3, 0, 67, 64], "target_size": 64}
    (home / "crops.json").write_text(json.dumps({"records": [record]}), "utf-8")


def open_golden(home: Path) -> None:
    run_conformance(home, lambda line: None)


def golden_cases(home: Path) -> Iterator[Case]:
    index = json.loads((home / "index.json").read_text("utf-8"))
    yield from m.json_cases("index.json", index, 60)
    yield from m.foreign("index.json")
    for path in ("../x", "/etc/passwd", "..\\x", "", ".", "\0", 5, None, [], "x" * 5000):
        new = m.changed(index, ("cases", 0, "files", "case"), path)
        yield Case(f"index.json: case in {m.shown(path)}", {"index.json": m.dumped(new)})
    for name in ("sizes.json", "crops.json"):
        yield from m.json_cases(name, json.loads((home / name).read_text("utf-8")), 60)
        yield from m.foreign(name)


TARGETS = {
    t.name: t
    for t in (
        Target("weights", build_one, load, weight_cases),
        Target("shards", build_shards, load, index_cases),
        Target("config", build_config, open_drawing, config_cases, every=2),
        Target("config-report", build_config, open_report, config_cases, every=3),
        Target("tokenizer", build_one, open_drawing, tokenizer_cases),
        Target("tokenizer-report", build_one, open_report, tokenizer_cases, every=3),
        Target("vq", build_vq("mgpt2", "movqgan.safetensors"), load, vq_cases),
        Target("vq-ckpt", build_vq("mgpt1"), load, pickle_cases),
        Target("vq-pt", build_vq("pure"), load, pickle_cases, every=3),
        Target("lora", build_lora, open_loras, lora_cases),
        Target("converted", build_converted, open_converted, converted_cases),
        Target("converted-report", build_converted, open_converted_report, converted_cases, every=3),
        Target("pictures", build_pictures, open_pictures, picture_cases),
        Target("prompts", build_prompts, open_prompts, prompt_cases),
        Target("resumed", build_resumed, open_resumed, resumed_cases),
        Target("training", build_state, open_state, state_cases),
        Target("conformance", build_golden, open_golden, golden_cases),
    )
}
