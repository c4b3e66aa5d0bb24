"""Cases on tokens: conversations with pictures, training labels, UniRep."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from ..families import mgpt2
from ..families.base import Family, Names, Source
from ..families.chameleon import code_names
from ..families.model import Model
from ..image import allowed_sizes, on_white
from ..prompts import IGNORE, Prompt, conversation, encode_training
from ..text import IMAGE, Tokenizer
from ..training.objective import without_prompt
from ..unirep import Vocabulary
from .case import Case, Mismatch, build_model, read_tokenizer, read_vq, same


def prompt_of(case: Case, model: Model, qas: list, images: list[str], target: int) -> Prompt:
    """The prompt of question-answer pairs and picture files, each picture prepared as its family does."""
    turns = [turn for pair in qas for turn in pair]
    pictures = [case.picture(path) for path in images]
    if model.family.id == "mgpt2" and turns[-1] is not None and len(qas) == 1:
        if turns[-1] != IMAGE or len(pictures) != 1:
            raise Mismatch(
                f"an answer of {turns[-1]!r} with {len(pictures)} pictures is no task of this family"
            )
        return model.family.compose_open(model, turns[0], model.encode(pictures[0]), task="case")
    return model.family.converse(model, turns, pictures, target=target)


def prompt_encoding(case: Case) -> None:
    data = case.json()
    models: dict[str, torch.nn.Module] = {}
    for k, part in enumerate(data["sets"]):
        tokenizer = read_tokenizer(case.folder / part["tokenizer"])
        vq = part.get("vq", data.get("vq"))
        if vq not in models:
            models[vq] = read_vq(case.family, case.folder / vq / "model.safetensors")
        model = build_model(case.family, tokenizer, models[vq])
        _names(part, model, f"sets[{k}]")
        target = part.get("target_size", data.get("target_size", 512))
        for item in part.get("cases", []):
            _prompt(case, model, item, target, f"sets[{k}] {item.get('name')}")
        for i, text in enumerate(part.get("text", [])):
            same(f"sets[{k}] text[{i}] ids", text["ids"], tokenizer.encode(text["text"]))
            if "ids_wo_prefix_space" in text:
                got = tokenizer.encode_inner(text["text"])
                same(f"sets[{k}] text[{i}] ids_wo_prefix_space", text["ids_wo_prefix_space"], got)
        for item in part.get("training", []):
            _training(case, model, item, target, f"sets[{k}] training {item.get('name')}")


def _names(part: dict, model: Model, where: str) -> None:
    tokenizer = model.tokenizer
    for name, token in part.get("ids", {}).items():
        same(f"{where} id of {name}", token, tokenizer.id(name))
    if "bos_id" in part:
        same(f"{where} bos_id", part["bos_id"], model.vocabulary.bos)
    if "need_space_before_segment" in part:
        expected = part["need_space_before_segment"]
        same(f"{where} need_space_before_segment", expected, tokenizer.keeps_blanks)


def _prompt(case: Case, model: Model, item: dict, target: int, where: str) -> None:
    turns = [turn for pair in item["qas"] for turn in pair]
    if "conversation_text" in item:
        got = conversation(turns, model.vocabulary.separator_name, len(item["images"]))
        same(f"{where} conversation_text", item["conversation_text"], got)
    prompt = prompt_of(case, model, item["qas"], item["images"], target)
    ids = list(prompt.tokens)
    same(f"{where} prompt_ids", item["prompt_ids"], ids)
    if "full_ids" in item:
        same(f"{where} full_ids", item["full_ids"], [*ids, model.vocabulary.separator])
    if "reference_tokens_start" in item:
        same(f"{where} reference_tokens_start", item["reference_tokens_start"], prompt.open_at)
    if "image_starts" in item:
        starts = [i for i, token in enumerate(ids) if token == model.vocabulary.image_start]
        same(f"{where} image_starts", item["image_starts"], starts)


def _training(case: Case, model: Model, item: dict, target: int, where: str) -> None:
    v, family = model.vocabulary, model.family
    pictures = []
    for path in item["images"]:
        picture = on_white(case.picture(path))
        size = family.input_size(*picture.size, allowed_sizes(target))
        pictures.append(v.encode(model.encode(picture, size).codes))
    turns = [turn["value"] for turn in item["conversations"]]
    tokens, labels = encode_training(turns, pictures, model.tokenizer, v)
    same(f"{where} tokens", item["tokens"], tokens)
    same(f"{where} labels", item["labels"], labels)
    if "dropping_applies" in item:
        bare = without_prompt(tokens, labels, v)
        same(f"{where} dropping_applies", item["dropping_applies"], bare is not None)
        if "dropped_tokens" in item:
            same(f"{where} dropped_tokens", item["dropped_tokens"], bare)
    if all(label == IGNORE for label in labels):
        raise Mismatch(f"{where}: nothing is labelled")


def unirep(case: Case) -> None:
    data, vocabularies = case.json(), {}
    for k, record in enumerate(data["records"]):
        folder = record.get("tokenizer", data.get("tokenizer"))
        if folder not in vocabularies:
            vocabularies[folder] = vocabulary_alone(case.family, read_tokenizer(case.folder / folder))
        v: Vocabulary = vocabularies[folder]
        codes = torch.tensor(record["codes"])
        where = f"records[{k}]"
        if "latents_per_grid" in data:
            same("latents_per_grid", data["latents_per_grid"], v.latents_per_unit)
        if "grid_hw" in record:
            same(f"{where} grid_hw", tuple(record["grid_hw"]), v.units(codes))
        if "latent_hw" in record:
            same(f"{where} latent_hw", list(record["latent_hw"]), list(codes.shape))
        same(f"{where} tokens", record["tokens"], v.encode(codes))
        same(f"{where} codes", record["codes"], v.decode(record["tokens"]).tolist())
        if "i2i_panel_tokens" in record:
            same(f"{where} i2i_panel_tokens", record["i2i_panel_tokens"], v.open_panel(codes))


def vocabulary_alone(family: Family, tokenizer: Tokenizer) -> Vocabulary:
    """The token table of a tokenizer alone; it has as many codes as it names."""
    source = Source(Path(), {"vocab_size": max(tokenizer.names().values()) + 1}, tokenizer, {}, ())
    if family.id == "mgpt2":
        named = sum(bool(re.fullmatch(r"<MOVQGAN\d+>", name)) for name in tokenizer.names())
        count = named or mgpt2.PUBLISHED_CODES
    else:
        count = len(code_names(Names(source, family.title, None, 0)))
    return family.vocabulary(source, count)
