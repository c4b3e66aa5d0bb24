"""Products and norms in fewer operations: the same states, and no weight that is not seen."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lumina_core import load
from lumina_core.fused import FEW, SORTED, is_plain, lay_together, multiply_few, one_weight
from lumina_core.norms import RMSNorm
from lumina_core.transformer import Rotary, Transformer, TransformerConfig
from tests import tiny
from tests.tiny import apart

TOKENS = torch.arange(12).view(2, 6) + 5


@pytest.fixture
def transformer(tiny_folder):
    return load(tiny_folder).transformer


def groups(transformer):
    for layer in transformer.model.layers:
        a, m = layer.self_attn, layer.mlp
        yield [a.q_proj, a.k_proj, a.v_proj]
        yield [m.gate_proj, m.up_proj]


def test_a_loaded_checkpoint_has_them_together_under_their_own_names(transformer):
    for linears in groups(transformer):
        whole = one_weight(linears)
        assert whole.data_ptr() == linears[0].weight.data_ptr()
        torch.testing.assert_close(whole, torch.cat([linear.weight for linear in linears]))
    other = apart(transformer)
    assert all(one_weight(linears) is None for linears in groups(other))
    mine, theirs = transformer.state_dict(), other.state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    torch.testing.assert_close(transformer(TOKENS), other(TOKENS))


@pytest.mark.parametrize("name", ["q_proj", "v_proj"])
def test_a_weight_that_is_patched_or_replaced_counts(transformer, name):
    linear = getattr(transformer.model.layers[0].self_attn, name)
    before = transformer(TOKENS)
    with torch.no_grad():
        linear.weight *= 1.5
    in_place = transformer(TOKENS)
    assert not torch.allclose(in_place, before)
    torch.testing.assert_close(in_place, apart(transformer)(TOKENS))
    linear.weight = nn.Parameter(linear.weight * 2, requires_grad=False)
    assert one_weight(next(groups(transformer))) is None
    torch.testing.assert_close(transformer(TOKENS), apart(transformer)(TOKENS))


def test_positions_beyond_the_first_tables_have_their_own_angles():
    rotary, length = Rotary(8, 10000.0), 0
    for place in (3, 5000, 10000):
        length = max(length, place + 1)
        cos, sin = rotary(torch.tensor([place]), length, torch.float32)
        angles = place * 10000.0 ** (-torch.arange(0, 8, 2) / 8)
        torch.testing.assert_close(cos[0, 0], angles.cos().repeat(2), rtol=0, atol=1e-3)
        torch.testing.assert_close(sin[0, 0, 4:], angles.sin(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("ids", [[30, 31, 32], [32, 31, 30], [30, 32, 31, 33], [31, 40]])
def test_scores_of_some_tokens_come_in_the_order_they_are_asked_for(transformer, ids):
    hidden = transformer(TOKENS)
    head = transformer.head(torch.tensor(ids), hidden.device, hidden.dtype)
    torch.testing.assert_close(head(hidden), transformer.scores(hidden)[..., ids])


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_on_one_of_them_is_called(transformer, kind):
    linear, calls = transformer.model.layers[0].self_attn.k_proj, []
    with getattr(linear, kind)(lambda *_: calls.append(1)):
        transformer(TOKENS)
    assert calls


def test_gradients_are_those_of_the_layers_apart():
    config = tiny.transformer_config(300)
    torch.manual_seed(0)
    model = Transformer(config)
    model(TOKENS).square().sum().backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    hooks = [linear.register_forward_hook(lambda *_: None) for g in groups(model) for linear in g]
    model(TOKENS).square().sum().backward()
    assert len(together) > 20
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, together[name], rtol=1e-3, atol=1e-4)
    for hook in hooks:
        hook.remove()


def test_layers_that_are_not_plain_stay_where_they_are():
    linears = [nn.Linear(4, 4, bias=True), nn.Linear(4, 4, bias=False)]
    places = [linear.weight.data_ptr() for linear in linears]
    lay_together(linears)
    assert [linear.weight.data_ptr() for linear in linears] == places
    assert one_weight(linears) is None


class Hosted(nn.Linear):
    """As a host's layer: it has a forward of its own, and says when that only multiplies."""

    is_plain = True

    def forward(self, x):
        return super().forward(x) * (1 if self.is_plain else 2)


def test_a_hosts_layer_is_joined_with_others_while_it_says_that_it_only_multiplies():
    linears = [Hosted(4, 4, bias=False).requires_grad_(False) for _ in range(2)]
    lay_together(linears)
    assert len(one_weight(linears)) == 8
    linears[1].is_plain = False
    assert not is_plain(linears[1])
    assert one_weight(linears) is None


@pytest.mark.parametrize("count", [1, 2, 3, 8, SORTED, FEW, FEW + 1])
def test_a_product_of_few_inputs_is_that_of_many(count):
    rng = torch.Generator().manual_seed(count)
    weight = torch.randn(40, 24, generator=rng)
    inputs = torch.randn(2 * FEW, 24, generator=rng)
    truth = (inputs.double() @ weight.double().t())[:count]
    with torch.no_grad():
        for x in (inputs[:count], inputs.t().contiguous().t()[:count]):
            torch.testing.assert_close(multiply_few(x, weight).double(), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "odd",
    [{"num_key_value_heads": 2}, {"attention_bias": True}, {"swin_norm": True}, {"model_parallel_size": 2}],
)
def test_ready_parts_compute_what_the_layers_do(odd):
    sizes = tiny.transformer_config(300).__dict__ | odd
    model = Transformer(TransformerConfig(**sizes)).requires_grad_(False)
    tiny.randomize(model, 3)
    plain = model(TOKENS)
    model.lay_weights_together()
    torch.testing.assert_close(model(TOKENS, parts=model.parts("cpu")), plain)


@pytest.mark.parametrize("size", [32, 224])
def test_the_norm_that_drawing_takes_on_a_cpu_is_the_norm(size):
    rng = torch.Generator().manual_seed(size)
    norm = RMSNorm(size, 1e-5).requires_grad_(False)
    norm.weight.copy_(torch.randn(size, generator=rng))
    x = torch.randn(2, 5, size, generator=rng) * torch.tensor([0.0, 1e-4, 1.0, 30.0, 1e4])[:, None]
    with torch.no_grad():
        ready = norm.ready(x.device, x.dtype)(x)
    truth = x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt() * norm.weight.double()
    torch.testing.assert_close(ready.double(), truth, rtol=2e-6, atol=1e-9)
    torch.testing.assert_close(norm(x), ready)


def test_a_norm_that_is_trained_has_a_gradient():
    norm, x = RMSNorm(32, 1e-5), torch.randn(2, 32)
    norm.ready(x.device, x.dtype)(x).sum().backward()
    assert norm.weight.grad.abs().sum() > 0
