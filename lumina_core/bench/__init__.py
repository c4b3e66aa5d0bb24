"""How fast pictures are drawn here: passes, time by phase, share of the memory bandwidth, and against transformers.

Loading and warming up are left out. The ways to draw take turns, seed by seed, so that whatever else the machine does
meets all of them; figures are medians over the seeds. All ways draw the same number of tokens, so that they read
keys and values of the same depths. A row is told, and the JSON written anew, as soon as something is measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from .. import MODES, InputError, Model, Prompt, Sampling, settings
from ..devices import pick_device
from ..files import write_whole
from . import floor, measure, report, shapes

TEXT = "a red circle on the left and a blue square on the right, white background"
AGAINST_TOKENS = 2400  # beside transformers, which takes minutes for more, a picture is drawn only so far
LEAST_TOKENS = 2  # transformers has its first token from the prefill
WARM_TOKENS = 600  # of a warm-up: beyond the first bucket of keys that CUDA graphs are recorded for
WARM = 3.0  # seconds; a quicker whole picture is drawn some times more before it counts

__all__ = ["add_options", "run"]


def add_options(p: argparse.ArgumentParser) -> None:
    """The options of the verb but those it shares with others: model, image tokenizer, device, precision, size."""
    p.add_argument(
        "--random", choices=list(shapes.SHAPES), help="instead of --model: random weights of a published size"
    )
    p.add_argument("--prompt", default=TEXT, help="what to draw (default: two shapes)")
    p.add_argument(
        "--modes", type=words, default=list(MODES), metavar="A,B", help="ways to draw (default: all)"
    )
    p.add_argument(
        "--windows",
        type=words,
        default=["auto"],
        metavar="N,M|auto",
        help="of the windowed modes (default: auto)",
    )
    p.add_argument("--seeds", type=int, metavar="N", help="pictures of each (default: 3, 1 with --random)")
    text = f"draw only the first N of a picture, row ends among them (default: all, {AGAINST_TOKENS} with --against)"
    p.add_argument("--tokens", type=int, metavar="N", help=text)
    p.add_argument("--cfg", type=float, help="guidance (default: the checkpoint's own)")
    p.add_argument("--temperature", type=float, help="(default: the checkpoint's own)")
    p.add_argument("--image-top-k", "--top-k", type=int, help="codes considered at each place")
    p.add_argument(
        "--against", choices=[report.OTHER], help="also what a user would run without us, on the same weights"
    )
    p.add_argument("--json", type=Path, metavar="FILE", help="also write it there, anew after every picture")


def words(text: str) -> list[str]:
    """The argument type of a list."""
    return [word.strip() for word in text.split(",")]


@dataclass(frozen=True)
class Subject:
    """What is measured: a model, a prompt for it, and what the user should know of the figures."""

    model: Model
    prompt: Prompt
    size: tuple[int, int]
    notes: tuple[str, ...] = ()


@dataclass
class Way:
    """One way to draw, and what it took so far."""

    mode: str
    sampling: Sampling
    draw: Callable[[Sampling, int], measure.Run]  # told how many tokens of the picture are wanted
    floor: floor.Floor
    tokens: int
    first: measure.Run | None = None
    runs: list[measure.Run] = dataclasses.field(default_factory=list)

    def warm_up(self) -> None:
        """A first picture or its start, which pays for what later ones find ready; quick ones settle on a window."""
        self.first = self.draw(self.sampling, min(self.tokens, WARM_TOKENS))
        quick = self.tokens <= WARM_TOKENS and self.first.prefill + self.first.decode < WARM
        for seed in range(1, 3 if quick else 1):
            self.draw(dataclasses.replace(self.sampling, seed=seed), self.tokens)

    def take_turn(self, seed: int) -> None:
        self.runs.append(self.draw(dataclasses.replace(self.sampling, seed=seed), self.tokens))


def run(
    args: argparse.Namespace,
    open_model: Callable[[argparse.Namespace], Model],
    default_size: Callable[[Model], tuple[int, int]],
) -> Iterator[str]:
    """Measures what the options ask for; lines of a table. `open_model` and `default_size` are those of `generate`.

    Ctrl-C ends the table with what was measured, and is raised again.
    """
    plans = plans_of(args.modes, args.windows)
    seeds = seeds_of(args)
    subject = random_subject(args) if args.random else model_subject(args, open_model, default_size)
    model, prompt = subject.model, subject.prompt
    options = ("cfg", "temperature", "image_top_k")
    sampling = settings(model, prompt.task, **{name: getattr(args, name) for name in options})
    whole = measure.tokens_to_draw(model.vocabulary, prompt)
    tokens = min(whole, args.tokens or (AGAINST_TOKENS if args.against else whole))
    ways = [
        _ours(model, prompt, dataclasses.replace(sampling, decode=mode, window=window), tokens)
        for mode, window in plans
    ]
    if args.against:
        ways.insert(0, _theirs(model, prompt, sampling, tokens))
    told = {**dataclasses.asdict(sampling), "tokens": tokens}
    yield setting(subject, sampling, tokens, whole)
    yield report.heading()
    try:
        for way in rounds(ways, seeds):
            rows = rows_of(subject, ways)
            if args.json:
                keep(args.json, report.document(rows, told, ways[-1].floor, device_of(model)))
            if len(way.runs) == 1:
                yield report.line(rows[-1])
    except KeyboardInterrupt:
        yield from closing(subject, ways, tokens < whole)
        raise
    yield from closing(subject, ways, tokens < whole)


def rounds(ways: list[Way], seeds: int) -> Iterator[Way]:
    """Lets the ways take turns; gives each whenever it has measured a picture."""
    total = len(ways) * (seeds + 1)
    with tqdm(
        total=total, desc="measuring", unit="picture", disable=None, leave=False, file=sys.stderr
    ) as bar:
        for seed in range(seeds):
            for way in ways:
                if way.first is None:
                    bar.set_postfix_str(f"{way.mode}, warming up")
                    way.warm_up()
                    bar.update()
                bar.set_postfix_str(way.mode)
                way.take_turn(seed)
                bar.update()
                bar.clear()  # a line may be printed now
                yield way


def rows_of(subject: Subject, ways: list[Way]) -> list[report.Row]:
    """The rows of the ways that have measured something."""
    shape = subject.model.vocabulary.codes_shape(subject.prompt.units)
    return [
        report.row_of((subject.model.name, subject.size, w.mode), w.runs, w.first, shape, w.floor)
        for w in ways
        if w.runs
    ]


def keep(file: Path, document: dict) -> None:
    """Writes the JSON."""
    write_whole(file, lambda part: part.write_text(json.dumps(document, indent=1) + "\n", "utf-8"))


def seeds_of(args: argparse.Namespace) -> int:
    """How many pictures are drawn of each; an `InputError` where that or their tokens make no sense."""
    seeds = args.seeds if args.seeds is not None else 1 if args.random else 3
    if seeds < 1:
        raise InputError(f"--seeds is {seeds}; at least 1 picture is drawn of each.")
    if args.tokens is not None and args.tokens < LEAST_TOKENS:
        raise InputError(
            f"--tokens is {args.tokens}; at least {LEAST_TOKENS} are drawn of a picture. Leave it out for all."
        )
    return seeds


def plans_of(modes: list[str], windows: list[str]) -> list[tuple[str, int | None]]:
    """Mode and window of every way to draw; an `InputError` names a word that is neither."""
    for word in windows:
        if word != "auto" and not word.lstrip("-").isdigit():
            raise InputError(f"--windows is '{','.join(windows)}'; write numbers such as 8,16,32, or auto.")
    widths = [None if word == "auto" else int(word) for word in windows]
    plans = [(m, w) for m in modes for w in (widths if m in report.WINDOWED else [None])]
    for mode, window in plans:
        Sampling(decode=mode, window=window)  # refuses what is out of range, by name
    return plans


def model_subject(args, open_model, default_size) -> Subject:
    """A checkpoint with a prompt of its own text-to-image task; a picture is what is expected, at once."""
    model = open_model(args)
    size = args.size or default_size(model)
    prompt = text_prompt(model, args.prompt, size)
    return Subject(model, prompt, size)


def text_prompt(model: Model, text: str, size: tuple[int, int]) -> Prompt:
    """A prompt that is answered by a picture of this size; PURE is given an empty picture to restore."""
    options = {}
    if "text_to_image" not in model.tasks:
        from PIL import Image

        options = {"task": model.tasks[0], "images": [Image.new("RGB", size, "gray")]}
    prompt = model.prompt(text, size=size, **options)
    return dataclasses.replace(prompt, expects="image")


def random_subject(args) -> Subject:
    """Random weights of a published size, and a prompt of as many tokens as a caption has."""
    shape = shapes.SHAPES[args.random]
    shape = dataclasses.replace(shape, size=args.size or shape.size)
    device = pick_device(args.device)
    precision = args.precision if args.precision != "auto" else ("fp32" if device.type == "cpu" else "bf16")
    model = shapes.build(args.random, shape, device, precision)
    note = (
        "random weights: a pass takes its real time, but how many drafts hold is not that of a trained model"
    )
    return Subject(model, shapes.prompt_of(model, shape, shape.size), shape.size, (note,))


def device_of(model: Model) -> torch.device:
    return model.transformer.model.norm.weight.device


def _ours(model: Model, prompt: Prompt, sampling: Sampling, tokens: int) -> Way:
    return Way(
        sampling.decode,
        sampling,
        lambda s, most: measure.draw(model, prompt, s, most),
        floor.floor_of(model, prompt, sampling, tokens),
        tokens,
    )


def _theirs(model: Model, prompt: Prompt, sampling: Sampling, tokens: int) -> Way:
    try:
        from . import baseline
    except ImportError as e:
        raise InputError(
            f"--against transformers needs the transformers package with its Chameleon, 4.50 or newer ({e})."
        ) from None
    theirs = baseline.build(model.transformer)

    def draw(s: Sampling, most: int) -> measure.Run:
        return baseline.measured(theirs, model.vocabulary, prompt, s, most)

    own = floor.floor_of(model, prompt, sampling, tokens)
    alone = dataclasses.replace(own, cache=own.cache // (1 if sampling.cfg == 1.0 else 2))  # a row a pass
    return Way(report.OTHER, sampling, draw, alone, tokens)


def setting(subject: Subject, sampling: Sampling, tokens: int, whole: int) -> str:
    """What is measured, in one line."""
    model, (width, height) = subject.model, subject.size
    h, w = model.vocabulary.codes_shape(subject.prompt.units)
    device = device_of(model)
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    dtype = str(model.transformer.model.embed_tokens.weight.dtype).removeprefix("torch.")
    part = f"; only the first {tokens} of {whole} tokens are drawn" if tokens < whole else ""
    return (
        f"{model.name}, {width}x{height} ({h * w} codes, {h} row ends), {dtype} on {device}{threads}; "
        f"cfg {sampling.cfg:g}, temperature {sampling.temperature:g}, top-k {sampling.image_top_k}{part}"
    )


def closing(subject: Subject, ways: list[Way], cut: bool) -> Iterator[str]:
    """What follows the rows of the first seed: the medians of all, the ratios, what to know of them."""
    rows = rows_of(subject, ways)
    if not rows:
        return
    if max(row.seeds for row in rows) > 1:
        yield "medians of the seeds:"
        yield from (report.heading(), *map(report.line, rows))
    for ratio in report.ratios(rows):
        yield ratio.line()
    reads = ways[-1].floor
    yield (
        f"one pass reads {reads.weights / 1e6:.1f} MB of weights and {reads.cache / 1e6:.1f} MB of keys and values on"
        f" average; {reads.source}"
    )
    if cut:
        yield "that is the average of the tokens drawn; the later ones of a picture read more and take longer"
    yield from subject.notes
