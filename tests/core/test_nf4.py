"""Layers in 4 bit by bitsandbytes: where it is missing what to do is said, where it is there they draw."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from lumina_core import InputError, PictureFinished, Sampling, generate, load, memory, read_lora
from lumina_core.bench import text_prompt
from lumina_core.nf4 import BLOCK, NF4Linear
from tests.core.test_lora import Q, peft

GAP = 0.16  # half of the largest step between two of the 16 values


def test_without_the_package_it_is_said_what_to_install(tiny_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        InputError, match=r"nf4 needs the package bitsandbytes.*pip install bitsandbytes.*int8"
    ):
        load(tiny_folder, quantise="nf4")


@pytest.fixture(scope="module")
def small():
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    return load("nano-mgpt2", quantise="nf4")


def test_layers_are_small_and_close_and_the_rest_is_as_it_was(small):
    plain = load("nano-mgpt2").transformer
    linears = [n for n, m in small.transformer.named_modules() if isinstance(m, NF4Linear)]
    assert len(linears) == 7 * plain.config.num_hidden_layers
    for name in linears[:7]:
        weight, layer = plain.get_submodule(name).weight, small.transformer.get_submodule(name)
        blocks = (layer.restored() - weight).reshape(-1, BLOCK).abs().amax(1)
        assert (blocks <= GAP * weight.reshape(-1, BLOCK).abs().amax(1)).all(), name
    assert torch.equal(small.transformer.lm_head.weight, plain.lm_head.weight)
    assert type(small.transformer.model.embed_tokens).__mro__[1] is nn.Embedding
    held = sum(small.transformer.get_submodule(n).weight.nbytes for n in linears)
    held += sum(small.transformer.get_submodule(n).weight_scale.nbytes for n in linears)
    assert memory.BYTES["nf4"] * memory.parameters(plain.config)[0] == held


def test_every_mode_draws_the_same_picture(small):
    prompt, codes = text_prompt(small, "a red circle", (64, 64)), []
    for mode in ("ar", "jacobi"):
        events = generate(small.transformer, small.vocabulary, prompt, Sampling(seed=3, cfg=3.0, decode=mode))
        codes += [e.grid.codes for e in events if isinstance(e, PictureFinished)]
    assert torch.equal(*codes)


def test_a_lora_is_merged_but_no_host_can_patch_it(tiny_folder, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    model, plain = load(tiny_folder, quantise="nf4"), load(tiny_folder)
    lora = read_lora(peft(tmp_path / "style", plain.transformer), model.transformer)
    layer = model.transformer.get_submodule(Q)
    wanted = layer.restored() + lora.deltas[Q].of(1, "cpu")
    with pytest.raises(InputError, match="'style' cannot be applied to a model loaded in nf4.*int8"):
        lora.tensors(model.transformer)
    lora.merge(model.transformer)
    assert (layer.restored() - wanted).abs().max() <= GAP * wanted.abs().max()
