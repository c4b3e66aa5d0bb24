"""What a checkpoint can be asked; room for the key-value cache: what a picture takes, what is free, what would fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ..errors import InputError
from ..unirep import UNIT, Vocabulary
from .contexts import Contexts, transformer_device
from .events import Sampling

if TYPE_CHECKING:
    from ..prompts import Prompt
    from ..transformer import Transformer, TransformerConfig


TEXT = 1024  # tokens of a text that room is reckoned for: few are longer, and the room of an answer grows with it


def check_prompt(config: TransformerConfig, vocabulary: Vocabulary, prompt: Prompt) -> None:
    """Raises an `InputError` where a checkpoint cannot read a prompt, or draws nothing at all."""
    if prompt.numbering and prompt.numbering != vocabulary.numbering:
        raise InputError(
            "The prompt was made with another checkpoint, which numbers its tokens differently. Make the prompt with "
            "the checkpoint that draws it: one model for both."
        )
    if max(prompt.tokens) >= config.vocab_size:
        raise InputError(
            f"The prompt holds token {max(prompt.tokens)}, but this checkpoint knows {config.vocab_size} tokens. Make "
            "the prompt with the checkpoint that draws it."
        )
    if len(prompt.tokens) >= config.max_position_embeddings:
        raise InputError(
            f"The prompt takes {len(prompt.tokens)} tokens; this checkpoint has {config.max_position_embeddings} "
            "positions. Shorten the text, or give fewer or smaller pictures."
        )
    if config.mask_image_logits and prompt.expects == "image":
        raise InputError(
            "This checkpoint writes text only: its config.json sets 'mask_image_logits', which keeps pictures from "
            "being drawn. Load a checkpoint that was trained to draw."
        )


def tokens_needed(prompt: Prompt, vocabulary: Vocabulary, units: tuple[int, int] | None = None) -> int:
    """Positions that a prompt with a known size takes in all: prefix, picture, end. `units` asks for another size."""
    h, w = vocabulary.codes_shape(units or prompt.units)
    prefix = len(prompt.tokens) if prompt.open_at is None else prompt.open_at
    return prefix + h * (w + 1) + 4


def cache_nbytes(
    transformer: Transformer,
    vocabulary: Vocabulary,
    prompt: Prompt,
    sampling: Sampling,
    units: tuple[int, int] | None = None,
) -> int:
    """Bytes of key-value cache that `generate` takes: exactly where the size is known.

    Else about as much as it may take at most; for text alone what `TEXT` tokens take. `units` asks for another size
    than the prompt's.
    """
    batch, guided = 1, sampling.cfg != 1.0
    if units is None and (prompt.expects != "image" or prompt.units is None):
        alone = prompt.expects == "text"
        written = min(sampling.max_tokens, TEXT) if alone else sampling.max_tokens
        positions = len(prompt.tokens) + written
        capacity = min(transformer.config.max_position_embeddings, positions) + sampling.spare
        guided = guided and not alone  # the second row comes with a picture
    else:
        batch, capacity = sampling.batch, tokens_needed(prompt, vocabulary, units) + sampling.spare
    return Contexts.nbytes(transformer, batch, guided, capacity)


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be had on a device; None where nobody can say."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "cpu":
        try:
            import psutil
        except ImportError:
            return None
        return psutil.virtual_memory().available
    return None


def check(
    transformer: Transformer, vocabulary: Vocabulary, prompt: Prompt, sampling: Sampling, free: int | None
) -> None:
    """Refuses a prompt of known size that does not fit the model's positions or the memory that is free.

    `free` is asked of the device when it is None.
    """
    most = transformer.config.max_position_embeddings
    needed = tokens_needed(prompt, vocabulary)
    if needed > most:
        raise InputError(
            f"A {in_pixels(prompt.units)} picture with this prompt takes {needed} tokens; this checkpoint has {most} "
            f"positions. {_largest(transformer, vocabulary, prompt, sampling, None)}"
        )
    nbytes = cache_nbytes(transformer, vocabulary, prompt, sampling)

    def fits(free: int) -> str:
        return _largest(transformer, vocabulary, prompt, sampling, free)

    what = a_picture(prompt.units) + (f", batch {sampling.batch}," if sampling.batch > 1 else "")
    check_bytes(nbytes, free, transformer_device(transformer), what, fits)


def check_bytes(
    nbytes: int,
    free: int | None,
    device: torch.device,
    what: str,
    fits: Callable[[int], str] = lambda free: "Ask for a smaller picture, or free memory.",
) -> None:
    """Raises an `InputError` where the cache of `what` is larger than what is free; `fits` says what else may be asked.

    `free` is asked of the device when it is None.
    """
    free = free_bytes(device) if free is None else free
    if free is not None and nbytes > free:
        raise InputError(
            f"{what} takes {_gigabytes(nbytes)} of key-value cache; {_gigabytes(free)} are free on {device}. "
            f"{fits(free)}"
        )


def _largest(
    transformer: Transformer, vocabulary: Vocabulary, prompt: Prompt, sampling: Sampling, free: int | None
) -> str:
    """What would fit, in words."""
    for n in sorted(vocabulary.grid, reverse=True):
        units = (n * prompt.panels, n)
        if units[0] not in vocabulary.grid:
            continue
        if tokens_needed(prompt, vocabulary, units) > transformer.config.max_position_embeddings:
            continue
        if free is not None and cache_nbytes(transformer, vocabulary, prompt, sampling, units) > free:
            continue
        a_panel = " a panel" if prompt.panels > 1 else ""
        fewer = ", or lower batch" if free is not None and sampling.batch > 1 else ""
        return f"The largest square that fits is {in_pixels((n, n))}{a_panel}{fewer}."
    if free is None:
        return "No size fits; shorten the text, or give fewer or smaller pictures."
    return "No size fits; lower batch, set cfg to 1, free memory, or load the weights in a smaller precision."


def in_pixels(units: tuple[int, int]) -> str:
    """Width x height in pixels of grid units (height, width)."""
    return f"{units[1] * UNIT}x{units[0] * UNIT}"


def a_picture(units: tuple[int, int]) -> str:
    """A picture of grid units (height, width), to begin a sentence with."""
    return f"A {in_pixels(units)} picture"


def in_words(count: int, units: tuple[int, int]) -> str:
    """What is drawn together: pictures of grid units (height, width)."""
    size = in_pixels(units)
    return f"a {size} picture" if count == 1 else f"{count} {size} pictures side by side"


def _gigabytes(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.1f} MB"
