"""The nodes inside a real ComfyUI, on a tiny checkpoint: pictures, progress, previews, Cancel, cache, errors."""

from __future__ import annotations

import io
import os
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from lumina_core import load
from tests.core.test_lora import kohya, peft
from tests.host.server import FOLDER, ROOT
from tests.nodes.test_help import FROZEN

LOAD, PROMPT, SAMPLE, DECODE, SAVE = "1", "2", "3", "4", "5"


def graph(**changes) -> dict:
    """The four nodes and Save Image on the tiny checkpoint; `changes` go to the node that has the input."""
    prompt = {
        LOAD: ("LuminaMGPTLoadModel", {"model": "tiny", "precision": "auto"}),
        PROMPT: (
            "LuminaMGPTPrompt",
            {
                "model": [LOAD, 0],
                "text": "a red circle",
                "task": "text_to_image",
                "width": 96,
                "height": 64,
                "size_mode": "as given",
            },
        ),
        SAMPLE: (
            "LuminaMGPTSampler",
            {
                "model": [LOAD, 0],
                "prompt": [PROMPT, 0],
                "seed": 7,
                "cfg": 3.0,
                "temperature": 1.0,
                "image_top_k": 50,
                "text_top_k": 10,
                "decode": "ar",
                "batch": 1,
            },
        ),
        DECODE: ("LuminaMGPTDecode", {"model": [LOAD, 0], "tokens": [SAMPLE, 0], "split_panels": False}),
        SAVE: ("SaveImage", {"images": [DECODE, 0], "filename_prefix": "picture"}),
    }
    left = dict(changes)
    for name in changes:
        for _, inputs in prompt.values():
            if name in inputs and not isinstance(inputs[name], list):
                inputs[name] = left.pop(name)
                break
    assert not left, f"no node has {left}"
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in prompt.items()}


def one_box(**changes) -> dict:
    settings = {"model": "tiny", "precision": "auto", "text": "a red circle", "width": 96, "height": 64}
    settings |= {"seed": 7, "cfg": 3.0, "temperature": 1.0, "image_top_k": 50, "decode": "ar", "batch": 1}
    return {
        "1": {"class_type": "LuminaMGPTTextToImage", "inputs": settings | changes},
        SAVE: {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "picture"}},
    }


def answer(model: str, task: str, text: str = "") -> dict:
    """A task that writes: Load Model, Prompt with a white picture, Sampler, Preview as Text."""
    prompt = graph(model=model, task=task, text=text, batch=2, size_mode="let the model choose", cfg=1.0)
    del prompt[DECODE], prompt[SAVE]
    white = {"width": 64, "height": 64, "batch_size": 1, "color": 0xFFFFFF}
    prompt[PROMPT]["inputs"]["image"] = ["6", 0]
    return prompt | {
        "6": {"class_type": "EmptyImage", "inputs": white},
        "7": {"class_type": "PreviewAny", "inputs": {"source": [SAMPLE, 1]}},
    }


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


@pytest.fixture(scope="module")
def library(comfy, tmp_path_factory) -> list[np.ndarray]:
    """What the library alone draws under the host's own torch: 7 to 9, then 7 coupled, int8, fp8, converted."""
    out = tmp_path_factory.mktemp("library") / "pictures.npy"
    script = (
        "import sys, numpy as np, lumina_core as L\n"
        "def draw(m, **s):\n"
        "    s = L.Sampling(cfg=3.0, image_top_k=50, **s)\n"
        "    events = L.generate(m.transformer, m.vocabulary, m.prompt('a red circle', size=(96, 64)), s)\n"
        "    return [m.decode(e.grid.codes) for e in events if isinstance(e, L.PictureFinished)]\n"
        "m = L.load(sys.argv[1])\n"
        "small = [L.load(sys.argv[1], quantise=kind) for kind in ('int8', 'fp8')] + [L.load(sys.argv[2])]\n"
        "drawn = draw(m, seed=7, batch=3) + draw(m, seed=7, decode='coupled', window=8)\n"
        "np.save(sys.argv[3], np.stack(drawn + [draw(s, seed=7)[0] for s in small]))\n"
    )
    models = comfy.base / "models" / "lumina_mgpt"
    sources = (models / "tiny", models / "owner" / "packed.safetensors")
    subprocess.run([comfy.python, "-c", script, *sources, out], cwd=ROOT, check=True)
    return list(np.load(out))


@pytest.fixture(scope="module")
def first(comfy, library):
    """One finished run, so that what follows finds the model loaded."""
    return comfy.run(graph())


def test_the_extension_imports_without_a_complaint(comfy, figure):
    lines = [line for line in comfy.log_text().splitlines() if FOLDER in line]
    assert lines and not any("FAILED" in line or "Cannot import" in line for line in lines)
    figure("nodes", (len(FROZEN.keys() & comfy.info.keys()), len(FROZEN)))


def test_the_picture_is_the_one_the_library_draws(comfy, first, library):
    assert first.status == "success", first.error
    [png] = comfy.pictures(first)
    assert np.array_equal(pixels(png), library[0])


def test_progress_and_token_count_are_shown(first):
    *_, last = first.progress[SAMPLE]
    assert last[0] == last[1] > 8 * 12
    assert first.texts[PROMPT].endswith(" tokens")
    assert PROMPT not in first.outputs, "a count is no result to list"


def test_a_changed_seed_does_not_load_again_and_draws_the_library_s_batch(comfy, first, library):
    loads = comfy.log_text().count("Lumina-mGPT: loaded tiny")
    run = comfy.run(graph(seed=8, batch=2))
    assert {LOAD, PROMPT} <= set(run.cached)
    drawn = [pixels(p) for p in comfy.pictures(run)]
    assert np.array_equal(drawn, library[1:3])
    assert comfy.log_text().count("Lumina-mGPT: loaded tiny") == loads


def test_finished_rows_are_previewed_at_most_twice_a_second(comfy, first, figure):
    large = comfy.run(graph(width=320, height=320, seed=31))
    for run, shape in ((first, (64, 96, 3)), (large, (320, 320, 3))):
        assert 1 <= len(run.previews) <= 2 + 2 * run.seconds
        assert {pixels(p).shape for p in run.previews} == {shape}
        figure("previews", (len(run.previews), run.seconds))
    assert len(large.previews) > 2


def test_one_box_draws_the_same_and_keeps_the_model(comfy, library):
    run = comfy.run(one_box())
    assert run.status == "success", run.error
    assert np.array_equal(pixels(comfy.pictures(run)[0]), library[0])
    loads = comfy.log_text().count("Lumina-mGPT: loaded tiny")
    again = comfy.run(one_box(seed=9))
    assert np.array_equal(pixels(comfy.pictures(again)[0]), library[2])
    assert comfy.log_text().count("Lumina-mGPT: loaded tiny") == loads


@pytest.mark.parametrize("make", [graph, one_box])
@pytest.mark.parametrize(
    ("decode", "window", "which"), [("jacobi", "auto", 0), ("jacobi", "4", 0), ("coupled", "8", 3)]
)
def test_guessing_ahead_draws_what_the_library_draws(comfy, library, make, decode, window, which):
    prompt = make(decode=decode)
    prompt[SAMPLE if make is graph else "1"]["inputs"]["window"] = window
    run = comfy.run(prompt)
    assert run.status == "success", run.error
    assert np.array_equal(pixels(comfy.pictures(run)[0]), library[which])


@pytest.mark.parametrize(("precision", "which"), [("int8", 4), ("fp8", 5)])
def test_small_weights_draw_what_the_library_draws(comfy, library, precision, which):
    run = comfy.run(graph(precision=precision))
    assert run.status == "success", run.error
    assert np.array_equal(pixels(comfy.pictures(run)[0]), library[which])


def test_a_converted_file_draws_what_the_library_draws(comfy, library):
    run = comfy.run(graph(model="owner/packed.safetensors"))
    assert run.status == "success", run.error
    assert np.array_equal(pixels(comfy.pictures(run)[0]), library[6])


@pytest.mark.parametrize(("model", "task"), [("mgpt1", "describe"), ("pure", "restore"), ("mgpt1", "chat")])
def test_what_the_model_writes_can_be_read(comfy, model, task):
    run = comfy.run(answer(model, task, "what is this?"))
    assert run.status == "success", run.error
    [text] = run.outputs["7"]["text"]
    assert text.count("\n") >= 1 and len(text) > 20


def test_a_download_that_cannot_begin_is_one_line(comfy):
    """The server of these tests has no network."""
    prompt = graph()
    prompt[LOAD]["inputs"]["download"] = "Lumina-mGPT-2.0"
    run = comfy.run(prompt)
    assert (run.status, run.node) == ("error", LOAD)
    assert "Alpha-VLLM/Lumina-mGPT-2.0 cannot be listed" in run.error and "\n" not in run.error


def test_pictures_survive_encode_and_decode(comfy):
    prompt = graph()
    prompt["6"] = {
        "class_type": "EmptyImage",
        "inputs": {"width": 70, "height": 100, "batch_size": 2, "color": 255},
    }
    for fit, size in (("crop", (96, 64)), ("stretch", (96, 64))):
        encode = {"model": [LOAD, 0], "image": ["6", 0], "fit": fit}
        prompt["7"] = {"class_type": "LuminaMGPTEncode", "inputs": encode}
        prompt[DECODE]["inputs"]["tokens"] = ["7", 0]
        del prompt[SAMPLE], prompt[PROMPT]
        run = comfy.run(prompt)
        assert [pixels(p).shape[:2] for p in comfy.pictures(run)] == [size] * 2, run.error
        prompt |= {key: graph()[key] for key in (SAMPLE, PROMPT)}


def test_panels_are_split_on_request(comfy):
    whole = comfy.run(graph(task="pair_depth"))
    split = comfy.run(graph(task="pair_depth", split_panels=True))
    [both] = comfy.pictures(whole)
    assert pixels(both).shape == (128, 96, 3)
    assert [pixels(p).shape for p in comfy.pictures(split)] == [(64, 96, 3)] * 2


def test_a_given_picture_becomes_the_first_panel(comfy):
    prompt = graph(task="control_depth")
    prompt["6"] = {
        "class_type": "EmptyImage",
        "inputs": {"width": 99, "height": 70, "batch_size": 1, "color": 255},
    }
    prompt[PROMPT]["inputs"]["image"] = ["6", 0]
    run = comfy.run(prompt)
    assert run.status == "success", run.error
    assert pixels(comfy.pictures(run)[0]).shape == (128, 96, 3)


@pytest.mark.parametrize(
    ("changes", "node", "says"),
    [
        ({"width": 100}, PROMPT, "width is 100; it must be a multiple of 32"),
        ({"width": 2048}, PROMPT, "width is 2048"),
        ({"text": "  "}, PROMPT, "The prompt is empty"),
        ({"task": "control_depth"}, PROMPT, "takes 1 picture"),
        ({"model": "owner/cut"}, LOAD, "is cut short"),
        ({"model": "no-vq"}, LOAD, "The image tokenizer of Lumina-mGPT 2.0 is missing"),
        ({"model": "other"}, LOAD, "other"),
    ],
)
def test_a_mistake_is_told_in_one_line(comfy, changes, node, says):
    run = comfy.run(graph(**changes))
    assert (run.status, run.node) == ("error", node)
    assert says in run.error and "\n" not in run.error
    assert run.kind.startswith("Lumina-mGPT.")


def test_an_unknown_checkpoint_is_refused_before_running(comfy):
    for make in (graph, one_box):
        run = comfy.run(make(model="nobody/nothing"))
        assert run.status == "refused"
        assert "There is no checkpoint 'nobody/nothing'" in run.error and "lumina_mgpt" in run.error


def test_a_checkpoint_that_changed_is_loaded_again(comfy):
    assert comfy.run(graph(model="elsewhere")).status == "success"
    file = comfy.base / "extra" / "elsewhere" / "tokenizer_config.json"
    file.write_text(file.read_text("utf-8") + "\n", "utf-8")
    run = comfy.run(graph(model="elsewhere"))
    assert run.status == "success" and LOAD not in run.cached


def test_a_size_of_0_is_the_checkpoint_s_own(comfy):
    """A fresh node draws with the bundled checkpoint as it is."""
    for make in (graph, one_box):
        run = comfy.run(make(model="nano-mgpt2", width=0, height=0))
        assert run.status == "success", run.error
        assert pixels(comfy.pictures(run)[0]).shape == (64, 64, 3)
    run = comfy.run(graph(model="nano-mgpt2", width=96, height=0))
    assert pixels(comfy.pictures(run)[0]).shape == (64, 96, 3)


def test_an_image_tokenizer_that_changed_is_loaded_again(comfy):
    """It lies outside the checkpoint's folder."""
    asked = answer("mgpt1", "describe")
    assert comfy.run(asked).status == "success"
    assert LOAD in comfy.run(asked).cached
    vq = comfy.base / "models" / "vae" / "vqgan.safetensors"
    os.utime(vq, ns=(1, 1))
    run = comfy.run(asked)
    assert run.status == "success" and LOAD not in run.cached


def test_a_lora_changes_the_picture_stacks_and_leaves_nothing_behind(comfy, library):
    transformer = load(comfy.base / "models" / "lumina_mgpt" / "tiny").transformer
    folder = comfy.base / "models" / "loras"
    peft(folder / "style", transformer)
    kohya(folder / "same.safetensors", transformer)

    def drawn(precision: str, *loras: tuple[str, float]) -> np.ndarray:
        prompt, source = graph(precision=precision), [LOAD, 0]
        for i, (name, strength) in enumerate(loras):
            inputs = {"model": source, "lora": name, "strength": strength}
            prompt[f"9{i}"] = {"class_type": "LuminaMGPTLoadLora", "inputs": inputs}
            source = [f"9{i}", 0]
        for node in (PROMPT, SAMPLE, DECODE):
            prompt[node]["inputs"]["model"] = source
        run = comfy.run(prompt)
        assert run.status == "success", run.error
        return pixels(comfy.pictures(run)[0])

    for precision, plain in (("auto", library[0]), ("int8", library[4]), ("fp8", library[5])):
        one = drawn(precision, ("style/adapter_model.safetensors", 1.0))
        assert not np.array_equal(one, plain)
        assert np.array_equal(drawn(precision, ("same.safetensors", 1.0)), one)
        assert np.array_equal(drawn(precision), plain), "the weights are what they were"
    halves = drawn("auto", ("style/adapter_model.safetensors", 0.5), ("same.safetensors", 0.5))
    assert np.array_equal(halves, drawn("auto", ("same.safetensors", 1.0)))
    assert np.array_equal(drawn("auto", ("same.safetensors", 0.5), ("same.safetensors", -0.5)), library[0])


def test_a_wrong_lora_is_told_in_one_line(comfy):
    from safetensors.torch import save_file

    key = "lora_unet_input_blocks_1_1_proj_in.lora_up.weight"
    save_file({key: torch.zeros(8, 4)}, comfy.base / "models" / "loras" / "other.safetensors")
    prompt = graph()
    inputs = {"model": [LOAD, 0], "lora": "other.safetensors", "strength": 1.0}
    prompt["9"] = {"class_type": "LuminaMGPTLoadLora", "inputs": inputs}
    prompt[SAMPLE]["inputs"]["model"] = ["9", 0]
    run = comfy.run(prompt)
    assert (run.status, run.node) == ("error", "9")
    assert key in run.error and "\n" not in run.error
    inputs["lora"] = "nowhere.safetensors"
    run = comfy.run(prompt)
    assert run.status == "refused" and "There is no LoRA 'nowhere.safetensors'" in run.error


def test_a_freed_model_works_again(comfy):
    assert comfy.run(graph(seed=20)).status == "success"
    comfy.free()
    assert comfy.run(graph(seed=21)).status == "success"
