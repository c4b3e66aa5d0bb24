"""Lumina-mGPT 1.0: Chameleon's transformer (7B, 34B) and vocabulary, Chameleon's VQGAN. arXiv 2408.02657."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..prompts import MGPT1
from ..vq import chameleon as vqgan
from .base import Defaults, Source
from .chameleon import ChameleonFamily
from .pure import looks_like_pure

TEXT_TO_IMAGE = Defaults(cfg=4.0, image_top_k=2000, text_top_k=10, temperature=1.0, max_tokens=8192)
IMAGE_TASKS = Defaults(cfg=1.0, image_top_k=200, text_top_k=5, temperature=1.0, max_tokens=5000)
CHAT = Defaults(cfg=1.0, image_top_k=2000, text_top_k=5, temperature=1.0, max_tokens=2048)
UNDERSTANDING = Defaults(cfg=4.0, image_top_k=2000, text_top_k=10, temperature=1.0, max_tokens=8192)


class Mgpt1(ChameleonFamily):
    id = "mgpt1"
    title = "Lumina-mGPT 1.0"
    defaults = TEXT_TO_IMAGE
    task_defaults = {
        **{task: IMAGE_TASKS for task, entry in MGPT1.items() if entry.same_size},
        "chat": CHAT,
        "describe": UNDERSTANDING,
    }
    templates = MGPT1
    vq_hint = "vqgan.ckpt (275 MB, with vqgan.yaml), from the image tokenizer of Meta's Chameleon release"
    latents_per_unit = 2

    def detect(self, source: Source) -> bool:
        return self.is_chameleon(source) and not looks_like_pure(source)

    def vq_from_shapes(self, shapes: Mapping[str, tuple[int, ...]], ops) -> nn.Module | None:
        return vqgan.ChameleonVQ(vqgan.config_from_shapes(shapes), ops) if vqgan.matches(shapes) else None
