"""The verb of the command line for tasks about a picture: maps, edits, control, subjects, pairs, detection."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from . import InputError, Model, Sampling, ask, detections, many, task_of
from .commands import Bar, Say, decoded, draw_grids, open_model, sampling_of, weights_told, writable_folder
from .files import write_whole
from .talk import read_picture


def run_task(args: argparse.Namespace, say: Say) -> None:
    out = args.out or Path(f"{args.name}.png")
    if out.suffix.lower() != ".png":
        raise InputError(f"--out is '{out}'; pictures are written as .png.")
    if bool(args.image) == (args.name == "pair"):
        what = "draws from words and takes no --image" if args.image else "needs a picture: --image FILE"
        raise InputError(f"Task '{args.name}' {what}.")
    if args.resolution and args.size:
        raise InputError("--size and --resolution both say how large the model works; give one of them.")
    if args.resolution and args.name == "pair":
        raise InputError(
            "--resolution follows a picture's proportions, and 'pair' is given none; give --size."
        )
    images = [read_picture(file) for file in args.image]
    writable_folder(out.parent)
    model = open_model(args)
    task = task_of(model, args.name, args.kind, args.subject)
    sampling = sampling_of(model, args, task)
    about = {"task": task, "prompt": args.prompt, "model": model.name}
    about |= weights_told(args) | asdict(sampling)
    if args.name == "pair":
        pictures = drawn_pairs(model, task, args, sampling)
    else:
        pictures = answers_to(model, task, images, args, sampling, out, say)
    for i, picture in enumerate(pictures):
        file = out if len(pictures) == 1 else out.with_stem(f"{out.stem}_{i:02d}")
        many.save(file, Image.fromarray(picture), about)
        say(str(file))


def answers_to(
    model: Model,
    task: str,
    images: list[Image.Image],
    args: argparse.Namespace,
    sampling: Sampling,
    out: Path,
    say: Say,
) -> list[np.ndarray]:
    """The answers (H, W, 3) about each picture; boxes that were found are drawn, said and written beside `out`."""
    whole = args.name != "subject"
    fit = args.fit or ("stretch" if whole else "crop")
    size = args.size or (None if whole or args.resolution else model.own_size(task))
    how = {"fit": fit, "size": size, "side": args.resolution}
    how |= {"template": args.template, "subject": args.subject}
    requests = [ask(model, task, image, args.prompt, **how) for image in Bar("encoding", "picture", images)]
    answers = [
        (request, request.panel(grid))
        for n, request in enumerate(requests)
        for grid in draw_grids(model, request.prompt, sampling, f"drawing {n + 1} of {len(requests)}")
    ]
    if task != "detect":
        drawn = decoded(model, [grid for _, grid in answers])
        keep_size = whole and args.keep_size
        return [request.place(one, keep_size) for (request, _), one in zip(answers, drawn, strict=True)]
    found = detections(model, answers, args.prompt.strip(), partial(Bar, "looking", "picture"))
    text = found.json()
    write_whole(out.with_suffix(".json"), lambda part: part.write_text(text + "\n", "utf-8"))
    say(text)
    return found.drawn()


def drawn_pairs(model: Model, task: str, args: argparse.Namespace, sampling: Sampling) -> list[np.ndarray]:
    """Picture, map, picture, map, ... of a prompt."""
    size = args.size or model.own_size(task)
    prompt = model.prompt(args.prompt, task=task, size=size, template=args.template or None)
    grids = draw_grids(model, prompt, sampling)
    return decoded(model, [panel for grid in grids for panel in grid.split()])
