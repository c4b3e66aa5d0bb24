"""Memory that ran out: recognised whoever says so, told in words, and what was computed let go."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .errors import LuminaError, OutOfMemoryError

SAYINGS = re.compile(  # of CUDA, its libraries, the CPU's allocator on three systems, MPS, DirectML
    r"(?i)out of memory|_ALLOC_FAILED|(can't|cannot|could not|unable to|failed to) allocate"
    r"|not enough (gpu video )?memory"
)
AMOUNT = re.compile(r"(?i)allocat\w+(?: tensor with)? ([\d.]+) ?(bytes|[KMGT]i?B)\b")
UNITS = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def ran_out(e: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    if isinstance(e, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    if isinstance(e, OSError):
        return e.errno == errno.ENOMEM
    return isinstance(e, RuntimeError) and SAYINGS.search(str(e)) is not None


def wanted(e: BaseException) -> int | None:
    """Bytes that were asked for in vain, where the error says it."""
    found = AMOUNT.search(str(e))
    return int(float(found[1]) * UNITS[found[2][0].lower()]) if found else None


@contextmanager
def told(doing: str, advice: str) -> Iterator[None]:
    """Where memory runs out inside, an `OutOfMemoryError` says what was being done, what was wanted and what to do."""
    try:
        yield
    except Exception as e:
        if isinstance(e, LuminaError) or not ran_out(e):
            raise
        nbytes = wanted(e)
        traceback.clear_frames(e.__traceback__)  # whoever keeps the error keeps no tensors with it
        more = "" if nbytes is None else f" ({_size(nbytes)} more were wanted)"
        raise OutOfMemoryError(f"Memory ran out while {doing}{more}. {advice}") from None


def empty_caches(device: torch.device) -> None:
    """Gives back what torch keeps of a device's memory without using it."""
    empty = getattr(getattr(torch, device.type, None), "empty_cache", None)
    if empty is not None:
        empty()


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.1f} MB"
