"""A checkpoint's answers to held-out examples of every task, and its image tokenizer alone; judged in `figures`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from ..errors import InputError
from ..families import Model
from ..prompts import Prompt, fill
from ..sampling import Event, PictureFinished, Sampling, TextPiece, generate
from ..sampling.abreast import Abreast
from ..unirep import UNIT, TokenGrid
from . import measures, world
from .dataset import picture_codes
from .examples import Example, Size, example
from .figures import Figure, Outcome, judged
from .judge import judge

AT_ONCE = 32  # examples that are drawn together
WORDS = 96  # tokens of text that an answer may take


def evaluate(
    model: Model,
    pools: Sequence[tuple[str, Size]],
    count: int,
    settings: Callable[[str], Sampling],
    report: Callable[[str, int], object] = lambda kind, done: None,
) -> list[Figure]:
    """Figures of every kind among `pools` (kind, size), `count` held-out examples each, sizes in turn.

    `settings` gives the sampling settings of a task; example n is drawn with its seed + n. `report(kind, examples)`
    is told what was drawn.
    """
    if count < 1:
        raise InputError("There is nothing to judge: the number of captions must be at least 1.")
    figures = []
    for kind, numbers in shared_out(pools, count).items():
        done = []
        for size, mine in numbers.items():
            for first in range(0, len(mine), AT_ONCE):
                part = mine[first : first + AT_ONCE]
                done += outcomes(model, [example(kind, "held-out", n, size) for n in part], part, settings)
                report(kind, len(part))
        figures += judged(kind, done)
    return figures


def shared_out(pools: Sequence[tuple[str, Size]], count: int) -> dict[str, dict[Size, list[int]]]:
    """Which of the first `count` held-out examples of each kind are judged at which of its sizes."""
    out = {}
    for kind in dict.fromkeys(kind for kind, _ in pools):
        sizes = [size for other, size in pools if other == kind]
        out[kind] = {size: list(range(i, count, len(sizes))) for i, size in enumerate(sizes)}
    return out


def outcomes(
    model: Model, examples: Sequence[Example], numbers: Sequence[int], settings: Callable[[str], Sampling]
) -> Iterator[Outcome]:
    """What the model makes of examples of one kind and size."""
    sampling = settings(examples[0].task)
    prompts = prompts_of(model, examples)
    seeds = [sampling.seed + n for n in numbers]
    words: list[list[int]] = [[] for _ in examples]
    panels: list[tuple[np.ndarray, ...]] = [()] * len(examples)
    for event in _events(model, prompts, seeds, sampling):
        if isinstance(event, TextPiece):
            words[event.index] += event.tokens
        elif isinstance(event, PictureFinished):
            panels[event.index] += tuple(model.decode(panel.codes) for panel in event.grid.split())
    for e, seen, said in zip(examples, panels, words, strict=True):
        yield Outcome(e, seen, model.tokenizer.decode(said))


def _events(
    model: Model, prompts: Sequence[Prompt], seeds: Sequence[int], sampling: Sampling
) -> Iterator[Event]:
    """The events of all answers, `index` being the prompt's."""
    asked, first = (model.transformer, model.vocabulary), prompts[0]
    if first.expects == "text_then_image" and first.units is None:  # as many pictures as the model likes
        for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            for event in generate(*asked, prompt, replace(sampling, seed=seed)):
                yield replace(event, index=i) if isinstance(event, TextPiece | PictureFinished) else event
        return
    # So many together are quicker without windows, which give the same pictures.
    alone = replace(sampling, decode="ar", max_tokens=WORDS)
    yield from Abreast(*asked, prompts, seeds, alone).draw(len(prompts))


def prompts_of(model: Model, examples: Sequence[Example]) -> list[Prompt]:
    """The prompts the library makes of examples; pictures are encoded at their own size."""
    codes = picture_codes(model.vq, [p for e in examples for p in e.given])
    out = []
    for e in examples:
        entry = model.family.templates[e.task]
        if entry.expects == "image" and not e.given:
            out.append(model.prompt(e.text, task=e.task, size=e.size))
            continue
        grids = [TokenGrid(codes[p.tobytes()], model.family.id) for p in e.given]
        h, w = e.size[1] // UNIT, e.size[0] // UNIT
        if entry.given_panel:
            question = fill(entry.text, e.text, (h * entry.panels, w), e.subject or entry.subject)
            prompt = model.family.compose_open(model, question, grids[0], task=e.task, panels=entry.panels)
            out.append(prompt)
            continue
        question = fill(entry.text, e.text, None)
        talk = entry.images is None  # in which the size is told by the words alone
        turns, units = [*e.earlier, question, None], (h, w) if e.drawn and not talk else None
        expects = entry.expects if e.drawn else "text"
        out.append(model.family.compose(model, turns, grids, task=e.task, expects=expects, units=units))
    return out


@dataclass(frozen=True)
class Ceiling:
    """How well the image tokenizer alone does: PSNR in dB of held-out pictures, and what the judge sees through it."""

    psnr: float
    colour: float
    shape: float


def evaluate_tokenizer(model: Model, sizes: Sequence[Size], pictures: int = 200) -> Ceiling:
    """The image tokenizer on held-out pictures, without the transformer."""
    errors, verdicts = [], []
    for n in range(pictures):
        scene = world.scene("held-out", n, *sizes[n % len(sizes)])
        truth = world.picture(scene)
        rebuilt = model.decode(model.encode(Image.fromarray(truth)).codes)
        errors.append(measures.psnr(rebuilt, truth))
        verdicts += judge(scene, rebuilt)
    colour, shape = (float(np.mean([getattr(v, k) for v in verdicts])) for k in ("colour", "shape"))
    return Ceiling(float(np.mean(errors)), colour, shape)


def ceilings(pools: Sequence[tuple[str, Size]], model: Model, count: int) -> list[Figure]:
    """What the judges say of the pictures that `evaluate` wants, through the image tokenizer alone: its limit."""
    figures = []
    for kind, numbers in shared_out(pools, count).items():
        done = []
        for size, mine in numbers.items():
            for e in (example(kind, "held-out", n, size) for n in mine):
                codes = picture_codes(model.vq, list(e.drawn))
                done.append(Outcome(e, tuple(model.decode(codes[p.tobytes()]) for p in e.drawn), ""))
        figures += [f for f in judged(kind, done) if not f.of_text]
    return figures
