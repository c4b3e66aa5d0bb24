"""Parts of a picture drawn again: codes outside a mask are kept, codes inside are drawn; also a picture continued."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from .errors import InputError
from .prompts import MGPT1, MGPT2, PURE, Prompt
from .unirep import UNIT, TokenGrid, Vocabulary, check_codes

if TYPE_CHECKING:
    from .families import Model

# Tasks whose answers are texts, or begin with one.
WRITTEN = {t.task for table in (MGPT1, MGPT2, PURE) for t in table.values() if t.expects != "image"}


def redraw(
    prompt: Prompt, vocabulary: Vocabulary, grids: Sequence[TokenGrid], masks: torch.Tensor | None = None
) -> Prompt:
    """The prompt with pictures to keep: picture i of a batch keeps grid i, beginning again behind the last.

    `masks` (n, H, W) or (H, W) of any size are laid over the grids' pictures, mask i over grid i in the same way; every
    code that a masked pixel touches is drawn again, a pixel counting from 0.5 on. A prompt with a higher picture than
    the grids continues them downwards. Where the prompt gives the first panel, a grid that fits behind it is the wanted
    panel, a larger one the whole picture, of whose first panel nothing is kept. An `InputError` says what does not fit.
    """
    if prompt.expects != "image" and prompt.task in WRITTEN:
        raise InputError(
            f"Task '{prompt.task}' writes text, with a picture behind it at most; tokens can be kept where only a "
            "picture is drawn. Take a task that only draws, such as text_to_image or edit."
        )
    if prompt.expects != "image" or prompt.units is None:
        raise InputError(
            f"Task '{prompt.task}' draws a picture of a size that the model chooses; tokens can be kept where the size "
            "is set. Set size_mode to 'as given', or take a task that draws a picture."
        )
    if not grids:
        raise InputError("There are no tokens to keep: connect tokens that hold a picture.")
    if masks is not None and (masks.ndim not in (2, 3) or 0 in masks.shape):
        raise InputError(f"The mask has shape {tuple(masks.shape)}; (masks, height, width) is expected.")
    masks = masks[None] if masks is not None and masks.ndim == 2 else masks
    shape = vocabulary.codes_shape(prompt.units)
    count = len(grids) if masks is None else max(len(grids), len(masks))
    kept = [
        _kept(
            prompt, vocabulary, grids[i % len(grids)], None if masks is None else masks[i % len(masks)], shape
        )
        for i in range(count)
    ]
    first = _given(prompt, vocabulary) * shape[1]
    if all(min(codes[first:]) >= 0 for codes in kept):
        raise InputError(
            "There is nothing to draw: the mask touches no part of the picture that is drawn. Paint where it is to "
            "change, or ask for a greater height to continue it downwards."
        )
    return replace(prompt, kept=tuple(kept))


def size_kept(model: Model, task: str, grids: Sequence[TokenGrid]) -> tuple[int, int]:
    """The size (width, height) of one panel that a task has when it draws the picture of the first grid again."""
    height, width = (n * UNIT for n in model.vocabulary.units(grids[0].codes))
    panels = model.template(task).panels if grids[0].panels > 1 else 1
    return width, height // panels


def touched(mask: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Which codes (h, w) of a picture a mask (H, W) in 0..1 touches: any pixel of half strength or more."""
    most = torch.nn.functional.adaptive_max_pool2d(mask.float().cpu().nan_to_num(0.0)[None], shape)
    return most[0] >= 0.5


def _given(prompt: Prompt, vocabulary: Vocabulary) -> int:
    """Rows of codes that the prompt itself gives, of its open first panel."""
    if prompt.open_at is None:
        return 0
    _, width = vocabulary.codes_shape(prompt.units)
    return (len(prompt.tokens) - prompt.open_at - 3) // (width + 1)


def _kept(
    prompt: Prompt,
    vocabulary: Vocabulary,
    grid: TokenGrid,
    mask: torch.Tensor | None,
    shape: tuple[int, int],
) -> tuple[int, ...]:
    """Codes of the whole picture row by row, -1 where one is drawn."""
    if grid.family != prompt.family:
        raise InputError(
            f"The tokens to keep are of family {grid.family}, the prompt of {prompt.family}; make both with one model."
        )
    height, width = grid.codes.shape
    if width != shape[1] or height > shape[0]:
        side = UNIT // vocabulary.latents_per_unit
        raise InputError(
            f"The tokens to keep are a picture of {width * side}x{height * side} pixels, the one to draw has "
            f"{shape[1] * side}x{shape[0] * side}. Both need one width, and the one to draw the same height or more; "
            "set width and height, or size_mode to 'let the model choose' to take the size of the tokens."
        )
    check_codes(grid.codes, len(vocabulary.code_ids))
    given, codes = _given(prompt, vocabulary), torch.full(shape, -1)
    top = given if height <= shape[0] - given else 0
    kept = grid.codes if mask is None else grid.codes.masked_fill(touched(mask, (height, width)), -1)
    codes[top : top + height] = kept
    codes[:given] = -1  # the prompt says what stands there
    return tuple(codes.flatten().tolist())
