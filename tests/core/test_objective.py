"""What training minimises: which places count, and how a batch is laid out."""

from __future__ import annotations

import pytest
import torch

from lumina_core.training.objective import collate, cross_entropy, objective, z_loss

ITEMS = [([5, 6, 7], [-100, 6, 7]), ([8, 9, 1, 2], [-100, -100, 1, 2])]


def scores(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_items_are_filled_up_on_the_right_and_cut_to_the_limit():
    tokens, labels = collate(ITEMS, 100)
    assert tokens.tolist() == [[5, 6, 7, 0], [8, 9, 1, 2]]
    assert labels.tolist() == [[-100, 6, 7, -100], [-100, -100, 1, 2]]
    assert collate(ITEMS, 2)[1].tolist() == [[-100, 6], [-100, -100]]


def test_a_score_is_held_against_the_next_token():
    s = torch.full((1, 3, 4), -30.0)
    s[0, 0, 2] = s[0, 1, 1] = 30.0
    assert cross_entropy(s, torch.tensor([[3, 2, 1]])).item() == pytest.approx(0)
    assert cross_entropy(s, torch.tensor([[-100, 3, -100]])).item() == pytest.approx(60)


def test_the_mean_is_over_labelled_places_of_the_whole_batch():
    s, (_, labels) = scores(2, 4, 10), collate(ITEMS, 100)
    logp = s.log_softmax(-1)
    places = [logp[0, 0, 6], logp[0, 1, 7], logp[1, 1, 1], logp[1, 2, 2]]
    assert cross_entropy(s, labels).item() == pytest.approx(-sum(places).item() / 4, rel=1e-5)


def test_z_loss_is_over_the_places_that_predict_or_in_pure_that_carry_a_label():
    s, (_, labels) = scores(2, 4, 10), collate(ITEMS, 100)
    z = s.logsumexp(-1).square()
    shifted = (z[0, 0] + z[0, 1] + z[1, 1] + z[1, 2]) / 4
    own = (z[0, 1] + z[0, 2] + z[1, 2] + z[1, 3]) / 4
    assert z_loss(s, labels).item() == pytest.approx(shifted.item(), rel=1e-5)
    assert z_loss(s, labels, shifted=False).item() == pytest.approx(own.item(), rel=1e-5)


def test_the_objective_adds_the_weighted_z_loss():
    s, (_, labels) = scores(2, 4, 10), collate(ITEMS, 100)
    expected = cross_entropy(s, labels) + 0.5 * z_loss(s, labels)
    assert objective(s, labels, 0.5).item() == pytest.approx(expected.item())
    assert objective(s, labels).item() == cross_entropy(s, labels).item()
