"""Copies of small weights that oneDNN laid out: the same products, and never those of a weight that is no more."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from lumina_core import load, packed
from lumina_core.fused import multiply
from tests.tiny import apart

TOKENS = torch.arange(12).view(2, 6) + 5
CPU = torch.device("cpu")

needs_it = pytest.mark.skipif(not packed.fits(torch.zeros(2, 2)), reason="oneDNN is not here")


@pytest.fixture
def transformer(tiny_folder):
    return load(tiny_folder).transformer


def owners(transformer) -> list[nn.Module]:
    """The layers that copies are kept for."""
    return [module for module in transformer.modules() if module in packed._kept]


@needs_it
@pytest.mark.parametrize("count", [1, packed.FEW, packed.FEW + 1, 7, packed.USUAL, 65, 300])
def test_products_are_those_of_the_weight(count):
    rng = torch.Generator().manual_seed(count)
    linear = nn.Linear(24, 40, bias=False).requires_grad_(False)
    linear.weight.copy_(torch.randn(40, 24, generator=rng))
    inputs = torch.randn(count, 24, generator=rng)
    truth = inputs.double() @ linear.weight.double().t()
    with torch.no_grad():
        of = multiply(linear.weight, linear)
        for x in (inputs, inputs.t().contiguous().t()):
            torch.testing.assert_close(of(x).double(), truth, rtol=1e-5, atol=1e-5)
    assert linear in packed._kept


@needs_it
@torch.inference_mode()
def test_a_copy_is_made_once_and_goes_with_its_model(transformer):
    transformer.parts(CPU)
    made = [packed._kept[module][1] for module in owners(transformer)]
    assert len(made) == 4 * len(transformer.model.layers)
    transformer.parts(CPU)
    again = [packed._kept[module][1] for module in owners(transformer)]
    assert all(old is new for old, new in zip(made, again, strict=True))
    other = apart(transformer)
    gc.collect()
    before = len(packed._kept)
    other.parts(CPU)
    assert len(packed._kept) == before + 7 * len(transformer.model.layers)  # no two lie together there
    del other
    gc.collect()
    assert len(packed._kept) == before


@pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj"])
@torch.inference_mode()
def test_a_weight_that_is_written_over_counts_from_the_next_drawing_on(transformer, name):
    before = transformer(TOKENS, parts=transformer.parts(CPU))
    weight = transformer.model.layers[0].get_submodule(name).weight
    old = weight.clone()
    weight.data[0, 0] += 1e-3  # torch does not count what is done to `data`
    after = transformer(TOKENS, parts=transformer.parts(CPU))
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, apart(transformer)(TOKENS))
    weight.data.copy_(old)
    assert torch.equal(transformer(TOKENS, parts=transformer.parts(CPU)), before)


@torch.inference_mode()
def test_a_layer_that_stands_alone_now_has_a_copy_of_its_own(transformer):
    a = transformer.model.layers[0].self_attn
    for linear in (a.k_proj, a.v_proj):
        linear.weight.data.zero_()
    transformer.parts(CPU)
    with a.k_proj.register_forward_hook(lambda *_: None):  # hooked, it is not multiplied with the others
        torch.testing.assert_close(transformer(TOKENS), apart(transformer)(TOKENS))


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(2, packed.LARGEST // 2 + 2),
        torch.zeros(4, 6, dtype=torch.bfloat16),
        torch.zeros(4, 5),
        torch.zeros(6, 4).t(),
        torch.zeros(25)[1:].view(4, 6),
        torch.zeros(4, 6, device="meta"),
    ],
    ids=["large", "bf16", "odd", "columns first", "begins in between", "elsewhere"],
)
def test_other_weights_have_none(weight):
    assert not packed.fits(weight)


def test_where_gradients_are_taken_there_is_none():
    linear = nn.Linear(24, 40, bias=False)
    multiply(linear.weight, linear)(torch.zeros(8, 24)).sum().backward()
    assert linear.weight.grad is not None
    assert linear not in packed._kept


@torch.inference_mode()
def test_without_onednn_the_states_are_the_same(transformer, monkeypatch):
    states = transformer(TOKENS)
    monkeypatch.setattr(packed, "_works", lambda: False)
    other = apart(transformer)
    torch.testing.assert_close(other(TOKENS), states)
    assert not owners(other)
