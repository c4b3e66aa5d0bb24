"""The command line: the nodes' jobs without ComfyUI. Settings have the names of the node inputs."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from . import MODES, InputError, LuminaError, Sampling, __version__, commands, talk, task
from .prompt_file import FREE, size_in
from .shortage import told

TASKS = (
    *("depth", "segment", "normals", "pose", "canny", "hed", "detect"),
    *("edit", "denoise", "control", "subject", "pair"),
)
KINDS = ("depth", "canny", "hed", "pose")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; 0 when all is well, 2 with one line on stderr for a user's mistake, 130 after Ctrl-C.

    `inspect` gives 2 for a checkpoint that cannot be used; `conformance` 1 when a case failed, `generate --prompts`
    when a picture did, any verb when whoever read its output has gone.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a pipe may lack letters of a name, or of an answer
            stream.reconfigure(errors="backslashreplace")
    args = parser().parse_args(argv)
    try:
        with told("working", "Ask for less, or close other programs."):
            return args.run(args, say) or 0
    except LuminaError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has gone; what Python still holds for it goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as e:
        print(f"error: {InputError(system_error(e))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def system_error(e: OSError) -> str:
    """What the system said of a file, in a line."""
    if e.filename is None:
        return f"The system refused: {e}."
    return f"'{e.filename}' cannot be used ({e.strerror}); give another path, or look at its rights."


def say(text: str, end: str = "\n") -> None:
    print(text, end=end, flush=True)


class Parser(argparse.ArgumentParser):
    """A parser, and those of its verbs, that tells a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {' '.join(message.split())} (see `{self.prog} --help`)\n")


def parser() -> argparse.ArgumentParser:
    top = Parser(
        prog="python -m lumina_core",
        description="Lumina-mGPT without ComfyUI: draw pictures, look into checkpoints, train the bundled ones.",
    )
    top.add_argument("--version", action="version", version=__version__)
    verbs = top.add_subparsers(metavar="VERB", required=True)
    for add in (
        *(add_demo, add_generate, add_inspect, add_convert, add_download),
        *(add_bench, add_conformance, add_train),
        *(add_restore, add_describe, add_chat, add_task),
    ):
        add(verbs)
    return top


def add_demo(verbs: argparse._SubParsersAction) -> None:
    p = verbs.add_parser("demo", help="draw every task of the bundled checkpoints on one contact sheet")
    p.add_argument("--out", type=Path, default=Path("output"), metavar="DIR", help="folder (default: output)")
    p.set_defaults(run=commands.run_demo)


def add_generate(verbs: argparse._SubParsersAction) -> None:
    p = verbs.add_parser("generate", help="draw a picture of a prompt")
    p.add_argument("prompt", metavar="PROMPT", nargs="?", help="what to draw, in words")
    p.add_argument(
        "--prompts", type=Path, metavar="FILE.jsonl", help="many pictures: a JSON object a line (README)"
    )
    add_model_options(p)
    text = "pixels, multiples of 32, or free: the model chooses, picture by picture (default: the checkpoint's own)"
    p.add_argument("--size", type=size_or_free, metavar="WxH|free", help=text)
    add_sampling_options(p)
    text = "PNG to write, a batch is numbered (default: picture.png); with --prompts a folder (default: pictures)"
    p.add_argument("--out", type=Path, metavar="FILE|DIR", help=text)
    p.set_defaults(run=commands.run_generate)


def add_inspect(verbs: argparse._SubParsersAction) -> None:
    p = verbs.add_parser(
        "inspect",
        help="tell what a checkpoint is, what it lacks and what memory it needs; reads headers only",
    )
    p.add_argument("path", metavar="PATH", help="checkpoint folder or file, image tokenizer, or bundled name")
    add_vq_option(p)
    p.set_defaults(run=commands.run_inspect)


def add_convert(verbs: argparse._SubParsersAction) -> None:
    from .convert import PRECISIONS

    p = verbs.add_parser("convert", help="make one file of a whole checkpoint, smaller if wanted")
    p.add_argument("folder", metavar="FOLDER", help="checkpoint folder, or bundled name")
    p.add_argument("out", type=Path, metavar="OUT.safetensors", help="file to write")
    p.add_argument("--precision", choices=list(PRECISIONS), help="of the transformer (default: as it is)")
    add_vq_option(p)
    p.set_defaults(run=commands.run_convert)


def add_download(verbs: argparse._SubParsersAction) -> None:
    from .hub import RELEASES

    p = verbs.add_parser("download", help="fetch a released checkpoint; needs the huggingface_hub package")
    p.add_argument("name", metavar="NAME", help=f"one of {', '.join(RELEASES)}")
    p.add_argument(
        "folder", type=Path, metavar="FOLDER", help="where it goes, e.g. ComfyUI/models/lumina_mgpt"
    )
    p.set_defaults(run=commands.run_download)


def add_bench(verbs: argparse._SubParsersAction) -> None:
    from .bench import add_options

    p = verbs.add_parser("bench", help="measure how fast pictures are drawn here, and against transformers")
    add_model_options(p)
    p.add_argument(
        "--size", type=size, metavar="WxH", help="pixels, multiples of 32 (default: the checkpoint's own)"
    )
    add_options(p)
    p.set_defaults(run=commands.run_bench)


def add_conformance(verbs: argparse._SubParsersAction) -> None:
    p = verbs.add_parser(
        "conformance", help="hold the library to golden cases; the last line tells how it went"
    )
    p.add_argument("folder", type=Path, metavar="DIR", help="folder with an index.json")
    p.set_defaults(run=commands.run_conformance)


def add_train(verbs: argparse._SubParsersAction) -> None:
    from .training.recipes import RECIPES

    what = verbs.add_parser("train", help="train a bundled checkpoint, or evaluate one").add_subparsers(
        metavar="WHAT", required=True
    )
    for name in RECIPES:
        p = what.add_parser(name, help=f"make {name} from nothing; go on where an earlier run stopped")
        out = Path("runs") / name
        p.add_argument(
            "--out", type=Path, default=out, metavar="DIR", help=f"folder (default: {out.as_posix()})"
        )
        p.add_argument("--threads", type=int, default=0, help="CPU threads (default: all)")
        p.add_argument("--device", default="cpu", help="cpu, cuda ... (default: cpu)")
        p.add_argument(
            "--start-from",
            metavar="NAME|PATH",
            help="train the transformer of a checkpoint on, of this family or another, whose sizes are the same",
        )
        p.set_defaults(run=commands.run_train, name=name)
    judge = what.add_parser("evaluate", help="judge a checkpoint's tasks on held-out scenes, by exact truth")
    add_model_options(judge)
    add_settings(judge)
    judge.add_argument("--captions", type=int, default=200, help="examples of each task (default: 200)")
    judge.add_argument(
        "--tasks",
        type=names,
        metavar="A,B",
        help="kinds of examples to judge (default: all the checkpoint has)",
    )
    judge.add_argument("--json", type=Path, metavar="FILE", help="also write the scores there")
    judge.add_argument(
        "--table", type=Path, metavar="FILE", help="also write the table there, for a model card"
    )
    judge.add_argument(
        "--ceilings", action="store_true", help="also judge true pictures through the image tokenizer alone"
    )
    judge.set_defaults(run=commands.run_evaluate)


def add_restore(verbs: argparse._SubParsersAction) -> None:
    from .restoration import COLOURS, TILING

    p = verbs.add_parser("restore", help="restore and enlarge a picture of any size with a PURE checkpoint")
    p.add_argument("--image", type=Path, required=True, metavar="FILE", help="the picture")
    p.add_argument(
        "--scale", type=float, default=4.0, metavar="N", help="times larger, each side (default: 4)"
    )
    p.add_argument("--out", type=Path, default=Path("restored.png"), metavar="FILE", help="PNG to write")
    p.add_argument("--plan", type=Path, metavar="FILE", help="also write the picture with its tiles drawn on")
    p.add_argument("--color-fix", default="wavelet", help=f"{', '.join(COLOURS)} (default: wavelet)")
    p.add_argument("--tiling", default=TILING[0], help=f"{', '.join(TILING)} (default: {TILING[0]})")
    add_model_options(p, "nano-pure")
    add_sampling_options(p, batch=False)
    p.set_defaults(run=talk.run_restore)


def add_describe(verbs: argparse._SubParsersAction) -> None:
    p = verbs.add_parser("describe", help="say what a picture shows, with a checkpoint of Lumina-mGPT 1.0")
    text = "a picture; may be given again, each is described alone"
    p.add_argument("--image", type=Path, action="append", required=True, metavar="FILE", help=text)
    add_model_options(p, "nano-mgpt1")
    add_sampling_options(p, batch=False)
    p.add_argument("--max-tokens", type=int, help="the longest description (default: the checkpoint's own)")
    p.set_defaults(run=talk.run_describe)


def add_chat(verbs: argparse._SubParsersAction) -> None:
    p = verbs.add_parser(
        "chat", help="ask a checkpoint of Lumina-mGPT 1.0; on a terminal without a question, go on"
    )
    p.add_argument("question", metavar="QUESTION", nargs="?", help="what to ask")
    p.add_argument(
        "--image",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a picture; may be given again",
    )
    p.add_argument(
        "--out",
        type=Path,
        default=Path("chat"),
        metavar="DIR",
        help="folder for drawn pictures (default: chat)",
    )
    add_model_options(p, "nano-mgpt1")
    add_sampling_options(p, batch=False)
    p.add_argument("--max-tokens", type=int, help="the longest answer (default: the checkpoint's own)")
    p.set_defaults(run=talk.run_chat)


def add_task(verbs: argparse._SubParsersAction) -> None:
    p = verbs.add_parser("task", help="depth, segment, edit, ... : a picture to a picture")
    p.add_argument("name", metavar="NAME", choices=TASKS, help=", ".join(TASKS))
    add_model_options(p, "nano-mgpt2-omni")
    text = "picture to ask about; several times for several pictures, each answered alone (none for pair)"
    p.add_argument("--image", type=Path, action="append", default=[], metavar="FILE", help=text)
    p.add_argument("--prompt", default="", metavar="TEXT", help="what to draw, to change or to find")
    p.add_argument(
        "--kind", choices=KINDS, default="depth", help="the map of control and pair (default: depth)"
    )
    p.add_argument("--subject", default="", metavar="TEXT", help="what the thing of subject is")
    p.add_argument("--template", default="", metavar="TEXT", help="your own words for the published ones")
    text = "pixels the model works at, multiples of 32 (default: near the picture's proportions)"
    p.add_argument("--size", type=size, metavar="WxH", help=text)
    text = "instead: a square of N pixels a side, whose area is kept at the picture's proportions"
    p.add_argument("--resolution", type=int, default=0, metavar="N", help=text)
    text = (
        "bring a map or an edit back to the picture's size (default), or leave it at the size it was drawn at"
    )
    p.add_argument("--keep-size", action=argparse.BooleanOptionalAction, default=True, help=text)
    p.add_argument(
        "--fit",
        choices=["stretch", "crop"],
        help="how the picture comes to it (default: crop for subject, else stretch)",
    )
    add_sampling_options(p)
    text = (
        "PNG to write, several are numbered (default: NAME.png); detect writes its boxes to a .json beside it"
    )
    p.add_argument("--out", type=Path, metavar="FILE", help=text)
    p.set_defaults(run=task.run_task)


def add_vq_option(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--vq", type=Path, metavar="FILE", help="image tokenizer, when it is not beside the checkpoint"
    )


def add_model_options(p: argparse.ArgumentParser, name: str = "nano-mgpt2") -> None:
    p.add_argument(
        "--model", default=name, metavar="NAME|PATH", help=f"bundled name, folder or file (default: {name})"
    )
    add_vq_option(p)
    p.add_argument("--device", help="cpu, cuda, mps ... (default: the best there is)")
    precisions = commands.PRECISIONS
    p.add_argument(
        "--precision", choices=precisions, default="auto", help="of the transformer (default: auto)"
    )
    p.add_argument(
        "--lora",
        type=lora,
        action="append",
        default=[],
        metavar="FILE[:STRENGTH]",
        help="a LoRA of the transformer, in PEFT's or kohya's naming (strength: 1); may be given several times",
    )


def add_sampling_options(p: argparse.ArgumentParser, batch: bool = True) -> None:
    d = Sampling()
    add_settings(p)
    p.add_argument("--decode", default=d.decode, help=f"{', '.join(MODES)} (default: {d.decode})")
    p.add_argument("--window", type=window, metavar="N|auto", help="drafts a pass (default: auto)")
    if batch:
        text = "pictures, with seeds seed, seed + 1, ... (default: 1); with --prompts the most side by side, up to 8"
        p.add_argument("--batch", type=int, help=text)


def add_settings(p: argparse.ArgumentParser) -> None:
    """The settings that say what is drawn, not how quickly."""
    p.add_argument("--seed", type=int, default=0, help="same seed, same picture (default: 0)")
    text = "guidance; 1 is none (default: the checkpoint's own; 4 for the released 2.0)"
    p.add_argument("--cfg", type=float, help=text)
    p.add_argument(
        "--temperature", type=float, help="0 always takes the likeliest (default: the checkpoint's own)"
    )
    p.add_argument("--image-top-k", "--top-k", type=int, help="codes considered at each place; 0 is all")
    p.add_argument("--text-top-k", type=int, help="words considered at each place of a text; 0 is all")


def size(text: str) -> tuple[int, int]:
    """The argument type of WxH."""
    found = size_in(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write WIDTHxHEIGHT, for example 96x64")
    return found


def size_or_free(text: str) -> tuple[int, int] | str:
    """The argument type of WxH, or of the word that leaves the size to the model."""
    return FREE if text == FREE else size(text)


def lora(text: str) -> tuple[str, float]:
    """The argument type of a LoRA file and its strength."""
    file, _, strength = text.rpartition(":")
    try:
        number = float(strength)
    except ValueError:  # the colon, if any, is part of the file's name
        return text, 1.0
    if not file or not math.isfinite(number):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no LoRA; write FILE or FILE:STRENGTH, e.g. style.safetensors:0.8"
        )
    return file, number


def names(text: str) -> list[str]:
    """The argument type of names with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def window(text: str) -> int | None:
    """The argument type of a window: a number, or None for auto."""
    if text == "auto":
        return None
    if not re.fullmatch(r"-?\d{1,5}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no window; write a number, or auto")
    return int(text)
