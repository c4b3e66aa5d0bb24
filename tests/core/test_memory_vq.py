"""Decoding pictures in little memory and in 16 bit."""

from __future__ import annotations

import logging

import pytest
import torch

from lumina_core import OutOfMemoryError
from lumina_core.vq.decoding import decode, in_float32, tiled
from lumina_core.vq.movq import MoVQ
from tests import tiny


@pytest.fixture
def vq():
    network = MoVQ(tiny.VQ).requires_grad_(False)
    tiny.randomize(network, 1)
    return network


CODES = torch.randint(0, tiny.CODES, (1, 12, 20), generator=torch.Generator().manual_seed(2))


def short_of_memory(monkeypatch, vq, most: int) -> None:
    """Decoding more than `most` codes at a time runs out of memory."""
    whole = vq.decode

    def limited(codes):
        if codes.numel() > most:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return whole(codes)

    monkeypatch.setattr(vq, "decode", limited)


@torch.inference_mode()
def test_a_picture_that_fits_is_decoded_in_one_piece(vq):
    assert torch.equal(decode(vq, CODES), vq.decode(CODES))


@torch.inference_mode()
def test_a_picture_that_does_not_fit_is_decoded_in_tiles_and_it_is_said(vq, monkeypatch, caplog):
    whole = decode(vq, CODES)
    short_of_memory(monkeypatch, vq, 16 * 12)
    with caplog.at_level(logging.WARNING):
        pixels = decode(vq, CODES)
    assert "tiles of 128 pixels" in caplog.text
    assert pixels.shape == whole.shape
    assert torch.isfinite(pixels).all()
    assert torch.corrcoef(torch.stack([pixels.flatten(), whole.flatten()]))[0, 1] > 0.9


@torch.inference_mode()
def test_a_picture_that_fits_in_no_way_is_refused_in_words(vq, monkeypatch):
    short_of_memory(monkeypatch, vq, 4)
    with pytest.raises(OutOfMemoryError, match="too little memory"):
        decode(vq, CODES)


@torch.inference_mode()
def test_tiles_blend_into_the_same_where_there_is_nothing_but_the_codes(vq):
    """With a decoder that copies each code's value to its pixels, tiles and the whole are one."""

    class Copy:
        config = vq.config

        def decode(self, codes):
            f = self.config.factor
            return (
                codes[:, None].float().repeat_interleave(f, 2).repeat_interleave(f, 3).expand(-1, 3, -1, -1)
            )

    torch.testing.assert_close(tiled(Copy(), CODES, 8), Copy().decode(CODES))


@torch.inference_mode()
def test_half_precision_decodes_nearly_the_same(vq):
    whole = vq.decode(CODES)
    half = vq.to(torch.bfloat16).decode(CODES)
    assert half.dtype == torch.bfloat16
    assert torch.corrcoef(torch.stack([half.float().flatten(), whole.flatten()]))[0, 1] > 0.99


@torch.inference_mode()
def test_an_overflow_in_16_bit_is_decoded_again_in_32_bit(vq, caplog):
    vq.decoder.conv_in.weight.mul_(300)
    vq.post_quant_conv.weight.mul_(300)
    vq.decoder.mid.block_1.conv1.weight.mul_(1e3)
    reference = vq.decode(CODES)
    vq.to(torch.float16)
    before = [p.clone() for p in vq.parameters()]
    if torch.isfinite(vq.decode(CODES)).all():
        vq.decoder.conv_in.weight.fill_(6e4)
        before = [p.clone() for p in vq.parameters()]
        with in_float32(vq):
            reference = vq.decode(CODES)
    with caplog.at_level(logging.WARNING):
        pixels = decode(vq, CODES)
    assert "32 bit" in caplog.text
    assert pixels.dtype == torch.float32
    assert torch.isfinite(pixels).all()
    assert pixels.shape == reference.shape
    assert all(torch.equal(a, b) for a, b in zip(before, vq.parameters(), strict=True))
