"""How far a checkpoint in a smaller precision agrees with itself in fp32: next tokens, codes, pixels.

`python -m tests.robustness.agreement` prints the rows of the table in `tests/PROMISES.md`; names given limit it.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from lumina_core import Model, PictureFinished, bundled, generate, load, settings
from lumina_core.prompts import IGNORE
from lumina_core.training.dataset import picture_codes
from lumina_core.training.evaluate import prompts_of
from lumina_core.training.examples import example
from lumina_core.training.recipes import RECIPES
from lumina_core.training.sequences import Language

PRECISIONS = {
    "bf16": {"dtype": torch.bfloat16},
    "fp16": {"dtype": torch.float16},
    "int8": {"quantise": "int8"},
    "nf4": {"quantise": "nf4"},
}
FORCED, DRAWN = 12, 4  # held-out examples that are read, and that are drawn
PROMISES = Path(__file__).parents[1] / "PROMISES.md"
HEADER = "| checkpoint | precision | next token as in fp32 | codes as in fp32 | picture PSNR against fp32 |"
ROW = re.compile(r"^\| (\S+) \| (\S+) \| ([\d.]+) % \| ([\d.]+) % \| (?:([\d.]+) dB|the same) \|", re.M)


@dataclass(frozen=True)
class Agreement:
    """Shares in percent, and dB; a PSNR of None says that all pictures are the same."""

    checkpoint: str
    precision: str
    tokens: float
    codes: float
    psnr: float | None

    def __str__(self) -> str:
        picture = "the same" if self.psnr is None else f"{self.psnr:.1f} dB"
        return (
            f"| {self.checkpoint} | {self.precision} | {self.tokens:.2f} % | {self.codes:.2f} % | {picture} |"
        )


@dataclass(frozen=True)
class Answers:
    """What a checkpoint says in one precision: likeliest next tokens of forced sequences; codes and pictures drawn."""

    tokens: np.ndarray
    codes: np.ndarray
    pixels: np.ndarray


def available(precision: str) -> bool:
    return precision != "nf4" or importlib.util.find_spec("bitsandbytes") is not None


def pools_of(model: Model) -> list:
    """Kinds and sizes of examples the checkpoint was trained on, for tasks that it has."""
    return [
        (kind, size)
        for kind, size in RECIPES[model.name].examples
        if example(kind, "train", 0, size).task in model.tasks
    ]


@torch.inference_mode()
def forced(model: Model) -> np.ndarray:
    """The likeliest token at every place of an answer, of held-out sequences of all kinds in turn."""
    language = Language(model.tokenizer, model.vocabulary, model.family.templates)
    pools, likeliest = pools_of(model), []
    for n in range(FORCED):
        kind, size = pools[n % len(pools)]
        e = example(kind, "held-out", n, size)
        codes = picture_codes(model.vq, [*e.given, *e.drawn])
        given, drawn = ([codes[p.tobytes()] for p in pictures] for pictures in (e.given, e.drawn))
        tokens, labels = language.sequence(e, given, drawn)
        learned = torch.tensor(labels[1:]) != IGNORE
        hidden = model.transformer(torch.tensor([tokens]))[0, :-1]
        likeliest.append(model.transformer.scores(hidden[learned]).argmax(-1).numpy())
    return np.concatenate(likeliest)


def drawn(model: Model) -> tuple[np.ndarray, np.ndarray]:
    """Codes and pixels of pictures of held-out examples, each with the checkpoint's own settings and a seed."""
    pools = [pool for pool in pools_of(model) if example(pool[0], "train", 0, pool[1]).drawn]
    codes, pixels = [], []
    for n in range(DRAWN):
        kind, size = pools[n * len(pools) // DRAWN]
        e = example(kind, "held-out", n, size)
        [prompt] = prompts_of(model, [e])
        sampling = replace(settings(model, e.task, seed=n), window=16)
        for event in generate(model.transformer, model.vocabulary, prompt, sampling):
            if isinstance(event, PictureFinished):
                codes.append(event.grid.codes.flatten().numpy())
                pixels.append(model.decode(event.grid.codes).astype(np.float64).flatten())
    return np.concatenate(codes), np.concatenate(pixels)


def answers(name: str, **options) -> Answers:
    model = load(name, **options)
    return Answers(forced(model), *drawn(model))


def compare(name: str, precision: str, plain: Answers, other: Answers) -> Agreement:
    def share(a: np.ndarray, b: np.ndarray) -> float:
        return 100 * float((a == b).mean()) if len(a) == len(b) else 0.0

    error = (
        float(((plain.pixels - other.pixels) ** 2).mean())
        if len(plain.pixels) == len(other.pixels)
        else 255.0**2
    )
    psnr = 10 * np.log10(255**2 / error) if error else None
    return Agreement(
        name, precision, share(plain.tokens, other.tokens), share(plain.codes, other.codes), psnr
    )


def measured(name: str) -> list[Agreement]:
    """One row for each precision that can be had here."""
    plain = answers(name)
    return [
        compare(name, precision, plain, answers(name, **options))
        for precision, options in PRECISIONS.items()
        if available(precision)
    ]


def stated() -> dict[tuple[str, str], Agreement]:
    """The rows of the table as they stand, by checkpoint and precision."""
    rows = ROW.findall(PROMISES.read_text("utf-8"))
    return {
        (name, precision): Agreement(name, precision, float(t), float(c), float(p) if p else None)
        for name, precision, t, c, p in rows
    }


if __name__ == "__main__":
    for checkpoint in sys.argv[1:] or bundled():
        for row in measured(checkpoint):
            print(row)
