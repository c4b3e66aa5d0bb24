"""Free answers, limits and the rules of the three families that no golden case pins."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from lumina_core import InputError, PictureError, PictureFinished, Sampling, generate, load
from lumina_core.sampling import AnswerFinished, Progress, RowFinished
from lumina_core.sampling.logits import (
    decayed,
    entropy,
    guide,
    keep_by_entropy,
    keep_top,
    top_k_of_entropy,
)
from lumina_core.sampling.rules import Rules, place_after, replay
from tests.core import checkpoints as ck
from tests.core.scripted import CODES, GREEDY, PROMPT, SMALL, WIDE, Scripted, V, answer, drawn, words

# Free answers


def test_an_answer_may_hold_text_two_pictures_and_text_behind_each():
    script = [50, *SMALL, 51, *WIDE, 52, 53, V.separator]
    _, events = answer(script)
    assert words(events) == [50, 51, 52, 53]
    assert [c.tolist() for c in drawn(events)] == [CODES.tolist(), torch.arange(8).view(2, 4).tolist()]
    assert events[-1] == AnswerFinished(0, tuple(script), "stop")


@pytest.mark.parametrize("decode", ["ar", "jacobi"])
def test_progress_of_answers_never_runs_backwards_up_to_the_end_of_the_picture(decode):
    """From one answer of a batch to the next, and through words behind the picture."""
    script = [50, 51, *WIDE, 52, V.separator]
    _, events = answer(script, replace(GREEDY, batch=3, max_tokens=100, decode=decode))
    shares = [e.done / e.total for e in events if isinstance(e, Progress)]
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(1 / 300), "how long the picture is, is not known before it begins"
    assert shares[-1] == 1
    assert any(0.1 < share < 0.25 for share in shares), "it moves while a picture is drawn"
    assert any(share == pytest.approx(1 / 3) for share in shares), "an answer that ended fills its part"


def test_two_pictures_may_touch():
    script = [*SMALL, *WIDE, V.separator]
    _, events = answer(script)
    assert len(drawn(events)) == 2
    assert events[-1].tokens == tuple(script)


def test_each_picture_starts_an_unconditional_context_of_its_own():
    script = [50, *SMALL, 51, *WIDE, V.separator]
    said, events = answer(script, replace(GREEDY, cfg=3.0))
    assert events[-1].tokens == tuple(script)
    alone = [(start, tokens) for row, start, tokens in said.fed if row == 1]
    restarts = [i for i, (start, _) in enumerate(alone) if start == 0]
    assert [alone[i][1] for i in restarts] == [SMALL[:3], WIDE[:3]]
    second = sum((tokens for _, tokens in alone[restarts[1] :]), [])
    assert second == WIDE[: len(second)]
    assert len(second) >= len(WIDE) - 3  # the last code, its row end and the end decide nothing any more


def test_the_conditional_row_sees_every_token_once_and_in_order():
    script = [50, *SMALL, 51, *WIDE, 52, V.separator]
    said, _ = answer(script, replace(GREEDY, cfg=3.0))
    rows = [(start, tokens) for row, start, tokens in said.fed if row == 0]
    seen = sum((tokens for _, tokens in rows), [])
    assert seen == [*PROMPT.tokens, *script[:-1]]
    assert [start for start, _ in rows] == [sum(len(t) for _, t in rows[:i]) for i in range(len(rows))]


def test_a_wanted_size_is_forced_once_the_model_opens_a_picture():
    _, events = answer([50, *SMALL, 51, V.separator], prompt=replace(PROMPT, units=(1, 2)))
    assert words(events)[0] == 50
    [codes] = drawn(events)
    assert codes.shape == (2, 4)
    assert V.encode(codes)[:3] == V.header((1, 2)) == list(events[-1].tokens[1:4])


def test_2_0_stops_at_the_end_of_its_picture():
    _, events = answer([50, *SMALL, 51], prompt=replace(PROMPT, expects="image"))
    assert events[-1] == AnswerFinished(0, (50, *SMALL), "stop")


def test_a_size_that_is_no_size_is_a_picture_error_that_says_which_side():
    with pytest.raises(PictureError, match="token 50 as a picture's width"):
        answer([V.image_start, V.grid[1], 50])


# Limits


@pytest.mark.parametrize("limit", [1, 4, 9])
def test_an_answer_stops_at_the_token_limit(limit):
    _, events = answer([50] * 20, replace(GREEDY, max_tokens=limit))
    assert events[-1] == AnswerFinished(0, (50,) * limit, "limit")


def test_an_answer_stops_where_the_positions_end():
    said, events = answer([50] * 20, positions=12)
    assert events[-1] == AnswerFinished(0, (50,) * 8, "limit")
    assert max(start + len(tokens) for _, start, tokens in said.fed) <= 12


def test_a_stop_token_at_the_limit_is_a_stop():
    _, events = answer([50, V.separator], replace(GREEDY, max_tokens=2))
    assert events[-1].reason == "stop"


def test_a_picture_that_ends_at_the_limit_is_whole():
    _, events = answer([50, *SMALL, 51], replace(GREEDY, max_tokens=1 + len(SMALL)))
    assert len(drawn(events)) == 1
    assert events[-1] == AnswerFinished(0, (50, *SMALL), "limit")


@pytest.mark.parametrize("room", range(1, len(SMALL)))
def test_a_picture_that_does_not_fit_is_not_begun_and_the_text_is_kept(room):
    said, events = answer([50, *SMALL, 51], replace(GREEDY, max_tokens=1 + room))
    assert drawn(events) == []
    assert words(events) == [50]
    assert events[-1].reason in ("picture", "limit")
    assert events[-1].tokens == (50, *SMALL[: min(room, 3)])


def test_a_picture_asked_for_that_cannot_be_finished_is_an_error():
    with pytest.raises(PictureError, match="no whole picture within 4 tokens"):
        answer([50, *SMALL], replace(GREEDY, max_tokens=5), replace(PROMPT, expects="image"))


def test_a_prompt_that_fills_the_positions_is_refused_before_any_work():
    said = Scripted([], positions=4)
    with pytest.raises(InputError, match="4 positions"):
        generate(said, V, PROMPT, GREEDY)
    assert said.fed == []


# Checkpoints that write text only


def test_mask_image_logits_refuses_pictures_before_any_work_or_as_they_begin():
    with pytest.raises(InputError, match="mask_image_logits"):
        answer(SMALL, prompt=replace(PROMPT, expects="image", units=(1, 1)), masked=True)
    with pytest.raises(PictureError, match="mask_image_logits"):
        answer([50, *SMALL], masked=True)


# Open pictures


def test_a_picture_open_in_the_middle_of_a_row_is_finished():
    whole = V.encode(torch.arange(16).view(4, 4))
    for given in (3, 4, 6, 8, 11):
        prompt = replace(PROMPT, tokens=(0, 50, *whole[:given]), expects="image", units=(2, 2), open_at=2)
        said = Scripted(whole[given:], prompt)
        events = list(generate(said, V, prompt, replace(GREEDY, cfg=2.0)))
        assert drawn(events)[0].tolist() == torch.arange(16).view(4, 4).tolist()
        assert [len(e.codes[0]) for e in events if isinstance(e, RowFinished)][-1] == 4


# Guidance


def test_decay_falls_to_4_and_lifts_smaller_scales_to_it():
    assert decayed(9.0, 2, (1, 2)) == 6.75  # 2 of 8
    assert decayed(6.75, 3, (1, 2)) == pytest.approx(4.21875)
    assert decayed(3.0, 2, (8, 8)) == 4.0
    assert decayed(50.0, 100, (1, 1)) == 4.0  # the bracket is negative


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    return {f: load(ck.build(tmp_path_factory.mktemp(f) / "m", f)) for f in ("mgpt1", "mgpt2", "pure")}


def grid_of(model, prompt, sampling):
    events = generate(model.transformer, model.vocabulary, prompt, sampling)
    return next(e.grid.codes for e in events if isinstance(e, PictureFinished))


def test_above_4_a_given_panel_puts_upstreams_scale_at_4_from_the_first_code(toys):
    m = toys["mgpt2"]
    panel = m.decode(torch.arange(64).view(8, 8))
    prompt = m.prompt("a cat", task="control_depth", images=[Image.fromarray(panel)])
    s = Sampling(seed=1, cfg=9.0)
    decay = grid_of(m, prompt, replace(s, upstream_exact=True))
    assert torch.equal(decay, grid_of(m, prompt, replace(s, cfg=4.0)))
    assert not torch.equal(decay, grid_of(m, prompt, s))
    rules = Rules(m.vocabulary, replace(s, upstream_exact=True), None, True)
    place = place_after(prompt.tokens, m.vocabulary)
    zeros = torch.zeros(m.config.vocab_size)
    rules.guided(place, zeros, zeros)
    assert rules.scale == 4.0


def test_without_upstream_exact_guidance_is_constant_and_1_0_never_decays(toys):
    prompt = toys["mgpt2"].prompt("a cat", size=(64, 64))
    s = Sampling(seed=1, cfg=2.0)
    exact = replace(s, upstream_exact=True)
    assert not torch.equal(grid_of(toys["mgpt2"], prompt, s), grid_of(toys["mgpt2"], prompt, exact))
    first = toys["mgpt1"].prompt("a cat", size=(64, 64))
    assert torch.equal(grid_of(toys["mgpt1"], first, s), grid_of(toys["mgpt1"], first, exact))


# PURE's top-k


def test_entropy_top_k_rises_from_low_to_high_and_rounds_halves_to_even():
    k = top_k_of_entropy(torch.tensor([0.0, 5.0, 10.0, 99.0]), 1, 2000).tolist()
    assert k == [14, 1000, 1987, 1987]  # at 5 nats the curve stands at 1000.5
    assert top_k_of_entropy(torch.tensor([5.0]), 0, 3).item() == 2  # 1.5


def test_entropy_counts_what_may_be_drawn():
    scores = torch.tensor([0.0, 0.0, 0.0, 0.0, float("-inf")])
    assert entropy(scores).item() == pytest.approx(torch.tensor(4.0).log().item(), abs=1e-6)


def test_each_row_keeps_as_many_as_its_own_entropy_says():
    flat, sharp = torch.zeros(400), torch.full((400,), -50.0)
    flat = flat + torch.arange(400) * 1e-4
    sharp[7] = 0.0
    kept = keep_by_entropy(torch.stack([flat, sharp + torch.arange(400) * 1e-4]), 1, 300).isfinite().sum(-1)
    expected = top_k_of_entropy(entropy(torch.stack([flat, sharp])), 1, 300)
    assert kept.tolist() == expected.tolist()
    assert kept[0] > 200 > 5 > kept[1]


def test_ties_at_the_limit_stay():
    assert keep_top(torch.tensor([3.0, 1.0, 1.0, 0.0]), 2).isfinite().tolist() == [True, True, True, False]
    tied = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0]])
    assert keep_by_entropy(tied, 2, 2).isfinite().all()


def test_image_top_k_is_ignored_where_the_entropy_rules(toys):
    m = toys["pure"]
    prompt = replace(m.prompt("", task="restore", images=[blank()], size=(32, 32)), expects="image")
    s = Sampling(seed=2, cfg=0.8, temperature=0.9)
    assert torch.equal(grid_of(m, prompt, replace(s, image_top_k=1)), grid_of(m, prompt, s))


def blank():
    return Image.new("RGB", (48, 32), (200, 30, 90))


# The engine against the rules


@pytest.mark.parametrize("family", ["mgpt1", "mgpt2", "pure"])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_every_greedy_draw_of_the_engine_is_the_likeliest_of_the_rules(toys, family, cfg):
    m = toys[family]
    s = Sampling(cfg=cfg, temperature=0.0, image_top_k=8, upstream_exact=True)
    if family == "pure":
        prompt = m.prompt("", task="restore", images=[blank()], size=(32, 32))
    else:
        prompt = m.prompt("a cat", size=(64, 32))
    codes = grid_of(m, replace(prompt, expects="image"), s)
    tokens = m.vocabulary.encode(codes)
    steps = list(replay(m.transformer, m.vocabulary, prompt, s, tokens))
    assert len(steps) == len(tokens)
    for token, (place, final) in zip(tokens[3:], steps[3:], strict=True):
        assert place.guided
        assert final[token] >= final.max() - 1e-4


def test_rules_feed_the_unconditional_branch_each_picture_from_its_start():
    rules = Rules(V, Sampling(cfg=3.0))
    tokens = [0, 50, *SMALL, 51, *WIDE]
    fed = [
        rules.unconditional_tokens(tokens[:i], place_after(tokens[:i], V)) for i in range(1, len(tokens) + 1)
    ]
    starts = [f for f in fed if len(f) == 3]
    assert starts == [SMALL[:3], WIDE[:3]]
    assert sum(fed, []) == [*SMALL[:-1], *WIDE[:-1]]
    assert Rules(V, Sampling(cfg=1.0)).unconditional_tokens(tokens[:6], place_after(tokens[:6], V)) == []


def test_guidance_applies_behind_the_sizes_only():
    places = [place_after([0, *SMALL[:i]], V) for i in range(1, len(SMALL))]
    assert [p.guided for p in places] == [False, False, *[True] * (len(SMALL) - 3)]
    cond, uncond = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])
    assert guide(cond, uncond, 3.0).tolist() == [3.0, -2.0]
