"""Builds a tiny random checkpoint of Lumina-mGPT 2.0 in upstream's layout: two layers, 64 codes, a byte tokenizer.

Everything follows from the seed, so two builds hold the same bytes. It draws noise, in milliseconds.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from lumina_core.families.base import IMAGE_END, IMAGE_START, ROW_END, SEPARATOR
from lumina_core.transformer import Transformer, TransformerConfig
from lumina_core.vq.blocks import VQConfig
from lumina_core.vq.movq import MoVQ

END = "<|endoftext|>"
CODES = 64
GRID = 32  # largest side in 32-pixel units


def special_names(codes: int = CODES, grid: int = GRID) -> list[str]:
    """The names of the control tokens and codes, in the order of their ids."""
    sizes = [f"<reserved{8800 + n:05d}>" for n in range(1, grid + 1)]
    return [
        END,
        IMAGE_START,
        IMAGE_END,
        ROW_END,
        SEPARATOR,
        *sizes,
        *(f"<MOVQGAN{c:05d}>" for c in range(codes)),
    ]


def tokenizer_json(names: list[str]) -> str:
    """A byte-level tokenizer without merges, every name a special token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    return tokenizer.to_str()


def transformer_config(vocab_size: int, positions: int = 4096) -> TransformerConfig:
    return TransformerConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=positions,
    )


VQ = VQConfig(
    ch=32,
    ch_mult=(1, 1, 1, 1),
    num_res_blocks=1,
    attn_levels=frozenset({3}),
    z_channels=4,
    embed_dim=4,
    n_embed=CODES,
)


def randomize(module: torch.nn.Module, seed: int) -> None:
    """Gives every parameter small random values that depend on the seed and its name's place alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(module.named_parameters()):
            values = torch.randn(p.shape, generator=generator)
            if p.ndim > 1 and "norm" not in name:
                p.copy_(values if "embed" in name else values * (p[0].numel() ** -0.5))
            else:
                p.copy_(values * 0.1 + ("norm" in name and name.endswith("weight")))


def apart(transformer) -> Transformer:
    """The same weights, each in memory of its own."""
    other = Transformer(transformer.config).requires_grad_(False)
    other.load_state_dict(transformer.state_dict())
    return other


def build(folder: Path, *, seed: int = 0, positions: int = 4096) -> Path:
    """Writes the checkpoint into `folder` and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    names = special_names()
    text = tokenizer_json(names)
    config = transformer_config(256 + len(names), positions)
    transformer, vq = Transformer(config), MoVQ(VQ)
    randomize(transformer, seed)
    randomize(vq, seed + 1)
    about = {"model_type": "chameleon", "architectures": ["ChameleonForConditionalGeneration"]}
    (folder / "config.json").write_text(json.dumps(about | asdict(config), indent=1), "utf-8")
    (folder / "tokenizer.json").write_text(text, "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}), "utf-8")
    save_file(transformer.state_dict(), folder / "model.safetensors")
    save_file(vq.state_dict(), folder / "movqgan.safetensors")
    return folder


if __name__ == "__main__":
    import sys

    print(build(Path(sys.argv[1]), positions=int(sys.argv[2]) if len(sys.argv) > 2 else 4096))
