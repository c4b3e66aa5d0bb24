"""The optimiser of the bundled checkpoints."""

from __future__ import annotations

import pytest
import torch

from lumina_core.training.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 6, 20), (2, 20, 6)])
def test_updates_have_singular_values_near_one_and_the_gradients_directions(shape):
    g = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    done = orthogonal(g)
    values = torch.linalg.svdvals(done)
    assert values.min() > 0.5 and values.max() < 1.3
    u, _, v = torch.linalg.svd(g, full_matrices=False)
    nearest = u @ v
    assert torch.cosine_similarity(done.flatten(1), nearest.flatten(1)).min() > 0.95


def badly_scaled(optimiser, steps: int) -> float:
    """What is left of a problem whose directions differ by a hundred in steepness."""
    weight = torch.nn.Parameter(torch.zeros(12, 12))
    rng = torch.Generator().manual_seed(2)
    target = torch.randn(12, 12, generator=rng)
    steepness = torch.logspace(0, -1, 12)
    optimiser = optimiser([weight])
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 0.1 * (1 - step / steps)
        loss = (((weight - target) * steepness[:, None]) ** 2).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return float((weight.detach() - target).square().mean())


def test_it_learns_flat_directions_as_fast_as_steep_ones():
    plain = badly_scaled(lambda p: torch.optim.SGD(p, lr=0.1), 200)
    muon = badly_scaled(lambda p: Muon(p, lr=0.1, weight_decay=0.0), 200)
    assert muon < plain / 5


def test_it_goes_on_from_its_state_as_if_never_stopped():
    def run(stops: bool) -> torch.Tensor:
        weight = torch.nn.Parameter(torch.ones(4, 6))
        optimiser = Muon([weight], lr=0.05)
        for step in range(6):
            if stops and step == 3:
                saved = optimiser.state_dict()
                optimiser = Muon([weight], lr=0.05)
                optimiser.load_state_dict(saved)
            weight.grad = torch.sin(torch.arange(24.0).view(4, 6) * (step + 1) + weight.detach())
            optimiser.step()
        return weight.detach().clone()

    assert torch.equal(run(False), run(True))
