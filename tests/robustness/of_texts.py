"""Texts: config.json, tokenizers, files of prompts, golden cases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from lumina_core import Sampling, families, load, many
from lumina_core.conformance import run as run_conformance
from lumina_core.inspection import inspect
from tests import tiny
from tests.robustness import mutations as m
from tests.robustness.mutations import Case
from tests.robustness.opening import HERE, Target, draw, model_of

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
    families.listing([home])
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


TARGETS = (
    Target("config", build_config, open_drawing, config_cases, every=2),
    Target("config-report", build_config, open_report, config_cases, every=3),
    Target("tokenizer", tiny.build, open_drawing, tokenizer_cases),
    Target("tokenizer-report", tiny.build, open_report, tokenizer_cases, every=3),
    Target("prompts", build_prompts, open_prompts, prompt_cases),
    Target("conformance", build_golden, open_golden, golden_cases),
)
