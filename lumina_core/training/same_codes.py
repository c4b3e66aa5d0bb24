"""Image tokenizers of 1.0 and PURE whose codes are those of a MoVQ (2.0), so that a transformer of one can read all.

The codes and the encoder are taken over; the decoder is left as it is and has to be trained.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import InputError
from ..vq.blocks import VQConfig

ALIKE = ("ch", "num_res_blocks", "n_embed")
# Of what only the decoder sees of a code: about as long as what the encoder tells it by. Far shorter, it learns little.
LENGTH = 2.0


def _hold(mine: VQConfig, earlier: VQConfig, wanted: dict) -> None:
    """Raises an `InputError` where the tokenizer's sizes are not `wanted`, or not alike where they have to be."""
    for name, value in {**{name: getattr(earlier, name) for name in ALIKE}, **wanted}.items():
        if getattr(mine, name) != value:
            raise InputError(
                f"--start-from: the image tokenizer cannot take over the earlier one's codes: its {name} is "
                f"{getattr(mine, name)} and has to be {value}."
            )


@torch.no_grad()
def one_level_finer(vq: nn.Module, earlier: nn.Module) -> None:
    """A Chameleon VQGAN that sees a picture as the MoVQ `earlier` sees it at half the size.

    The earlier finest level becomes the second; before it stands one that shrinks.
    """
    old = earlier.config
    wanted = {"ch_mult": (1, *old.ch_mult), "attn_levels": frozenset(level + 1 for level in old.attn_levels)}
    _hold(vq.config, old, wanted)
    mine, theirs = vq.encoder, earlier.encoder
    pairs = [(getattr(mine, name), getattr(theirs, name)) for name in ("mid", "norm_out")]
    for part, other in (*pairs, *zip(mine.down[1:], theirs.down, strict=True)):
        part.load_state_dict(other.state_dict())
    _shrink(mine, theirs.conv_in)
    _take_codes(vq, earlier, earlier.quantize.embedding.weight)


def _take_codes(vq: nn.Module, earlier: nn.Module, codes: torch.Tensor) -> None:
    """Gives `vq` the earlier encoder's output and the table `codes` (codes, dims).

    What dimensions there are besides hold a mark of each code, which tells the decoder at once which it is. The encoder
    puts out 0 there and all marks are of one length, so it is not decided by them which code is nearest.
    """
    taken, dims = codes.shape[1], vq.config.embed_dim
    if dims < taken:
        raise InputError(
            f"--start-from: the earlier image tokenizer's codes take {taken} dimensions; this one's have {dims}."
        )
    for mine, theirs in (
        (vq.encoder.conv_out, earlier.encoder.conv_out),
        (vq.quant_conv, earlier.quant_conv),
    ):
        wide, deep = theirs.weight.shape[:2]
        for tensor in (mine.weight, mine.bias):
            tensor.zero_()
        mine.weight[:wide, :deep], mine.bias[:wide] = theirs.weight, theirs.bias
    marks = torch.randn(len(codes), dims - taken, generator=torch.Generator().manual_seed(0))
    vq.quantize.embedding.weight.copy_(torch.cat([codes, LENGTH * F.normalize(marks)], 1))


def _shrink(encoder: nn.Module, conv_in: nn.Conv2d) -> None:
    """Makes the finest level what `conv_in` is of the picture shrunk by half.

    The first convolution lays out each pixel's neighbours as channels, the downsampling weighs them. Together they
    reach 5 of the 6 pixels that count on a side; the one at the left or top is taken to be as its neighbour.
    """
    first, down = encoder.conv_in, encoder.down[0].downsample.conv
    for conv in (first, down, *(block.conv2 for block in encoder.down[0].block)):
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
    first.weight[:27] = torch.eye(27).view(27, 3, 3, 3)  # channel = 9 * colour + 3 * row + column
    down.bias.copy_(conv_in.bias)
    for y in range(6):
        for x in range(6):
            (tap_y, row), (tap_x, column) = _reached(y - 2), _reached(x - 2)
            seen = conv_in.weight[:, :, y // 2, x // 2] / 4
            for colour in range(3):
                down.weight[:, 9 * colour + 3 * row + column, tap_y, tap_x] += seen[:, colour]


def _reached(offset: int) -> tuple[int, int]:
    """Taps of the downsampling and the first convolution that meet at a pixel, -2 to 3 from the upper left of two."""
    offset = max(offset, -1)
    tap = min(max(offset, 0), 2)
    return tap, offset - tap + 1


@torch.no_grad()
def on_the_sphere(vq: nn.Module, earlier: nn.Module) -> None:
    """A LlamaGen VQ, whose codes are told by direction, that tells the codes of the MoVQ `earlier`, told by distance.

    The code e nearest to z has the greatest e.z - |e|^2 / 2, which is (e, -|e|^2 / 2, rest) times (z, 1, 0): with the
    rest chosen so that all of these are of one length, it is the one in the direction most alike.
    """
    old = earlier.config
    _hold(vq.config, old, {"ch_mult": old.ch_mult, "attn_levels": old.attn_levels})
    mine, theirs = vq.encoder, earlier.encoder
    for name in ("conv_in", "norm_out"):
        getattr(mine, name).load_state_dict(getattr(theirs, name).state_dict())
    for stage, level in zip(mine.conv_blocks, theirs.down, strict=True):
        stage.load_state_dict({k.replace("block.", "res.", 1): v for k, v in level.state_dict().items()})
    for part, name in zip(mine.mid, ("block_1", "attn_1", "block_2"), strict=True):
        part.load_state_dict(getattr(theirs.mid, name).state_dict())
    codes = earlier.quantize.embedding.weight
    half = codes.square().sum(1, keepdim=True) / 2
    length = 2 * half + half.square()
    _take_codes(vq, earlier, torch.cat([codes, -half, (length.max() - length).sqrt()], 1))
    vq.quant_conv.bias[old.embed_dim] = 1.0
