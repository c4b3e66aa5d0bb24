"""What each bundled checkpoint is made of, and the one command that makes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..errors import InputError
from ..families import Model, load
from ..families.mgpt2 import Mgpt2
from ..files import write_whole
from ..prompts import NO_SIZE, TEXT_TO_IMAGE
from ..text import Tokenizer
from ..transformer import Transformer, TransformerConfig
from ..vq.blocks import VQConfig
from ..vq.movq import MoVQ
from . import world
from .pictures import encode_world
from .runner import Stage
from .tokenizer import tokenizer_config, train_tokenizer
from .transformer import Language, Phase, TransformerRecipe, initialise, train_transformer
from .vq import VQRecipe, train_vq

SQUARE, WIDE, TALL = (64, 64), (96, 64), (64, 96)


@dataclass(frozen=True)
class Recipe:
    """One bundled checkpoint from nothing to its folder."""

    name: str
    vq: VQConfig
    vq_training: VQRecipe
    pictures: dict[tuple[int, int], int]  # size -> scenes encoded
    words: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    positions: int
    training: TransformerRecipe

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        return tuple(self.pictures)


NANO_MGPT2 = Recipe(
    name="nano-mgpt2",
    vq=VQConfig(
        ch=32,
        ch_mult=(1, 1, 2, 2),
        num_res_blocks=1,
        attn_levels=frozenset({3}),
        z_channels=4,
        embed_dim=4,
        n_embed=512,
    ),
    vq_training=VQRecipe(steps=1450, batch=20, sizes=(SQUARE, SQUARE, WIDE, SQUARE, SQUARE, TALL)),
    pictures={SQUARE: 24000, WIDE: 12000, TALL: 12000},
    words=400,
    hidden=224,
    intermediate=576,
    layers=5,
    heads=7,
    positions=1024,
    training=TransformerRecipe(
        phases=(
            Phase(900, {SQUARE: 1.0}),
            Phase(4600, {SQUARE: 0.5, WIDE: 0.25, TALL: 0.25}),
        ),
    ),
)
RECIPES = {r.name: r for r in (NANO_MGPT2,)}


def corpus() -> list[str]:
    """Prompts of the world: what the small tokenizer learns its words from."""
    sizes = (SQUARE, WIDE, TALL, (96, 96), (128, 64), (64, 128))
    captions = [world.caption(world.scene("train", n, 64, 64)) for n in range(2000)]
    sized = [
        TEXT_TO_IMAGE.text.format(width=w, height=h, prompt=text)
        for text, (w, h) in zip(captions, sizes * (len(captions) // len(sizes) + 1), strict=False)
    ]
    return sized + [NO_SIZE.format(prompt=text) for text in captions[:200]]


def train(name: str, folder: Path, report: Callable[[str], None]) -> Path:
    """Trains a bundled checkpoint in `folder`, going on where an earlier call stopped; returns the finished folder."""
    if name not in RECIPES:
        raise InputError(f"There is no recipe '{name}'; there is {', '.join(RECIPES)}.")
    recipe = RECIPES[name]
    folder.mkdir(parents=True, exist_ok=True)
    vq = new_vq(recipe)
    train_vq(vq, recipe.vq_training, Stage(folder, "vq", report))
    vq.requires_grad_(False).eval()
    pictures = encode_world(vq, recipe.pictures, folder / "pictures.pt", report)
    words = tokenizer_text(recipe, folder / "tokenizer.json")
    transformer = new_transformer(recipe, words)
    language = language_of(recipe, words)
    out = folder / recipe.name
    train_transformer(
        transformer,
        recipe.training,
        pictures,
        language,
        Stage(folder, "transformer", report),
        on_save=lambda model: export(recipe, words, model, vq, out),
    )
    export(recipe, words, transformer, vq, out)
    report(f"finished: {out}")
    return out


def new_vq(recipe: Recipe) -> MoVQ:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.vq_training.seed)
        return MoVQ(recipe.vq)


def tokenizer_text(recipe: Recipe, file: Path) -> str:
    """The text of the checkpoint's `tokenizer.json`, made once and kept in `file`."""
    if not file.exists():
        text = train_tokenizer(corpus(), recipe.words, recipe.vq.n_embed)
        write_whole(file, lambda part: part.write_text(text, "utf-8"))
    return file.read_text("utf-8")


def new_transformer(recipe: Recipe, words: str) -> Transformer:
    model = Transformer(TransformerConfig(**transformer_sizes(recipe, words)))
    initialise(model, recipe.training.seed)
    return model


def transformer_sizes(recipe: Recipe, words: str) -> dict:
    return {
        "vocab_size": len(Tokenizer(words, {}).names()),
        "hidden_size": recipe.hidden,
        "intermediate_size": recipe.intermediate,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.heads,
        "max_position_embeddings": recipe.positions,
    }


def config_json(recipe: Recipe, words: str) -> dict:
    """The `config.json` of the exported folder, with upstream's keys."""
    config = asdict(TransformerConfig(**transformer_sizes(recipe, words)))
    return {
        "architectures": ["ChameleonXLLMXForConditionalGeneration"],
        "model_type": "chameleon",
        "torch_dtype": "float16",
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "mask_image_logits": False,
        "sampling": {"cfg": 2.0, "temperature": 0.5},  # what a checkpoint this small draws best with
        **config,
    }


def language_of(recipe: Recipe, words: str) -> Language:
    from ..families.base import Source

    tokenizer = Tokenizer(words, json.loads(tokenizer_config()))
    source = Source(Path(recipe.name), config_json(recipe, words), tokenizer, {}, ())
    return Language(tokenizer, Mgpt2().vocabulary(source, recipe.vq.n_embed))


def export(recipe: Recipe, words: str, transformer: Transformer, vq: MoVQ, folder: Path) -> None:
    """Writes the checkpoint in upstream's layout, weights in float16; each file appears whole."""
    from safetensors.torch import save

    def tensors(module: torch.nn.Module) -> bytes:
        return save(
            {k: v.detach().half().contiguous() for k, v in module.state_dict().items()}, {"format": "pt"}
        )

    files = {
        "config.json": (json.dumps(config_json(recipe, words), indent=1) + "\n").encode(),
        "tokenizer.json": words.encode(),
        "tokenizer_config.json": tokenizer_config().encode(),
        "model.safetensors": tensors(transformer),
        "movqgan.safetensors": tensors(vq),
    }
    for file, content in files.items():
        write_whole(folder / file, lambda part, content=content: part.write_bytes(content))


def trained(folder: Path, name: str) -> Model:
    """The exported checkpoint of a training folder."""
    return load(folder / name)
