"""The verbs of the command line that take a picture and write about it: restore, describe and chat."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

from PIL import Image

from . import (
    Answered,
    Chat,
    InputError,
    LuminaError,
    Model,
    Progress,
    Prompt,
    Restoration,
    RowFinished,
    Sampling,
    generate,
    many,
)
from .commands import Bar, Say, open_model, sampling_of, weights_told, writable_folder
from .image import open_picture


def run_restore(args: argparse.Namespace, say: Say) -> None:
    """Restores one picture; prints what was written about each tile."""
    files = [file for file in (args.out, args.plan) if file is not None]
    for file in files:
        if file.suffix.lower() != ".png":
            raise InputError(f"'{file}' is no PNG; pictures are written as .png.")
        writable_folder(file.parent)
    picture = read_picture(args.image)
    model = open_model(args)
    model.template("restore")  # refuses a checkpoint without the task
    sampling = sampling_of(model, args, "restore")
    job = Restoration(model, picture, args.scale, seed=args.seed, tiling=args.tiling, colour=args.color_fix)
    abreast = job.abreast(job.prompts(partial(Bar, "encoding", "tile")), sampling)
    with Bar("restoring") as bar:
        for event in job.draw(abreast, abreast.at_once()):
            if isinstance(event, Progress):
                bar.at(event.done, event.total)
    done = job.finish(partial(Bar, "decoding", "tile"))
    for line in done.lines():
        say(line)
    info = {"image": args.image.name, "scale": args.scale, "model": model.name}
    info |= weights_told(args) | asdict(sampling)
    for file, pixels in zip(files, (done.picture, done.outlined()), strict=False):
        many.save(file, Image.fromarray(pixels), info)
        say(str(file))


def run_describe(args: argparse.Namespace, say: Say) -> None:
    """Says of each picture in turn what it shows."""
    pictures = [read_picture(file) for file in args.image]
    model = open_model(args)
    sampling = sampling_of(model, args, "describe")
    for picture in pictures:
        written(model, model.prompt("", task="describe", images=[picture]), sampling, say)


def run_chat(args: argparse.Namespace, say: Say) -> None:
    """Answers one question, or questions from the terminal until an empty line or the end of input."""
    pictures = [read_picture(file) for file in args.image]
    model = open_model(args)
    model.template("chat")  # refuses a checkpoint without the task before anything is asked
    sampling = sampling_of(model, args, "chat")
    talk = Talk(model, sampling, args.out, say, weights_told(args))
    if args.question is not None:
        talk.turn(args.question, pictures)
        return
    if sys.stdin.isatty():
        say(f"{model.name}: ask; an empty line ends the conversation")
    while question := ask():
        try:
            talk.turn(question, pictures)
        except LuminaError as e:  # the conversation goes on as if this had not been asked
            sys.stderr.write(f"error: {e}\n")
        else:
            pictures = []


class Talk:
    """A conversation on the terminal."""

    def __init__(self, model: Model, sampling: Sampling, folder: Path, say: Say, about: Mapping):
        """`about` is what the PNGs of drawn pictures tell of the weights."""
        self.model, self.sampling, self.folder, self.say, self.about = model, sampling, folder, say, about
        self.chat = Chat(model.family.id)
        self.drawn = 0

    def turn(self, question: str, pictures: list[Image.Image]) -> None:
        """Asks, and says the answer while it is written; pictures in it become files."""
        chat = self.chat.ask(self.model, question, pictures)
        answer = written(self.model, chat.prompt(self.model), self.sampling, self.say)
        for grid in answer.pictures:
            file = writable_folder(self.folder) / f"picture_{self.drawn:02d}.png"
            info = {"prompt": question, "model": self.model.name, **self.about, **asdict(self.sampling)}
            many.save(file, Image.fromarray(self.model.decode(grid.codes)), info)
            self.say(str(file))
            self.drawn += 1
        self.chat = chat.answered(answer)


def written(model: Model, prompt: Prompt, sampling: Sampling, say: Say) -> Answered:
    """The answer to a prompt, its text said while it is written, with a progress bar while a picture is drawn."""
    answer, said, bar = Answered(model), 0, None
    with ExitStack() as shown:
        for event in generate(model.transformer, model.vocabulary, prompt, sampling):
            if isinstance(event, RowFinished) and bar is None:
                if said and sys.stderr.isatty():
                    sys.stderr.write("\n")  # the bar stands below the text, not on it
                bar = shown.enter_context(Bar("drawing"))
            elif isinstance(event, Progress) and bar is not None:
                bar.at(event.done, event.total)
            elif answer.note(event):
                shown.close()  # before any more is said
                bar = None
                text = answer.text
                # a character may come in several tokens
                whole = len(text.rstrip("\N{REPLACEMENT CHARACTER}"))
                say(text[said:whole], end="")
                said = max(said, whole)
    say(answer.text[said:])
    return answer


def read_picture(file: Path) -> Image.Image:
    """A picture file, turned as its camera says, or an `InputError` saying what is wrong with it."""
    try:
        return open_picture(file)
    except FileNotFoundError:
        raise InputError(f"--image: there is no file '{file}'.") from None
    except ValueError as e:
        raise InputError(f"--image: '{file}' cannot be read as a picture ({e}).") from None


def ask() -> str:
    """A question from the terminal; empty at the end."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""
