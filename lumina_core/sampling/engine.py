"""Decoding: a generator of events; whoever iterates decides on progress, preview and Cancel.

A picture whose size is known is drawn from a fixed plan (rows of codes, each closed by a forced row end). Anything else
is a free answer: text, in which the model may begin pictures of a size that it chooses.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import torch

from ..shortage import told
from ..unirep import TokenGrid, Vocabulary
from .answer import Answer
from .contexts import Contexts
from .events import Event, PictureFinished, Progress, Sampling
from .kept import kept_codes, rows_kept
from .room import check, check_prompt, in_words, tokens_needed
from .smaller import ADVICE, once_more
from .window import painter_of

if TYPE_CHECKING:
    from ..prompts import Prompt
    from ..transformer import Transformer


def generate(
    transformer: Transformer,
    vocabulary: Vocabulary,
    prompt: Prompt,
    sampling: Sampling,
    free: int | None = None,
) -> Iterator[Event]:
    """Draws what `prompt` expects, `sampling.batch` times, and yields events.

    Raises `InputError` at once when the picture cannot fit the model's positions, or its cache the `free` bytes of
    the device, which is asked when nothing is given. The cache is gone when the last picture is handed out, when the
    iterator is closed, and when anything is raised.

    Where memory runs out, the same is drawn once more in a smaller way, which is logged; `Progress` then begins anew.
    An `OutOfMemoryError` says that this was too much as well, a `PrecisionError` that the scores are no numbers.
    """
    check_prompt(transformer.config, vocabulary, prompt)
    if prompt.expects == "image" and prompt.units is not None:
        check(transformer, vocabulary, prompt, sampling, free)
        return _known_size(transformer, vocabulary, prompt, sampling)
    return _answers(transformer, vocabulary, prompt, sampling, free)


@torch.inference_mode()
def _known_size(
    transformer: Transformer, vocabulary: Vocabulary, prompt: Prompt, sampling: Sampling
) -> Iterator[Event]:
    pictures = range(sampling.batch)
    asked = (transformer, vocabulary, prompt)
    first = _pictures(*asked, sampling, pictures)
    yield from once_more(first, partial(_one_by_one, *asked, pictures), transformer, sampling, len(pictures))


def _one_by_one(
    transformer: Transformer, vocabulary: Vocabulary, prompt: Prompt, pictures: range, sampling: Sampling
) -> Iterator[Event]:
    """Draws the pictures of a batch one after the other, without CUDA graphs."""
    for i in pictures:
        one = _pictures(transformer, vocabulary, prompt, sampling, range(i, i + 1), with_graphs=False)
        yield from _in_turn(one, i, len(pictures))


def _in_turn(events: Generator[Event, None, None], i: int, count: int) -> Iterator[Event]:
    """The events of number `i` of `count` that are made one after the other, with the progress of all."""
    with closing(events):
        for event in events:
            if isinstance(event, Progress):
                event = Progress(i * event.total + event.done, count * event.total)
            yield event


def _pictures(
    transformer: Transformer,
    vocabulary: Vocabulary,
    prompt: Prompt,
    sampling: Sampling,
    pictures: range,
    with_graphs: bool = True,
) -> Iterator[Event]:
    """Draws some pictures of a batch side by side."""
    shape = vocabulary.codes_shape(prompt.units)
    header = vocabulary.header(prompt.units)
    prefix = list(prompt.tokens)
    if prompt.open_at is None:
        opened, drawn = header, len(header)
        prefix += header
    else:
        opened, drawn = prefix[prompt.open_at :], 0
    kept = kept_codes(prompt, pictures, shape)
    if kept is not None:  # kept rows on top are read at once, as a given panel is
        given = (len(opened) - 3) // (shape[1] + 1)
        rows = vocabulary.rows(kept[0, given : rows_kept(kept, given)])
        opened, prefix, drawn = opened + rows, prefix + rows, drawn + len(rows)
    capacity = tokens_needed(prompt, vocabulary) + sampling.spare
    what = in_words(len(pictures), prompt.units)
    with told(f"making room for {what}", ADVICE):
        contexts = Contexts(transformer, len(pictures), sampling.cfg != 1.0, capacity, with_graphs)
    try:
        with told(f"reading the prompt ({len(prefix)} tokens) for {what}", ADVICE):
            painter = painter_of(contexts, vocabulary, prompt, sampling, pictures, shape)
            kept = None if kept is None else kept.to(contexts.device)
            hidden = contexts.prefill([prefix] * len(pictures))
            painter.start(hidden, [opened] * len(pictures), drawn, kept)
        with told(f"drawing {what}", ADVICE):
            yield from painter.paint()
            finished = painter.codes.cpu()
    finally:
        contexts.free()
    for i, codes in zip(pictures, finished, strict=True):
        yield PictureFinished(i, TokenGrid(codes, prompt.family, prompt.panels))


@torch.inference_mode()
def _answers(
    transformer: Transformer, vocabulary: Vocabulary, prompt: Prompt, sampling: Sampling, free: int | None
) -> Iterator[Event]:
    for i in range(sampling.batch):
        answer = Answer(transformer, vocabulary, prompt, sampling, i, free)
        yield from _in_turn(answer.write(), i, sampling.batch)
