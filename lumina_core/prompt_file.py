"""A file of prompts, one JSON object a line, read and checked as far as no model is needed."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .errors import InputError
from .sampling import Sampling

LARGEST = 64 << 20  # bytes of a file
FREE = "free"  # the size that leaves it to the model
SETTINGS = {f.name: str(f.type).removesuffix(" | None") for f in dataclasses.fields(Sampling)}
KEYS = ("prompt", "size", "task", "name", *SETTINGS)
KINDS = {  # by annotation: what a value may be, and how it is called
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "str": ((str,), "a text"),
    "bool": ((bool,), "true or false"),
}
NAME = re.compile(r"[\w-][\w .-]{0,98}[\w-]|[\w-]")  # one part of a path on every system
NAME_BYTES = 240  # of a name in UTF-8: of the 255 that systems take, the rest is for "_4095.png.part"
DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$)")  # what Windows keeps for itself


@dataclass(frozen=True)
class Line:
    """What one line asks for."""

    number: int
    prompt: str
    task: str
    size: tuple[int, int] | str | None  # (width, height) in pixels, or FREE; None: not given
    name: str  # of the picture, without .png
    settings: Mapping = field(repr=False)  # those of `Sampling` that are given


@dataclass(frozen=True)
class PromptFile:
    """The lines of a file, empty ones left out."""

    path: Path
    lines: tuple[Line, ...]


def read(path: Path) -> PromptFile:
    """Reads a file of prompts; an `InputError` names the file, or the first bad line by number and key."""
    lines = []
    for number, text in enumerate(_text(path).split("\n"), 1):
        if text.strip():
            try:
                lines.append(_line(text, number))
            except InputError as e:
                raise InputError(f"{path}, line {number}: {e}") from None
    if not lines:
        raise InputError(
            f'--prompts: \'{path}\' holds no lines; each is an object such as {{"prompt": "..."}}.'
        )
    return PromptFile(path, tuple(lines))


def _text(path: Path) -> str:
    try:
        with path.open("rb") as f:
            data = f.read(LARGEST + 1)
        text = data.decode("utf-8-sig")
    except OSError as e:
        raise InputError(f"--prompts: '{path}' cannot be read ({e.strerror or e}).") from None
    except UnicodeDecodeError as e:
        raise InputError(
            f"--prompts: '{path}' is not UTF-8 text (byte {e.start}); save it as UTF-8."
        ) from None
    if len(data) > LARGEST:
        raise InputError(f"--prompts: '{path}' is larger than {LARGEST >> 20} MB; split it.")
    return text


def _line(text: str, number: int) -> Line:
    given = _object(text)
    settings = {key: _value(given, key, kind) for key, kind in SETTINGS.items() if key in given}
    Sampling(**settings)  # refuses what is out of range
    return Line(
        number,
        _value(given, "prompt", "str"),
        _value(given, "task", "str") if "task" in given else "text_to_image",
        _size(given) if "size" in given else None,
        _name(given) if "name" in given else f"{number:06d}",
        settings,
    )


def _object(text: str) -> dict:
    try:
        given = json.loads(text)
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


def _value(given: Mapping, key: str, kind: str):
    value = given[key]
    if key == "window" and value in (None, "auto"):
        return None
    kinds, called = KINDS[kind]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise InputError(f"'{key}' is {json.dumps(value)}; it must be {called}.")
    return value


def _size(given: Mapping) -> tuple[int, int] | str:
    if given["size"] == FREE:
        return FREE
    size = size_in(str(given["size"]))
    if size is None:
        raise InputError(
            f'\'size\' is {json.dumps(given["size"])}; write "WIDTHxHEIGHT", for example "96x64", or "free".'
        )
    return size


def size_in(text: str) -> tuple[int, int] | None:
    """(width, height) that a text names as WIDTHxHEIGHT, or None where it names none."""
    m = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    return (int(m[1]), int(m[2])) if m else None


def _name(given: Mapping) -> str:
    name = _value(given, "name", "str").removesuffix(".png")
    if not NAME.fullmatch(name) or DEVICES.match(name):
        raise InputError(f"'name' is {json.dumps(name)}; it must be a plain file name, without folders.")
    if len(name.encode()) > NAME_BYTES:
        raise InputError(
            f"'name' is {json.dumps(name, ensure_ascii=False)}, {len(name.encode())} bytes in UTF-8; it may have "
            f"{NAME_BYTES}. Shorten it."
        )
    return name
