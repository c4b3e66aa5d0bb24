"""Tasks about a picture: the right question, the right panel, and an answer that lies on the picture."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lumina_core import (
    InputError,
    PictureFinished,
    ask,
    boxes,
    detections,
    from_tensor,
    generate,
    likelihoods,
    load,
    redraw,
    settings,
)
from lumina_core.boxes import Box
from lumina_core.image import crop, nearest_size
from lumina_core.placement import Placement
from lumina_core.request import working_size
from lumina_core.training import world
from lumina_core.unirep import TokenGrid
from tests.core import checkpoints as ck

EXTREME = [(1, 1), (1, 300), (300, 1), (33, 31), (640, 20), (97, 64)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {
        f: load(ck.build(tmp_path_factory.mktemp(f) / "m", f, max_position_embeddings=2048)) for f in ck.VQ
    }


def picture(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    values = np.stack([x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), 0 * x + 60], -1)
    return Image.fromarray(values.astype(np.uint8), "RGB")


def drawn(model, request, **options) -> list[TokenGrid]:
    sampling = settings(model, request.prompt.task, seed=3, **options)
    events = generate(model.transformer, model.vocabulary, request.prompt, sampling)
    return [request.panel(e.grid) for e in events if isinstance(e, PictureFinished)]


# Where answers lie


@pytest.mark.parametrize("source", EXTREME)
@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_an_answer_has_the_size_of_the_picture(source, fit):
    answer = Placement(source, (64, 96), fit).back(np.full((96, 64, 3), 200, np.uint8))
    assert answer.shape == (source[1], source[0], 3) and answer.any()


@pytest.mark.parametrize("source", [(64, 64), (192, 192), (100, 300), (401, 97)])
@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_an_answer_lies_on_the_picture_pixel_for_pixel(source, fit):
    """The picture itself, sent there and back, comes back where it was."""
    scene = Image.fromarray(world.picture(world.scene("held-out", 5, *source)))
    size = (128, 128)
    sent = scene.resize(size, Image.Resampling.BICUBIC) if fit == "stretch" else crop(scene, size)
    place = Placement(source, size, fit)
    back = place.back(np.asarray(sent))
    left, top, right, bottom = place.box
    inside = np.asarray(scene)[top:bottom, left:right].astype(int)
    assert np.abs(back[top:bottom, left:right] - inside).mean() < 6
    for x, y in ((2, 0), (0, 2)):  # two pixels off is worse, so it lies right
        moved = np.roll(back, (y, x), (0, 1))[top:bottom, left:right]
        assert np.abs(moved - inside).mean() > np.abs(back[top:bottom, left:right] - inside).mean()


def test_what_a_crop_cut_away_is_black_or_the_picture_s_own():
    place = Placement((200, 100), (64, 64), "crop")
    assert place.box == (50, 0, 150, 100)
    answer = np.full((64, 64, 3), 255, np.uint8)
    black = place.back(answer)
    assert not black[:, :50].any() and not black[:, 150:].any() and black[:, 50:150].all()
    own = place.back(answer, onto=np.full((100, 200, 3), 9, np.uint8))
    assert (own[:, :50] == 9).all() and (own[:, 50:150] == 255).all()


def test_maps_of_labels_keep_their_colours():
    labels = world.segmentation(world.scene("held-out", 2, 64, 64))
    colours = {tuple(c) for c in labels.reshape(-1, 3).tolist()}
    back = Placement((301, 211), (64, 64), "stretch").back(labels, smooth=False)
    assert {tuple(c) for c in back.reshape(-1, 3).tolist()} == colours


@pytest.mark.parametrize("task", ["segment", "denoise", "edit", "depth"])
def test_edits_keep_what_a_crop_cut_away_and_only_segments_keep_their_colours(models, task):
    given, two = picture(200, 100), np.zeros((64, 64, 3), np.uint8)
    two[:, 32:] = 255
    answer = ask(models["mgpt1"], task, given, "a", size=(64, 64), fit="crop").place(two)
    assert np.array_equal(answer[:, :50], np.asarray(given)[:, :50]) == (task in ("edit", "denoise"))
    assert ({0, 255} == set(answer[:, 50:150].flatten().tolist())) == (task == "segment")


def test_a_narrow_picture_is_cropped_without_a_giant_between():
    long = Image.new("RGB", (1, 12000), "red")
    assert crop(long, (512, 512)).getpixel((5, 5)) == (255, 0, 0)
    ramp = Image.linear_gradient("L").resize((3, 8000)).convert("RGB")
    plain = np.asarray(crop(ramp, (64, 64))).astype(int)
    assert np.abs(plain - plain.mean()).max() <= 3  # the middle hundredth of a ramp is of one grey


# What is asked


@pytest.mark.parametrize(
    ("family", "task"),
    [("mgpt1", t) for t in ("depth", "segment", "normals", "pose", "detect", "edit", "denoise", "control")]
    + [("mgpt2", t) for t in ("depth", "canny", "hed", "pose", "control_depth", "edit", "subject")],
)
@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_every_task_answers_at_the_size_of_its_picture(models, family, task, fit):
    m, given = models[family], picture(90, 70)
    request = ask(m, task, given, "a cat", fit=fit, size=(64, 64))
    [panel] = drawn(m, request, image_top_k=20)
    assert (panel.panels, tuple(panel.codes.shape)) == (1, m.vocabulary.codes_shape((2, 2)))
    answer = m.decode(panel.codes)
    assert request.place(answer).shape == (70, 90, 3)
    assert request.place(answer, keep_size=False).shape == (64, 64, 3)


def test_the_first_panel_is_the_picture_and_the_last_the_answer(models):
    m = models["mgpt2"]
    request = ask(m, "depth", picture(64, 64), size=(64, 64))
    sampling = settings(m, "depth", seed=3, image_top_k=20)
    events = generate(m.transformer, m.vocabulary, request.prompt, sampling)
    [whole] = [e.grid for e in events if isinstance(e, PictureFinished)]
    assert torch.equal(whole.split()[0].codes, m.encode(picture(64, 64)).codes)
    assert torch.equal(request.panel(whole).codes, whole.codes[8:])


@pytest.mark.parametrize("family", ["mgpt1", "mgpt2"])
def test_tokens_of_an_earlier_answer_go_on_as_they_are(models, family):
    """An edit of an edit sees the very codes that were drawn, which a picture encoded again would not give back."""
    m = models[family]
    [first] = drawn(m, ask(m, "edit", picture(64, 64), "a", size=(64, 64)), image_top_k=20)
    image = Image.fromarray(m.decode(first.codes))
    again = ask(m, "edit", image, "b", tokens=first)
    v = m.vocabulary
    body = v.rows(first.codes)
    held = list(again.prompt.tokens)
    assert any(held[i : i + len(body)] == body for i in range(len(held)))
    assert again.placement.size == (64, 64)
    wide = ask(m, "edit", picture(200, 100), "b", fit="crop", tokens=first)
    assert wide.placement.box == (50, 0, 150, 100), "they show what the crop of the first edit left"
    with pytest.raises(InputError, match="of family pure"):
        ask(m, "edit", image, "b", tokens=replace(first, family="pure"))


def test_tokens_of_a_wide_picture_ask_for_a_wide_answer(models):
    wide = TokenGrid(torch.zeros(4, 6, dtype=torch.int64), "mgpt1")
    request = ask(models["mgpt1"], "edit", picture(96, 64), "b", tokens=wide)
    assert (request.placement.size, request.prompt.units) == ((96, 64), (2, 3))


def test_of_tokens_with_two_panels_the_answering_one_goes_on(models):
    """As a Sampler hands them out: the picture and its edit in one."""
    m = models["mgpt2"]
    request = ask(m, "edit", picture(64, 64), "a", size=(64, 64))
    events = generate(m.transformer, m.vocabulary, request.prompt, settings(m, "edit", image_top_k=20))
    [whole] = [e.grid for e in events if isinstance(e, PictureFinished)]
    image = Image.fromarray(m.decode(whole.split()[-1].codes))
    again = ask(m, "edit", image, "b", tokens=whole)
    assert again.prompt == ask(m, "edit", image, "b", tokens=whole.split()[-1]).prompt
    assert again.prompt.units == (4, 2) and again.placement.size == (64, 64)


def test_tokens_of_a_checkpoint_with_more_codes_are_refused_alike_everywhere(models):
    m = models["mgpt1"]
    foreign = TokenGrid(torch.full((4, 4), 100), "mgpt1")
    prompt = m.prompt("a", size=(64, 64))
    for use in (
        lambda: ask(m, "edit", picture(64, 64), "a", tokens=foreign),
        lambda: m.converse(["what is this?"], [foreign]),
        lambda: likelihoods(m, prompt, [foreign]),
        lambda: redraw(prompt, m.vocabulary, [foreign]),
        lambda: m.decode(foreign.codes),
    ):
        with pytest.raises(
            InputError, match=r"hold code 100; .* has 64 codes. Take the checkpoint that drew"
        ):
            use()


def test_the_working_size_follows_the_proportions(models):
    m = models["mgpt1"]
    assert working_size(m, "depth", picture(300, 100)) == nearest_size(300, 100, m.sizes())
    assert working_size(m, "depth", picture(10, 10), side=64) == (64, 64)
    two = models["mgpt2"]
    w, h = working_size(two, "depth", picture(10, 4000))
    assert h // 32 * 2 in two.vocabulary.grid and h > w
    with pytest.raises(InputError, match="resolution is 100; it may be a multiple of 32"):
        working_size(m, "depth", picture(10, 10), side=100)
    with pytest.raises(InputError, match="resolution is 160; .* from 32 to 128"):
        working_size(two, "depth", picture(10, 10), side=160)


def test_a_checkpoint_s_own_sizes_come_first(models):
    own = replace(models["mgpt2"], picture_sizes=((64, 64), (96, 64)))
    assert working_size(own, "depth", picture(400, 20)) == (96, 64)
    target = replace(models["mgpt1"], sampling={"target_size": 64})
    assert working_size(target, "depth", picture(50, 50)) == (64, 64)


def test_a_picture_nobody_gives_a_size_has_the_size_the_checkpoint_is_named_after(models):
    named = replace(models["mgpt1"], side=96)
    assert named.own_size() == (96, 96)
    assert replace(named, side=8192).own_size() == models["mgpt1"].own_size(), "one that fits the positions"
    assert replace(named, picture_sizes=((64, 32),)).own_size() == (64, 32)


def test_a_size_nobody_gives_leaves_room_for_every_panel(models):
    """With the numbers of the released 2.0: two panels of 768x768 would take 18,624 of its 10,240 positions."""
    m = models["mgpt2"]
    large = replace(m, side=768, vocabulary=replace(m.vocabulary, grid={n: n for n in range(1, 129)}))
    large.config = replace(m.config, max_position_embeddings=10240)
    assert (large.own_size(), large.own_size("pair_depth")) == ((768, 768), (512, 512))
    assert large.size_for("pair_depth", 0, 256) == (512, 256)
    own = replace(m, picture_sizes=((64, 192), (96, 64)))
    assert (own.own_size(), own.own_size("pair_depth")) == ((64, 192), (96, 64))


def test_the_wording_can_be_replaced(models):
    m = models["mgpt1"]
    asked = ask(m, "detect", picture(32, 32), "a cat", template="Where is {prompt}? <|image|>", size=(32, 32))
    assert asked.prompt.text == "Where is a cat? <|image|>"
    two = ask(models["mgpt2"], "depth", picture(32, 32), template="Map, {width}x{height}.", size=(32, 32))
    assert two.prompt.text == "Map, 32x64."
    assert m.prompt("", template="a cat").text == "a cat", (
        "words are needed only where the wording has a place"
    )
    with pytest.raises(InputError, match="The prompt is empty"):
        ask(m, "depth", picture(32, 32), template="Depth of {prompt}. <|image|>", size=(32, 32))
    with pytest.raises(InputError, match="places 2 pictures"):
        ask(m, "depth", picture(32, 32), template="<|image|> <|image|>", size=(32, 32))


@pytest.mark.parametrize(
    ("family", "task", "says"),
    [
        ("mgpt1", "edit", "The prompt is empty; say what to change"),
        ("mgpt1", "detect", "The prompt is empty; say what to find"),
        ("mgpt2", "edit", "The prompt is empty; say what to change"),
        ("mgpt2", "control_pose", "The prompt is empty; say what to draw"),
        ("mgpt1", "text_to_image", "'text_to_image' is not about one picture"),
        ("mgpt2", "normals", r"no task 'normals'; it has .* Load .*Lumina-mGPT-7B-768-Omni for it"),
        (
            "pure",
            "depth",
            r"no task 'depth'; it has restore. Load .*Lumina-mGPT-7B-768-Omni or Lumina-mGPT-2.0-Omni",
        ),
    ],
)
def test_what_cannot_be_asked_is_told_in_words(models, family, task, says):
    with pytest.raises(InputError, match=says):
        ask(models[family], task, picture(32, 32), " ")


def test_a_checkpoint_refuses_what_it_was_not_trained_on():
    says = (
        "'nano-mgpt2' was not trained on 'depth'; it has text_to_image. "
        "Load the bundled nano-mgpt1 or the bundled nano-mgpt2-omni"
    )
    with pytest.raises(InputError, match=says):
        ask(load("nano-mgpt2"), "depth", picture(64, 64))


@pytest.mark.parametrize(
    ("name", "can", "cannot"),
    [
        ("Lumina-mGPT-7B-1024", "describe", "depth"),
        ("Lumina-mGPT-7B-768-Omni", "depth", ""),
        ("my-finetune", "depth", ""),
    ],
)
def test_a_released_name_tells_the_tasks(tmp_path, name, can, cannot):
    model = load(ck.build(tmp_path / name, "mgpt1"))
    assert can in model.tasks and cannot not in model.tasks
    if cannot:
        with pytest.raises(
            InputError, match=f"'{name}' was not trained on '{cannot}'.*Lumina-mGPT-7B-768-Omni"
        ):
            model.prompt("", task=cannot, images=[picture(32, 32)])


def test_the_configuration_tells_tasks_sizes_and_settings(tmp_path):
    folder = ck.build(tmp_path / "m", "mgpt1")
    config = json.loads((folder / "config.json").read_text())
    own = {"cfg": 2.0, "tasks": {"depth": {"temperature": 0.0}, "edit": {"cfg": 3.0}}}
    config |= {"tasks": ["depth", "edit"], "picture_sizes": [[128, 128], [50, 50]], "sampling": own}
    (folder / "config.json").write_text(json.dumps(config))
    model = load(folder)
    assert model.tasks == ("depth", "edit", "denoise")  # to change nothing is an edit
    assert model.picture_sizes == ((128, 128),)
    assert (model.defaults_for("depth").cfg, model.defaults_for("depth").temperature) == (2.0, 0.0)
    assert model.defaults_for("denoise").cfg == model.defaults_for("edit").cfg == 3.0


def test_settings_that_are_not_given_are_the_task_s_own(models):
    m = models["mgpt1"]
    own = settings(m, "depth", seed=4, cfg=None)
    assert (own.seed, own.cfg, own.image_top_k, own.temperature) == (4, 1.0, 200, 1.0)
    assert settings(m, "depth", cfg=3.0).cfg == 3.0
    assert settings(models["mgpt2"], "depth").image_top_k == 4096


# Pictures of every kind


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", EXTREME)
def test_any_picture_gets_an_answer_of_its_size(models, channels, size):
    m, (width, height) = models["mgpt1"], size
    images = torch.rand(1, height, width, channels, generator=torch.Generator().manual_seed(1))
    images[0, 0, 0] = torch.nan
    [given] = from_tensor(images)
    request = ask(m, "depth", given, side=32)
    [panel] = drawn(m, request)
    assert request.place(m.decode(panel.codes)).shape == (height, width, 3)


def test_a_picture_beyond_all_bounds_is_refused(models):
    with pytest.raises(InputError, match="20000x1 pixels; a side may have 16384"):
        ask(models["mgpt1"], "depth", Image.new("RGB", (20000, 1)))


# Detection


def test_boxes_come_back_in_pixels_of_the_picture():
    """What the bundled image tokenizer makes of drawn frames still gives the boxes of the scene."""
    m = load("nano-mgpt2")
    hits = total = 0
    for n in range(8):
        scene = world.scene("held-out", n, 64, 64)
        frames = np.zeros((64, 64, 3), np.uint8)
        for left, top, right, bottom in (map(int, box) for box in world.boxes(scene)):
            frames[top:bottom, left:right] = (0, 255, 0)
            frames[top + 3 : bottom - 3, left + 3 : right - 3] = 0
        large = Image.fromarray(world.picture(scene)).resize((256, 128), Image.Resampling.BICUBIC)
        request = replace(
            ask(replace(m, trained=None), "depth", large),
            placement=Placement((256, 128), (64, 64), "stretch"),
        )
        found = detections(m, [(request, m.encode(Image.fromarray(frames)))], "thing")
        truth = [(4 * a, 2 * b, 4 * c, 2 * d) for a, b, c, d in world.boxes(scene)]
        said = json.loads(found.json())[0]
        assert (said["width"], said["height"]) == (256, 128)
        total += len(truth)
        for a, b, c, d in truth:
            overlaps = []
            for box in said["boxes"]:
                x, y, z, w = box["box"]
                shared = max(0, min(c, z) - max(a, x)) * max(0, min(d, w) - max(b, y))
                overlaps.append(shared / ((c - a) * (d - b) + (z - x) * (w - y) - shared))
            hits += max(overlaps, default=0) > 0.6
        assert found.masks().shape == (1, 128, 256) and found.drawn()[0].shape == (128, 256, 3)
    assert hits / total >= 0.85


def test_boxes_lie_on_the_things_where_the_middle_was_cut_out(models, monkeypatch):
    m, wide, compared = models["mgpt1"], picture(256, 128), []
    monkeypatch.setattr(boxes, "drawn_boxes", lambda *both: compared.append(both) or [Box(48, 32, 112, 96)])
    request = ask(m, "detect", wide, "x", size=(128, 128), fit="crop")
    drawn = m.encode(Image.new("RGB", (128, 128), "red"))
    found = detections(m, [(request, drawn)], "x")
    assert found.boxes == ((Box(112, 32, 176, 96),),)
    seen = m.encode(wide.crop((64, 0, 192, 128)))
    assert np.array_equal(compared, [[m.decode(drawn.codes), m.decode(seen.codes)]])


def test_boxes_lie_inside_a_picture_of_a_few_pixels():
    m = load("nano-mgpt1")
    frames = np.zeros((128, 128, 3), np.uint8)
    frames[80:128, 80:128] = (0, 255, 0)
    request = ask(m, "detect", Image.new("RGB", (2, 1), "gray"), "thing", size=(128, 128))
    found = detections(m, [(request, m.encode(Image.fromarray(frames)))], "thing")
    assert [box["box"] for box in json.loads(found.json())[0]["boxes"]] == [[1, 0, 2, 1]]
    assert found.masks().tolist() == [[[0.0, 1.0]]]
