"""What nodes have a hosted model do: its parts are brought in place first; progress and Cancel are served meanwhile."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from PIL import Image

from .. import lumina_core
from ..lumina_core import Chat, InputError, PictureFinished, Prompt, Request, Restored, Sampling, TokenGrid
from .host import HostedModel, for_output, show_on_node, watched


def prompt(
    hosted: HostedModel,
    text: str,
    task: str,
    size: tuple[int, int] | None,
    images: Sequence[Image.Image],
    keep: Sequence[TokenGrid] | None = None,
    mask: torch.Tensor | None = None,
    template: str = "",
) -> Prompt:
    """The token prefix of a task; given images are encoded. Of `keep` all is kept that `mask` does not touch.

    A side of 0 is the checkpoint's own. With images or kept tokens and both sides 0, the size is theirs: that of the
    tokens, or the one that the task brings the picture to.
    """
    model = hosted.model
    if size is not None:
        size = None if (images or keep) and not any(size) else model.size_for(task, *size)
    if size is None and images and not keep and model.template(task).given_panel:
        size = lumina_core.working_size(model, task, images[0])
    if images:
        hosted.place_vq([size] if size else _sizes_asked_about(hosted, images))
    if keep is None and mask is not None:
        raise InputError("A mask is connected but no tokens: connect the tokens of the picture to redraw.")
    if keep and size is None:
        size = lumina_core.size_kept(model, task, keep)
    made = model.prompt(text, task=task, size=size, images=images, template=template or None)
    return made if keep is None else lumina_core.redraw(made, model.vocabulary, keep, mask)


def encode(hosted: HostedModel, images: Sequence[Image.Image], fit: str) -> list[TokenGrid]:
    """The codes of pictures."""
    hosted.place_vq(_sizes(images))
    return [hosted.model.encode(image, fit=fit) for image in watched(images)]


def decode(hosted: HostedModel, grids: Sequence[TokenGrid]) -> list[torch.Tensor]:
    """The pictures of code grids as IMAGE batches; neighbours of one size share a batch."""
    model = hosted.model
    if not grids:
        raise InputError("There are no tokens to decode: the model drew no picture.")
    hosted.place_vq(_drawn_sizes(hosted, grids))
    return to_image([model.decode(grid.codes) for grid in watched(grids)])


def pictures(hosted: HostedModel, prompt: Prompt, grids: Sequence[TokenGrid]) -> list[Image.Image]:
    """The pictures that were drawn of a prompt, of several panels the one that it asks for."""
    hosted.place_vq(_drawn_sizes(hosted, grids))
    return lumina_core.decoded(hosted.model, prompt, grids, watched)


def panels(hosted: HostedModel, prompt: Prompt, sampling: Sampling) -> list[torch.Tensor]:
    """What is drawn of a prompt of several panels: an IMAGE batch of each panel, from top to bottom."""
    drawn = [e.grid for e in hosted.draw(prompt, sampling) if isinstance(e, PictureFinished)]
    return [decode(hosted, same)[0] for same in zip(*(grid.split() for grid in drawn), strict=True)]


def restore(hosted: HostedModel, picture: Image.Image, sampling: Sampling, **options) -> Restored:
    """A picture restored in tiles, as many side by side as the free memory holds."""
    job = lumina_core.Restoration(hosted.model, picture, seed=sampling.seed, **options)
    tile = [(job.plan.tile, job.plan.tile)]
    hosted.place_vq(tile)
    abreast = job.abreast(job.prompts(watched), sampling)
    preview = hosted.place_to_draw(abreast.prompts[0], abreast.nbytes())
    events = job.draw(abreast, abreast.at_once(hosted.free_nbytes()))
    for _ in hosted.served(events, preview, "restore"):
        pass
    hosted.place_vq(tile)
    return job.finish(watched)


def ask(hosted: HostedModel, chat: Chat, question: str, images: Sequence[Image.Image]) -> tuple[Chat, Prompt]:
    """A chat with one more question, and the prompt whose answer comes next; images are encoded."""
    if images:
        hosted.place_vq(_sizes_asked_about(hosted, images))
    chat = chat.ask(hosted.model, question, images)
    return chat, chat.prompt(hosted.model)


def likelihoods(hosted: HostedModel, prompt: Prompt, grids: Sequence[TokenGrid]) -> list[float]:
    """How likely the model finds pictures drawn of a prompt: mean log-probabilities of their codes."""
    tokens = len(prompt.tokens) + max(grid.codes.numel() for grid in grids)
    hosted.place_transformer(lumina_core.pass_nbytes(hosted.model.transformer, tokens))
    return lumina_core.likelihoods(hosted.model, prompt, grids, watched)


def agreements(hosted: HostedModel, question: str, pictures: Sequence[Image.Image]) -> list[float]:
    """How much rather the model answers a question about each picture with yes than with no, 0 to 1."""
    hosted.place_vq(_sizes_asked_about(hosted, pictures))
    prompts = lumina_core.question_prompts(hosted.model, question, pictures, watched)
    tokens = max(len(prompt.tokens) for prompt in prompts)
    hosted.place_transformer(lumina_core.pass_nbytes(hosted.model.transformer, tokens))
    return lumina_core.agreements(hosted.model, prompts, watched)


def asked(
    hosted: HostedModel,
    task: str,
    images: Sequence[Image.Image],
    text: str = "",
    tokens: Sequence[TokenGrid] = (),
    size: tuple[int, int] | None = None,
    side: int = 0,
    **options,
) -> list[Request]:
    """What is asked about each picture, or about the `tokens` it was drawn as; the pictures are encoded."""
    if tokens and len(tokens) != len(images):
        raise InputError(
            f"{len(tokens)} pictures come as tokens and {len(images)} as image; connect tokens and image of the "
            "same node, or the image alone."
        )
    model = hosted.model
    size = size and model.size_for(task, *size)
    hosted.place_vq([size or lumina_core.working_size(model, task, image, side) for image in images])
    grids = list(tokens) or [None] * len(images)
    return [
        lumina_core.ask(model, task, image, text, size=size, side=side, tokens=grid, **options)
        for image, grid in watched(list(zip(images, grids, strict=True)))
    ]


def answered(
    hosted: HostedModel, requests: Sequence[Request], sampling: Sampling
) -> list[tuple[Request, TokenGrid]]:
    """The panels that answer, each with its request; every picture is asked about with the same seed."""
    answers = []
    for n, request in enumerate(requests):
        if len(requests) > 1:
            show_on_node(f"picture {n + 1} of {len(requests)}")
        for event in hosted.draw(request.prompt, sampling):
            if isinstance(event, PictureFinished):
                answers.append((request, request.panel(event.grid)))
    return answers


def placed(
    hosted: HostedModel, answers: Sequence[tuple[Request, TokenGrid]], keep_size: bool = True
) -> torch.Tensor:
    """Answers as an IMAGE batch, brought to lie on their pictures unless their own size is wanted."""
    hosted.place_vq([request.placement.size for request, _ in answers])
    drawn = [r.place(hosted.model.decode(grid.codes), keep_size) for r, grid in watched(answers)]
    return for_output(lumina_core.to_tensor(drawn))


def found(
    hosted: HostedModel, answers: Sequence[tuple[Request, TokenGrid]], label: str
) -> tuple[torch.Tensor, str, torch.Tensor]:
    """The boxes that answers show: drawn as an IMAGE batch, as JSON, and as masks."""
    hosted.place_vq([request.placement.size for request, _ in answers])
    boxes = lumina_core.detections(hosted.model, answers, label, watched)
    return for_output(lumina_core.to_tensor(boxes.drawn())), boxes.json(), for_output(boxes.masks())


def to_image(pictures: Sequence) -> list[torch.Tensor]:
    """IMAGE batches of pictures (H, W, 3) in bytes; neighbours of one size share a batch."""
    batches = [list(same) for _, same in itertools.groupby(pictures, lambda p: p.shape)]
    return [for_output(lumina_core.to_tensor(batch)) for batch in batches]


def _sizes(images: Sequence[Image.Image]) -> list[tuple[int, int]]:
    return [image.size for image in images]


def _sizes_asked_about(hosted: HostedModel, images: Sequence[Image.Image]) -> list[tuple[int, int]]:
    """Width and height in pixels that pictures are brought to where a prompt or a conversation names no size."""
    model = hosted.model
    return [model.family.input_size(*image.size, model.sizes()) for image in images]


def _drawn_sizes(hosted: HostedModel, grids: Sequence[TokenGrid]) -> list[tuple[int, int]]:
    """Width and height in pixels of the pictures of code grids, or an `InputError` where another family drew one."""
    if odd := next((g for g in grids if g.family != hosted.model.family.id), None):
        raise InputError(f"The tokens are of family {odd.family}; '{hosted.model.name}' cannot decode them.")
    factor = hosted.model.vq.config.factor
    return [(grid.codes.shape[1] * factor, grid.codes.shape[0] * factor) for grid in grids]
