"""What Lumina-mGPT 1.0 and PURE share: Chameleon's vocabulary, whose codes are spelled in letters, and its turns."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import torch
from PIL import Image

from ..errors import CheckpointError
from ..prompts import Prompt
from ..unirep import TokenGrid, Vocabulary
from .base import IMAGE_END, IMAGE_START, ROW_END, SEPARATOR, Family, Names, Source
from .model import Model

PUBLISHED = {IMAGE_START: 8197, IMAGE_END: 8196, ROW_END: 8803, SEPARATOR: 8710}
PUBLISHED_SIZE = 65536
PUBLISHED_GRID_0 = 8804
PUBLISHED_CODE_0 = 4
CODES = 8192  # of Chameleon; PURE has as many again, behind Chameleon's last id
CODE_NAME = re.compile(r"IMGIMG([A-J]{1,9})Z")  # the digits of the code, spelled A to J
_DIGITS = str.maketrans("ABCDEFGHIJ", "0123456789")


def code_names(names: Names) -> dict[int, int]:
    """Code -> id of every token that is named as a code."""
    return {int(word.translate(_DIGITS)): token for word, token in names.matching(CODE_NAME).items()}


class ChameleonFamily(Family):
    """Codes by name, in both directions; conversations of several turns; pictures cut to the allowed sizes."""

    def is_chameleon(self, source: Source) -> bool:
        """Whether a checkpoint has Chameleon's transformer and vocabulary, of 1.0 or PURE."""
        if "model.layers.0.self_attn.q_norm.weight" not in source.shapes:
            return False
        return any(CODE_NAME.fullmatch(name) for name in source.names())

    def vocabulary(self, source: Source, codes: int) -> Vocabulary:
        published = PUBLISHED if source.config["vocab_size"] >= PUBLISHED_SIZE else None
        names = Names(source, self.title, published, PUBLISHED_GRID_0)
        named = code_names(names)
        if any(c not in named for c in range(codes)):
            raise CheckpointError(
                f"{source.tokenizer.source} names {len(named)} image tokens ('IMGIMGAZ' and on), but the image "
                f"tokenizer has {codes} codes; they do not belong together."
            )
        return names.vocabulary(torch.tensor([named[c] for c in range(codes)]), self.latents_per_unit)

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
        units = model.check_size(*size) if size else None
        rng = random.Random(crop_seed) if crop_seed is not None else None
        own = size if entry.same_size else None
        grids = [self.read(model, task, picture, own, fit, rng) for picture in images]
        if units is None and entry.same_size:
            units = model.vocabulary.units(grids[0].codes)
        question = self.word(entry, text, units, template, subject)
        expects = "text_then_image" if entry.expects == "image" and units is None else entry.expects
        return self.compose(model, [question, None], grids, task=task, expects=expects, units=units)

    def read(
        self,
        model: Model,
        task: str,
        picture: Image.Image | TokenGrid,
        size: tuple[int, int] | None,
        fit: str,
        rng: random.Random | None,
    ) -> TokenGrid:
        """The codes of a picture of a prompt, at `size` or at the allowed size that keeps most of it."""
        if isinstance(picture, TokenGrid):
            return self.own(model, picture)
        size = size or self.input_size(*picture.size, model.sizes_given(task))
        return model.encode(picture, size, fit, rng)
