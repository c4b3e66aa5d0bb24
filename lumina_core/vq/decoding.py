"""From codes to pixels when things go wrong: too little memory, or numbers that 16 bit cannot hold.

The norms of all three image tokenizers take their statistics over the whole picture, so a picture in tiles differs a
little from one in a piece; tiles are only for pictures that do not fit the memory otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch

from ..errors import OutOfMemoryError, PictureError
from ..shortage import empty_caches, ran_out
from .blocks import ImageTokenizer

log = logging.getLogger(__name__)

TILES = (64, 32, 16)  # codes a side, tried in turn
OVERLAP = 4  # of a tile, a side: the part that neighbours blend over is a quarter of it
# decoding in 32 bit changes the weights meanwhile, and two at once need twice the memory
_one_at_a_time = Lock()


def decode(vq: ImageTokenizer, codes: torch.Tensor) -> torch.Tensor:
    """Picture (1, 3, H, W), about [-1, 1], of codes (1, h, w): in one piece and the weights' type, if that works.

    Threads take turns. An `OutOfMemoryError` where the memory is too little even for tiles.
    """
    with _one_at_a_time:
        return _decode(vq, codes)


def _decode(vq: ImageTokenizer, codes: torch.Tensor) -> torch.Tensor:
    pixels = _in_pieces(vq, codes)
    if bool(pixels.isfinite().all()):
        return pixels
    if vq.post_quant_conv.weight.dtype == torch.float32:
        raise PictureError("The image tokenizer gave numbers that are no colours; its file may be damaged.")
    log.warning("Lumina-mGPT: the image tokenizer overflowed in 16 bit; decoding once more in 32 bit")
    with in_float32(vq):
        return _in_pieces(vq, codes)


def _in_pieces(vq: ImageTokenizer, codes: torch.Tensor) -> torch.Tensor:
    try:
        return vq.decode(codes)
    except Exception as e:  # each device says it with an error of its own
        if not ran_out(e):
            raise
    # outside the handler: until here the error keeps what was computed
    for side in TILES:
        if side >= max(codes.shape[1:]):
            continue
        empty_caches(codes.device)
        log.warning(
            "Lumina-mGPT: too little memory to decode the picture in one piece; decoding tiles of %d pixels, which "
            "may show faint seams",
            side * vq.config.factor,
        )
        try:
            return tiled(vq, codes, side)
        except Exception as e:
            if not ran_out(e):
                raise
    empty_caches(codes.device)
    height, width = (side * vq.config.factor for side in codes.shape[1:])
    raise OutOfMemoryError(
        f"There is too little memory to decode the {width}x{height} picture, even in tiles. Close other programs that "
        "use this memory, ask for a smaller picture, or decode on the CPU."
    )


def tiled(vq: ImageTokenizer, codes: torch.Tensor, side: int) -> torch.Tensor:
    """Picture (1, 3, H, W) float32 on the CPU, decoded in overlapping tiles of `side` codes that are blended."""
    f, overlap = vq.config.factor, side // OVERLAP
    height, width = codes.shape[1:]
    total = torch.zeros(1, 3, height * f, width * f)
    weight = torch.zeros(1, 1, height * f, width * f)
    for y in _starts(height, side, overlap):
        for x in _starts(width, side, overlap):
            tile = vq.decode(codes[:, y : y + side, x : x + side]).float().cpu()
            h, w = tile.shape[2:]
            share = _ramp(h, overlap * f)[:, None] * _ramp(w, overlap * f)
            at = (..., slice(y * f, y * f + h), slice(x * f, x * f + w))
            total[at] += tile * share
            weight[at] += share
    return total / weight


def _starts(length: int, side: int, overlap: int) -> list[int]:
    """Where tiles begin that cover `length` and overlap by at least `overlap`."""
    if length <= side:
        return [0]
    return [*range(0, length - side, side - overlap), length - side]


def _ramp(length: int, width: int) -> torch.Tensor:
    """Weights (length,) that fall towards both ends over `width` pixels and never reach nothing."""
    places = torch.arange(length, dtype=torch.float32)
    return ((torch.minimum(places, length - 1 - places) + 1) / max(width, 1)).clamp(max=1)


@contextmanager
def in_float32(vq: ImageTokenizer) -> Iterator[None]:
    """The decoder's parts in 32 bit; afterwards they are again what they were, bit for bit."""
    parts = (vq.decoder, vq.post_quant_conv)
    kept = [(p, p.data) for part in parts for p in part.parameters()]
    try:
        for p, data in kept:
            p.data = data.float()
        yield
    finally:
        for p, data in kept:
            p.data = data
