"""int8 weights multiplied in whole numbers on a CUDA device: the results of a CPU."""

from __future__ import annotations

import pytest
import torch

from lumina_core import int8
from tests.core.int8_inputs import inputs, layer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("count", [2, 7, 64, 600])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_they_are_those_of_a_cpu(count, dtype):
    weight, scale = layer()
    if not int8.fits(weight.cuda(), "cuda"):
        assert torch.cuda.get_device_capability() < (7, 5), "cards from Turing on multiply int8"
        pytest.skip("this card does not multiply int8")
    x = inputs(count).to(dtype)
    there = int8.multiply(x.cuda(), weight.cuda(), scale.cuda()).cpu()
    torch.testing.assert_close(
        there, int8.multiply(x, weight, scale), rtol=2 * torch.finfo(dtype).eps, atol=1e-6
    )


def test_a_product_of_a_large_layer_is_recorded_in_a_graph():
    weight, scale = layer(4096, 4096)
    x, weight, scale = inputs(2, 4096).bfloat16().cuda(), weight.cuda(), scale.cuda()
    if not int8.fits(weight, "cuda"):
        pytest.skip("this card does not multiply int8")
    truth = int8.multiply(x, weight, scale)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = int8.multiply(x, weight, scale)
    result.zero_()
    graph.replay()
    assert torch.equal(result, truth)
