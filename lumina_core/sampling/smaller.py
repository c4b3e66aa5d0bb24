"""What is done when memory ran out: once more, in a way that takes less and draws the same pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import torch

from ..errors import OutOfMemoryError
from ..shortage import empty_caches
from .contexts import transformer_device
from .events import Event, Sampling
from .graphs import Graphs

if TYPE_CHECKING:
    from ..transformer import Transformer

T = TypeVar("T")
log = logging.getLogger(__name__)

ADVICE = (
    "Ask for a smaller picture or a smaller batch, set cfg to 1, load the weights as int8 or nf4, or close other "
    "programs that use this memory."
)


def once_more(
    first: Generator[Event, None, T],
    again: Callable[[Sampling], Generator[Event, None, T]],
    transformer: Transformer,
    sampling: Sampling,
    pictures: int = 1,
) -> Generator[Event, None, T]:
    """Draws `first`; where memory runs out, what `again` makes of settings that take less. Gives what they give."""
    try:
        return (yield from first)
    except OutOfMemoryError as e:
        less = smaller(e, transformer, sampling, pictures)
        if less is None:
            raise
    # Outside the handler: until here the error keeps what was computed.
    empty_caches(transformer_device(transformer))
    return (yield from again(less))


def smaller(
    e: OutOfMemoryError, transformer: Transformer, sampling: Sampling, pictures: int = 1
) -> Sampling | None:
    """Settings that take less memory for the same `pictures`, drawn one at a time without CUDA graphs; says so.

    None where there is no smaller way.
    """
    less, ways = sampling, []
    if sampling.decode == "jacobi":
        less = replace(sampling, decode="ar", window=None)
        ways.append("one token a pass")
    if pictures > 1:
        ways.append("one picture at a time")
    if Graphs.possible(transformer, transformer_device(transformer)):
        ways.append("without CUDA graphs")
    if not ways:
        return None
    exact = transformer.model.embed_tokens.weight.dtype == torch.float32
    same = "the same is drawn" if exact else "the same is drawn but for the rounding of 16 bit"
    log.warning(
        "Lumina-mGPT: %s Trying once more: %s; %s", str(e).split(". ")[0] + ".", ", ".join(ways), same
    )
    return less
