"""Lumina-mGPT 2.0: Chameleon-shaped transformer, own 171,385-word vocabulary, MoVQGAN 270M. arXiv 2507.17801."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from torch import nn

from ..errors import CheckpointError
from ..prompts import MGPT2, Prompt
from ..unirep import TokenGrid, Vocabulary
from ..vq import movq
from .base import IMAGE_END, IMAGE_START, ROW_END, SEPARATOR, Defaults, Family, Names, Source
from .model import Model

__all__ = ["IMAGE_END", "IMAGE_START", "ROW_END", "SEPARATOR", "Mgpt2"]

PUBLISHED = {IMAGE_START: 151665, IMAGE_END: 151666, ROW_END: 151670}
PUBLISHED_GRID_0 = 151671
PUBLISHED_CODE_0 = 155000
PUBLISHED_CODES = 16384
CODE_NAME = re.compile(r"<MOVQGAN(\d{1,9})>")


class Mgpt2(Family):
    id = "mgpt2"
    title = "Lumina-mGPT 2.0"
    defaults = Defaults(cfg=4.0, image_top_k=4096, text_top_k=10, temperature=1.0, max_tokens=10240)
    templates = MGPT2
    vq_hint = "movqgan_270M.ckpt (1.1 GB), from the MoVQGAN 270M release that Lumina-mGPT 2.0 names"
    latents_per_unit = 4
    guidance_decay = True
    answers = "image"

    def detect(self, source: Source) -> bool:
        if "model.layers.0.self_attn.q_norm.weight" not in source.shapes:
            return False
        if source.config.get("vocab_size", 0) >= PUBLISHED_CODE_0 + PUBLISHED_CODES:
            return True
        return any(CODE_NAME.fullmatch(name) for name in source.names())

    def vocabulary(self, source: Source, codes: int) -> Vocabulary:
        if source.tokenizer.bos_name is None:
            raise CheckpointError(
                f"tokenizer_config.json is missing in {source.path}, or names neither bos_token nor eos_token; "
                f"{self.title} begins its prompts with one. Download it from the checkpoint's own repository into the "
                "checkpoint's folder; where that is one file, convert the folder again."
            )
        published = PUBLISHED if source.config["vocab_size"] > PUBLISHED_CODE_0 else None
        names = Names(source, self.title, published, PUBLISHED_GRID_0)
        return names.vocabulary(self._code_ids(names, codes), self.latents_per_unit)

    def _code_ids(self, names: Names, codes: int) -> torch.Tensor:
        if names.size >= PUBLISHED_CODE_0 + codes:  # the plain decoder upstream goes by number
            return torch.arange(PUBLISHED_CODE_0, PUBLISHED_CODE_0 + codes)
        named = {int(digits): token for digits, token in names.matching(CODE_NAME).items()}
        if len(named) != codes or any(c >= codes for c in named):
            raise CheckpointError(
                f"{names.source.tokenizer.source} names {len(named)} image tokens, but the image tokenizer has {codes} "
                "codes; they do not belong together."
            )
        return torch.tensor([named[c] for c in range(codes)])

    def vq_from_shapes(self, shapes: Mapping[str, tuple[int, ...]], ops) -> nn.Module | None:
        return movq.MoVQ(movq.config_from_shapes(shapes), ops) if movq.matches(shapes) else None

    def input_size(self, width: int, height: int, sizes: list[tuple[int, int]]) -> tuple[int, int]:
        # Upstream takes a size of the list as it is; by proportions alone another one might come first.
        if (width, height) in sizes:
            return width, height
        return super().input_size(width, height, sizes)

    def prompt(
        self,
        model: Model,
        text: str,
        *,
        task: str = "text_to_image",
        size: tuple[int, int] | None = None,
        images: Sequence[Image.Image | TokenGrid] = (),
        template: str | None = None,
        subject: str = "",
        fit: str = "crop",
        crop_seed: int | None = None,
    ) -> Prompt:
        entry = model.template(task)
        self.check(entry, text, images, template)
        units = None
        if size is not None:
            h, w = model.check_size(*size)
            units = (h * entry.panels, w)
            model.vocabulary.header(units)
        if not entry.given_panel:
            question = self.word(entry, text, units, template, subject)
            return self.compose(
                model, [question, None], (), task=task, expects="image", units=units, panels=entry.panels
            )
        rng = random.Random(crop_seed) if crop_seed is not None else None
        given = images[0]
        panel = (
            self.own(model, given) if isinstance(given, TokenGrid) else model.encode(given, size, fit, rng)
        )
        h, w = model.vocabulary.units(panel.codes)
        question = self.word(entry, text, (h * entry.panels, w), template, subject)
        return self.compose_open(model, question, panel, task=task, panels=entry.panels)
