"""The one command that makes a bundled checkpoint: image tokenizer, words, pre-tokenising, transformer, export."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from ..errors import InputError
from ..families import Model, load
from ..families.base import Source
from ..files import write_whole
from ..text import IMAGE, Tokenizer
from ..transformer import Transformer, TransformerConfig
from .adoption import adopt, codes_in, same
from .dataset import pre_tokenise
from .examples import example, task_of
from .looking import look_back
from .recipes import RECIPES, Recipe
from .runner import Stage
from .sequences import Language
from .tokenizer import special_names, tokenizer_config, train_tokenizer
from .transformer import initialise, train_transformer
from .vq import train_vq

CORPUS = 80  # examples of a kind and size that the tokenizer learns its words from


def train(
    name: str,
    folder: Path,
    report: Callable[[str], None],
    start_from: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> Path:
    """Trains a bundled checkpoint in `folder`, going on where an earlier call stopped; returns the finished folder.

    `start_from` is a checkpoint whose transformer, of the same sizes, is trained on. Of the same family: its image
    tokenizer is kept (the decoder alone learns on) and tokens are matched by name. Of another: the image tokenizer
    takes over the codes where the recipe can (`begins_as`) or is trained from nothing, and each code begins as those
    that show the same in the earlier one's pictures.
    """
    if name not in RECIPES:
        raise InputError(f"There is no recipe '{name}'; there is {', '.join(RECIPES)}.")
    recipe = RECIPES[name]
    folder.mkdir(parents=True, exist_ok=True)
    earlier = load(start_from) if start_from else None
    of_family = earlier is not None and earlier.family.id == recipe.family.id
    vq = trained_vq(recipe, folder, report, earlier, device)
    words = tokenizer_text(recipe, folder / "tokenizer.json")
    language = language_of(recipe, words)
    dataset = pre_tokenise(vq, language, recipe.examples, folder / "sequences", report, device)
    transformer = new_transformer(recipe, words)
    stage = Stage(folder, "transformer", report)
    if earlier is not None and not stage.state_file.exists():
        codes = None if of_family else codes_in(earlier, vq, language.vocabulary, recipe.examples)
        adopt(transformer, language, earlier, recipe.looks_back, codes)
    out = folder / recipe.name
    train_transformer(
        transformer,
        recipe.training,
        dataset,
        language,
        stage,
        on_save=lambda model: export(recipe, words, model, vq, out),
        device=device,
        codebook=vq.quantize.vectors(torch.device(device)),
    )
    export(recipe, words, transformer, vq, out)
    report(f"finished: {out}")
    return out


def trained_vq(
    recipe: Recipe, folder: Path, report: Callable[[str], None], earlier: Model | None, device
) -> nn.Module:
    """The image tokenizer: trained from nothing, or one that begins as an earlier checkpoint's."""
    training, vq = recipe.vq_training, new_vq(recipe)
    if earlier is not None and earlier.family.id == recipe.family.id:
        same("image tokenizer", vq, earlier.vq)
        vq.load_state_dict(earlier.vq.state_dict())
        training = recipe.more_vq_training or replace(training, steps=0)
    elif earlier is not None and recipe.begins_as:
        recipe.begins_as(vq, earlier.vq)
        training = recipe.more_vq_training or training
    train_vq(vq, training, Stage(folder, "vq", report), device)
    return vq.requires_grad_(False).eval()


def corpus(recipe: Recipe) -> list[str]:
    """Words of the recipe's tasks: what its small tokenizer learns from."""
    tokenless = Language(None, None, recipe.family.templates)
    out = []
    for kind, size in recipe.examples:
        for n in range(CORPUS):
            e = example(kind, "train", n, size)
            entry = tokenless.templates[e.task]
            units = size[1] // 32 * entry.panels, size[0] // 32
            turns = [*e.earlier, tokenless.question(entry, e, units, n % 10 != 3), e.answer]
            out += [part for turn in turns for part in turn.split(IMAGE)]
    return out


def new_vq(recipe: Recipe) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.vq_training.seed)
        return recipe.make_vq(recipe.vq)


def tokenizer_text(recipe: Recipe, file: Path) -> str:
    """The text of the checkpoint's `tokenizer.json`, made once and kept in `file`."""
    if not file.exists():
        text = train_tokenizer(
            corpus(recipe), recipe.words, special_names(recipe.family.id, recipe.vq.n_embed)
        )
        write_whole(file, lambda part: part.write_text(text, "utf-8"))
    return file.read_text("utf-8")


def new_transformer(recipe: Recipe, words: str) -> Transformer:
    model = Transformer(TransformerConfig(**transformer_sizes(recipe, words)))
    initialise(model, recipe.training.seed)
    for look in recipe.looks_back:
        look_back(model, look)
    return model


def transformer_sizes(recipe: Recipe, words: str) -> dict:
    return {
        "vocab_size": len(Tokenizer(words, {}).names()),
        "hidden_size": recipe.hidden,
        "intermediate_size": recipe.intermediate,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.heads,
        "model_parallel_size": recipe.heads if recipe.looks_back else 1,
        "max_position_embeddings": recipe.positions,
    }


def config_json(recipe: Recipe, words: str) -> dict:
    """The `config.json` of the exported folder, with upstream's keys."""
    config = asdict(TransformerConfig(**transformer_sizes(recipe, words)))
    names = {task_of(kind) for kind, _ in recipe.examples}
    return {
        "architectures": ["ChameleonXLLMXForConditionalGeneration"],
        "model_type": "chameleon",
        "torch_dtype": "float16",
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "mask_image_logits": False,
        **({"apply_lora": False} if recipe.family.id == "pure" else {}),  # a key that only PURE's file has
        "tasks": [task for task in recipe.family.templates if task in names],
        "picture_sizes": [list(size) for size in recipe.sizes],
        "sampling": dict(recipe.sampling),
        **config,
    }


def language_of(recipe: Recipe, words: str) -> Language:
    tokenizer = Tokenizer(words, json.loads(tokenizer_config(recipe.family.id)))
    source = Source(Path(recipe.name), config_json(recipe, words), tokenizer, {}, ())
    vocabulary = recipe.family.vocabulary(source, recipe.vq.n_embed)
    return Language(tokenizer, vocabulary, recipe.family.templates)


def export(recipe: Recipe, words: str, transformer: Transformer, vq: nn.Module, folder: Path) -> None:
    """Writes the checkpoint in upstream's layout, weights in float16; each file appears whole."""
    from safetensors.torch import save

    def tensors(module: nn.Module) -> bytes:
        return save(
            {k: v.detach().cpu().half().contiguous() for k, v in module.state_dict().items()},
            {"format": "pt"},
        )

    files = {
        "config.json": (json.dumps(config_json(recipe, words), indent=1) + "\n").encode(),
        "tokenizer.json": words.encode(),
        "tokenizer_config.json": tokenizer_config(recipe.family.id).encode(),
        "model.safetensors": tensors(transformer),
        recipe.vq_file: tensors(vq),
    }
    for file, content in files.items():
        write_whole(folder / file, lambda part, content=content: part.write_bytes(content))
