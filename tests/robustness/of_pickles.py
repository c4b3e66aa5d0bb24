"""Pickles: image tokenizers as .ckpt and .pt, LoRAs, the state of a training run; and code that hides in them."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import runpy
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from lumina_core import load, read_lora
from lumina_core.training.runner import Stage
from tests import tiny
from tests.robustness import mutations as m
from tests.robustness.mutations import Case
from tests.robustness.of_weights import build_vq
from tests.robustness.opening import HERE, Target, model_of


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


TARGETS = (
    Target("vq-ckpt", build_vq("mgpt1"), load, pickle_cases),
    Target("vq-pt", build_vq("pure"), load, pickle_cases, every=3),
    Target("lora", build_lora, open_loras, lora_cases),
    Target("training", build_state, open_state, state_cases),
)
