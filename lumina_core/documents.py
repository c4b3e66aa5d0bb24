"""Text and JSON files from anywhere: regular files of a bounded size, with bounded numbers of values."""

from __future__ import annotations

import json
from pathlib import Path

from .errors import CheckpointError

LARGEST = 64 << 20  # bytes; the largest released tokenizer.json has 11 MB
MOST_VALUES = 1_500_000  # each takes up to 150 bytes in memory; released files hold less than half
AGAIN = "Download it again."


def read_text(file: Path) -> str:
    """The UTF-8 text of a file, or a `CheckpointError` naming it."""
    try:
        if file.exists() and not file.is_file():  # reading a pipe or device may never end
            raise CheckpointError(f"{file} is no regular file. {AGAIN}")
        with file.open("rb") as f:
            data = f.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise CheckpointError(
                f"{file} is larger than {LARGEST >> 20} MB, more than any such file has. {AGAIN}"
            )
        return data.decode("utf-8")
    except FileNotFoundError:
        raise CheckpointError(
            f"{file.name} is missing in {file.parent}; a checkpoint folder needs it. Download it into that folder."
        ) from None
    except UnicodeDecodeError as e:
        raise CheckpointError(f"{file} is no UTF-8 text (byte {e.start}). {AGAIN}") from None
    except OSError as e:
        raise CheckpointError(f"{file} cannot be read ({e.strerror or e}). {AGAIN}") from None


def read_json(file: Path) -> dict:
    """A JSON object from a file, or a `CheckpointError` naming the file."""
    return parse_json(read_text(file), str(file))


def parse_json(text: str, source: str) -> dict:
    """A JSON object from text, or a `CheckpointError` naming where it stands."""
    if sum(map(text.count, ",[{")) > MOST_VALUES:
        raise CheckpointError(
            f"{source} holds more than {MOST_VALUES:,} values, more than any such file has. {AGAIN}"
        )
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{source} cannot be read as JSON ({e}). {AGAIN}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{source} holds no JSON object. {AGAIN}")
    return value
