"""What each verb of the command line does. Lines for the user go through `say`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from . import (
    KINDS,
    InputError,
    Model,
    PictureFinished,
    Progress,
    Prompt,
    Sampling,
    TokenGrid,
    bundled,
    default_decode_dtype,
    default_dtype,
    generate,
    load,
    many,
    prompt_file,
    read_lora,
    settings,
)
from .devices import pick_device
from .files import write_whole
from .sampling.abreast import MOST

Say = Callable[..., None]  # (text, end="\n")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
PATIENCE = 2.0  # seconds before a progress bar is shown
PRECISIONS = ("auto", *DTYPES, *KINDS)
OPTIONS = (
    "seed",
    "cfg",
    "temperature",
    "image_top_k",
    "text_top_k",
    "decode",
    "window",
    "batch",
    "max_tokens",
)


class Bar(tqdm):
    """A progress bar on stderr: on a terminal only, for what takes longer than two seconds, gone when it is done.

    With `items` it is what it counts: they are passed on one by one.
    """

    def __init__(self, label: str, unit: str = "token", items: Sequence | None = None, **options):
        how = {"delay": PATIENCE, "disable": None, "leave": False, "file": sys.stderr}
        super().__init__(items, desc=label, unit=unit, **how, **options)

    def at(self, done: int, total: int) -> None:
        """Shows how much is done; what is drawn a second time begins anew."""
        self.total = total
        self.update(done - self.n)

    def hide(self) -> None:
        """Takes the bar away until it moves again, so that a line can be said."""
        if not self.disable and self.last_print_t >= self.start_t + self.delay:
            self.clear()


def open_model(args: argparse.Namespace) -> Model:
    """Loads the checkpoint the options name onto the device they name."""
    device = pick_device(args.device)
    quantise = args.precision if args.precision in KINDS else None
    dtype = DTYPES.get(args.precision) or default_dtype(args.model, device)
    decode_dtype = default_decode_dtype(dtype, device)
    how = {"dtype": dtype, "decode_dtype": decode_dtype, "quantise": quantise}
    with Bar("loading", "B", unit_scale=True) as bar:
        model = load(args.model, vq_path=args.vq, device=device, report=bar.at, **how)
    for file, strength in args.lora:
        read_lora(file, model.transformer).merge(model.transformer, strength)
    return model


def sampling_of(model: Model, args: argparse.Namespace, task: str = "text_to_image") -> Sampling:
    """The sampling settings of the options; what is not given is the checkpoint's own for the task."""
    return settings(model, task, **given_settings(args))


def given_settings(args: argparse.Namespace) -> dict:
    """The sampling settings that the options give; an `InputError` where one is out of range, with no model loaded."""
    given = {name: getattr(args, name) for name in OPTIONS if getattr(args, name, None) is not None}
    Sampling(**given)
    return given


def draw(model: Model, prompt: Prompt, sampling: Sampling, label: str = "drawing") -> list[np.ndarray]:
    """The pictures (H, W, 3) of a prompt, with a progress bar."""
    return decoded(model, draw_grids(model, prompt, sampling, label))


def decoded(model: Model, grids: Sequence[TokenGrid]) -> list[np.ndarray]:
    """The pictures (H, W, 3) of code grids, with a progress bar."""
    return [model.decode(grid.codes) for grid in Bar("decoding", "picture", grids)]


def draw_grids(model: Model, prompt: Prompt, sampling: Sampling, label: str = "drawing") -> list[TokenGrid]:
    """The codes of the pictures of a prompt, with a progress bar."""
    grids = []
    with Bar(label) as bar:
        for event in generate(model.transformer, model.vocabulary, prompt, sampling):
            if isinstance(event, Progress):
                bar.at(event.done, event.total)
            elif isinstance(event, PictureFinished):
                grids.append(event.grid)
    return grids


def run_demo(args: argparse.Namespace, say: Say) -> None:
    from .demo import demo

    file = writable_folder(args.out) / "demo.png"
    with Bar("drawing", "example") as bar:

        def report(kind: str, done: int, total: int) -> None:
            bar.set_description_str(kind, refresh=False)
            bar.at(done, total)

        sheet, count = demo(report)
    write_whole(file, lambda part: sheet.save(part, "PNG"))
    say(f"{count} examples of the tasks of {', '.join(bundled())}: {file}")


def run_generate(args: argparse.Namespace, say: Say) -> int:
    if args.prompts:
        return run_many(args, say)
    if args.prompt is None:
        raise InputError("There is nothing to draw: give a PROMPT, or --prompts FILE.jsonl.")
    out = args.out or Path("picture.png")
    if out.suffix.lower() != ".png":
        raise InputError(f"--out is '{out}'; pictures are written as .png.")
    given_settings(args)
    writable_folder(out.parent)
    model = open_model(args)
    sampling = sampling_of(model, args)
    prompt = model.prompt(args.prompt, size=size_of(model, args))
    pictures = draw(model, prompt, sampling)
    for i, picture in enumerate(pictures):
        file = out if len(pictures) == 1 else out.with_stem(f"{out.stem}_{i:02d}")
        one = replace(sampling, seed=sampling.seed + i, batch=1)
        info = {"prompt": args.prompt, "model": model.name, **weights_told(args), **asdict(one)}
        many.save(file, Image.fromarray(picture), info)
        say(str(file))
    return 0


def run_many(args: argparse.Namespace, say: Say) -> int:
    if args.prompt is not None:
        raise InputError("Give a PROMPT or --prompts FILE.jsonl, not both.")
    asked = prompt_file.read(args.prompts)
    given_settings(args)
    folder = writable_folder(args.out or Path("pictures"))
    model = open_model(args)
    with Bar("drawing") as bar:

        def report(done: int, total: int, text: str) -> None:
            bar.set_description_str(text, refresh=False)
            bar.at(done, total)

        options = {"size": size_of(model, args), "at_once": min(args.batch or MOST, MOST)}
        options |= {"about": weights_told(args)}
        done = many.run(model, asked, folder, sampling_of(model, args), report, **options)
    for file, why in done.failed:
        say(f"not drawn: {file.name}: {why}")
    say(f"{len(done.drawn)} pictures drawn into {folder}, {done.skipped} were there already")
    return 1 if done.failed else 0


def size_of(model: Model, args: argparse.Namespace) -> tuple[int, int] | None:
    """The size (width, height) of the option, or the checkpoint's own; None where the model is to choose."""
    return None if args.size == prompt_file.FREE else args.size or model.own_size()


def weights_told(args: argparse.Namespace) -> dict:
    """What a PNG tells of the weights beside the model's name: LoRAs by file name and strength, and the precision."""
    loras = [[lora_name(Path(file).absolute()), strength] for file, strength in args.lora]
    return {"lora": loras, "precision": args.precision}


def lora_name(file: Path) -> str:
    """A LoRA's file name; that of its folder where PEFT wrote it, which gives all files one name."""
    return file.parent.name if file.stem == "adapter_model" else file.name


def run_bench(args: argparse.Namespace, say: Say) -> None:
    from . import bench

    if args.random and args.lora:
        raise InputError("--lora changes a checkpoint's weights, and --random takes none; give one of them.")
    for line in bench.run(args, open_model, Model.own_size):
        say(line)


def run_train(args: argparse.Namespace, say: Say) -> None:
    from .training.build import train

    if args.threads < 0:
        raise InputError(f"--threads is {args.threads}; it may be 0 (all) or more.")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    train(args.name, writable_folder(args.out), say, start_from=args.start_from, device=device)


def run_evaluate(args: argparse.Namespace, say: Say) -> None:
    from .training.evaluate import ceilings, evaluate, evaluate_tokenizer
    from .training.figures import table
    from .training.recipes import RECIPES

    model = open_model(args)
    if model.name not in RECIPES:
        raise InputError(
            f"'{model.name}' was not trained on the world of shapes; there is {', '.join(RECIPES)}."
        )
    recipe = RECIPES[model.name]
    pools = chosen_pools(recipe.examples, args.tasks, model)
    kinds = len({kind for kind, _ in pools})
    with Bar("judging", "example", total=args.captions * kinds) as bar:
        figures = evaluate(
            model,
            pools,
            args.captions,
            lambda task: sampling_of(model, args, task),
            lambda kind, n: bar.update(n),
        )
    limits = ceilings(pools, model, args.captions) if args.ceilings else []
    psnr = evaluate_tokenizer(model, recipe.sizes, min(args.captions, 50))
    lines = table(figures, limits)
    for line in lines:
        say(line)
    say(
        f"image tokenizer: {psnr.psnr:.1f} dB; judged through it: {psnr.colour:.1%} colour, {psnr.shape:.1%} shape"
    )
    if args.json:
        scores = {
            "model": model.name,
            "captions": args.captions,
            "figures": [asdict(f) for f in figures],
            "tokenizer": asdict(psnr),
        }
        write_whole(args.json, lambda part: part.write_text(json.dumps(scores, indent=1) + "\n", "utf-8"))
    if args.table:
        write_whole(args.table, lambda part: part.write_text("\n".join(lines) + "\n", "utf-8"))


def chosen_pools(examples: dict, tasks: list[str] | None, model: Model) -> list[tuple[str, tuple[int, int]]]:
    """The kinds and sizes to judge: those asked for, or those of the tasks that the checkpoint has."""
    from .training.examples import task_of

    kinds = list(dict.fromkeys(kind for kind, _ in examples))
    for task in tasks or ():
        if task not in kinds:
            raise InputError(
                f"--tasks: '{task}' is not judged for '{model.name}'; there is {', '.join(kinds)}."
            )
    wanted = tasks or [kind for kind in kinds if task_of(kind) in model.tasks]
    return [(kind, size) for kind, size in examples if kind in wanted]


def writable_folder(folder: Path) -> Path:
    """The folder, made where it lacks; refused before any work when nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError(f"--out: the folder '{folder}' cannot be made ({e.strerror}).") from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"--out: nothing can be written to the folder '{folder}'.")
    return folder


def run_inspect(args: argparse.Namespace, say: Say) -> int:
    from .inspection import inspect

    report = inspect(args.path, vq_path=args.vq)
    for line in report.lines():
        say(line)
    return 0 if report.usable else 2


def run_convert(args: argparse.Namespace, say: Say) -> None:
    from .convert import convert

    with Bar("converting", "B", unit_scale=True) as bar:
        out = convert(args.folder, args.out, args.precision, vq_path=args.vq, report=bar.at)
    say(f"{out} ({out.stat().st_size / 1e6:,.1f} MB), written and read back")


def run_download(args: argparse.Namespace, say: Say) -> None:
    from . import hub

    say(f"complete: {hub.download(args.name, args.folder, report=say)}")


def run_conformance(args: argparse.Namespace, say: Say) -> int:
    from .conformance import run

    with Bar("checking", "case") as bar:

        def aside(line: str) -> None:
            bar.hide()
            say(line)

        _, failed, _ = run(args.folder, aside, bar.at)
    return 1 if failed else 0
