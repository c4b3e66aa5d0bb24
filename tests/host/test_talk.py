"""Restore, Chat, Best Of and region redraw inside a real ComfyUI, on tiny checkpoints."""

from __future__ import annotations

import html

import numpy as np
import pytest

from tests.host.test_runs import DECODE, LOAD, PROMPT, SAMPLE, SAVE, graph, pixels

IMAGE, TEXT = "20", "30"
SETTINGS = {"seed": 7, "cfg": 1.0, "temperature": 1.0, "decode": "ar"}


def nodes(**kinds: tuple[str, dict]) -> dict:
    return {key[1:]: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in kinds.items()}


def given(model: str, width: int = 30, height: int = 20, batch: int = 1) -> dict:
    """Load Model and a red picture."""
    red = {"width": width, "height": height, "batch_size": batch, "color": 0xFF0000}
    load = {"model": model, "precision": "auto"}
    return nodes(_1=("LuminaMGPTLoadModel", load), _20=("EmptyImage", red))


def restore(**changes) -> dict:
    settings = SETTINGS | {
        "cfg": 0.8,
        "scale": 4.0,
        "color_fix": "wavelet",
        "tiling": "tiles",
        "text_top_k": 1,
    }
    inputs = {"model": [LOAD, 0], "image": [IMAGE, 0]} | settings | changes
    return given("pure", batch=2) | nodes(
        _2=("LuminaMGPTRestore", inputs),
        _3=("SaveImage", {"images": ["2", 0], "filename_prefix": "restored"}),
        _4=("SaveImage", {"images": ["2", 2], "filename_prefix": "plan"}),
        _30=("PreviewAny", {"source": ["2", 1]}),
    )


def test_pictures_are_restored_at_their_new_size_with_text_and_plan(comfy):
    run = comfy.run(restore())
    assert run.status == "success", run.error
    drawn = [pixels(p) for p in comfy.pictures(run)]
    assert [p.shape for p in drawn] == [(80, 120, 3)] * 4
    assert not np.array_equal(drawn[0], drawn[1]), "picture 1 of the batch has the next seed"
    [text] = run.outputs[TEXT]["text"]
    assert text.splitlines()[0] == "picture 1"
    assert sum(line.startswith("tile 2 (x ") for line in text.splitlines()) == 2
    assert run.texts["2"].endswith("tiles of 96 pixels")
    again = comfy.run(restore(decode="jacobi"))
    assert np.array_equal(pixels(comfy.pictures(again)[0]), drawn[0])


def test_restoring_shows_progress_and_can_be_cancelled(comfy, figure):
    run = comfy.run(restore(scale=16.0, seed=9), cancel=lambda done, total: done > 5 and total > 1000)
    figure("drawing", (run.cancel_took, run.slowdown))
    assert run.answered_within(1)
    assert comfy.run(restore(scale=1.0, seed=9)).status == "success"


def chat(key: str, question: str, **changes) -> dict:
    settings = SETTINGS | {"text_top_k": 5, "image_top_k": 50, "max_tokens": 24}
    inputs = {"model": [LOAD, 0], "question": question} | settings | changes
    return {key: {"class_type": "LuminaMGPTChat", "inputs": inputs}}


def test_a_conversation_goes_on_over_two_nodes(comfy):
    prompt = given("mgpt1") | chat("2", "what is this?", image=[IMAGE, 0])
    prompt |= chat("3", "and this <|image|>?", chat=["2", 2], image_2=[IMAGE, 0])
    prompt |= nodes(
        _30=("PreviewAny", {"source": ["2", 0]}),
        _31=("PreviewAny", {"source": ["3", 0]}),
        _32=("SaveImage", {"images": ["3", 1], "filename_prefix": "drawn"}),
    )
    run = comfy.run(prompt)
    assert run.status == "success", run.error
    first, second = (run.outputs[key]["text"][0] for key in ("30", "31"))
    assert first and second and first != second
    for key, answer in (("2", first), ("3", second)):
        text, _, why = html.unescape(run.texts[key]).rpartition("\n")
        assert text == answer, "the text shows on the node"
        assert why == "(The answer was cut at the longest length there is.)"
    assert "32" not in run.outputs, "no picture was drawn, so nothing is saved, and that is no fault"


def best_of(**changes) -> dict:
    inputs = {"model": [LOAD, 0], "prompt": [PROMPT, 0], "image_top_k": 50, "candidates": 3}
    inputs |= SETTINGS | {"cfg": 3.0, "score": "likelihood", "question": "", "keep": 0} | changes
    prompt = graph(seed=7)
    prompt["6"] = {"class_type": "LuminaMGPTBestOf", "inputs": inputs}
    prompt[DECODE]["inputs"]["tokens"] = ["6", 0]
    prompt[TEXT] = {"class_type": "PreviewAny", "inputs": {"source": ["6", 2]}}
    if "tokens" not in changes:
        del prompt[SAMPLE]
    return prompt


def seeds(table: str) -> list[int]:
    return [int(line.rpartition(" ")[2]) for line in table.splitlines()]


def test_the_best_comes_first_and_is_the_sampler_s_picture(comfy):
    run = comfy.run(best_of())
    assert run.status == "success", run.error
    ranked = [pixels(p) for p in comfy.pictures(run)]
    order = seeds(run.outputs[TEXT]["text"][0])
    assert sorted(order) == [7, 8, 9] and len(ranked) == 3
    alone = comfy.run(graph(seed=order[0]))
    assert np.array_equal(pixels(comfy.pictures(alone)[0]), ranked[0])
    assert len(comfy.pictures(comfy.run(best_of(keep=1)))) == 1


def test_candidates_drawn_before_are_ranked(comfy):
    run = comfy.run(best_of(tokens=[SAMPLE, 0]))
    assert run.status == "success", run.error
    assert run.outputs[TEXT]["text"][0].startswith("1. candidate 1: likelihood -")


def test_another_model_judges_by_its_answer(comfy):
    prompt = best_of(score="answer", question="Does the picture show a red circle?", judge=["8", 0])
    prompt["8"] = {"class_type": "LuminaMGPTLoadModel", "inputs": {"model": "mgpt1", "precision": "auto"}}
    run = comfy.run(prompt)
    assert run.status == "success", run.error
    scores = [float(line.split()[4].rstrip(",")) for line in run.outputs[TEXT]["text"][0].splitlines()]
    assert scores == sorted(scores, reverse=True) and all(0 <= s <= 1 for s in scores)


def test_numbers_of_other_nodes_rank_candidates(comfy):
    prompt = best_of(score="given", tokens=[SAMPLE, 0], scores=["9", 0])
    prompt["9"] = {"class_type": "LuminaMGPTBestOf", "inputs": best_of(tokens=[SAMPLE, 0])["6"]["inputs"]}
    prompt["9"]["inputs"] = {**prompt["9"]["inputs"], "tokens": [SAMPLE, 0]}
    prompt["6"]["inputs"]["scores"] = ["9", 1]
    run = comfy.run(prompt)
    assert run.status == "success", run.error
    assert run.outputs[TEXT]["text"][0].startswith("1. candidate 1: given -")


def redraw(**changes) -> dict:
    """The sampled picture, its left half drawn again with another seed, both saved."""
    prompt = graph()
    again = dict(prompt[PROMPT]["inputs"], tokens=[SAMPLE, 0], mask=["41", 0]) | changes
    sample = dict(prompt[SAMPLE]["inputs"], prompt=["42", 0], seed=99)
    half = {"destination": ["40", 0], "source": ["43", 0], "x": 0, "y": 0, "operation": "add"}
    return prompt | nodes(
        _40=("SolidMask", {"value": 0.0, "width": 192, "height": 128}),
        _43=("SolidMask", {"value": 1.0, "width": 96, "height": 128}),
        _41=("MaskComposite", half),
        _42=("LuminaMGPTPrompt", {k: v for k, v in again.items() if v is not None}),
        _44=("LuminaMGPTSampler", sample),
        _45=("LuminaMGPTDecode", {"model": [LOAD, 0], "tokens": ["44", 0], "split_panels": False}),
        _46=("SaveImage", {"images": ["45", 0], "filename_prefix": "redrawn"}),
    )


def test_the_masked_half_is_drawn_again(comfy):
    run = comfy.run(redraw())
    assert run.status == "success", run.error
    files = {key: run.outputs[key] for key in (SAVE, "46")}
    assert all(files.values())
    before, after = (pixels(p).astype(int) for p in comfy.pictures(run))
    change = np.abs(before - after).mean((0, 2))
    assert change[:48].mean() > 2 * change[72:].mean()  # norms and attention of the decoder reach far


def test_a_picture_is_continued_at_its_own_width(comfy):
    run = comfy.run(redraw(mask=None, height=128))
    assert run.status == "success", run.error
    assert {pixels(p).shape for p in comfy.pictures(run)} == {(64, 96, 3), (128, 96, 3)}


@pytest.mark.parametrize(
    ("prompt", "node", "says"),
    [
        (given("tiny") | chat("2", "hello"), "2", "chat"),
        (given("mgpt1") | chat("2", " "), "2", "The question is empty"),
        (restore() | given("tiny"), "2", "restore"),
        (best_of(score="given"), "6", "connect tokens"),
        (best_of(score="answer"), "6", "The question is empty"),
        (best_of(score="answer", question="Is it red?"), "6", "chat"),
        (redraw(tokens=None), "42", "no tokens"),
        (redraw(width=128), "42", "96x64 pixels"),
        (redraw(mask=["40", 0]), "42", "nothing to draw"),
    ],
)
def test_a_mistake_is_told_in_one_line(comfy, prompt, node, says):
    for key in [k for k, n in prompt.items() if n["class_type"].startswith("LuminaMGPTChat")]:
        prompt = prompt | nodes(_30=("PreviewAny", {"source": [key, 0]}))
    run = comfy.run(prompt)
    assert (run.status, run.node) == ("error", node), run.error
    assert says in run.error and "\n" not in run.error
    assert run.kind.startswith("Lumina-mGPT.")
