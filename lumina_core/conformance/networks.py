"""Cases on networks: names and shapes, image tokenizers, transformers, the training loss."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ..image import to_network
from ..training import objective
from ..transformer import Transformer, TransformerConfig
from ..vq import blocks, chameleon, llamagen, movq
from .case import Case, Mismatch, near, near_bytes, read_transformer, read_vq, same

UNNAMED = {"max_position_embeddings": 4096}  # of the sizes a layout leaves out, the one that shapes nothing


def _build(case: Case, config: dict) -> nn.Module:
    if "codebook_size" in config:
        return llamagen.LlamaGenVQ(llamagen.config_from_json(config))
    if "ddconfig" in config:
        kind = movq.MoVQ if case.family.id == "mgpt2" else chameleon.ChameleonVQ
        return kind(blocks.config_from_json(config))
    return Transformer(TransformerConfig.from_json({**UNNAMED, **config}))


def state_dict_layout(case: Case) -> None:
    data = case.json()
    with torch.device("meta"):
        module = _build(case, data["config"])
    ignored = llamagen.IGNORED if isinstance(module, llamagen.LlamaGenVQ) else frozenset()
    got = {name: list(t.shape) for name, t in module.state_dict().items()}
    expected = {name: list(shape) for name, shape in data["keys"].items() if name not in ignored}
    same("names of tensors", sorted(expected), sorted(got))
    for name, shape in expected.items():
        same(name, shape, got[name])
    if "n_keys" in data:
        same("n_keys", data["n_keys"], len(got) + len(ignored & set(data["keys"])))
    if "params" in data:
        same("params", data["params"], sum(p.numel() for p in module.parameters()))


@torch.inference_mode()
def vq_model(case: Case) -> None:
    vq, data, golden = read_vq(case.family, case.path("weights")), case.json(), case.tensors()
    if case.has("config"):
        own = case.json("config")
        read = llamagen.config_from_json if "codebook_size" in own else blocks.config_from_json
        told, seen = read(own), vq.config
        for name in ("ch", "ch_mult", "num_res_blocks", "attn_levels", "z_channels", "embed_dim", "n_embed"):
            same(f"config {name}", getattr(told, name), getattr(seen, name))
    decoded_atol = case.tolerance("decoded_atol", 1e-3)
    for k, record in enumerate(data.get("images", [])):
        i = record.get("i", k)
        pixels = to_network(case.picture(record["image"]).convert("RGB"))
        z = vq.prequant(pixels)
        near(f"prequant_{i}", golden[f"prequant_{i}"], z, case.tolerance("prequant_atol", 2e-4))
        same(f"codes_{i}", golden[f"codes_{i}"].tolist(), vq.encode(pixels)[0].tolist())
        codes = golden[f"codes_{i}"].long()[None]
        quant = vq.quantize.lookup(codes)
        near(f"quant_{i}", golden[f"quant_{i}"], quant, case.tolerance("quant_atol", 1e-6))
        near(f"decoded_{i}", golden[f"decoded_{i}"], vq.decode(codes), decoded_atol)
    for k, record in enumerate(data.get("random_codes", [])):
        j = record.get("j", k)
        decoded = vq.decode(golden[f"rand_codes_{j}"].long()[None])
        near(f"rand_decoded_{j}", golden[f"rand_decoded_{j}"], decoded, decoded_atol)
        if f"rand_u8_{j}" in golden:
            most = int(case.tolerance("u8_max_abs", 1))
            got = vq.to_uint8(decoded)[0].numpy()
            share = case.tolerance("u8_max_fraction_off", 0.01)
            near_bytes(f"rand_u8_{j}", np.asarray(golden[f"rand_u8_{j}"]), got, most, share)


@torch.inference_mode()
def transformer(case: Case) -> None:
    model, data, golden = (
        read_transformer(case.path("weights"), case.path("config")),
        case.json(),
        case.tensors(),
    )
    atol, rtol = case.tolerance("atol", 3e-4), case.tolerance("rtol", 1e-4)
    ids = golden["input_ids"].long()
    length, prefill = ids.shape[1], data["prefill"]
    if "params" in data:
        same("params", data["params"], sum(p.numel() for p in model.parameters()))
    near("logits", golden["logits"], model.scores(model(ids)), atol, rtol)
    if "logits_cached" in golden:
        cache = model.new_cache(len(ids), length, "cpu", torch.float32)
        hidden = [model(ids[:, :prefill], 0, cache)]
        for i in range(prefill, length):
            start = torch.full((len(ids),), i)
            hidden.append(model(ids[:, i : i + 1], start, cache, length=i + 1))
        near("logits_cached", golden["logits_cached"], model.scores(torch.cat(hidden, 1)), atol, rtol)
    if "logits_block" in golden:
        end = prefill + data["block"]
        cache = model.new_cache(len(ids), length, "cpu", torch.float32)
        model(ids[:, :prefill], 0, cache)
        block = model(ids[:, prefill:end], torch.full((len(ids),), prefill), cache, length=end)
        near("logits_block", golden["logits_block"], model.scores(block), atol, rtol)


def train_loss(case: Case) -> None:
    data, rtol = case.json(), case.tolerance("rtol", 2e-4)
    model = read_transformer(case.path("weights"), case.path("config"))
    items = [(item["tokens"], item["labels"]) for item in data["items"]]
    shifted = case.family.id != "pure"
    for k, result in enumerate(data["results"]):
        most = result.get("max_position_embeddings", model.config.max_position_embeddings)
        tokens, labels = objective.collate(items, most)
        scores = model.scores(model(tokens))
        weight = result.get("z_loss_weight") or 0.0
        values = {
            "ce": objective.cross_entropy(scores, labels),
            "z_loss": objective.z_loss(scores, labels, shifted),
            "total": objective.objective(scores, labels, weight, shifted),
        }
        model.zero_grad(set_to_none=True)
        values["total"].backward()
        norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        values["grad_norm"] = torch.stack(norms).norm()
        for name, value in values.items():
            if result.get(name) is not None:
                near(f"results[{k}] {name}", result[name], value, 1e-7, rtol)
        if not set(values) & set(result):
            raise Mismatch(f"results[{k}] names nothing to compare")
