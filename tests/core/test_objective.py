"""What training minimises: which places count, and how a batch is laid out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from lumina_core.training.objective import collate, cross_entropy, nearness, objective, z_loss
from lumina_core.training.transformer import Losses

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


def test_a_code_is_shared_among_those_that_look_like_it():
    codebook = torch.tensor([[0.0, 0.0], [0.1, 0.0], [5.0, 0.0], [9.0, 0.0], [9.0, 0.1]])
    shares = nearness(codebook, 0.6)
    assert torch.allclose(shares.sum(1), torch.ones(5))
    assert shares[2, 2] == 1  # nothing is near it
    assert 0.7 < shares[0, 0] < 0.9
    assert shares[0, 0] + shares[0, 1] == pytest.approx(1)


def test_a_prediction_of_a_code_that_looks_the_same_costs_little():
    words = SimpleNamespace(code_ids=torch.arange(2, 7), image_start=0, image_end=0, row_end=0, grid={})
    codebook = torch.tensor([[0.0, 0.0], [0.1, 0.0], [5.0, 0.0], [9.0, 0.0], [9.0, 0.1]])
    losses = Losses(words, 7, 1.0, 0.0, "cpu", nearness(codebook, 0.6))
    targets = torch.tensor([2, 2, 1])

    def costs(drawn: list[int]) -> torch.Tensor:
        scores = torch.full((3, 7), -4.0)
        scores[range(3), drawn] = 4.0
        entropy = F.cross_entropy(scores, targets, reduction="none")
        return losses._shared(scores, targets, entropy)

    right, near, far = costs([2, 2, 1]), costs([3, 3, 1]), costs([4, 4, 0])
    assert right[0] < near[0] < far[0]
    assert far[0] - near[0] > 1
    assert right[2] == near[2] == pytest.approx(6 * 0.000335, rel=0.01)  # text is as it was
