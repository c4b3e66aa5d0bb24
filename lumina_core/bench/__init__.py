"""How fast pictures are drawn here: passes, time by phase, share of the memory bandwidth, and against transformers.

Loading and warming up are left out. The ways to draw take turns, seed by seed, so that whatever else the machine does
meets all of them; figures are medians over the seeds.
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
BASELINE_TOKENS = 2400  # of transformers, a larger picture is drawn only so far
WARM = 3.0  # seconds; a quicker picture is drawn some times more before it counts

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
    p.add_argument("--seeds", type=int, default=3, metavar="N", help="pictures of each (default: 3)")
    p.add_argument("--cfg", type=float, help="guidance (default: the family's)")
    p.add_argument("--temperature", type=float, help="(default: the family's)")
    p.add_argument("--image-top-k", "--top-k", type=int, help="codes considered at each place")
    p.add_argument(
        "--against", choices=[report.OTHER], help="also what a user would run without us, on the same weights"
    )
    p.add_argument("--json", type=Path, metavar="FILE", help="also write all of it there")


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
    draw: Callable[[Sampling], measure.Run]
    floor: floor.Floor
    drawn: int | None = None  # tokens, where that is not the whole picture
    first: float = 0.0
    runs: list[measure.Run] = dataclasses.field(default_factory=list)

    def warm_up(self) -> None:
        """The first picture, which pays for what later ones find ready; quick ones settle on a window."""
        run = self.draw(self.sampling)
        self.first = run.prefill + run.decode
        for seed in range(1, 3 if self.first < WARM else 1):
            self.draw(dataclasses.replace(self.sampling, seed=seed))


def run(
    args: argparse.Namespace,
    open_model: Callable[[argparse.Namespace], Model],
    default_size: Callable[[Model], tuple[int, int]],
) -> Iterator[str]:
    """Measures what the options ask for; lines of a table. `open_model` and `default_size` are those of `generate`."""
    plans = plans_of(args.modes, args.windows)
    if args.seeds < 1:
        raise InputError(f"--seeds is {args.seeds}; at least 1 picture is drawn of each.")
    subject = random_subject(args) if args.random else model_subject(args, open_model, default_size)
    model, prompt = subject.model, subject.prompt
    options = ("cfg", "temperature", "image_top_k")
    sampling = settings(model, prompt.task, **{name: getattr(args, name) for name in options})
    ways = [
        _ours(model, prompt, dataclasses.replace(sampling, decode=mode, window=window))
        for mode, window in plans
    ]
    if args.against:
        ways.insert(0, _theirs(model, prompt, sampling))
    shape = model.vocabulary.codes_shape(prompt.units)
    total = len(ways) * (args.seeds + 1)
    with tqdm(
        total=total, desc="measuring", unit="picture", disable=None, leave=False, file=sys.stderr
    ) as bar:
        for way in ways:
            bar.set_postfix_str(f"{way.mode}, warming up")
            way.warm_up()
            bar.update()
        for seed in range(args.seeds):
            for way in ways:
                bar.set_postfix_str(way.mode)
                way.runs.append(way.draw(dataclasses.replace(way.sampling, seed=seed)))
                bar.update()
    rows = [
        report.row_of((model.name, subject.size, w.mode), w.runs, w.first, shape, w.floor, w.drawn)
        for w in ways
    ]
    yield from lines(subject, sampling, rows, ways)
    if args.json:
        told = report.document(rows, dataclasses.asdict(sampling), ways[-1].floor, device_of(model))
        write_whole(args.json, lambda part: part.write_text(json.dumps(told, indent=1) + "\n", "utf-8"))


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
    size = args.size or shape.size
    device = pick_device(args.device)
    precision = args.precision if args.precision != "auto" else ("fp32" if device.type == "cpu" else "bf16")
    model = shapes.build(args.random, shape, device, precision)
    note = (
        "random weights: a pass takes its real time, but how many drafts hold is not that of a trained model"
    )
    return Subject(model, shapes.prompt_of(model, shape, size), size, (note,))


def device_of(model: Model) -> torch.device:
    return model.transformer.model.norm.weight.device


def _ours(model: Model, prompt: Prompt, sampling: Sampling) -> Way:
    return Way(
        sampling.decode,
        sampling,
        lambda s: measure.draw(model, prompt, s),
        floor.floor_of(model, prompt, sampling),
    )


def _theirs(model: Model, prompt: Prompt, sampling: Sampling) -> Way:
    try:
        from . import baseline
    except ImportError as e:
        raise InputError(
            f"--against transformers needs the transformers package with its Chameleon, 4.50 or newer ({e})."
        ) from None
    theirs = baseline.build(model.transformer)
    h, w = model.vocabulary.codes_shape(prompt.units)
    most = min(h * (w + 1), BASELINE_TOKENS)

    def draw(s: Sampling) -> measure.Run:
        return baseline.measured(theirs, model.vocabulary, prompt, s, most)

    own = floor.floor_of(model, prompt, sampling)
    alone = dataclasses.replace(own, cache=own.cache // (1 if sampling.cfg == 1.0 else 2))  # a row a pass
    return Way(report.OTHER, sampling, draw, alone, most)


def lines(subject: Subject, sampling: Sampling, rows: list[report.Row], ways: list[Way]) -> Iterator[str]:
    """What is printed: the setting, the table, the ratios, what to know of them."""
    model, (width, height) = subject.model, subject.size
    h, w = model.vocabulary.codes_shape(subject.prompt.units)
    device = device_of(model)
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    dtype = str(model.transformer.model.embed_tokens.weight.dtype).removeprefix("torch.")
    yield (
        f"{model.name}, {width}x{height} ({h * w} codes, {h} row ends), {dtype} on {device}{threads}; "
        f"cfg {sampling.cfg:g}, temperature {sampling.temperature:g}, top-k {sampling.image_top_k}; "
        f"median of {rows[0].seeds} seeds"
    )
    yield from report.table(rows)
    for ratio in report.ratios(rows):
        yield ratio.line()
    yield (
        f"one pass reads {ways[-1].floor.weights / 1e6:.1f} MB of weights and {ways[-1].floor.cache / 1e6:.1f} MB of"
        f" keys and values on average; {ways[-1].floor.source}"
    )
    if rows[0].mode == report.OTHER and rows[0].drawn < h * (w + 1):
        yield f"transformers was stopped after {rows[0].drawn} tokens; later ones take longer there"
    yield from subject.notes
