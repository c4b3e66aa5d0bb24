"""Writing files so that readers see the old one or the whole new one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .errors import InputError


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a name beside `file`, then renames; a failure leaves nothing behind."""
    part = file.with_name(file.name + ".part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        part.replace(file)
    except OSError as e:
        raise InputError(f"'{file}' cannot be written ({e.strerror or e}).") from None
    finally:
        part.unlink(missing_ok=True)
