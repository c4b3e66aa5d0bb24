"""Codes are moved to where the encoder's outputs lie, and a tokenizer may learn before it has codes."""

from __future__ import annotations

from dataclasses import replace

import torch

from lumina_core.training import build
from lumina_core.training.recipes import NANO_MGPT1, NANO_MGPT2
from lumina_core.training.vq import batch_of, losses, refit


def clusters(centres, each=40):
    noise = torch.randn(len(centres), each, centres.shape[1], generator=torch.Generator().manual_seed(1))
    return (centres[:, None] + 0.01 * noise).flatten(0, 1)


def test_codes_move_to_the_means_of_what_lies_around_them_and_none_stays_unused():
    vq = build.new_vq(replace(NANO_MGPT2, vq=replace(NANO_MGPT2.vq, n_embed=4)))
    centres = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    with torch.no_grad():
        vq.quantize.embedding.weight.copy_(centres * 0.7)
        vq.quantize.embedding.weight[3] = 50.0
    z = clusters(centres)
    dead = refit(vq, z, torch.Generator().manual_seed(0), rounds=6)
    assert dead == 1
    codes = vq.quantize.nearest(z.t()[None, :, None]).flatten()
    assert (torch.bincount(codes, minlength=4) > 0).all()
    means = torch.stack([z[codes == c].mean(0) for c in range(4)])
    assert torch.allclose(vq.quantize.embedding.weight, means, atol=0.02)


def test_without_codes_the_decoder_sees_the_encoders_outputs_and_no_code_learns():
    vq, recipe = build.new_vq(NANO_MGPT1), NANO_MGPT1.vq_training
    pixels = batch_of(replace(recipe, batch=2), 0)
    loss, mse, z = losses(vq, pixels, 0.25, quantized=False)
    loss.backward()
    assert vq.quantize.embedding.weight.grad is None
    assert vq.encoder.conv_in.weight.grad.abs().sum() > 0
    assert z.shape == (2 * 4 * 4, 64)  # crops of 64 pixels a side
    with torch.no_grad():
        rebuilt = vq.decode_vectors(vq.prequant(pixels))
    assert torch.allclose(mse, (rebuilt - pixels).square().mean(), atol=1e-5)
