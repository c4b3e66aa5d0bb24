"""What the nodes about a picture share: the task is asked about each, and the answers are drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..lumina_core import Request, TokenGrid, from_tensor
from . import jobs
from .host import HostedModel
from .sockets import drawing


def predict(
    model: HostedModel,
    task: str,
    image: torch.Tensor,
    seed: int,
    text: str = "",
    *,
    tokens: Sequence[TokenGrid] = (),
    size: tuple[int, int] | None = None,
    fit: str = "stretch",
    resolution: int = 0,
    subject: str = "",
    template: str = "",
    **drawn,
) -> list[tuple[Request, TokenGrid]]:
    """Each picture's request and the panel that answers it; `drawn` are the inputs of `drawing`."""
    how = {"size": size, "fit": fit, "side": resolution, "subject": subject, "template": template}
    requests = jobs.asked(model, task, from_tensor(image), text, tokens, **how)
    return jobs.answered(model, requests, drawing(model, task, seed, **drawn))
