"""Products of int8 weights in whole numbers: as near as float32, each row for itself, and only where they work."""

from __future__ import annotations

import math
import platform

import pytest
import torch
from torch import nn

from lumina_core import int8, load, quant
from lumina_core.fused import one_weight
from tests.core.int8_inputs import inputs, layer

CPU = torch.device("cpu")
TOKENS = torch.arange(12).view(2, 6) + 5


@pytest.mark.parametrize("count", [2, 3, 16, 33, int8.CHUNK, 2 * int8.CHUNK + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_is_as_near_as_the_type_of_the_input(count, dtype):
    weight, scale = layer()
    x = inputs(count).to(dtype)
    truth = x.double() @ quant.restore(weight, scale, torch.float64).T
    got = int8.multiply(x, weight, scale)
    assert got.dtype == dtype and got.shape == (count, 64)
    length = x.double().norm(dim=1, keepdim=True) * scale.max() * 127
    error = (got.double() - truth).abs() / length.clamp(min=1e-30)
    assert error.max() < max(2e-7, torch.finfo(dtype).eps) * 4
    assert (got[-1] == 0).all()


def test_digits_write_the_largest_numbers():
    weight, scale = torch.full((8, 512), 127, dtype=torch.int8), torch.ones(8)
    x = torch.cat([torch.full((1, 512), 1.0), torch.full((1, 512), -1.0)])
    torch.testing.assert_close(int8.multiply(x, weight, scale), 127 * 512 * x[:, :8], rtol=1e-6, atol=0)


def test_a_row_is_the_same_whatever_rows_stand_beside_it():
    weight, scale = layer()
    x = inputs(40)
    together = int8.multiply(x, weight, scale)
    for first, last in ((0, 1), (3, 4), (5, 7), (8, 24), (1, 40)):
        assert torch.equal(int8.multiply(x[first:last], weight, scale), together[first:last])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_stays_none(value):
    weight, scale = layer()
    x = inputs(4)
    x[1, 5] = value
    got = int8.multiply(x, weight, scale).isfinite().all(1)
    assert got.tolist() == [True, False, True, True]


needs_it = pytest.mark.skipif(
    not int8.fits(torch.zeros(1024, 1024, dtype=torch.int8), CPU),
    reason="this processor does not multiply int8",
)


@needs_it
def test_where_it_is_not_used(monkeypatch):
    large = torch.zeros(1024, 1024, dtype=torch.int8)
    assert int8.fits(large, "cpu")
    assert not int8.fits(large.float(), CPU)
    assert not int8.fits(large[:1000], CPU), "a CPU expands few weights in no time"
    assert not int8.fits(torch.zeros(1028, 1028, dtype=torch.int8), CPU)
    assert not int8.fits(large, "meta"), "offloaded weights are elsewhere"
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: (a.int() @ b.int()).clamp(-(2**15), 2**15 - 1))
    int8._works.cache_clear()
    assert not int8.fits(large, CPU), "sums that do not hold more than 16 bits are wrong"
    monkeypatch.undo()
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    int8._works.cache_clear()
    assert not int8.fits(large, CPU)
    monkeypatch.undo()
    int8._works.cache_clear()


@pytest.fixture
def used(monkeypatch):
    """Small layers take whole numbers too, and how many weights they multiplied by is noted."""
    calls, multiply = [], int8.multiply

    def noted(x, weight, scale):
        calls.append(len(weight))
        return multiply(x, weight, scale)

    monkeypatch.setattr(int8, "WORTH_IT", 0)
    monkeypatch.setattr(int8, "multiply", noted)
    return calls


def expanded(transformer) -> torch.Tensor:
    hooks = [
        m.register_forward_hook(lambda *_: None)
        for m in transformer.modules()
        if isinstance(m, nn.Linear) and hasattr(m, "weight_scale")
    ]
    states = transformer(TOKENS)
    for hook in hooks:
        hook.remove()
    return states


@needs_it
@torch.no_grad()
def test_a_transformer_of_int8_layers_takes_it_with_one_product_for_those_of_one_input(tiny_folder, used):
    transformer = load(tiny_folder, quantise="int8").transformer
    a = transformer.model.layers[0].self_attn
    assert len(one_weight([a.q_proj, a.k_proj, a.v_proj])) == 3 * len(a.q_proj.weight)
    truth = expanded(transformer)
    assert not used, "a hooked layer is called as it is"
    torch.testing.assert_close(transformer(TOKENS), truth, rtol=1e-4, atol=1e-4)
    assert len(used) == 4 * len(transformer.model.layers)


@needs_it
@torch.no_grad()
def test_a_layer_that_a_host_patched_is_expanded_where_it_must(tiny_folder, used):
    """In place the new numbers are seen; a weight kept in 16 bit, or patched in passing, is called as it is."""
    transformer = load(tiny_folder, quantise="int8").transformer
    k_proj = transformer.model.layers[0].self_attn.k_proj
    before = transformer(TOKENS)
    k_proj.weight.copy_(k_proj.weight // 2)
    in_place = transformer(TOKENS)
    assert not torch.allclose(in_place, before)
    torch.testing.assert_close(in_place, expanded(transformer), rtol=1e-4, atol=1e-4)

    used.clear()
    transformer(TOKENS)
    all_of_them = len(used)
    k_proj.weight_function = [lambda weight: weight]
    used.clear()
    transformer(TOKENS)
    assert len(used) == all_of_them + 1, "queries and values alone, keys expanded"

    del k_proj.weight_function
    k_proj.set_weight(k_proj.weight.float() * 100)
    assert k_proj.weight.dtype == torch.float16
    torch.testing.assert_close(transformer(TOKENS), expanded(transformer), rtol=1e-4, atol=1e-4)
