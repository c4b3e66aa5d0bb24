"""Tasks about a picture inside a real ComfyUI: batches, odd pictures, chains, clear refusals."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from lumina_core.training import world

MODEL, IMAGE, TASK, SAVE, TEXT = "1", "2", "3", "4", "5"
MAPS = ["Depth", "Segment", "Normals", "Pose", "Edges"]


def given(comfy, name: str, picture: Image.Image) -> str:
    picture.save(comfy.base / "input" / name)
    return name


def scene(width: int, height: int, mode: str = "RGB") -> Image.Image:
    y, x = np.mgrid[:height, :width]
    values = np.stack(
        [x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), 0 * x + 60, 255 - x % 256], -1
    )
    return Image.fromarray(values.astype(np.uint8), "RGBA").convert(mode)


def graph(node: str, model: str, image: list | dict, output: int = 0, **inputs) -> dict:
    """Load Model, a picture, a node about it and Save Image."""
    prompt = {
        MODEL: ("LuminaMGPTLoadModel", {"model": model, "precision": "auto"}),
        TASK: (f"LuminaMGPT{node}", {"model": [MODEL, 0], "seed": 3, **inputs}),
        SAVE: ("SaveImage", {"images": [TASK, output], "filename_prefix": "task"}),
    }
    if isinstance(image, dict):
        prompt[IMAGE] = (
            "EmptyImage",
            {"width": 64, "height": 64, "batch_size": 1, "color": 0x40A0F0} | image,
        )
        image = [IMAGE, 0]
    prompt[TASK][1]["image"] = image
    return {key: {"class_type": kind, "inputs": values} for key, (kind, values) in prompt.items()}


def sizes(comfy, run) -> list[tuple[int, int]]:
    assert run.status == "success", run.error
    return [Image.open(io.BytesIO(png)).size for png in comfy.pictures(run)]


@pytest.mark.parametrize(
    ("node", "model"),
    [(n, "mgpt1") for n in MAPS if n != "Edges"] + [(n, "tiny") for n in ("Depth", "Pose", "Edges")],
)
def test_a_batch_gets_a_map_each_at_its_size(comfy, node, model):
    extra = {"kind": "hed"} if node == "Edges" else {}
    run = comfy.run(graph(node, model, {"width": 75, "height": 50, "batch_size": 2}, resolution=64, **extra))
    assert sizes(comfy, run) == [(75, 50)] * 2
    first, second = (np.asarray(Image.open(io.BytesIO(png))) for png in comfy.pictures(run))
    assert np.array_equal(first, second), "a picture's map does not depend on its place in the batch"


@pytest.mark.parametrize("size", [(1, 1), (3, 90), (400, 9)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_odd_pictures_from_files_get_their_map(comfy, size, mode):
    name = given(comfy, f"odd_{size[0]}_{mode}.png", scene(*size, mode))
    prompt = graph("Depth", "mgpt1", ["6", 0], resolution=32)
    prompt["6"] = {"class_type": "LoadImage", "inputs": {"image": name}}
    assert sizes(comfy, comfy.run(prompt)) == [size]


def test_a_list_of_pictures_of_different_sizes_is_worked_through(comfy):
    prompt = graph("Depth", "mgpt1", ["7", 0], resolution=32)
    shapes = {"6": (64, 32), "8": (40, 70)}
    for key, (width, height) in shapes.items():
        empty = {"width": width, "height": height, "batch_size": 2, "color": 255}
        prompt[key] = {"class_type": "EmptyImage", "inputs": empty}
    if "CreateList" in comfy.info:
        both = {"inputs.input0": ["6", 0], "inputs.input1": ["8", 0]}
        prompt["7"] = {"class_type": "CreateList", "inputs": both}
        wanted = [size for size in shapes.values() for _ in range(2)]
    else:  # older hosts make lists of one size only
        prompt["7"] = {"class_type": "RebatchImages", "inputs": {"images": ["6", 0], "batch_size": 1}}
        wanted = [shapes["6"]] * 2
    assert sizes(comfy, comfy.run(prompt)) == wanted


def test_depth_comes_as_a_mask_too(comfy):
    prompt = graph("Depth", "mgpt1", {"width": 50, "height": 40}, resolution=64)
    prompt["6"] = {"class_type": "MaskToImage", "inputs": {"mask": [TASK, 1]}}
    whole = comfy.run(prompt)
    prompt[SAVE]["inputs"]["images"] = ["6", 0]
    masked = comfy.run(prompt)
    assert sizes(comfy, masked) == [(50, 40)]
    map_, mask = (
        np.asarray(Image.open(io.BytesIO(comfy.pictures(r)[0])).convert("RGB")).astype(int)
        for r in (whole, masked)
    )
    assert np.abs(map_.mean(-1) - mask[..., 0]).max() <= 1.5


def test_what_was_found_comes_as_picture_json_and_mask(comfy):
    circle = world.Object("circle", "red", "in the center", "large", 70, 60, 28)
    picture = Image.fromarray(world.picture(world.Scene(128, 128, "white", (circle,), (False,))))
    prompt = graph("Detect", "nano-mgpt1", ["6", 0], text="red circle", resolution=128)
    name = given(comfy, "circle.png", picture.resize((256, 256)))
    prompt["6"] = {"class_type": "LoadImage", "inputs": {"image": name}}
    prompt[TEXT] = {"class_type": "PreviewAny", "inputs": {"source": [TASK, 1]}}
    run = comfy.run(prompt)
    assert sizes(comfy, run) == [(256, 256)]
    [said] = json.loads(run.outputs[TEXT]["text"][0])
    assert (said["width"], said["height"]) == (256, 256)
    [box] = said["boxes"]
    assert box["label"] == "red circle" and np.allclose(box["box"], (84, 64, 196, 176), atol=12), box


def test_a_segmentation_becomes_a_mask_a_colour(comfy):
    picture = Image.new("RGB", (40, 20), (0, 0, 0))
    picture.paste((255, 0, 0), (0, 0, 10, 20))
    picture.paste((0, 255, 0), (10, 0, 15, 20))
    name = given(comfy, "segments.png", picture)
    node = {"segmentation": ["2", 0], "index": 1, "tolerance": 64.0, "min_area": 0.01, "drop_black": False}
    prompt = {
        "2": ("LoadImage", {"image": name}),
        "3": ("LuminaMGPTSegmentsToMasks", node),
        "4": ("MaskToImage", {"mask": ["3", 0]}),
        "5": ("SaveImage", {"images": ["4", 0], "filename_prefix": "mask"}),
        "6": ("PreviewAny", {"source": ["3", 2]}),
        "7": ("MaskToImage", {"mask": ["3", 1]}),
        "8": ("SaveImage", {"images": ["7", 0], "filename_prefix": "one"}),
    }
    run = comfy.run({k: {"class_type": c, "inputs": i} for k, (c, i) in prompt.items()})
    assert run.status == "success", run.error
    listed = json.loads(run.outputs["6"]["text"][0])
    assert [s["color"] for s in listed] == ["#000000", "#ff0000", "#00ff00"]
    assert [s["area"] for s in listed] == [0.625, 0.25, 0.125]
    masks = [np.asarray(Image.open(io.BytesIO(p)).convert("L")) for p in comfy.pictures(run)]
    assert len(masks) == 4
    shares = sorted(round(float((m > 127).mean()), 3) for m in masks)
    assert shares == [0.125, 0.25, 0.25, 0.625]
    node["index"] = 3
    run = comfy.run({k: {"class_type": c, "inputs": i} for k, (c, i) in prompt.items()})
    assert run.status == "error" and "index is 3; there are 3 segments" in run.error


@pytest.mark.parametrize("model", ["mgpt1", "tiny"])
def test_edits_chain_by_image_and_tokens(comfy, model):
    prompt = graph("Edit", model, {"width": 64, "height": 64}, text="make it red", resolution=64)
    second = {
        **prompt[TASK]["inputs"],
        "image": [TASK, 0],
        "tokens": [TASK, 1],
        "text": "make it blue",
        "batch": 2,
    }
    prompt["6"] = {"class_type": "LuminaMGPTEdit", "inputs": second}
    prompt[SAVE]["inputs"]["images"] = ["6", 0]
    assert sizes(comfy, comfy.run(prompt)) == [(64, 64)] * 2


def test_denoise_needs_no_words_and_keeps_the_size(comfy):
    run = comfy.run(
        graph("Edit", "mgpt1", {"width": 70, "height": 50}, text="", task="denoise", resolution=64)
    )
    assert sizes(comfy, run) == [(70, 50)]


@pytest.mark.parametrize(("model", "kind"), [("mgpt1", "depth"), ("tiny", "canny")])
def test_control_draws_at_the_map_s_size_or_its_own(comfy, model, kind):
    common = {"text": "a cat", "kind": kind, "resolution": 64}
    kept = comfy.run(graph("Control", model, {"width": 100, "height": 90}, **common))
    assert sizes(comfy, kept) == [(100, 90)]
    own = comfy.run(graph("Control", model, {"width": 100, "height": 90}, keep_size=False, **common))
    assert sizes(comfy, own) == [(64, 64)]


@pytest.mark.parametrize("subject", ["", "a red clock"])
def test_a_subject_is_drawn_at_the_size_asked_for(comfy, subject):
    inputs = {"text": "on a beach", "subject": subject, "width": 96, "height": 64}
    assert sizes(comfy, comfy.run(graph("Subject", "tiny", {"width": 80, "height": 80}, **inputs))) == [
        (96, 64)
    ]


def test_a_subject_has_the_checkpoint_s_own_size_where_none_is_asked_for(comfy):
    inputs = {"text": "a red circle", "subject": "a red circle", "width": 0, "height": 0}
    run = comfy.run(graph("Subject", "nano-mgpt2-omni", {"width": 80, "height": 80}, **inputs))
    assert sizes(comfy, run) == [(64, 64)]


def test_a_prompt_about_a_large_picture_brings_it_to_a_size_of_the_checkpoint(comfy):
    prompt = graph("Prompt", "nano-mgpt2-omni", {"width": 900, "height": 600}, text="", task="depth")
    prompt[TASK]["inputs"] |= {"width": 0, "height": 0, "size_mode": "as given"}
    del prompt[TASK]["inputs"]["seed"]
    sampler = {
        "model": [MODEL, 0],
        "prompt": [TASK, 0],
        "seed": 0,
        "cfg": 1.0,
        "temperature": 1.0,
        "batch": 1,
    }
    sampler |= {"image_top_k": 50, "text_top_k": 10, "decode": "ar"}
    decode = {"model": [MODEL, 0], "tokens": ["6", 0], "split_panels": True}
    prompt["6"] = {"class_type": "LuminaMGPTSampler", "inputs": sampler}
    prompt["7"] = {"class_type": "LuminaMGPTDecode", "inputs": decode}
    prompt[SAVE]["inputs"]["images"] = ["7", 0]
    assert sizes(comfy, comfy.run(prompt)) == [(96, 64)] * 2


def test_a_pair_comes_as_two_pictures(comfy):
    inputs = {"text": "a cat", "kind": "depth", "width": 96, "height": 64, "batch": 2}
    shown = []
    for output in (0, 1):
        prompt = graph("ImagePair", "tiny", {}, output, **inputs)
        del prompt[TASK]["inputs"]["image"], prompt[IMAGE]
        run = comfy.run(prompt)
        assert sizes(comfy, run) == [(96, 64)] * 2
        shown.append(comfy.pictures(run)[0])
    assert shown[0] != shown[1]


@pytest.mark.parametrize(
    ("node", "model", "inputs", "says"),
    [
        ("Depth", "nano-mgpt2", {}, "'nano-mgpt2' was not trained on 'depth'; it has text_to_image. Load "),
        ("Normals", "tiny", {}, "no task 'normals'"),
        ("Edit", "mgpt1", {"text": " "}, "The prompt is empty; say what to change"),
        ("Detect", "mgpt1", {"text": ""}, "The prompt is empty; say what to find"),
        ("Depth", "mgpt1", {"resolution": 100}, "resolution is 100"),
        ("Depth", "mgpt1", {"template": "<|image|><|image|>"}, "places 2 pictures"),
        ("Subject", "mgpt1", {"text": "x", "subject": "", "width": 64, "height": 64}, "no task 'subject'"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(comfy, node, model, inputs, says):
    run = comfy.run(graph(node, model, {}, **inputs))
    assert (run.status, run.node) == ("error", TASK)
    assert says in run.error and "\n" not in run.error and run.kind.startswith("Lumina-mGPT.")


def test_cancel_ends_a_task_at_once(comfy, figure):
    prompt = graph("Depth", "tiny", {"batch_size": 3}, resolution=512, decode="ar")
    run = comfy.run(prompt, cancel=lambda done, total: done >= 20 and total > 1000)
    figure("drawing", (run.cancel_took, run.slowdown))
    assert run.answered_within(1)
