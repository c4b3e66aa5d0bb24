"""The window that is chosen by itself: the fastest one by the clock, whatever else the machine does meanwhile."""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace

import pytest
import torch

from lumina_core import Sampling
from lumina_core.sampling import pace
from lumina_core.sampling.events import WINDOWS
from lumina_core.sampling.pace import FIRST, FIRST_OF_SEVERAL, SURE, TRIAL, Pace

JACOBI = Sampling(decode="jacobi")


class Transformer:
    """Only there to be remembered."""


def contexts(transformer, dtype=torch.float32, rows=2):
    cache = SimpleNamespace(rows=rows)
    return SimpleNamespace(transformer=transformer, cache=cache, device="cpu", dtype=dtype)


def run(monkeypatch, of: Pace, passes: int, accepted, cost, load=lambda: 1.0) -> list[int]:
    """The windows of some passes on a machine where a pass of w takes `cost(w)` seconds, times `load()`."""
    clock, windows = [0.0], []
    monkeypatch.setattr(pace.time, "perf_counter", lambda: clock[0])
    for _ in range(passes):
        with of.timed() as window:
            clock[0] += cost(window) * load()
        of.note(accepted(window))
        windows.append(window)
    return windows


@pytest.mark.parametrize(
    ("cost", "best"),
    [
        (lambda w: 1.0, 32),  # a pass costs the same, however wide
        (lambda w: 1 + w / 8, 8),
        (lambda w: w, 2),  # every token costs the same: drafts do not pay
    ],
)
def test_the_fastest_window_is_found_soon(monkeypatch, cost, best):
    accepted = {2: 1, 4: 2, 8: 4, 16: 5, 32: 6}
    if best == 2:
        accepted = {2: 1, 4: 1, 8: 1, 16: 1, 32: 1}
    windows = run(monkeypatch, Pace(None), 12 * TRIAL, accepted.get, cost)
    assert windows[-1] == best
    assert len(set(windows)) <= 5
    assert len(set(windows[-3 * TRIAL :])) == 1


def test_what_cannot_pay_is_not_tried(monkeypatch):
    # the first window brings 16 codes: the half one could bring 8, and takes more than half the time
    windows = run(monkeypatch, Pace(None), 12 * TRIAL, {16: 16, 32: 17}.get, lambda w: 1 + w / 8)
    assert set(windows) == {FIRST, 2 * FIRST}
    assert windows[-1] == FIRST


def test_a_busy_machine_does_not_mislead(monkeypatch):
    accepted = {2: 1, 4: 2, 8: 4, 16: 7, 32: 8}
    rng = random.Random(0)
    chosen = []
    for _ in range(50):
        # every second pass has the machine to itself; the others take up to ten times as long
        load = lambda: rng.choice([1.0, rng.uniform(1, 10)])  # noqa: E731
        windows = run(monkeypatch, Pace(None), 12 * TRIAL, accepted.get, lambda w: 1 + w / 16, load)
        chosen.append(windows[-1])
    assert chosen.count(16) >= 40


def test_a_machine_that_grows_slower_does_not_mislead(monkeypatch):
    accepted = {2: 1, 4: 2, 8: 4, 16: 5, 32: 5}
    passes = iter(range(1000))
    windows = run(
        monkeypatch, Pace(None), 12 * TRIAL, accepted.get, lambda w: 1 + w / 16, lambda: 1 + next(passes)
    )
    assert windows[-1] in (8, 16)  # 2.7 and 2.5 places a second; the other windows bring 1.7


def test_what_was_learnt_is_kept_for_the_next_run_of_the_same_kind(monkeypatch):
    transformer = Transformer()
    first = Pace.of(contexts(transformer), JACOBI)
    run(monkeypatch, first, 12 * TRIAL, lambda w: 4, lambda w: 1 + w / 4)
    again = Pace.of(contexts(transformer), JACOBI)
    assert again.settled
    assert again.window == first.window
    assert not Pace.of(contexts(transformer), Sampling(decode="jacobi", cfg=1.0)).settled
    assert not Pace.of(contexts(Transformer()), JACOBI).settled


def test_several_rows_begin_narrower_and_widen_where_that_pays(monkeypatch):
    assert Pace.of(contexts(Transformer(), rows=1), JACOBI).window == FIRST
    of = Pace.of(contexts(Transformer()), JACOBI)
    accepted = {2: 1, 3: 2, 6: 4, 12: 6, 24: 8}
    windows = run(monkeypatch, of, 12 * TRIAL, accepted.get, lambda w: 1.0)
    assert windows[0] == FIRST_OF_SEVERAL
    assert windows[-1] == 2 * FIRST_OF_SEVERAL
    of = Pace.of(contexts(Transformer()), JACOBI)
    assert run(monkeypatch, of, 20 * TRIAL, lambda w: 1, lambda w: w)[-1] == min(WINDOWS)


def test_a_window_that_is_set_stays(monkeypatch):
    of = Pace.of(contexts(Transformer()), Sampling(decode="jacobi", window=5))
    assert set(run(monkeypatch, of, 40, lambda w: 1, lambda w: w)) == {5}


def test_in_16_bit_the_clock_decides_nothing(monkeypatch):
    of = Pace.of(contexts(Transformer(), torch.bfloat16), JACOBI)
    assert set(run(monkeypatch, of, 3 * SURE, lambda w: 2, lambda w: w)) == {pace.FIRST}


def test_in_16_bit_drafts_that_do_not_pay_are_given_up_at_a_pass_that_the_seed_decides(monkeypatch, caplog):
    transformer, ways = Transformer(), []
    for cost in (lambda w: w, lambda w: 1.0):
        of = Pace.of(contexts(transformer, torch.bfloat16), JACOBI)
        places = itertools.cycle([1, 1, 1, 1, 2])
        with caplog.at_level("INFO"):
            ways.append(run(monkeypatch, of, SURE + 40, lambda w, places=places: next(places), cost))
    assert ways[0] == ways[1] == [FIRST] * SURE + [min(WINDOWS)] * 40
    assert caplog.text.count("drafts do not pay here") == 2, "each run is counted anew"


def test_a_window_that_had_bad_luck_at_first_is_tried_again(monkeypatch):
    unlucky = [4] * TRIAL
    accepted = lambda w: unlucky.pop() if w == 16 and unlucky else {2: 1, 4: 2, 8: 3, 16: 6, 32: 6}[w]  # noqa: E731
    windows = run(monkeypatch, Pace(None), 200, accepted, lambda w: 1 + w / 16)
    assert windows[-1] == 16


def test_a_mean_of_very_different_numbers_is_waited_for(monkeypatch):
    def until_another(places) -> int:
        """Passes of the first window until another is tried."""
        brought = itertools.cycle(places)
        accepted = lambda w: next(brought) if w == FIRST else w // 4  # noqa: E731
        windows = run(monkeypatch, Pace(None), 100, accepted, lambda w: 1 + w / 16)
        return next(i for i, w in enumerate(windows) if w != FIRST)

    assert until_another([4]) <= TRIAL + 1
    assert until_another([3, 4, 5, 4]) <= TRIAL + 1
    assert until_another([1, 1, 1, 13]) > 4 * TRIAL


def test_passes_that_could_not_bring_more_count_for_nothing(monkeypatch):
    of = Pace(None)
    for _ in range(3 * TRIAL):
        with of.timed():
            pass
        of.note(1, usual=False)
    assert of.window == pace.FIRST and not of.settled


def test_it_says_so_when_drafts_do_not_pay(monkeypatch, caplog):
    with caplog.at_level("INFO"):
        run(monkeypatch, Pace(None), 16 * TRIAL, lambda w: 1, lambda w: w)
    assert caplog.text.count("drafts do not pay here") == 1
    assert min(WINDOWS) == 2
