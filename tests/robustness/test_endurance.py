"""Hundreds of jobs in one process: memory stays flat, nothing becomes slower, every picture is its first again.

The miniature runs always; the long one with `pytest -m endurance tests/robustness/test_endurance.py`.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from lumina_core import bundled, load, settings
from tests.robustness.workload import (
    Cancel,
    Countdown,
    Watched,
    build_all,
    events,
    jobs_of,
    resident,
)

LONG, SHORT, FIRST = 500, 30, 50  # generations; the first warm up caches and allocators
MEMORY = 0.05  # growth allowed after the first
PACE = 1.5  # time allowed of the last 50, by that of 50 early ones
EVERY = 10  # jobs between a Cancel, and between a load and a free


def idle() -> None:
    pass


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return build_all(tmp_path_factory.mktemp("families"))


@dataclass
class Run:
    """What went on: the name of each job, its processor seconds, and memory after it."""

    names: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    cancelled: int = 0
    loaded: int = 0

    def grown(self, first: int) -> float:
        """Growth of memory from job number `first` to the last, as a share; medians of ten, which one peak leaves."""
        early, late = (
            statistics.median(part) for part in (self.memory[first : first + 10], self.memory[-10:])
        )
        return late / early - 1

    def slower(self, first: int, count: int) -> float:
        """Time of the last `count` jobs by that of `count` jobs from number `first` on: each kind counts once."""

        def time_of_all(part: slice) -> float:
            kinds: dict[str, list[float]] = {}
            for name, seconds in zip(self.names[part], self.seconds[part], strict=True):
                kinds.setdefault(name, []).append(seconds)
            return sum(statistics.median(times) for times in kinds.values())

        return time_of_all(slice(-count, None)) / time_of_all(slice(first, first + count))


def bundled_job(name: str, models: dict[str, Watched]) -> Callable[[Callable], object]:
    """A 64x64 picture of a bundled checkpoint from words, where it draws from words."""

    def job(poll: Callable) -> object:
        model = models[name].model
        size = min(model.sizes(), key=lambda s: s[0] * s[1])
        prompt = model.prompt("a red circle on a blue background", size=size)
        [(_, codes)] = events(model, prompt, settings(model, seed=3, window=8), poll)
        return codes

    return job


def mixed(folders: dict, total: int) -> Run:
    """Runs `total` jobs in turn; each must give what it gave first. One in ten is cancelled half way before.

    One in ten frees a model and loads it again.
    """
    models = {family: Watched(load(folder)) for family, folder in folders.items()}
    jobs = jobs_of(models, folders)
    for name in bundled():
        model = load(name)
        if "text_to_image" in model.tasks:
            models[name] = Watched(model)
            jobs[name] = bundled_job(name, models)
    names, first, polls, run = list(jobs), {}, {}, Run()
    for number in range(total):
        name = names[number % len(names)]
        if name in first and number % EVERY == 3:
            with pytest.raises(Cancel):
                jobs[name](Countdown(1 + number * 7919 % polls[name]))
            run.cancelled += 1
        if number % EVERY == 7:
            family = list(folders)[run.loaded % len(folders)]
            models[family] = None
            models[family] = Watched(load(folders[family]))
            run.loaded += 1
        counted = Countdown()
        start = time.process_time()
        result = jobs[name](counted)
        run.names.append(name)
        run.seconds.append(time.process_time() - start)
        assert first.setdefault(name, result) == result, f"{name} as job {number} is not what it was first"
        polls[name] = counted.count
        run.memory.append(resident(thorough=number % EVERY == 0))
        assert not any(watched.cache_lives for watched in models.values())
    assert gc.garbage == []
    return run


def told(run: Run, first: int, record_property) -> None:
    count = min(FIRST, len(run.seconds) - first)
    figures = {"grown": run.grown(first), "slower": run.slower(first, count), "seconds": sum(run.seconds)}
    record_property("cases", len(run.seconds))
    for name, value in figures.items():
        record_property(name, round(value, 4))
    print(
        f"{len(run.seconds)} jobs, {run.cancelled} cancelled, {run.loaded} loaded anew: memory {figures['grown']:+.2%} "
        f"after the first {first}, {run.memory[-1] / 1e6:.0f} MB; pace {figures['slower']:.2f}; "
        f"{figures['seconds']:.0f} s of processor time"
    )


def test_a_miniature_of_the_long_run(folders, record_property):
    run = mixed(folders, SHORT)
    told(run, SHORT // 2, record_property)
    assert run.cancelled >= 2 and run.loaded >= 3
    assert run.grown(SHORT // 2) < MEMORY


@pytest.mark.endurance
def test_five_hundred_generations(folders, record_property):
    run = mixed(folders, LONG)
    told(run, FIRST, record_property)
    assert run.cancelled >= 40 and run.loaded == LONG // EVERY
    assert run.grown(FIRST) < MEMORY
    assert run.slower(FIRST, FIRST) < PACE
