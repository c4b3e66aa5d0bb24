"""Which device a command computes on."""

from __future__ import annotations

import torch

from .errors import InputError


def pick_device(name: str | None) -> torch.device:
    """The device of this name, or the best there is; an `InputError` when it cannot be used here."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        raise InputError(
            f"--device {name} cannot be used here ({str(e).splitlines()[0]}); try cpu."
        ) from None
    return device
