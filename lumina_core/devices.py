"""Which device a command computes on, and what it is quick at."""

from __future__ import annotations

import platform

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


def quick_in_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 matrices are quicker on it than of float32: CUDA, and CPUs made for them."""
    if device.type != "cpu":
        return device.type == "cuda"
    tell = getattr(torch.cpu, "get_capabilities", dict)  # an earlier torch does not tell
    return any(tell().get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def has_onednn() -> bool:
    """Whether oneDNN multiplies here as it does on the processors it was written for."""
    return platform.machine().lower() in ("x86_64", "amd64") and torch.backends.mkldnn.is_available()
