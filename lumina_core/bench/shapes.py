"""Models of the published sizes with random weights, for timing without a download.

What is drawn is noise, and how many drafts hold says nothing of a trained model; the time of a pass is real.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .. import Model, Prompt, memory, quant, weights
from ..errors import InputError
from ..families import FAMILIES
from ..memory import PUBLISHED_VQ
from ..sampling.room import free_bytes
from ..transformer import Transformer, TransformerConfig
from ..unirep import UNIT, Vocabulary
from ..vq import chameleon, llamagen, movq
from ..vq.blocks import VQConfig

PROMPT = 60  # tokens of text in front of a picture, about those of a long caption
DEVIATIONS = {
    torch.int8: 73.0,
    torch.uint8: 0.52,
}  # of small numbers that are filled evenly; nf4 is packed in uint8
TOKENIZERS = {"mgpt1": chameleon.ChameleonVQ, "mgpt2": movq.MoVQ, "pure": llamagen.LlamaGenVQ}


@dataclass(frozen=True)
class Shape:
    """Sizes and token numbers of a published checkpoint."""

    family: str
    config: TransformerConfig
    vq: VQConfig
    size: tuple[int, int]  # (width, height) a picture is drawn at
    codes: tuple[tuple[int, int], ...]  # runs of ids of the codes: first, count
    image_start: int
    image_end: int
    row_end: int
    separator: int
    grid_0: int  # a side of n units is token grid_0 + n
    latents_per_unit: int
    given: tuple[int, int] | None = None  # size of a picture in the prompt


def _seven_billion(vocabulary: int, positions: int) -> TransformerConfig:
    return TransformerConfig(vocabulary, 4096, 11008, 32, 32, 32, positions)


_CHAMELEON = {"image_start": 8197, "image_end": 8196, "row_end": 8803, "separator": 8710, "grid_0": 8804}
SHAPES = {
    "7b-1": Shape(
        "mgpt1",
        _seven_billion(65536, 10240),
        PUBLISHED_VQ["mgpt1"],
        (768, 768),
        ((4, 8192),),
        latents_per_unit=2,
        **_CHAMELEON,
    ),
    "7b-2": Shape(
        "mgpt2",
        _seven_billion(171385, 10240),
        PUBLISHED_VQ["mgpt2"],
        (768, 768),
        ((155000, 16384),),
        image_start=151665,
        image_end=151666,
        row_end=151670,
        separator=151645,
        grid_0=151671,
        latents_per_unit=4,
    ),
    "pure": Shape(
        "pure",
        _seven_billion(73728, 11776),
        PUBLISHED_VQ["pure"],
        (512, 512),
        ((4, 8192), (65536, 8192)),
        latents_per_unit=4,
        given=(512, 512),
        **_CHAMELEON,
    ),
}


def build(name: str, shape: Shape, device: torch.device, precision: str) -> Model:
    """A model of this shape, filled with the same random numbers every time; refused where memory is short."""
    floats = {"fp32": torch.float32, "fp16": torch.float16}
    with torch.device("meta"):
        transformer = Transformer(shape.config, weights.Bare, dtype=floats.get(precision, torch.bfloat16))
        vq = TOKENIZERS[shape.family](shape.vq, weights.Bare)
    _refuse_if_short(name, shape, device, precision, sum(p.numel() for p in vq.parameters()))
    if precision in quant.KINDS:
        quant.swap(transformer, quant.eligible(transformer), precision, weights.Bare)
    small = torch.uint8 if precision == "nf4" else quant.FORMATS.get(precision)
    generator = torch.Generator(device).manual_seed(0)
    for module in (transformer, vq):
        _fill(module, device, generator, small)
    transformer.lay_weights_together()
    family = next(f for f in FAMILIES if f.id == shape.family)
    return Model(f"random {name}", family, transformer, vq, None, vocabulary(shape))


def _refuse_if_short(name: str, shape: Shape, device: torch.device, precision: str, vq_numbers: int) -> None:
    need = memory.estimate(shape.config, shape.vq, vq_numbers, precision, shape.size)
    cache = need.cache
    if shape.given:  # in front of the picture; the unconditional row has as many places as the other
        cache += memory.estimate(shape.config, shape.vq, vq_numbers, precision, shape.given).cache
    total = need.weights + need.vq_weights + max(cache, need.decode)  # the cache is gone before the decoding
    free = free_bytes(device)
    if free is not None and total > free:
        raise InputError(
            f"--random {name} in {precision} takes {total / 1e9:.1f} GB with a picture of "
            f"{shape.size[0]}x{shape.size[1]}; {device} has {free / 1e9:.1f} GB free. Try --precision int8, or a "
            "larger device."
        )


def vocabulary(shape: Shape) -> Vocabulary:
    """The token table by the published numbers."""
    return Vocabulary(
        bos=0,
        separator=shape.separator,
        separator_name="",
        image_start=shape.image_start,
        image_end=shape.image_end,
        row_end=shape.row_end,
        placeholder=-1,
        grid={n: shape.grid_0 + n for n in range(1, 65)},
        code_ids=torch.cat([torch.arange(first, first + count) for first, count in shape.codes]),
        latents_per_unit=shape.latents_per_unit,
    )


def prompt_of(model: Model, shape: Shape, size: tuple[int, int]) -> Prompt:
    """A prompt of as many tokens as a caption has, after the picture that the task is given."""
    v, rng = model.vocabulary, torch.Generator().manual_seed(0)
    tokens = torch.randint(0, min(v.image_end, v.image_start), (PROMPT,), generator=rng).tolist()
    if shape.given:
        h, w = v.codes_shape((shape.given[1] // UNIT, shape.given[0] // UNIT))
        tokens += v.encode(torch.randint(0, len(v.code_ids), (h, w), generator=rng))
    units = model.check_size(*size)
    v.header(units)
    family = model.family
    return Prompt(
        family.id,
        "bench",
        (*tokens, v.separator),
        "image",
        units,
        entropy_top_k=family.entropy_top_k,
        guidance_decay=family.guidance_decay,
    )


@torch.no_grad()
def _fill(
    module: nn.Module, device: torch.device, generator: torch.Generator, small: torch.dtype | None
) -> None:
    """Gives a module built on the `meta` device random weights: what passes through keeps about its size."""
    for part in module.modules():
        scaled = hasattr(part, "weight_scale")
        for leaf, p in list(part.named_parameters(recurse=False)):
            values = torch.empty(p.shape, dtype=p.dtype, device=device)
            if leaf == "weight_scale":
                deviation = DEVIATIONS.get(small, 1.0)
                values.fill_(part.in_features**-0.5 / deviation)
            elif scaled and small == torch.int8:
                values = torch.randint(-127, 128, p.shape, dtype=small, device=device, generator=generator)
            elif scaled and small == torch.uint8:
                values = torch.randint(0, 256, p.shape, dtype=small, device=device, generator=generator)
            elif leaf == "bias":
                values.zero_()
            elif "norm" in type(part).__name__.lower():
                values.fill_(1)
            else:
                values.normal_(0, 1 if scaled else p[0].numel() ** -0.5, generator=generator)
                values = values.to(small) if scaled else values
            setattr(part, leaf, nn.Parameter(values, requires_grad=False))
    module.requires_grad_(False).eval()
