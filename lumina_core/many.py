"""Many pictures from a file of prompts: batches of one size, progress, and resuming where it stopped."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from . import prompt_file
from .errors import InputError, LuminaError
from .families import Model
from .files import cannot_write, write_whole
from .image import open_picture
from .prompt_file import FREE, Line, PromptFile
from .prompts import Prompt
from .sampling import Event, PictureFinished, Progress, Sampling, generate
from .sampling.abreast import MOST, Abreast
from .sampling.room import check_prompt, tokens_needed
from .unirep import UNIT, TokenGrid

CHUNK = "lumina_mgpt"  # the PNG's text chunk with prompt and settings
UNTOLD = {"lora": [], "precision": "auto"}  # how a picture counts whose PNG does not tell of it

Report = Callable[[int, int, str], object]


@dataclass(frozen=True)
class Job:
    """One picture to draw."""

    file: Path
    line: int
    prompt: Prompt
    sampling: Sampling  # of this picture alone
    info: Mapping = field(repr=False)  # what its PNG tells


@dataclass(frozen=True)
class Done:
    """How it went."""

    drawn: tuple[Path, ...]
    skipped: int  # pictures that were there already
    failed: tuple[tuple[Path, str], ...]  # pictures that were not drawn, and why


def run(
    model: Model,
    file: Path | PromptFile,
    out: Path,
    defaults: Sampling,
    report: Report = lambda done, total, text: None,
    *,
    size: tuple[int, int] | None = None,
    at_once: int = MOST,
    about: Mapping | None = None,
) -> Done:
    """Draws the picture of every line of `file` into `out`; pictures that stand there with the same settings are kept.

    Settings a line leaves out are `defaults`', its size is `size` (None: the model chooses, as it does for "free"). A
    picture is named after its line, or after the line's "name"; its PNG tells prompt, settings and `about`. Pictures of
    one size and the same settings are drawn side by side, `at_once` or as many as fit, each as it would be alone.

    All lines are checked before anything is drawn: an `InputError` names file, line and key. A picture that cannot be
    drawn is among those that failed. `report(done, total, text)` counts tokens.
    """
    jobs = read(model, file, out, defaults, size, about)
    waiting = [job for job in jobs if not _is_there(job)]
    total = sum(_tokens(model, job) for job in waiting)
    drawn, failed, before = [], [], 0
    for batch in _batches(waiting, at_once):
        text = _shown(batch, len(drawn) + len(failed) + 1, len(waiting))
        tokens = sum(_tokens(model, job) for job in batch)

        def progress(share: float, at=before, of=tokens, text=text) -> None:
            report(at + round(share * of), total, text)

        for job, picture in _pictures(model, batch, progress):
            if isinstance(picture, str):
                failed.append((job.file, picture))
            else:
                save(job.file, Image.fromarray(picture), job.info)
                drawn.append(job.file)
        before += tokens
        report(before, total, text)
    return Done(tuple(drawn), len(jobs) - len(waiting), tuple(failed))


def read(
    model: Model,
    file: Path | PromptFile,
    out: Path,
    defaults: Sampling,
    size: tuple[int, int] | None = None,
    about: Mapping | None = None,
) -> list[Job]:
    """The pictures that the lines of a file ask for, in their order; an `InputError` names the first bad line."""
    asked = file if isinstance(file, PromptFile) else prompt_file.read(file)
    jobs: list[Job] = []
    owner: dict[str, int] = {}
    for line in asked.lines:
        try:
            wanted = None if line.size == FREE else line.size or size
            fresh = _jobs(model, line, out, defaults, wanted, about or {})
        except InputError as e:
            raise InputError(f"{asked.path}, line {line.number}: {e}") from None
        for job in fresh:
            first = owner.setdefault(job.file.name.lower(), line.number)
            if first != line.number:
                raise InputError(
                    f"{asked.path}, line {line.number}: 'name' gives {job.file.name}, as line {first} does."
                )
        jobs += fresh
    return jobs


def _jobs(
    model: Model, line: Line, out: Path, defaults: Sampling, size: tuple[int, int] | None, about: Mapping
) -> list[Job]:
    prompt = _prompt(model, line, size)
    # how many are drawn of a line is the line's alone
    sampling = dataclasses.replace(defaults, **{"batch": 1, **line.settings})
    if prompt.units is not None:
        needed, most = tokens_needed(prompt, model.vocabulary), model.config.max_position_embeddings
        if needed > most:
            raise InputError(
                f"'size' takes {needed} tokens with this prompt; this checkpoint has {most} positions."
            )
    shown = f"{prompt.units[1] * UNIT}x{prompt.units[0] * UNIT}" if prompt.units else None
    told = {"prompt": line.prompt, "task": line.task, "size": shown, "model": model.name, **about}
    jobs = []
    for i in range(sampling.batch):
        alone = dataclasses.replace(sampling, seed=sampling.seed + i, batch=1)
        name = line.name if sampling.batch == 1 else f"{line.name}_{i:02d}"
        jobs.append(Job(out / f"{name}.png", line.number, prompt, alone, told | asdict(alone)))
    return jobs


def _prompt(model: Model, line: Line, size: tuple[int, int] | None) -> Prompt:
    drawing = [
        t for t, entry in model.family.templates.items() if entry.images == 0 and entry.expects == "image"
    ]
    if line.task not in drawing:
        can = (
            f"it may be {', '.join(drawing)}" if drawing else f"{model.family.title} has none from text alone"
        )
        raise InputError(f"'task' is '{line.task}'; {can}.")
    prompt = model.prompt(line.prompt, task=line.task, size=size)
    # a line wants a picture, whoever chooses its size
    check_prompt(model.config, model.vocabulary, dataclasses.replace(prompt, expects="image"))
    return prompt


def _is_there(job: Job) -> bool:
    """Whether the picture was drawn before, with these settings; a foreign file in its place is not touched."""
    try:
        if not job.file.exists():
            return False
    except OSError as e:  # a path that is too long
        raise cannot_write(job.file, e) from None
    told = None
    with suppress(OSError, ValueError, TypeError, RecursionError):
        told = json.loads(open_picture(job.file, ["PNG"]).info.get(CHUNK, "null"))
    if not isinstance(told, dict):
        raise InputError(f"'{job.file}' stands in the way and was not drawn here; choose another --out.")
    return UNTOLD | told == UNTOLD | json.loads(json.dumps(dict(job.info)))


def _batches(jobs: list[Job], at_once: int) -> Iterator[list[Job]]:
    """The jobs in their order, `at_once` of one size and the same settings together.

    Alone is each whose size the model chooses: the places of such pictures are not known beforehand.
    """
    groups: dict[tuple, list[Job]] = {}
    for job in jobs:
        alike = job.prompt.units, job.prompt.panels, dataclasses.replace(job.sampling, seed=0)
        groups.setdefault(alike, []).append(job)
    for (units, *_), group in groups.items():
        step = 1 if units is None else at_once
        for first in range(0, len(group), step):
            yield group[first : first + step]


def _shown(batch: list[Job], first: int, of: int) -> str:
    """What is being drawn, in words; `first` is the number of its first picture."""
    if len(batch) == 1:
        return f"picture {first} of {of}: {batch[0].file.name}"
    return f"pictures {first} to {first + len(batch) - 1} of {of}: {batch[0].file.name} ..."


def _tokens(model: Model, job: Job) -> int:
    """Tokens reckoned for a picture; where the model chooses the size, as many as it may."""
    if job.prompt.units is None:
        return min(job.sampling.max_tokens, model.config.max_position_embeddings - len(job.prompt.tokens))
    h, w = model.vocabulary.codes_shape(job.prompt.units)
    return h * (w + 1) + 4


def _pictures(
    model: Model, batch: list[Job], progress: Callable[[float], None]
) -> Iterator[tuple[Job, np.ndarray | str]]:
    """Each picture (H, W, 3) of a batch as it comes, or why there is none; what fails side by side is drawn alone."""
    left, reason = list(batch), "the model drew no picture"
    try:
        for event in _events(model, batch):
            if isinstance(event, Progress):
                progress(event.done / event.total)
            elif isinstance(event, PictureFinished) and batch[event.index] in left:
                left.remove(batch[event.index])
                yield batch[event.index], _decoded(model, event.grid)
    except LuminaError as e:
        reason = str(e)
    if len(batch) == 1:
        yield from ((job, reason) for job in left)
        return
    for i, job in enumerate(left, len(batch) - len(left)):

        def alone(share: float, at=i) -> None:
            progress((at + share) / len(batch))

        yield from _pictures(model, [job], alone)


def _events(model: Model, batch: list[Job]) -> Iterator[Event]:
    first = batch[0]
    if len(batch) == 1:
        return generate(model.transformer, model.vocabulary, first.prompt, first.sampling)
    prompts, seeds = [job.prompt for job in batch], [job.sampling.seed for job in batch]
    abreast = Abreast(model.transformer, model.vocabulary, prompts, seeds, first.sampling)
    return abreast.draw(abreast.at_once())


def _decoded(model: Model, grid: TokenGrid) -> np.ndarray | str:
    try:
        return model.decode(grid.codes)
    except LuminaError as e:
        return str(e)


def save(file: Path, picture: Image.Image, info: Mapping) -> None:
    """Writes a PNG with prompt and settings in its text chunk; the file appears whole or not at all."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(CHUNK, json.dumps(dict(info)))
    write_whole(file, lambda part: picture.save(part, "PNG", pnginfo=chunks))
