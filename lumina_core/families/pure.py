"""PURE: Lumina-mGPT 1.0 with 8,192 more codes and LlamaGen VQ-8, for super-resolution. arXiv 2503.11073."""

from __future__ import annotations

import random
from collections.abc import Mapping

from PIL import Image
from torch import nn

from .. import weights
from ..errors import LuminaError
from ..image import stretch
from ..prompts import PURE
from ..unirep import TokenGrid
from ..vq import llamagen
from .base import Defaults, Source
from .chameleon import CODE_NAME, CODES, PUBLISHED_SIZE, ChameleonFamily
from .model import Model


def looks_like_pure(source: Source) -> bool:
    """Whether a Chameleon-like checkpoint is PURE's.

    It has more codes than Chameleon, by name or by number; a small one is known by the settings that only PURE's
    configuration has, or by the LlamaGen tokenizer inside or beside it.
    """
    if source.config.get("vocab_size", 0) >= PUBLISHED_SIZE + CODES:
        return True
    codes = sum(bool(CODE_NAME.fullmatch(name)) for name in source.names())
    if codes > CODES or "apply_lora" in source.config:
        return True
    # A full-sized checkpoint is told above; a foreign tokenizer in its folder must not make it another.
    return codes < CODES and _has_llamagen(source)


def _has_llamagen(source: Source) -> bool:
    inside = source.path.iterdir() if source.path.is_dir() else [source.path]
    for file in sorted(inside):
        if file.suffix not in (".safetensors", ".pt") or (file in source.files and file != source.path):
            continue
        try:
            shapes = weights.shapes_of([file])
        except LuminaError:  # not ours to judge here; whoever loads the file says what is wrong with it
            continue
        if any(name.endswith(llamagen.MARK) for name in shapes):
            return True
    return False


class Pure(ChameleonFamily):
    id = "pure"
    title = "PURE"
    # image_top_k is accepted and ignored, as upstream does: the number kept follows the entropy of the place.
    defaults = Defaults(cfg=0.8, image_top_k=2000, text_top_k=1, temperature=0.9, max_tokens=8192)
    templates = PURE
    vq_hint = "vq_ds8_c2i.pt (280 MB), from the LlamaGen release"
    entropy_top_k = (1, 2000)
    latents_per_unit = 4

    def detect(self, source: Source) -> bool:
        return self.is_chameleon(source) and looks_like_pure(source)

    def vq_from_shapes(self, shapes: Mapping[str, tuple[int, ...]], ops) -> nn.Module | None:
        return (
            llamagen.LlamaGenVQ(llamagen.config_from_shapes(shapes), ops)
            if llamagen.matches(shapes)
            else None
        )

    def read(
        self,
        model: Model,
        task: str,
        picture: Image.Image | TokenGrid,
        size: tuple[int, int] | None,
        fit: str,
        rng: random.Random | None,
    ) -> TokenGrid:
        if isinstance(picture, TokenGrid):
            return self.own(model, picture)
        # Upstream's script brings every picture to the target square first, proportions or not.
        square = (model.target, model.target)
        return super().read(model, task, stretch(picture, size or square), size, fit, rng)
