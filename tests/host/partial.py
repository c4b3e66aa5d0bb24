"""Partial loads inside a ComfyUI without a server: read by its interpreter, in its folder, with three folders given.

`python - EXTENSION CHECKPOINT LORAS < partial.py`

A model that does not fit is placed on the `meta` device with a small budget, as on a card that is too small; whatever
then stands on the wrong device makes a pass fail. Prints one JSON object.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import torch
import utils.install_util  # noqa: F401  ComfyUI's, before another module of that name is found
from comfy.cli_args import args

args.cpu = True
META, CPU = torch.device("meta"), torch.device("cpu")


def extension(root: Path):
    """The extension as a package of any name."""
    place = [str(root)]
    spec = importlib.util.spec_from_file_location(
        "the_extension", root / "__init__.py", submodule_search_locations=place
    )
    module = sys.modules["the_extension"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return importlib.import_module("the_extension.nodes.host"), importlib.import_module(
        "the_extension.lumina_core"
    )


def place(patcher, device: torch.device, share: float) -> dict[str, int]:
    """Loads a share of the model onto a device; bytes there and elsewhere."""
    patcher.load_device = device
    patcher.partially_load(device, patcher.model_size() * share)
    there = {"placed": 0, "kept": 0}
    for p in patcher.model.parameters():
        there["placed" if p.device.type == device.type else "kept"] += p.nbytes
    return there


def passes(model, device: torch.device) -> list[torch.Tensor]:
    """What the ways through the transformer give: prefill, a window, scores of some rows and of all."""
    t = model.transformer
    cache = t.new_cache(2, 32, device, torch.float32)
    tokens = torch.arange(12).reshape(2, 6).to(device)
    first = t(tokens, 0, cache)
    start = torch.tensor([6, 6]).to(device)
    hidden = t(tokens[:, :3], start, cache, length=9)
    scores = t.head(model.vocabulary.code_ids, device, hidden.dtype)(hidden)
    return [first, hidden, scores, t.scores(hidden)]


def pictures(model, device: torch.device) -> list[torch.Tensor]:
    codes = (torch.arange(64) % 60).reshape(1, 8, 8).to(device)
    pixels = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64).to(device)
    return [model.vq.decode(codes), model.vq.encode(pixels)]


def on_meta(host, core, folder: Path, share: float, quantise, ops) -> dict:
    model = core.load(folder, ops=ops, quantise=quantise)
    hosted = host.HostedModel(model)
    transformer, vq = place(hosted.transformer, META, share), place(hosted.vq, META, share)
    results = [*passes(model, META), *pictures(model, META)]
    return {"transformer": transformer, "vq": vq, "devices": sorted({str(r.device) for r in results})}


def exact(core, folder: Path, quantise, ops):
    """The float model whose weights are exactly what the small numbers of a quantised one stand for."""
    model, small = core.load(folder, ops=ops), core.load(folder, ops=ops, quantise=quantise)
    for name, layer in small.transformer.named_modules():
        if hasattr(layer, "weight_scale"):
            scale = layer.weight_scale
            weight = layer.weight.float() * (scale[:, None] if scale.ndim else scale)
            model.transformer.get_submodule(name).weight.data.copy_(weight)
    return model


def difference(some: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    """The largest mean difference of any two."""
    return max(float((a - b).abs().mean()) for a, b in zip(some, others, strict=True))


def lora_difference(host, core, folder: Path, lora: Path, quantise, ops) -> dict:
    """How far a placed model with a LoRA is from exact sums of weights and LoRA, and from the model without it."""
    reference = exact(core, folder, quantise, ops)
    plain = passes(reference, CPU)
    core.read_lora(lora, reference.transformer).merge(reference.transformer)
    wanted = passes(reference, CPU)
    model = core.load(folder, ops=ops, quantise=quantise)
    hosted = host.HostedModel(model).with_lora(lora, 1.0)
    out = {"moved": difference(wanted, plain)}
    for name, share in (("partly", 1e-3), ("whole", 2.0)):
        place(hosted.transformer, CPU, share)
        out[name] = difference(passes(model, CPU), wanted)
        late = sum(len(getattr(m, "weight_function", ())) for m in model.transformer.modules())
        out[f"{name} late"] = late
        out[f"{name} bytes"] = sum(p.nbytes for p in model.transformer.parameters())
        hosted.transformer.detach()
    return out | {"back": difference(passes(model, CPU), plain)}


def joined(transformer) -> int:
    """Groups of layers on one input that are computed as one product."""
    layers = [(layer.self_attn, layer.mlp) for layer in transformer.model.layers]
    groups = [g for a, m in layers for g in ((a.q_proj, a.k_proj, a.v_proj), (m.gate_proj, m.up_proj))]
    one_weight = sys.modules["the_extension.lumina_core.fused"].one_weight
    return sum(one_weight(group) is not None for group in groups)


def fused(host, core, folder: Path, ops) -> dict:
    """How a model on the CPU is computed, and how far from the same model without a host; then with patches."""
    model = core.load(folder, ops=ops)
    place(host.HostedModel(model).transformer, CPU, 2.0)
    out = {"groups": joined(model.transformer), "layers": len(model.transformer.model.layers)}
    out["apart"] = difference(passes(model, CPU), passes(core.load(folder), CPU))
    model.transformer.model.layers[0].self_attn.q_proj.weight_function = [lambda weight: weight]
    model.transformer.model.layers[1].mlp.up_proj.comfy_cast_weights = True
    return out | {"not now": joined(model.transformer)}


@torch.inference_mode()
def main(root: str, folder: str, loras: str) -> dict:
    host, core = extension(Path(root))
    ops, out = host.Layers, {}
    for quantise in (None, "int8", "fp8"):
        for share in (0.2, 0.7):
            out[f"{quantise} {share}"] = on_meta(host, core, Path(folder), share, quantise, ops)
        for lora in sorted(Path(loras).iterdir()):
            found = lora_difference(host, core, Path(folder), lora, quantise, ops)
            out[f"{lora.stem} {quantise}"] = found
    out["fused"] = fused(host, core, Path(folder), ops)
    try:
        on_meta(host, core, Path(folder), 0.2, None, torch.nn)
    except (RuntimeError, NotImplementedError) as e:
        out["plain layers"] = str(e).splitlines()[0]
    return out


if __name__ == "__main__":
    result = json.dumps(main(*sys.argv[1:4]))
    print(result)
