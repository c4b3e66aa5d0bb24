"""What the three image tokenizers promise, on tiny random ones; their arithmetic is held by golden cases."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lumina_core.vq import chameleon, llamagen, movq
from tests.core import checkpoints as ck

MODULES = {"mgpt1": chameleon, "mgpt2": movq, "pure": llamagen}


def tokenizer(family: str):
    cls, config, _ = ck.VQ[family]
    return ck.randomise(cls(config), 2).eval()


@pytest.mark.parametrize("family", MODULES)
def test_its_own_tensors_are_recognised_and_give_its_sizes(family):
    shapes = {name: tuple(t.shape) for name, t in ck.vq_state(family).items()}
    assert [name for name, m in MODULES.items() if m.matches(shapes)] == [family]
    got, made = MODULES[family].config_from_shapes(shapes), ck.VQ[family][1]
    for name in ("ch", "ch_mult", "num_res_blocks", "attn_levels", "z_channels", "embed_dim", "n_embed"):
        assert getattr(got, name) == getattr(made, name), name


@pytest.mark.parametrize("family", MODULES)
def test_groups_of_the_decoder_travel_with_its_tensors_and_count(family):
    cls, config, _ = ck.VQ[family]
    few = cls(replace(config, decoder_groups=8)).eval()
    state = {n: t for n, t in ck.vq_state(family).items() if n not in llamagen.IGNORED}
    few.load_state_dict({**state, "decoder.norm_groups": torch.zeros(8)})
    got = MODULES[family].config_from_shapes({name: tuple(t.shape) for name, t in few.state_dict().items()})
    assert got.decoder_groups == 8
    usual = cls(config).eval()
    usual.load_state_dict(state)
    codes = torch.arange(16).view(1, 4, 4)
    with torch.inference_mode():
        assert not torch.allclose(few.decode(codes), usual.decode(codes), atol=1e-2)
        pixels = torch.rand(1, 3, 32, 32) * 2 - 1
        assert torch.equal(few.encode(pixels), usual.encode(pixels))


def test_an_encoder_alone_is_nobodys_tokenizer():
    encoder = {n: tuple(t.shape) for n, t in ck.vq_state("mgpt1").items() if not n.startswith("decoder")}
    assert not any(m.matches(encoder) for m in MODULES.values())


@pytest.mark.parametrize(("family", "factor"), [("mgpt1", 16), ("mgpt2", 8), ("pure", 8)])
def test_pixels_and_codes_keep_their_proportion_both_ways(family, factor):
    vq = tokenizer(family)
    assert vq.config.factor == factor
    with torch.inference_mode():
        codes = vq.encode(torch.zeros(1, 3, 32, 64))
        assert codes.shape == (1, 32 // factor, 64 // factor)
        assert vq.decode(codes).shape == (1, 3, 32, 64)


def test_llamagen_matches_and_decodes_by_direction_alone():
    vq = tokenizer("pure")
    codes = torch.arange(64).view(1, 8, 8)
    with torch.no_grad():
        before, picture = vq.quantize.lookup(codes), vq.decode(codes)
        assert torch.allclose(before.norm(dim=1), torch.ones(1, 8, 8))
        assert torch.equal(vq.quantize.nearest(before * 7), codes)
        vq.quantize.embedding.weight *= torch.rand(64, 1) + 0.5
        assert torch.allclose(vq.decode(codes), picture, atol=1e-3)


def test_other_codebooks_keep_their_lengths():
    vq = tokenizer("mgpt1")
    codes = torch.arange(64).view(1, 8, 8)
    with torch.no_grad():
        assert torch.equal(vq.quantize.lookup(codes)[0, :, 0, 1], vq.quantize.embedding.weight[1])


def test_llamagen_counts_decoder_levels_from_the_coarsest():
    names = set(ck.vq_state("pure"))
    assert "decoder.conv_blocks.0.attn.0.q.weight" in names  # attention stands at the coarsest level
    assert "decoder.conv_blocks.3.upsample.conv.weight" not in names  # the finest is not doubled again
    assert "encoder.conv_blocks.3.attn.0.q.weight" in names


@pytest.mark.parametrize(("family", "expected"), [("mgpt1", 191), ("pure", 191), ("mgpt2", 192)])
def test_bytes_are_truncated_but_rounded_in_2_0(family, expected):
    pixels = torch.full((1, 3, 1, 1), 191.7 / 127.5 - 1)
    assert tokenizer(family).to_uint8(pixels).flatten().tolist() == [expected] * 3
    assert tokenizer(family).to_uint8(torch.tensor([[[[-9.0]], [[9.0]], [[1.0]]]])).flatten().tolist() == [
        0,
        255,
        255,
    ]
