"""How much memory a checkpoint takes: weights by precision, key-value cache and image decoding by picture size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .cache import KVCache
from .sampling import Sampling
from .sampling.room import cache_nbytes
from .transformer import Transformer, TransformerConfig
from .unirep import UNIT, Vocabulary
from .vq.blocks import VQConfig

if TYPE_CHECKING:
    from .prompts import Prompt

PROMPT = 128  # tokens reckoned for the text in front of a picture
BYTES = {
    "fp32": 4,
    "bf16": 2,
    "fp16": 2,
    "fp8": 1,
    "int8": 1,
    "nf4": 0.5625,
}  # of one weight of a layer's Linear
# What the three released image tokenizers are, for checkpoints whose own is not there yet.
PUBLISHED_VQ = {
    "mgpt1": VQConfig(128, (1, 1, 2, 2, 4), 2, frozenset(), 256, 256, 8192),
    "mgpt2": VQConfig(256, (1, 2, 2, 4), 2, frozenset({3}), 4, 4, 16384),
    "pure": VQConfig(128, (1, 2, 2, 4), 2, frozenset({3}), 256, 8, 16384, (1, 2, 2, 4)),
}
PUBLISHED_VQ_PARAMETERS = {"mgpt1": 68_718_467, "mgpt2": 270_669_103, "pure": 70_109_835}


@dataclass(frozen=True)
class Memory:
    """Bytes a picture takes; all four may stand at once while a preview is decoded."""

    weights: int
    vq_weights: int
    cache: int
    decode: int

    @property
    def total(self) -> int:
        return self.weights + self.vq_weights + self.cache + self.decode


def parameters(config: TransformerConfig) -> tuple[int, int]:
    """Numbers in the layers' Linears, which quantisation makes small, and in all the rest."""
    h, d, kv = config.hidden_size, config.head_dim, config.num_key_value_heads
    linear = 2 * h * h + 2 * h * kv * d + 3 * h * config.intermediate_size
    rest = 2 * h + 4 * config.model_parallel_size * d
    rest += (2 * h + 2 * kv * d) * config.attention_bias
    rest += (2 * config.intermediate_size + h) * config.mlp_bias
    outside = 2 * config.vocab_size * h + h
    return config.num_hidden_layers * linear, config.num_hidden_layers * rest + outside


def weights_nbytes(config: TransformerConfig, precision: str) -> int:
    """Bytes of the transformer's weights; with 'int8', 'fp8' and 'nf4' all but the layers' Linears stay at 16 bit."""
    linear, rest = parameters(config)
    return int(linear * BYTES[precision]) + rest * max(2, BYTES[precision])


def tokens(vq: VQConfig, size: tuple[int, int]) -> int:
    """Positions a picture of (width, height) pixels takes, control tokens included, text not."""
    w, h = size[0] // vq.factor, size[1] // vq.factor
    return h * (w + 1) + 4


def decode_nbytes(vq: VQConfig, size: tuple[int, int], itemsize: int = 4) -> int:
    """Bytes of intermediate results while codes become a picture of (width, height) pixels.

    The last level is the largest: its input comes upsampled at the width of the level below, and input, normed copy,
    activation and output stand together; MoVQ's spatial norms (embed_dim 4 as z_channels) hold scale and shift more.
    """
    mult = vq.decoder_ch_mult or vq.ch_mult
    wide = vq.ch * max(mult[:2])
    alive = 5 if vq.embed_dim == vq.z_channels == 4 else 4
    scores = (size[0] // vq.factor * (size[1] // vq.factor)) ** 2  # of the attention at the coarsest level
    return max(alive * wide * size[0] * size[1], 2 * scores) * itemsize


def estimate(
    config: TransformerConfig,
    vq: VQConfig,
    vq_parameters: int,
    precision: str,
    size: tuple[int, int],
    *,
    rows: int = 2,
    panels: int = 1,
) -> Memory:
    """Bytes for one picture of (width, height) pixels; `rows` is 2 with guidance, 1 without, times the batch.

    The cache stands in 16 bit except beside 32-bit weights; the image tokenizer is reckoned in 32 bit, although
    on a graphics card it makes pictures in 16 bit: where that overflows it needs the room.
    """
    size = (size[0], size[1] * panels)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    capacity = PROMPT + tokens(vq, size)
    cache = KVCache.nbytes(
        config.num_hidden_layers, rows, capacity, config.num_key_value_heads, config.head_dim, dtype
    )
    return Memory(weights_nbytes(config, precision), 4 * vq_parameters, cache, decode_nbytes(vq, size))


def sampling_nbytes(
    transformer: Transformer, vocabulary: Vocabulary, prompt: Prompt, sampling: Sampling
) -> int:
    """Bytes that drawing this prompt takes beside the weights: cache, scores and noise, widest layer of the prefill."""
    config, dtype = transformer.config, transformer.model.embed_tokens.weight.dtype
    rows, width, codes = 2 if sampling.cfg != 1.0 else 1, 1, len(vocabulary.code_ids)
    if prompt.expects == "image" and prompt.units is not None:  # drawn side by side; answers come one by one
        rows, width = rows * sampling.batch, vocabulary.codes_shape(prompt.units)[1]
    at_once = width if sampling.decode == "ar" else sampling.spare  # places
    scores = 4 * rows * (4 * config.vocab_size + 6 * at_once * codes)
    widest = max(len(prompt.tokens), rows * at_once)
    layer = (8 * config.hidden_size + 3 * config.intermediate_size) * widest + codes * config.hidden_size
    return cache_nbytes(transformer, vocabulary, prompt, sampling) + scores + layer * dtype.itemsize


def pass_nbytes(transformer: Transformer, tokens: int) -> int:
    """Bytes that one pass over so many tokens takes beside the weights; their codes are rated a few rows at a time."""
    config, dtype = transformer.config, transformer.model.embed_tokens.weight.dtype
    layer = (8 * config.hidden_size + 3 * config.intermediate_size) * tokens * dtype.itemsize
    return layer + 4 * 4 * config.vocab_size * 32


def sizes_offered(vq: VQConfig, positions: int) -> list[tuple[int, int]]:
    """Square sizes worth a column in a table: those that fit the positions, three at most, the largest last."""
    fitting = [
        (side, side)
        for side in (UNIT * 2, UNIT * 4, 256, 512, 768, 1024)
        if PROMPT + tokens(vq, (side, side)) <= positions
    ]
    return fitting[-3:]
