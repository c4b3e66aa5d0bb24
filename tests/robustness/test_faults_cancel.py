"""Cancel at 200 random moments, exceptions in callbacks, and two threads on one model."""

from __future__ import annotations

import gc
import importlib
import json
import logging
import random
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import lumina_core
from lumina_core import RowFinished, Sampling, generate, load, many
from lumina_core.cache import KVCache
from lumina_core.sampling.contexts import Contexts
from lumina_core.sampling.pace import Pace
from lumina_core.vq.decoding import decode as decode_vq
from tests.robustness.workload import (
    Cancel,
    Countdown,
    Watched,
    build_all,
    chat,
    dense,
    draw,
    jobs_of,
    resident,
    restore,
)

CANCELS, SEED, WARM = 200, 20, 60
ROOT = Path(__file__).parents[2]


def idle() -> None:
    pass


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return build_all(tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="module")
def models(folders):
    return {family: Watched(load(folder)) for family, folder in folders.items()}


def caches_alive() -> list[KVCache]:
    gc.collect()
    return [o for o in gc.get_objects() if type(o) is KVCache and o.keys]


def test_cancel_at_any_moment_leaves_nothing_and_the_next_run_is_right(models, folders, record_property):
    jobs = jobs_of(models, folders)
    clean, polls = {}, {}
    for name, job in jobs.items():
        counted = Countdown()
        clean[name] = job(counted)
        polls[name] = counted.count
        assert counted.count >= 20, name
    rng = random.Random(SEED)
    memory = 0
    for number in range(CANCELS):
        name = list(jobs)[number % len(jobs)]
        at = rng.randint(1, polls[name])
        with pytest.raises(Cancel):
            jobs[name](Countdown(at))
        assert not any(watched.cache_lives for watched in models.values()), f"{name}, poll {at}"
        assert jobs[name](idle) == clean[name], f"{name} after Cancel at poll {at} of {polls[name]}"
        if number == WARM:
            memory = resident()
    grown = resident() / memory - 1
    assert grown < 0.02, f"memory grew by {grown:.1%} over {CANCELS - WARM} cancelled jobs"
    assert caches_alive() == []
    record_property("cases", CANCELS)
    record_property("grown", round(grown, 4))
    print(f"{CANCELS} jobs cancelled: memory {grown:+.2%} after the first {WARM}")


# Callbacks


class Faulty(Exception):
    pass


def failing_at(number: int) -> Callable[..., None]:
    return Countdown(number, Faulty)


@pytest.mark.parametrize("at", [1, 7, 30])
def test_an_exception_of_loadings_report_ends_it_with_that_exception(folders, at):
    fail = failing_at(at)
    with pytest.raises(Faulty):
        load(folders["mgpt1"], report=lambda done, total: fail())
    assert load(folders["mgpt1"]).name == "mgpt1"


@pytest.mark.parametrize("name", ["ar", "jacobi", "coupled", "depth", "chat", "restore"])
def test_an_exception_of_whoever_listens_ends_the_drawing_with_that_exception(models, folders, name):
    job = jobs_of(models, folders)[name]
    counted = Countdown()
    clean = job(counted)
    with pytest.raises(Faulty):
        job(failing_at(counted.count // 2))
    assert caches_alive() == []
    assert job(idle) == clean


def test_an_exception_of_a_report_ends_many_pictures_between_whole_files(tmp_path, tiny_model):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    prompts.write_text("\n".join([json.dumps({"prompt": "a circle", "size": "32x32"})] * 3))
    settings = Sampling(cfg=1.0, window=16, seed=1)
    calls = Countdown()
    many.run(tiny_model, prompts, out, settings, lambda *_: calls())
    whole = {p.name: p.read_bytes() for p in out.iterdir()}
    for file in out.iterdir():
        file.unlink()
    fail = failing_at(calls.count // 2)
    with pytest.raises(Faulty):
        many.run(tiny_model, prompts, out, settings, lambda *_: fail())
    assert {p.name for p in out.iterdir()} < set(whole)
    many.run(tiny_model, prompts, out, settings)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == whole


@pytest.fixture
def preview_module(monkeypatch):
    """`nodes/preview.py`, which needs no ComfyUI, without the nodes around it."""
    for name, path in (("extension", ROOT), ("extension.nodes", ROOT / "nodes")):
        package = types.ModuleType(name)
        package.__path__ = [str(path)]
        monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setitem(sys.modules, "extension.lumina_core", lumina_core)
    yield importlib.import_module("extension.nodes.preview")
    sys.modules.pop("extension.nodes.preview", None)


def drawn_with(preview, model, sampling) -> tuple[list, int]:
    """Pictures of a run that is previewed, and how many previews there were."""
    prompt = model.prompt("a red circle", size=(64, 64))
    grids, shown = [], 0
    for event in generate(model.transformer, model.vocabulary, prompt, sampling):
        if isinstance(event, RowFinished):
            shown += preview.update(event) is not None
        elif isinstance(event, lumina_core.PictureFinished):
            grids.append(event.grid.codes.tolist())
    return grids, shown


def test_a_preview_that_fails_is_said_once_and_the_picture_comes(preview_module, tiny_model, caplog):
    sampling = Sampling(seed=2, cfg=3.0, decode="ar")
    Preview = preview_module.Preview
    clean, shown = drawn_with(Preview(tiny_model, 128), tiny_model, sampling)
    assert shown >= 1

    class Broken:
        vq, vocabulary = tiny_model.vq, tiny_model.vocabulary

        def decode(self, codes):
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with caplog.at_level(logging.WARNING):
        again, shown = drawn_with(Preview(Broken(), 128), tiny_model, sampling)
    assert again == clean and shown == 0
    assert caplog.text.count("no preview any more") == 1 and "goes on without" in caplog.text


def test_cancel_inside_a_preview_is_passed_on(preview_module, tiny_model):
    class Cancelled:
        vq, vocabulary = tiny_model.vq, tiny_model.vocabulary

        def decode(self, codes):
            raise Cancel

    with pytest.raises(Cancel):
        drawn_with(preview_module.Preview(Cancelled(), 128), tiny_model, Sampling(decode="ar"))


# Threads


def in_threads(jobs: list[Callable[[], object]], seconds: float = 300) -> list:
    """What jobs give that run at the same time; an exception of one is raised."""
    results: list = [None] * len(jobs)
    begin = threading.Barrier(len(jobs))

    def work(i: int) -> None:
        begin.wait()
        try:
            results[i] = [jobs[i]() for _ in range(2)]
        except BaseException as e:  # shown by the test
            results[i] = e

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
    assert not any(thread.is_alive() for thread in threads), "they wait for each other"
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


@pytest.mark.parametrize("pair", [("ar", "jacobi"), ("jacobi", "jacobi"), ("coupled", "jacobi")])
def test_two_threads_draw_with_one_model(models, pair):
    jobs = [
        lambda i=i, decode=decode: draw(models["mgpt2"], idle, decode, window=None, seed=i)
        for i, decode in enumerate(pair)
    ]
    alone = [job() for job in jobs]
    for both, one in zip(in_threads(jobs), alone, strict=True):
        assert both == [one, one]


def test_each_thread_finds_its_own_window(models):
    """What the passes of one brought says nothing of the other's; counted together they could end both."""
    transformer = models["mgpt2"].model.transformer
    sampling = Sampling(decode="jacobi")
    mine = Pace.of(Contexts(transformer, 1, True, 8), sampling)
    theirs = in_threads([lambda: Pace.of(Contexts(transformer, 1, True, 8), sampling)] * 2)
    assert len({id(pace) for pace in (mine, *(one for both in theirs for one in both))}) == 3
    assert Pace.of(Contexts(transformer, 1, True, 8), sampling) is mine


def test_threads_with_different_tasks_share_a_model(models):
    jobs = [
        lambda: dense(models["mgpt1"], idle),
        lambda: chat(models["mgpt1"], idle),
        lambda: draw(models["mgpt1"], idle, "ar"),
        lambda: restore(models["pure"], idle),
        lambda: restore(models["pure"], idle),
    ]
    alone = [job() for job in jobs]
    for both, one in zip(in_threads(jobs), alone, strict=True):
        assert both == [one, one]


def test_threads_that_decode_while_16_bit_overflows_get_the_right_picture(tiny_folder):
    """Decoding once more in 32 bit changes the weights for a moment; the other thread must not see that."""
    vq = load(tiny_folder).vq
    with torch.inference_mode():
        vq.decoder.conv_in.weight.fill_(6e4)
        vq.to(torch.float16)
        codes = [
            torch.randint(0, 64, (1, 4, 4 + i), generator=torch.Generator().manual_seed(i)) for i in range(3)
        ]
        assert not torch.isfinite(vq.decode(codes[0])).all()

    def decoded(i: int) -> list:
        with torch.inference_mode():
            return decode_vq(vq, codes[i]).flatten()[:200].tolist()

    alone = [decoded(i) for i in range(3)]
    for both, one in zip(in_threads([lambda i=i: decoded(i) for i in range(3)]), alone, strict=True):
        assert both == [one, one]
    assert vq.decoder.conv_in.weight.dtype == torch.float16
