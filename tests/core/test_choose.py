"""Best of N: the likelihood is the one the rules give, and candidates are ranked by it or any other score."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lumina_core import (
    InputError,
    PictureFinished,
    Ranking,
    Sampling,
    agreements,
    best,
    check_candidates,
    decoded,
    generate,
    given_scores,
    likelihoods,
    load,
    question_of,
    question_prompts,
)
from lumina_core.regions import redraw
from lumina_core.sampling.choose import ROWS, code_log_probs, likelihood, preference, text_log_prob
from lumina_core.sampling.rules import replay
from tests.core import checkpoints as ck

HOT = Sampling(seed=2, cfg=3.0, image_top_k=0, text_top_k=0, decode="ar")


@pytest.fixture(scope="module", params=["mgpt1", "mgpt2"])
def model(request, tmp_path_factory):
    return load(ck.build(tmp_path_factory.mktemp("choose") / request.param, request.param))


def drawn(model, prompt, sampling=HOT, **changes):
    events = generate(model.transformer, model.vocabulary, prompt, replace(sampling, **changes))
    return [e.grid for e in events if isinstance(e, PictureFinished)]


@pytest.mark.parametrize("cfg", [1.0, 3.0, 0.8])
@pytest.mark.parametrize(
    ("model", "open_panel"), [("mgpt1", False), ("mgpt2", False), ("mgpt2", True)], indirect=["model"]
)
def test_one_pass_gives_what_the_rules_give_place_by_place(model, cfg, open_panel):
    if open_panel:
        prompt = model.prompt(
            "a", task="control_depth", images=[Image.new("RGB", (32, 32), "red")], size=(32, 32)
        )
    else:
        prompt = model.prompt("a red circle", size=(64, 32))
    [grid] = drawn(model, prompt, cfg=cfg)
    whole = model.vocabulary.encode(grid.codes)
    at = len(prompt.tokens) if prompt.open_at is None else prompt.open_at
    answer = whole[len(prompt.tokens) - at :]
    sampling = replace(HOT, cfg=cfg)
    rules = [
        scores.log_softmax(-1)[token]
        for token, (place, scores) in zip(
            answer, replay(model.transformer, model.vocabulary, prompt, sampling, answer), strict=True
        )
        if place.kind == "code"
    ]
    mine = code_log_probs(model.transformer, model.vocabulary, prompt, grid, cfg)
    assert torch.allclose(mine.flatten(), torch.stack(rules), atol=1e-4)
    assert likelihood(model.transformer, model.vocabulary, prompt, grid, cfg) == pytest.approx(
        float(torch.stack(rules).mean()), abs=1e-4
    )


def test_the_rows_of_a_high_picture_are_all_rated_by_the_rules(model):
    """More rows of codes than are rated at a time."""
    prompt = model.prompt("a", size=(32, 160))
    [grid] = drawn(model, prompt, cfg=1.0)
    assert len(grid.codes) > ROWS
    tokens, sampling = model.vocabulary.encode(grid.codes), replace(HOT, cfg=1.0)
    steps = zip(tokens, replay(model.transformer, model.vocabulary, prompt, sampling, tokens), strict=True)
    rules = [scores.log_softmax(-1)[token] for token, (place, scores) in steps if place.kind == "code"]
    mine = code_log_probs(model.transformer, model.vocabulary, prompt, grid)
    assert torch.allclose(mine.flatten(), torch.stack(rules), atol=1e-4)


def test_pictures_the_model_drew_are_likelier_than_noise(model):
    prompt = model.prompt("a red circle", size=(64, 64))
    hot = drawn(model, prompt, batch=3)
    rng = torch.Generator().manual_seed(1)
    noise = replace(hot[0], codes=torch.randint(0, ck.CODES, hot[0].codes.shape, generator=rng))
    scores = likelihoods(model, prompt, [noise, *hot])
    assert Ranking(tuple(scores)).order[-1] == 0
    assert max(scores) <= 0


def test_redrawn_pictures_are_rated_with_what_was_kept(model):
    prompt = model.prompt("a red circle", size=(64, 64))
    [grid] = drawn(model, prompt)
    mask = torch.zeros(64, 64)
    mask[:20, :20] = 1
    part = redraw(prompt, model.vocabulary, [grid], mask)
    assert likelihoods(model, part, [grid]) == likelihoods(model, prompt, [grid])


def test_the_text_s_probability_is_that_of_its_tokens_one_after_another(model):
    prompt = model.prompt("a red circle", size=(64, 64))
    answer = model.tokenizer.encode("yes")
    total = 0.0
    for i, token in enumerate(answer):
        hidden = model.transformer(torch.tensor([[*prompt.tokens, *answer[:i]]]))[0, -1]
        total += float(model.transformer.scores(hidden).log_softmax(-1)[token])
    assert text_log_prob(model.transformer, prompt, answer) == pytest.approx(total, abs=1e-4)
    assert preference(model.transformer, prompt, [answer], [answer]) == pytest.approx(0.5)


def test_the_judge_that_says_yes_gives_the_higher_score(tmp_path):
    judge = load(ck.build(tmp_path / "mgpt1", "mgpt1"))
    pictures = [Image.new("RGB", (32, 32), name) for name in ("red", "blue")]
    prompts = question_prompts(judge, "Does the picture show red?", pictures)
    assert prompts[0].tokens != prompts[1].tokens
    before = agreements(judge, prompts)
    assert all(0 <= score <= 1 for score in before)
    first = judge.tokenizer.encode("y")[0]
    bias = torch.zeros(judge.transformer.lm_head.out_features)
    bias[first] = 20.0
    hook = judge.transformer.lm_head.register_forward_hook(lambda _, __, out: out + bias)
    try:
        after = agreements(judge, prompts)
    finally:
        hook.remove()
    assert all(a > b for a, b in zip(after, before, strict=True))


def test_a_pair_is_shown_by_its_picture_and_an_answer_by_its_second_panel(tiny_model):
    m = tiny_model
    given = Image.new("RGB", (32, 32), "red")
    pair = m.prompt("a", task="pair_depth", size=(32, 32))
    control = m.prompt("a", task="control_depth", images=[given], size=(32, 32))
    for prompt, panel in ((pair, 0), (control, 1)):
        [grid] = drawn(m, prompt)
        [shown] = decoded(m, prompt, [grid])
        both = [m.decode(part.codes) for part in grid.split()]
        assert not np.array_equal(*both)
        assert np.array_equal(np.asarray(shown), both[panel])


def test_the_order_is_stable_and_what_has_no_score_comes_last():
    ranking = Ranking((0.5, math.nan, 2.0, 0.5, -math.inf))
    assert ranking.order == [2, 0, 3, 4, 1]
    lines = ranking.table("given", seed=7).splitlines()
    assert lines[0] == "1. candidate 3: given 2.0000, seed 9"
    assert len(lines) == 5 and lines[-1].startswith("5. candidate 2: given nan")
    assert best("abcde", ranking.order, 2) == ["c", "a"]
    assert best("abcde", ranking.order, 0) == ["c", "a", "d", "e", "b"]


def test_scores_from_elsewhere_must_fit_the_candidates(model):
    grids = drawn(model, model.prompt("a", size=(32, 32)), batch=2)
    assert given_scores([1, 2.5], grids) == [1.0, 2.5]
    for scores, of, words in (
        ([1], grids, "1 scores for 2"),
        ([], None, "connect tokens"),
        ([1, "x"], grids, "numbers"),
    ):
        with pytest.raises(InputError, match=words):
            given_scores(scores, of)


def test_a_judge_that_cannot_answer_is_refused_before_anything_is_drawn(model, tiny_model):
    with pytest.raises(InputError, match="'chat'"):
        question_of(tiny_model, "is it red?")
    with pytest.raises(InputError, match="no candidates"):
        check_candidates([])


def test_a_picture_of_another_prompt_is_refused(model):
    prompt = model.prompt("a", size=(32, 32))
    [grid] = drawn(model, model.prompt("a", size=(64, 32)))
    with pytest.raises(InputError, match="Rate pictures with the prompt"):
        likelihoods(model, prompt, [grid])
    with pytest.raises(InputError, match="of family pure"):
        likelihoods(model, prompt, [replace(grid, family="pure")])
