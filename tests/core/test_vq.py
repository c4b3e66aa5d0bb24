"""What the three image tokenizers promise, on tiny random ones; their arithmetic is held by golden cases."""

from __future__ import annotations

import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from lumina_core.families.model import without_tf32
from lumina_core.vq import chameleon, llamagen, movq
from lumina_core.vq.blocks import AttnBlock, NormFactory
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


def test_attention_is_asked_for_in_a_layout_that_fused_kernels_take(monkeypatch):
    """The states of one place lie side by side, else tables of all pairs of places are built."""
    strides, attention = [], F.scaled_dot_product_attention

    def seen(q, k, v):
        strides.extend(x.stride() for x in (q, k, v))
        return attention(q, k, v)

    monkeypatch.setattr(F, "scaled_dot_product_attention", seen)
    block = AttnBlock(32, nn, NormFactory(nn))
    x = torch.randn(2, 32, 3, 5)
    with torch.inference_mode():
        out = block(x)
        assert {s[-1] for s in strides} == {1}
        f = block.norm(x)
        q, k, v = (conv(f).flatten(2) for conv in (block.q, block.k, block.v))
        weights = (q.transpose(1, 2) @ k * 32**-0.5).softmax(2)  # (b, places, places)
        expected = x + block.proj_out((v @ weights.transpose(1, 2)).view_as(x))
    torch.testing.assert_close(out, expected)


def tf32() -> object:
    """PyTorch's setting of convolutions, whichever of the two names it has."""
    cudnn = torch.backends.cudnn
    return cudnn.conv.fp32_precision if hasattr(cudnn, "conv") else cudnn.allow_tf32


SETTINGS = {
    "this torch": None,
    "older": SimpleNamespace(allow_tf32=True),
    "newer": SimpleNamespace(conv=SimpleNamespace(fp32_precision="tf32")),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_pictures_are_encoded_without_tf32_and_the_setting_comes_back(tiny_model, monkeypatch, name):
    if SETTINGS[name]:
        monkeypatch.setattr(torch.backends, "cudnn", SETTINGS[name])
    before, inside, encode = tf32(), [], tiny_model.vq.encode

    def seen(pixels):
        inside.append(tf32())
        if len(inside) == 2:
            raise ValueError("broken off")
        return encode(pixels) if name == "this torch" else torch.zeros(1, 4, 4, dtype=torch.int64)

    monkeypatch.setattr(tiny_model.vq, "encode", seen)
    picture = Image.new("RGB", (32, 32))
    tiny_model.encode(picture)
    assert tf32() == before
    with pytest.raises(ValueError, match="broken off"):
        tiny_model.encode(picture)
    assert tf32() == before in (True, "tf32")
    assert set(inside) <= {False, "ieee"}


def test_two_threads_that_encode_leave_the_setting_as_it_was():
    before, inside = tf32(), []

    def one() -> None:
        for _ in range(200):
            with without_tf32():
                inside.append(tf32())

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tf32() == before
    assert len(inside) == 400
    assert set(inside) <= {False, "ieee"}
