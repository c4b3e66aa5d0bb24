"""Paths as users write them; files written so that readers see the old one or the whole new one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from .errors import InputError


def user_path(value: str | Path) -> Path:
    """A path as a user wrote it, `~` replaced. An `InputError` where it can be no path here, or may not be looked at.

    Whether anything lies there is the caller's question.
    """
    try:
        path = Path(value).expanduser()
    except RuntimeError:
        raise InputError(
            f"'{value}' begins with a user that is not known here; write the whole path."
        ) from None
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    # a name that is too long or has a zero byte, a folder of somebody else
    except (OSError, ValueError) as e:
        why = getattr(e, "strerror", None) or e
        raise InputError(f"'{value}' cannot be opened ({why}); give another path.") from None
    return path


def cannot_write(file: Path, e: OSError) -> InputError:
    """What to say of a file that could not be written."""
    return InputError(
        f"'{file}' cannot be written ({e.strerror or e}); nothing of it was kept. Free some room, or choose another "
        "folder."
    )


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a name beside `file`, then renames; a failure leaves nothing behind."""
    part = file.with_name(file.name + ".part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        part.replace(file)
    except OSError as e:
        raise cannot_write(file, e) from None
    finally:
        with suppress(OSError):  # a name that is too long cannot be removed either
            part.unlink(missing_ok=True)


def write_state(file: Path, state: object) -> None:
    """Writes tensors and plain values as `torch.save` does; the file appears whole or not at all."""

    def write(part: Path) -> None:
        with part.open("wb") as f:
            try:
                torch.save(state, f)
            except RuntimeError as e:  # torch's writer hides what the file said
                raise e.__context__ if isinstance(e.__context__, OSError) else e from None

    write_whole(file, write)
