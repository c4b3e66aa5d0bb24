"""Decoding modes: jacobi draws plain decoding's picture, coupled its distribution, both in fewer passes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from lumina_core import InputError, Sampling
from lumina_core.sampling import window
from lumina_core.sampling.contexts import Contexts
from lumina_core.sampling.painter import Painter
from lumina_core.sampling.window import Coupled, Jacobi
from lumina_core.unirep import Vocabulary

CODES, START, END, ROW_END = 4, 10, 11, 12


class Table(torch.nn.Module):
    """A next-token table in the transformer's clothes: the scores depend on the newest token alone, and weakly.

    With `guided`, the second half of the rows, which guidance leads away from, has a table of its own.
    """

    def __init__(self, seed: int, strength: float = 0.5, guided: bool = False):
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.table = torch.randn(64, CODES, generator=rng) * strength
        self.guided = guided
        self.passes = 0
        one = SimpleNamespace(weight=torch.zeros(1))
        self.model = SimpleNamespace(embed_tokens=one, norm=one)
        self.config = SimpleNamespace(max_position_embeddings=1000, mask_image_logits=False, vocab_size=32)

    def new_cache(self, rows, capacity, device, dtype):
        return SimpleNamespace(rows=rows, capacity=capacity, copy_row=lambda *_: None)

    def head(self, ids, device, dtype):
        return lambda hidden: hidden @ self.table

    def parts(self, device):
        return None

    def forward(self, tokens, start=0, cache=None, rows=slice(None), length=None, parts=None):
        self.passes += 1
        if self.guided:
            row = torch.arange(cache.rows)[rows, None]
            tokens = tokens + 32 * (row >= cache.rows // 2)
        return torch.nn.functional.one_hot(tokens, 64).float()


VOCABULARY = Vocabulary(
    bos=20,
    separator=21,
    separator_name="",
    image_start=START,
    image_end=END,
    row_end=ROW_END,
    placeholder=22,
    grid={1: 13, 2: 14},
    code_ids=torch.arange(CODES),
    latents_per_unit=2,
)
PROMPT = SimpleNamespace(entropy_top_k=None, guidance_decay=False)


def draw(kind, model, sampling, first: int, count: int, shape=(2, 2), prompt=PROMPT) -> torch.Tensor:
    """Codes (count, h, w) of pictures first, first + 1, ..., with an empty prompt."""
    contexts = Contexts(model, count, sampling.cfg != 1.0, 100)
    painter = kind(contexts, VOCABULARY, prompt, sampling, range(first, first + count), shape)
    opened = [[START, 13, 13]] * count
    painter.start(contexts.prefill(opened), opened, 0)
    for _ in painter.paint():
        pass
    return painter.codes


def exact(model, sampling, prompt=PROMPT) -> np.ndarray:
    """Probability of every 2x2 picture under one-by-one decoding, in the order of `itertools.product`."""
    table = model.table[:32].double()
    if sampling.cfg != 1.0:
        table = model.table[32:].double() + sampling.cfg * (table - model.table[32:].double())
    k = torch.full((32,), sampling.image_top_k or CODES)
    if prompt.entropy_top_k:
        low, high = prompt.entropy_top_k
        nats = torch.distributions.Categorical(logits=table).entropy()
        k = (low + (high - low) * torch.sigmoid(nats - 5)).round().long().clamp(max=CODES)
    kept = table.sort(-1, descending=True).values.gather(-1, k[:, None] - 1)
    p = (table.masked_fill(table < kept, float("-inf")) / sampling.temperature).softmax(-1)
    out = [
        p[13, a] * p[a, b] * p[ROW_END, c] * p[c, d]
        for a, b, c, d in itertools.product(range(CODES), repeat=4)
    ]
    return torch.stack(out).numpy()


def p_value(codes: torch.Tensor, p: np.ndarray) -> float:
    """Of a chi-square test that the pictures follow p; cells expected less than five times are merged."""
    cells = (codes.flatten(1) * torch.tensor([CODES**3, CODES**2, CODES, 1])).sum(1)
    counts = np.bincount(cells.numpy(), minlength=CODES**4)
    expected = p * len(codes)
    if counts[p == 0].sum():
        return 0.0  # what cannot occur was drawn
    small = expected < 5
    seen = np.append(counts[~small], counts[small].sum())
    wanted = np.append(expected[~small], expected[small].sum())
    if wanted[-1] == 0:
        seen, wanted = seen[:-1], wanted[:-1]
    return float(stats.chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue)


PLAIN = Sampling(seed=5, cfg=1.0, image_top_k=0, window=4)


@pytest.mark.parametrize("top_k", [0, 3])
@pytest.mark.parametrize("kind", [Painter, Jacobi, Coupled])
def test_every_mode_draws_the_exact_distribution(kind, top_k):
    model, sampling = Table(1), replace(PLAIN, image_top_k=top_k, temperature=0.9)
    codes = draw(kind, model, sampling, 0, 20000)
    assert p_value(codes, exact(model, sampling)) > 1e-3


BY_ENTROPY = SimpleNamespace(entropy_top_k=(1, 100), guidance_decay=False)


@pytest.mark.parametrize(
    ("cfg", "top_k", "prompt"), [(3.0, 0, PROMPT), (0.8, 3, PROMPT), (3.0, 3, PROMPT), (2.0, 0, BY_ENTROPY)]
)
@pytest.mark.parametrize("kind", [Painter, Jacobi, Coupled])
def test_every_mode_draws_the_exact_distribution_under_guidance(kind, cfg, top_k, prompt):
    model = Table(1, guided=True)
    sampling = replace(PLAIN, cfg=cfg, image_top_k=top_k, temperature=0.9)
    codes = draw(kind, model, sampling, 0, 20000, prompt=prompt)
    assert p_value(codes, exact(model, sampling, prompt)) > 1e-3
    assert p_value(codes, exact(model, replace(sampling, cfg=1.0), prompt)) < 1e-6, "the test sees a wrong p"


def test_the_entropy_of_a_place_sets_how_many_codes_stay_there():
    p = exact(Table(1, guided=True), replace(PLAIN, cfg=2.0, temperature=0.9), BY_ENTROPY)
    assert 0 < (p == 0).sum() < len(p)  # some places keep few codes, others all


class Biased(Coupled):
    """The control: after a refusal it draws from the whole distribution again, as 2.0's own speculative code does."""

    def verify(self, scores, places, drafts):
        codes, held = super().verify(scores, places, drafts)
        again = window.gumbel(window.rekey(self.keys_of(places), -9 - self.passes), self.p.shape[-1])
        return torch.where(held, codes, (self.p.log() + again).argmax(-1)), held


def test_the_control_that_redraws_from_the_whole_distribution_fails():
    model = Table(1)
    codes = draw(Biased, model, PLAIN, 0, 20000)
    assert p_value(codes, exact(model, PLAIN)) < 1e-6
    sampling = replace(PLAIN, temperature=0.9)
    assert p_value(draw(Coupled, model, sampling, 0, 20000), exact(model, PLAIN)) < 1e-3, (
        "the test sees a wrong p"
    )


@pytest.mark.parametrize("width", [1, 4, 16, 32, 64])
def test_jacobi_equals_plain_decoding_on_a_table(width):
    model = Table(2, strength=2.0)
    plain = draw(Painter, model, PLAIN, 0, 50, (6, 8))
    fast = draw(Jacobi, model, replace(PLAIN, window=width), 0, 50, (6, 8))
    assert torch.equal(plain, fast)


@pytest.mark.parametrize("prompt", [PROMPT, BY_ENTROPY])
@pytest.mark.parametrize("cfg", [3.0, 0.8])
def test_jacobi_equals_plain_decoding_under_guidance_and_entropy_top_k(cfg, prompt):
    model, sampling = Table(2, strength=1.0, guided=True), replace(PLAIN, cfg=cfg, temperature=0.9)
    plain = draw(Painter, model, sampling, 0, 50, (6, 8), prompt)
    for width in (1, 7, 32):
        assert torch.equal(plain, draw(Jacobi, model, replace(sampling, window=width), 0, 50, (6, 8), prompt))


@pytest.mark.parametrize("kind", [Jacobi, Coupled])
def test_weak_dependence_takes_far_fewer_passes(kind):
    model = Table(3, strength=0.2)
    draw(Painter, model, PLAIN, 0, 1, (8, 8))
    plain, model.passes = model.passes, 0
    draw(kind, model, replace(PLAIN, window=16), 0, 1, (8, 8))
    assert plain >= 2.5 * model.passes


@pytest.mark.parametrize("value", [0, -1, 1000])
def test_a_window_out_of_range_is_refused_by_name(value):
    with pytest.raises(InputError, match="window is"):
        Sampling(window=value)
