"""Many pictures from a file of prompts, one JSON object a line: batches, progress, and resuming where it stopped."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from PIL import Image, PngImagePlugin

from .errors import InputError, OutOfMemoryError, PictureError
from .families import Model
from .files import write_whole
from .image import open_picture
from .prompts import Prompt
from .sampling import PictureFinished, Progress, Sampling, generate
from .sampling.engine import tokens_needed
from .unirep import UNIT

CHUNK = "lumina_mgpt"  # the PNG's text chunk with prompt and settings
LARGEST = 64 << 20  # bytes of a file of prompts
AT_ONCE = 4  # pictures of one prompt that are drawn in one batch
SETTINGS = tuple(f.name for f in dataclasses.fields(Sampling))
KEYS = ("prompt", "size", "task", "name", *SETTINGS)
KINDS = {  # by annotation: what a value may be, and how it is called
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "str": ((str,), "a text"),
    "bool": ((bool,), "true or false"),
}
NAME = re.compile(r"[\w-][\w .-]{0,98}[\w-]|[\w-]")  # one part of a path on every system
DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$)")  # what Windows keeps for itself

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
    failed: tuple[tuple[Path, str], ...]  # pictures that the model did not finish, and why


def run(
    model: Model,
    file: Path,
    out: Path,
    defaults: Sampling,
    report: Report = lambda done, total, text: None,
    *,
    size: tuple[int, int] | None = None,
    at_once: int = AT_ONCE,
) -> Done:
    """Draws the picture of every line of `file` into `out`; pictures that stand there with the same settings are kept.

    Settings a line leaves out are `defaults`', its size is `size` (None: the model chooses). A picture is named after
    its line, or after the line's "name". All lines are checked before anything is drawn: an `InputError` names file,
    line and key. `report(done, total, text)` counts tokens.
    """
    jobs = read(model, file, out, defaults, size)
    waiting = [job for job in jobs if not _is_there(job)]
    batches = list(_batches(waiting, at_once))
    total = sum(_tokens(model, job) for job in waiting)
    drawn, failed, before = [], [], 0
    for batch in batches:
        text = f"picture {len(drawn) + len(failed) + 1} of {len(waiting)}: {batch[0].file.name}"
        tokens = sum(_tokens(model, job) for job in batch)

        def progress(share: float, at=before, of=tokens, text=text) -> None:
            report(at + round(share * of), total, text)

        ready, reason = _draw(model, batch, progress)
        drawn += ready
        failed += [(job.file, reason) for job in batch if job.file not in ready]
        before += tokens
        report(before, total, text)
    return Done(tuple(drawn), len(jobs) - len(waiting), tuple(failed))


def read(
    model: Model, file: Path, out: Path, defaults: Sampling, size: tuple[int, int] | None = None
) -> list[Job]:
    """The pictures that the lines of a file ask for, in their order; an `InputError` names the first bad line."""
    try:
        with file.open("rb") as f:
            data = f.read(LARGEST + 1)
        text = data.decode("utf-8-sig")
    except OSError as e:
        raise InputError(f"--prompts: '{file}' cannot be read ({e.strerror or e}).") from None
    except UnicodeDecodeError as e:
        raise InputError(
            f"--prompts: '{file}' is not UTF-8 text (byte {e.start}); save it as UTF-8."
        ) from None
    if len(data) > LARGEST:
        raise InputError(f"--prompts: '{file}' is larger than {LARGEST >> 20} MB; split it.")
    jobs: list[Job] = []
    owner: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            fresh = _jobs(model, line, number, out, defaults, size)
        except InputError as e:
            raise InputError(f"{file}, line {number}: {e}") from None
        for job in fresh:
            first = owner.setdefault(job.file.name.lower(), number)
            if first != number:
                raise InputError(
                    f"{file}, line {number}: 'name' gives {job.file.name}, as line {first} does."
                )
        jobs += fresh
    if not jobs:
        raise InputError(
            f'--prompts: \'{file}\' holds no lines; each is an object such as {{"prompt": "..."}}.'
        )
    return jobs


def _jobs(
    model: Model, line: str, number: int, out: Path, defaults: Sampling, size: tuple[int, int] | None
) -> list[Job]:
    given = _object(line)
    task = _value(given, "task", "str", "text_to_image")
    size = _size(given) if "size" in given else size
    prompt = _prompt(model, given, task, size)
    values = {
        f.name: _value(given, f.name, str(f.type).removesuffix(" | None"), getattr(defaults, f.name))
        for f in dataclasses.fields(Sampling)
        if not (f.name == "window" and given.get("window") in (None, "auto"))
    }
    values["batch"] = given.get("batch", 1)  # how many are drawn at once is not the line's
    if "window" in given:
        values.setdefault("window", None)
    sampling = Sampling(**{"window": defaults.window, **values})
    if prompt.units is not None:
        needed, most = tokens_needed(prompt, model.vocabulary), model.config.max_position_embeddings
        if needed > most:
            raise InputError(
                f"'size' takes {needed} tokens with this prompt; this checkpoint has {most} positions."
            )
    stem = _name(given, number)
    jobs = []
    for i in range(sampling.batch):
        alone = dataclasses.replace(sampling, seed=sampling.seed + i, batch=1)
        shown = f"{prompt.units[1] * UNIT}x{prompt.units[0] * UNIT}" if prompt.units else None
        info = {"prompt": given["prompt"], "task": task, "size": shown, "model": model.name, **asdict(alone)}
        name = stem if sampling.batch == 1 else f"{stem}_{i:02d}"
        jobs.append(Job(out / f"{name}.png", number, prompt, alone, info))
    return jobs


def _object(line: str) -> dict:
    try:
        given = json.loads(line)
    except (ValueError, RecursionError) as e:
        why = f"{e.msg}, column {e.colno}" if isinstance(e, json.JSONDecodeError) else str(e)
        raise InputError(f"this is no JSON ({why}).") from None
    if not isinstance(given, dict):
        raise InputError('this is no JSON object; write {"prompt": "..."} on one line.')
    unknown = [key for key in given if key not in KEYS]
    if unknown:
        raise InputError(f"key '{unknown[0]}' is not known; there is {', '.join(KEYS)}.")
    if "prompt" not in given:
        raise InputError("'prompt' is missing; every line needs one.")
    return given


def _value(given: Mapping, key: str, kind: str, default):
    value = given.get(key, default)
    kinds, called = KINDS[kind]
    if key in given and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
        raise InputError(f"'{key}' is {json.dumps(value)}; it must be {called}.")
    return value


def _size(given: Mapping) -> tuple[int, int]:
    m = re.fullmatch(r"(\d{1,5})x(\d{1,5})", str(given["size"]))
    if not m:
        raise InputError(
            f'\'size\' is {json.dumps(given["size"])}; write "WIDTHxHEIGHT", for example "96x64".'
        )
    return int(m[1]), int(m[2])


def _prompt(model: Model, given: Mapping, task: str, size: tuple[int, int] | None) -> Prompt:
    text = _value(given, "prompt", "str", "")
    drawing = [
        t for t, entry in model.family.templates.items() if entry.images == 0 and entry.expects == "image"
    ]
    if task not in drawing:
        can = (
            f"it may be {', '.join(drawing)}" if drawing else f"{model.family.title} has none from text alone"
        )
        raise InputError(f"'task' is '{task}'; {can}.")
    return model.prompt(text, task=task, size=size)


def _name(given: Mapping, number: int) -> str:
    name = _value(given, "name", "str", f"{number:06d}").removesuffix(".png")
    if not NAME.fullmatch(name) or DEVICES.match(name):
        raise InputError(f"'name' is {json.dumps(name)}; it must be a plain file name, without folders.")
    return name


def _is_there(job: Job) -> bool:
    """Whether the picture was drawn before, with these settings; a foreign file in its place is not touched."""
    if not job.file.exists():
        return False
    told = None
    with suppress(OSError, ValueError, TypeError, RecursionError):
        told = json.loads(open_picture(job.file, ["PNG"]).info.get(CHUNK, "null"))
    if not isinstance(told, dict):
        raise InputError(f"'{job.file}' stands in the way and was not drawn here; choose another --out.")
    return told == json.loads(json.dumps(dict(job.info)))


def _batches(jobs: list[Job], at_once: int) -> Iterator[list[Job]]:
    """The jobs by size and settings, then by prompt, as they come; pictures with seeds in a row go together."""
    groups: dict[tuple, dict[Prompt, list[Job]]] = {}
    for job in jobs:
        alike = job.prompt.units, dataclasses.replace(job.sampling, seed=0)
        groups.setdefault(alike, {}).setdefault(job.prompt, []).append(job)
    for prompts in groups.values():
        for same in prompts.values():
            batch: list[Job] = []
            for job in sorted(same, key=lambda j: j.sampling.seed):
                if batch and (len(batch) == at_once or job.sampling.seed != batch[-1].sampling.seed + 1):
                    yield batch
                    batch = []
                batch.append(job)
            yield batch


def _tokens(model: Model, job: Job) -> int:
    """Tokens reckoned for a picture; where the model chooses the size, as many as it may."""
    if job.prompt.units is None:
        return min(job.sampling.max_tokens, model.config.max_position_embeddings - len(job.prompt.tokens))
    h, w = model.vocabulary.codes_shape(job.prompt.units)
    return h * (w + 1) + 4


def _draw(model: Model, batch: list[Job], progress: Callable[[float], None]) -> tuple[list[Path], str]:
    """Draws a batch and writes its pictures as they come; files written, and why others are not there."""
    sampling = dataclasses.replace(batch[0].sampling, batch=len(batch))
    ready: list[Path] = []
    reason = "the model drew no picture"
    try:
        for event in generate(model.transformer, model.vocabulary, batch[0].prompt, sampling):
            if isinstance(event, Progress):
                progress(event.done / event.total)
            elif isinstance(event, PictureFinished) and batch[event.index].file not in ready:
                job = batch[event.index]
                save(job.file, Image.fromarray(model.decode(event.grid.codes)), job.info)
                ready.append(job.file)
    except (PictureError, OutOfMemoryError) as e:
        reason = str(e)
    return ready, reason


def save(file: Path, picture: Image.Image, info: Mapping) -> None:
    """Writes a PNG with prompt and settings in its text chunk; the file appears whole or not at all."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(CHUNK, json.dumps(dict(info)))
    write_whole(file, lambda part: picture.save(part, "PNG", pnginfo=chunks))
