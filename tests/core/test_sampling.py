"""What a user may rely on when sampling: seeds, batches, sizes, limits, and the draw itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lumina_core import AnswerFinished, InputError, PictureFinished, Progress, RowFinished, Sampling, generate
from lumina_core.sampling.logits import decayed, draw, guide, gumbel, keep_top, noise_key

HOT = Sampling(seed=3, cfg=3.0, temperature=1.0, image_top_k=0)


def pictures(model, prompt, sampling):
    events = generate(model.transformer, model.vocabulary, prompt, sampling)
    return [e.grid.codes for e in events if isinstance(e, PictureFinished)]


@pytest.fixture(scope="module")
def prompt(tiny_model):
    return tiny_model.prompt("a red circle", size=(96, 64))


def test_the_size_asked_for_is_the_size_drawn(tiny_model, prompt):
    [codes] = pictures(tiny_model, prompt, HOT)
    assert codes.shape == (8, 12)
    assert tiny_model.decode(codes).shape == (64, 96, 3)


def test_the_same_seed_draws_the_same_picture_and_another_seed_another(tiny_model, prompt):
    first, again = pictures(tiny_model, prompt, HOT), pictures(tiny_model, prompt, HOT)
    other = pictures(tiny_model, prompt, replace(HOT, seed=4))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("cfg", [1.0, 3.0, 0.8])
def test_a_picture_of_a_batch_equals_the_one_drawn_alone(tiny_model, prompt, cfg):
    batch = pictures(tiny_model, prompt, replace(HOT, cfg=cfg, batch=3))
    for i, codes in enumerate(batch):
        [alone] = pictures(tiny_model, prompt, replace(HOT, cfg=cfg, seed=HOT.seed + i))
        assert torch.equal(codes, alone)


def test_the_answers_of_a_batch_are_those_of_seeds_that_follow_each_other(tiny_model):
    prompt = replace(tiny_model.converse(["what is this?"]), expects="text")

    def answers(**changes) -> list[tuple[int, ...]]:
        sampling = replace(HOT, cfg=1.0, text_top_k=50, max_tokens=20, decode="ar", **changes)
        events = generate(tiny_model.transformer, tiny_model.vocabulary, prompt, sampling)
        return [event.tokens for event in events if isinstance(event, AnswerFinished)]

    first, second = answers(batch=2)
    assert first != second and [first] == answers() and [second] == answers(seed=HOT.seed + 1)


def test_sampling_leaves_the_global_random_state_alone(tiny_model, prompt):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    pictures(tiny_model, prompt, HOT)
    assert torch.equal(torch.rand(3), expected)


def test_guidance_of_one_ignores_the_unconditional_row_and_others_do_not(tiny_model, prompt):
    plain = pictures(tiny_model, prompt, replace(HOT, cfg=1.0))
    guided = pictures(tiny_model, prompt, replace(HOT, cfg=6.0))
    assert not torch.equal(plain[0], guided[0])


def test_upstreams_guidance_falls_from_the_first_code_on(tiny_model, monkeypatch):
    scales = []

    def noted(cond, uncond, scale):
        scales.append(float(scale))
        return guide(cond, uncond, scale)

    monkeypatch.setattr("lumina_core.sampling.painter.guide", noted)
    exact = Sampling(cfg=9.0, upstream_exact=True, decode="ar")
    pictures(tiny_model, tiny_model.prompt("a cat", size=(128, 128)), exact)
    assert scales[0] == 9 * (1 - 2 / 64)
    for place, (before, after) in enumerate(zip(scales[:15], scales[1:16], strict=True), 3):
        assert after == pytest.approx(decayed(before, place, (4, 4)))


def test_cached_decoding_equals_one_pass_over_the_whole_sequence(tiny_model, prompt):
    """Greedy codes, checked against uncached passes of both rows."""
    m, v = tiny_model, tiny_model.vocabulary
    [codes] = pictures(m, prompt, replace(HOT, temperature=0.0))
    tokens = v.encode(codes)
    with torch.inference_mode():
        cond = m.transformer(torch.tensor([[*prompt.tokens, *tokens]]))[0, len(prompt.tokens) :]
        uncond = m.transformer(torch.tensor([tokens]))[0]
        scores = m.transformer.scores(uncond + 0) * (1 - 3.0) + m.transformer.scores(cond) * 3.0
    for i, token in enumerate(tokens[:-1]):
        following = tokens[i + 1]
        if v.code_of(following) is not None:
            best = v.code_ids[scores[i][v.code_ids].argmax()]
            assert following == best, f"token {i + 1} after {token}"


def test_events_count_up_to_the_total_and_rows_grow(tiny_model, prompt):
    events = list(generate(tiny_model.transformer, tiny_model.vocabulary, prompt, HOT))
    progress = [e for e in events if isinstance(e, Progress)]
    assert [p.done for p in progress] == sorted(p.done for p in progress)
    assert progress[-1].done == progress[-1].total == 3 + 8 * 13 + 1
    assert [e.codes.shape[1] for e in events if isinstance(e, RowFinished)] == list(range(1, 9))


def test_a_picture_that_exceeds_the_positions_is_refused_by_size(tmp_path):
    from lumina_core import load
    from tests import tiny

    model = load(tiny.build(tmp_path / "short", positions=200))
    with pytest.raises(InputError, match="128x128 picture .* positions"):
        pictures(model, model.prompt("a red circle", size=(128, 128)), HOT)


@pytest.mark.parametrize(
    ("field", "value"),
    [("cfg", float("nan")), ("temperature", -1.0), ("batch", 0), ("image_top_k", -1), ("decode", "warp")],
)
def test_a_bad_setting_is_refused_by_name(field, value):
    with pytest.raises(InputError, match=field):
        Sampling(**{field: value})


@pytest.mark.parametrize("size", [(0, 64), (64, 40), (100000, 64), (-32, 64)])
def test_a_bad_size_names_the_side_and_what_is_allowed(tiny_model, size):
    with pytest.raises(InputError, match=r"(width|height) is .*multiple of 32"):
        tiny_model.prompt("a red circle", size=size)


def test_an_empty_prompt_is_refused(tiny_model):
    with pytest.raises(InputError, match="prompt is empty"):
        tiny_model.prompt("  \n", size=(64, 64))


def chi_square(counts: np.ndarray, p: np.ndarray) -> float:
    expected = p * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def test_draws_follow_the_softmax_of_the_scores():
    """20,000 positions: chi-square under its 0.999 quantile at 7 degrees; a flattened target must fail."""
    scores = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -1.5, -2.0])
    keys = torch.tensor([noise_key(11, i) for i in range(20000)])
    drawn = draw(scores.expand(20000, -1), 0.8, gumbel(keys, 8))
    counts = np.bincount(drawn.numpy(), minlength=8)
    assert chi_square(counts, torch.softmax(scores / 0.8, 0).numpy()) < 24.3
    assert chi_square(counts, torch.softmax(scores / 0.9, 0).numpy()) > 24.3


def test_noise_of_neighbouring_positions_seeds_and_codes_is_uncorrelated():
    def noise(seed, positions):
        return gumbel(torch.tensor([noise_key(seed, p) for p in positions]), 256)

    a = noise(7, range(400))
    for b in (noise(7, range(1, 401)), noise(8, range(400)), a.roll(1, 1)):
        assert abs(np.corrcoef(a.flatten(), b.flatten())[0, 1]) < 0.012  # 3.8 standard errors
    assert abs(float(a.mean()) - 0.5772) < 0.02
    assert abs(float(a.var()) - np.pi**2 / 6) < 0.05


def test_top_k_keeps_ties_and_nothing_below():
    kept = keep_top(torch.tensor([[3.0, 1.0, 2.0, 2.0, 0.0]]), 2)
    assert torch.isfinite(kept).tolist() == [[True, False, True, True, False]]
    assert torch.equal(keep_top(kept, 0), kept)
