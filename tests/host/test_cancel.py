"""Cancel in every stage: within a second on a quiet machine, in as many times that as this one is slower now."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest

from tests.core import test_load_memory as large
from tests.host.test_runs import DECODE, LOAD, PROMPT, SAMPLE, graph, one_box, pixels

WORDS = "a red circle on the left and a blue square on the right; " * 20
DEEP = {"vocab_size": 4096, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 12}


@pytest.fixture
def ended(figure):
    """Checks and notes how soon a run ended after Cancel, and that it was one worth cancelling."""

    def check(run, stage: str) -> None:
        figure(stage, (run.cancel_took, run.slowdown))
        assert run.answered_within(1), (run.status, run.error, run.cancel_took, run.slowdown)

    return check


def through_the_tokenizer(side: int, count: int = 1) -> dict:
    """Pictures encoded and decoded."""
    prompt = graph()
    del prompt[SAMPLE], prompt[PROMPT]
    grey = {"width": side, "height": side, "batch_size": count, "color": 0x808080}
    prompt["6"] = {"class_type": "EmptyImage", "inputs": grey}
    encode = {"model": [LOAD, 0], "image": ["6", 0], "fit": "crop"}
    prompt["7"] = {"class_type": "LuminaMGPTEncode", "inputs": encode}
    prompt[DECODE]["inputs"]["tokens"] = ["7", 0]
    return prompt


def test_loading_shows_its_progress_and_can_be_cancelled(comfy, ended):
    large.build(comfy.base / "models" / "lumina_mgpt" / "large", large.SMALL | {"num_hidden_layers": 8}, 1)
    run = comfy.run(graph(model="large", precision="int8"), cancel=lambda done, total: 1 < done < total)
    ended(run, "loading")
    assert len(run.progress[LOAD]) > 1
    assert comfy.run(graph(seed=12)).status == "success"


def test_cancel_ends_the_reading_of_a_long_prompt(comfy, ended):
    sizes = DEEP | {"max_position_embeddings": 8192}
    large.build(comfy.base / "models" / "lumina_mgpt" / "deep", sizes, 1)
    prompt = graph(model="deep", text=WORDS, width=32, height=32, precision="fp32")
    whole = comfy.run(prompt)
    assert whole.status == "success", whole.error
    prompt[SAMPLE]["inputs"]["seed"] = 8
    run = comfy.run(prompt, cancel_in=SAMPLE, wait=lambda: time.sleep(0.3))
    assert max(done for done, _ in run.progress[SAMPLE]) == 0, "it was reading still"
    ended(run, "prefill")
    assert whole.seconds > 2 * run.cancel_took, "reading takes long enough to tell"
    assert comfy.run(graph(seed=12)).status == "success"


@pytest.mark.parametrize("decode", ["ar", "jacobi"])
@pytest.mark.parametrize("make", [graph, one_box])
def test_cancel_ends_sampling_at_once_and_the_next_run_works(comfy, make, decode, ended):
    many = {"width": 1024, "height": 1024, "decode": decode}
    ended(comfy.run(make(**many), cancel=lambda done, total: done >= 20 and total > 1000), "drawing")
    assert comfy.run(make(seed=11)).status == "success"


@pytest.mark.parametrize(("node", "stage", "count"), [("7", "encoding", 32), (DECODE, "decoding", 1)])
def test_cancel_ends_encoding_and_decoding(comfy, node, stage, count, ended):
    prompt = through_the_tokenizer(512 if count > 1 else 640, count)
    ended(comfy.run(prompt, cancel_in=node, wait=lambda: time.sleep(0.2)), stage)
    assert comfy.run(graph(seed=13)).status == "success"


def test_memory_stays_flat_over_runs_cancelled_at_random(comfy, figure):
    """20 runs of seeded accidents: Cancel in any stage, or none, and memory freed between some."""
    chance, ends, after_warm_up = random.Random(6), [], 0
    wanted = pixels(comfy.pictures(comfy.run(graph(seed=40)))[0])
    stages = [LOAD, PROMPT, SAMPLE, DECODE, "drawing", "drawing", ""]
    for n in range(20):
        make, decode = chance.choice([graph, one_box]), chance.choice(["ar", "jacobi"])
        prompt = make(width=192, height=128, seed=chance.randrange(1 << 40), decode=decode)
        stage, share = chance.choice(stages), chance.random()
        if stage == "drawing":
            run = comfy.run(prompt, cancel=lambda done, total, at=share: total > 300 and done > at * total)
        else:
            run = comfy.run(prompt, cancel_in=stage)
        assert run.status in ("success", "interrupted"), run.error
        assert not comfy.busy()
        ends.append(run.status)
        if chance.random() < 0.3:
            comfy.free()
        if n == 4:
            after_warm_up = comfy.memory()
    assert len(set(ends)) == 2
    figure("cancelled", (after_warm_up, comfy.memory()))
    assert comfy.memory() - after_warm_up < 40 << 20
    assert np.array_equal(pixels(comfy.pictures(comfy.run(graph(seed=40)))[0]), wanted)
