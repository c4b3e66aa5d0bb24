"""Cases on decoding: the logits rules step by step, PURE's top-k, whole greedy runs."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import torch

from ..families.model import Model
from ..prompts import Prompt, answer_text
from ..sampling import AnswerFinished, PictureFinished, Sampling, generate
from ..sampling.logits import entropy, top_k_of_entropy
from ..sampling.rules import Rules, place_after, replay
from ..unirep import Vocabulary
from .case import (
    Case,
    Mismatch,
    build_model,
    near,
    near_bytes,
    read_tokenizer,
    read_transformer,
    read_vq,
    same,
)
from .texts import prompt_of

KINDS = {"text": "free", "size": "free", "code": "image", "row_end": "forced", "end": "forced"}


def vocabulary_of_numbers(ids: dict, latents: int, size: int) -> Vocabulary:
    """A token table of a case that gives numbers in the place of a tokenizer."""
    codes = torch.cat([torch.arange(low, high + 1) for low, high in ids["image_ranges"]])
    taken = {*codes.tolist(), *(ids[name] for name in ("image_start", "image_end", "new_line", "separator"))}
    grid = {n: ids["grid_0"] + n for n in range(1, 257)}
    return Vocabulary(
        bos=0,
        separator=ids["separator"],
        separator_name="",
        image_start=ids["image_start"],
        image_end=ids["image_end"],
        row_end=ids["new_line"],
        placeholder=-1,
        grid={n: token for n, token in grid.items() if token < size and token not in taken},
        code_ids=codes,
        latents_per_unit=latents,
    )


def sampling_of(params: dict, **more) -> Sampling:
    """The settings of a case; what it leaves out is upstream's default."""
    return Sampling(
        cfg=params.get("cfg", params.get("guidance_scale", 3.0)),
        temperature=params.get("temperature", 1.0),
        image_top_k=params.get("image_top_k", 2000),
        text_top_k=params.get("text_top_k", 10),
        **more,
    )


def entropy_limits(case: Case, params: dict) -> tuple[int, int] | None:
    """Lowest and highest top-k of the family's rule, as the case sets them."""
    usual = case.family.entropy_top_k
    return usual and (params.get("min_top_k", usual[0]), params.get("max_top_k", usual[1]))


def logits_pipeline(case: Case) -> None:
    data = case.json()
    size = data["vocab_size"]
    vocabulary = vocabulary_of_numbers(data["ids"], data["latents_per_grid"], size)
    for run in data["runs"]:
        params = run["params"]
        decay = case.family.guidance_decay and params.get("guidance_decay", run.get("guidance_decay", True))
        sampling = sampling_of(params, upstream_exact=decay)
        rules = Rules(vocabulary, sampling, entropy_limits(case, params), case.family.guidance_decay)
        for step in run["steps"]:
            _step(case, rules, run, step, size, f"{run.get('name')} n_ids {step['n_ids']}")


def _scores(seed: int, size: int, scale: float) -> torch.Tensor:
    return torch.from_numpy((np.random.RandomState(seed).randn(size) * scale).astype(np.float32))


def _step(case: Case, rules: Rules, run: dict, step: dict, size: int, where: str) -> None:
    tokens = run["tokens"][: step["n_ids"]]
    place = place_after(tokens, rules.vocabulary)
    fed = rules.unconditional_tokens(tokens, place)
    same(f"{where} cfg_applied", step["cfg_applied"], bool(fed))
    same(f"{where} uncond_new_tokens", step.get("uncond_new_tokens", []), fed)
    same(f"{where} kind", step["kind"], KINDS[place.kind])
    scale = run.get("scale", 1.0)
    cond = _scores(step["cond_seed"], size, scale)
    uncond = _scores(step["uncond_seed"], size, scale) if fed else None
    guided = rules.guided(place, cond, uncond)
    final = rules.limited(place, guided)
    if step.get("guidance") is not None and fed:
        near(f"{where} guidance", step["guidance"], rules.scale, 1e-5, 1e-5)
    if step.get("entropy") is not None:
        near(f"{where} entropy", step["entropy"], entropy(guided), 1e-4, 1e-4)
    if step["kind"] == "forced":
        same(f"{where} forced_id", step["forced_id"], place.forced(rules.vocabulary))
        same(f"{where} forced score", 0.0, float(final[step["forced_id"]]))
        same(f"{where} allowed ids", 1, int(final.isfinite().sum()))
        return
    if "dynamic_top_k" in step:
        got = rules.top_k(place, guided) if place.in_picture and rules.entropy_top_k else None
        same(f"{where} dynamic_top_k", step["dynamic_top_k"], got)
    _summary(case, step["final"], final, where)


def _summary(case: Case, expected: dict, final: torch.Tensor, where: str) -> None:
    atol, rtol = case.tolerance("value_atol", 1e-4), case.tolerance("value_rtol", 1e-5)
    kept = final.isfinite().nonzero().flatten()
    values = final[kept]
    same(f"{where} n_finite", expected["n_finite"], len(kept))
    if "ids" in expected:
        same(f"{where} ids", expected["ids"], kept.tolist())
        near(f"{where} values", expected["values"], values, atol, rtol)
    if "ids_sha256" in expected:
        digest = hashlib.sha256(kept.numpy().astype("<i4").tobytes()).hexdigest()
        same(f"{where} ids_sha256", expected["ids_sha256"], digest)
    top = values.topk(len(expected["top_ids"]))
    same(f"{where} top_ids", expected["top_ids"], kept[top.indices].tolist())
    near(f"{where} top_values", expected["top_values"], top.values, atol, rtol)
    near(
        f"{where} sum_finite", expected["sum_finite"], values.double().sum(), case.tolerance("sum_atol", 0.02)
    )
    near(f"{where} min_finite", expected["min_finite"], values.min(), atol, rtol)


def dynamic_top_k(case: Case) -> None:
    for k, table in enumerate(case.json()["tables"]):
        nats = torch.tensor([row[0] for row in table["table"]], dtype=torch.float64)
        got = top_k_of_entropy(nats, table["min"], table["max"]).tolist()
        same(f"tables[{k}]", [row[1] for row in table["table"]], got)


def end_to_end_greedy(case: Case) -> None:
    data = case.json()
    model_folder = case.part(data, "model", "model", "weights")
    transformer = read_transformer(model_folder / "model.safetensors", model_folder / "config.json")
    tokenizer = read_tokenizer(case.part(data, "tokenizer", "tokenizer"))
    vq = read_vq(case.family, case.part(data, "vq", "vq_weights") / "model.safetensors")
    model = build_model(case.family, tokenizer, vq, transformer)
    for k, run in enumerate(data["runs"]):
        target = run.get("target_size", data.get("target_size", 512))
        _run(case, model, run, target, f"runs[{k}] {run.get('name', '')}")


def _run(case: Case, model: Model, run: dict, target: int, where: str) -> None:
    params = run["sampling"]
    prompt = prompt_of(case, model, run["qas"], run.get("images_in", []), target)
    prompt = replace(prompt, entropy_top_k=entropy_limits(case, params))
    same(f"{where} prompt_ids", run["prompt_ids"], list(prompt.tokens))
    sampling = sampling_of(params, upstream_exact=run.get("guidance_decay", case.family.guidance_decay))
    drawn, grids = greedy(model, prompt, sampling)
    v = model.vocabulary
    given = list(prompt.tokens[prompt.open_at :]) if prompt.open_at is not None else []
    whole = [*given, *drawn]
    shown = whole[:-1] if whole[-1:] == [v.separator] else whole
    same(f"{where} generated_ids", run["generated_ids"], shown)
    if "n_sampled" in run:
        same(f"{where} n_sampled", run["n_sampled"], len(drawn))
    if "text" in run:
        same(f"{where} text", run["text"], answer_text(whole, model.tokenizer, v))
    same(f"{where} number of pictures", len(run.get("images_out", [])), len(grids))
    for path, codes in zip(run.get("images_out", []), grids, strict=True):
        most, share = int(case.tolerance("image_max_abs", 1)), case.tolerance("image_max_fraction_off", 0.01)
        near_bytes(f"{where} {path}", case.pixels(path), model.decode(codes), most, share)
    _trace(case, model, prompt, sampling, drawn, run, where)


def greedy(model: Model, prompt: Prompt, sampling: Sampling) -> tuple[list[int], list[torch.Tensor]]:
    """What the engine draws when every draw is the likeliest: tokens behind the prompt, and the pictures' codes."""
    v, grids, drawn = model.vocabulary, [], None
    for event in generate(model.transformer, v, prompt, replace(sampling, temperature=0.0)):
        if isinstance(event, PictureFinished):
            grids.append(event.grid.codes)
        elif isinstance(event, AnswerFinished):
            drawn = list(event.tokens)
    if drawn is None:  # a picture of known size: all of its tokens but those given
        drawn = v.encode(grids[0])[len(prompt.tokens) - prompt.open_at :]
    return drawn, grids


def _trace(
    case: Case, model: Model, prompt: Prompt, sampling: Sampling, drawn, run: dict, where: str
) -> None:
    """The probabilities of every draw; an id of probability 0 stands for any."""
    ids, probabilities = run.get("trace_top_ids"), run.get("trace_top_probs")
    if not ids:
        return
    if len(ids) != len(drawn):
        raise Mismatch(f"{where} trace: expected {len(ids)} draws, got {len(drawn)}")
    steps = replay(model.transformer, model.vocabulary, prompt, sampling, drawn)
    for i, (_, final) in enumerate(steps):
        told = [(token, p) for token, p in zip(ids[i], probabilities[i], strict=True) if p > 0]
        got = final.double().softmax(-1)[torch.tensor([token for token, _ in told])]
        near(f"{where} trace[{i}]", [p for _, p in told], got, case.tolerance("prob_atol", 5e-4))
