"""Tiny random checkpoints of all three families in the released layouts, for the tests of loading and converting."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from lumina_core.transformer import Transformer, TransformerConfig
from lumina_core.vq.blocks import VQConfig
from lumina_core.vq.chameleon import ChameleonVQ
from lumina_core.vq.llamagen import LlamaGenVQ
from lumina_core.vq.movq import MoVQ

CODES = 64
VQ = {
    "mgpt1": (ChameleonVQ, VQConfig(32, (1, 1, 1, 1, 1), 1, frozenset(), 8, 8, CODES), "vqgan.ckpt"),
    "mgpt2": (MoVQ, VQConfig(32, (1, 1, 1, 1), 1, frozenset({3}), 4, 4, CODES), "movqgan_270M.ckpt"),
    "pure": (LlamaGenVQ, VQConfig(32, (1, 1, 1, 1), 1, frozenset({3}), 8, 8, CODES), "vq_ds8_c2i.pt"),
}
CONTROL = ["<racm3:break>", "<eoss>", "<reserved08799>", "<reserved08706>"]


def token_names(family: str, sizes: int = 8) -> list[str]:
    """Names of the special tokens and codes of a family, in the order of their ids."""
    grid = [f"<reserved{8800 + n:05d}>" for n in range(1, sizes + 1)]
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    if family == "mgpt2":
        return ["<|endoftext|>", *CONTROL, *grid, *(f"<MOVQGAN{c}>" for c in range(CODES))]
    codes = [f"IMGIMG{str(c).translate(letters)}Z" for c in range(CODES)]
    return ["<s>", "<pad>", "</s>", "<unk>", *codes, *CONTROL, *grid]


def tokenizer_json(names: list[str]) -> str:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(n, normalized=False, special=True) for n in names])
    return tokenizer.to_str()


def randomise(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, p in sorted(module.named_parameters()):
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2 + (p.ndim == 1))
    return module


def vq_state(family: str) -> dict[str, torch.Tensor]:
    """A state dict of the family's image tokenizer under the released names."""
    cls, config, _ = VQ[family]
    state = dict(randomise(cls(config), 2).state_dict())
    if family == "pure":
        state["quantize.codebook_used"] = torch.zeros(65536)
    return state


def save_vq(family: str, file: Path, container: str | None = None) -> Path:
    """Writes the image tokenizer as safetensors, or pickled in the family's own container by the file's suffix."""
    state = vq_state(family)
    if file.suffix == ".safetensors":
        save_file(state, file)
        return file
    container = container or {"mgpt1": "state_dict", "mgpt2": "", "pure": "model"}[family]
    extra = {"loss.discriminator.weight": torch.ones(3)} if family == "mgpt1" else {}
    torch.save({container: {**state, **extra}, "epoch": 3} if container else state, file)
    return file


def build(
    folder: Path,
    family: str = "mgpt2",
    *,
    dtype: torch.dtype = torch.bfloat16,
    shards: int = 2,
    vq: bool = True,
    names: list[str] | None = None,
    **sizes,
) -> Path:
    """Writes a whole checkpoint into `folder`; `sizes` change fields of its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    text = tokenizer_json(token_names(family) if names is None else names)
    config = TransformerConfig(
        **{
            "vocab_size": Tokenizer.from_str(text).get_vocab_size() + 8,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            **sizes,
        }
    )
    about = {"architectures": ["ChameleonXLLMXForConditionalGeneration"], "model_type": "chameleon"}
    about |= dataclasses.asdict(config) | ({"apply_lora": False} if family == "pure" else {})
    (folder / "config.json").write_text(json.dumps(about))
    (folder / "tokenizer.json").write_text(text, "utf-8")
    first = {"bos_token": None, "eos_token": "<|endoftext|>"} if family == "mgpt2" else {"bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(first))
    state = {n: t.to(dtype) for n, t in randomise(Transformer(config), 1).state_dict().items()}
    state["model.vqmodel.encoder.conv_in.weight"] = torch.zeros(2, 3, 3, 3)
    save_shards(folder, state, shards)
    if vq:
        save_vq(family, folder / VQ[family][2])
    return folder


def save_shards(folder: Path, state: dict[str, torch.Tensor], shards: int) -> None:
    """Writes a state dict as one `model.safetensors`, or as several shards with their index."""
    if shards == 1:
        save_file(state, folder / "model.safetensors")
        return
    names = list(state)
    step = -(-len(names) // shards)
    weight_map = {}
    for i in range(shards):
        part = names[i * step : (i + 1) * step]
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({n: state[n] for n in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
