"""`python -m lumina_core task`: every task from a file to a file, at the picture's size; mistakes in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from lumina_core import PictureFinished, generate, load, settings
from lumina_core.training import world
from tests.core import checkpoints as ck
from tests.core.test_cli import on_terminal, refused_with, run


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {f: ck.build(tmp_path_factory.mktemp(f) / "m", f) for f in ("mgpt1", "mgpt2")}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three files: a colour picture, a grey one, one with transparency."""
    folder = tmp_path_factory.mktemp("pictures")
    y, x = np.mgrid[:50, :70]
    values = np.stack([x * 3, y * 5, 0 * x + 60, 255 - x * 3], -1).astype(np.uint8)
    files = [folder / f"{mode}.png" for mode in ("RGB", "L", "RGBA")]
    for file in files:
        Image.fromarray(values, "RGBA").convert(file.stem).save(file)
    return files


@pytest.mark.parametrize(
    ("family", "name"),
    [("mgpt1", n) for n in ("depth", "segment", "normals", "pose", "edit", "denoise", "control")]
    + [("mgpt2", n) for n in ("depth", "pose", "canny", "hed", "edit", "control")],
)
def test_a_task_writes_a_picture_of_the_picture_s_size(folders, pictures, tmp_path, capsys, family, name):
    out = tmp_path / "out.png"
    common = ("task", name, "--model", folders[family], "--image", pictures[0], "--prompt", "a cat")
    assert run(*common, "--size", "64x64", "--out", out) == 0
    assert capsys.readouterr().out.strip() == str(out)
    with Image.open(out) as picture:
        assert picture.size == (70, 50)
        told = json.loads(picture.text["lumina_mgpt"])
    assert told["task"].startswith(name) and told["prompt"] == "a cat"
    if name == "depth":
        assert (told["cfg"], told["image_top_k"]) == {"mgpt1": (1.0, 200), "mgpt2": (4.0, 4096)}[family]


def test_every_part_of_a_task_has_its_bar(folders, pictures, tmp_path, monkeypatch):
    terminal = on_terminal(monkeypatch)
    options = ("--image", pictures[0], "--size", "32x32", "--out", tmp_path / "a.png")
    assert run("task", "depth", "--model", folders["mgpt1"], *options) == 0
    labels = ("loading", "encoding", "drawing", "decoding")
    assert all(label in terminal.getvalue() for label in labels) and terminal.lines() == []


def test_the_size_it_works_at_follows_the_resolution_and_may_be_kept(folders, pictures, tmp_path):
    out = tmp_path / "a.png"
    options = ("--image", pictures[0], "--resolution", 64, "--text-top-k", 3, "--out", out)
    for kept in (True, False):
        how = "--keep-size" if kept else "--no-keep-size"
        assert run("task", "depth", "--model", folders["mgpt1"], *options, how) == 0
        with Image.open(out) as picture:
            width, height = picture.size
            assert (width, height) == (70, 50) if kept else width * height <= 64 * 64 and width % 32 == 0
            assert json.loads(picture.text["lumina_mgpt"])["text_top_k"] == 3


def test_several_pictures_and_a_batch_are_numbered(folders, pictures, tmp_path):
    images = [part for file in pictures for part in ("--image", file)]
    options = ("--prompt", "x", "--size", "32x32", "--batch", 2, "--out", tmp_path / "a.png")
    assert run("task", "edit", "--model", folders["mgpt1"], *images, *options) == 0
    assert sorted(p.name for p in tmp_path.glob("*.png")) == [f"a_{i:02d}.png" for i in range(6)]


def test_detect_writes_its_boxes_as_json(tmp_path, capsys):
    circle = world.Object("circle", "red", "in the center", "large", 70, 60, 28)
    scene = world.Scene(128, 128, "white", (circle,), (False,))
    file, out = tmp_path / "in.png", tmp_path / "found.png"
    Image.fromarray(world.picture(scene)).resize((256, 128)).save(file)
    options = ("--image", file, "--prompt", "red circle", "--size", "128x128", "--out", out)
    assert run("task", "detect", "--model", "nano-mgpt1", *options) == 0
    [said] = json.loads(out.with_suffix(".json").read_text())
    assert (said["width"], said["height"]) == (256, 128)
    assert json.loads(capsys.readouterr().out.splitlines()[0]) == [said]
    [box] = said["boxes"]
    assert box["label"] == "red circle" and np.allclose(box["box"], (84, 32, 196, 88), atol=12), box


def test_a_subject_has_the_size_asked_for_and_a_pair_is_two_pictures(folders, pictures, tmp_path):
    options = ("--model", folders["mgpt2"], "--prompt", "on a beach", "--size", "96x64")
    subject = ("--image", pictures[2], "--subject", "a clock", "--out", tmp_path / "s.png")
    assert run("task", "subject", *options, *subject) == 0
    assert run("task", "pair", *options, "--kind", "pose", "--out", tmp_path / "p.png") == 0
    for name in ("s.png", "p_00.png", "p_01.png"):
        assert Image.open(tmp_path / name).size == (96, 64)


def test_pairs_of_a_batch_come_as_picture_map_picture_map(folders, tmp_path):
    options = ("--prompt", "a", "--size", "64x64", "--kind", "pose", "--batch", 2, "--seed", 3)
    assert run("task", "pair", "--model", folders["mgpt2"], *options, "--out", tmp_path / "p.png") == 0
    model = load(folders["mgpt2"])
    prompt = model.prompt("a", task="pair_pose", size=(64, 64))
    sampling = settings(model, "pair_pose", seed=3, batch=2)
    events = generate(model.transformer, model.vocabulary, prompt, sampling)
    grids = {event.index: event.grid for event in events if isinstance(event, PictureFinished)}
    for n in range(4):
        panel = grids[n // 2].split()[n % 2]
        assert np.array_equal(Image.open(tmp_path / f"p_{n:02d}.png"), model.decode(panel.codes))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("depth", (), "Task 'depth' needs a picture: --image FILE"),
        ("pair", ("--image", "RGB"), "draws from words and takes no --image"),
        ("depth", ("--image", "nowhere.png"), "--image: there is no file 'nowhere.png'"),
        ("depth", ("--image", "TEXT"), "cannot be read as a picture"),
        ("depth", ("--image", "RGB", "--out", "a.jpg"), "--out is 'a.jpg'"),
        ("edit", ("--image", "RGB"), "The prompt is empty; say what to change"),
        ("normals", ("--image", "RGB"), "has no task 'normals'; .* Load .*Omni for it"),
        ("depth", ("--image", "RGB", "--size", "64x40"), "height is 40"),
        ("depth", ("--image", "RGB", "--resolution", "40"), "resolution is 40"),
        ("depth", ("--image", "RGB", "--resolution", "64", "--size", "64x64"), "give one of them"),
        ("pair", ("--prompt", "a cat", "--resolution", "64"), "'pair' is given none; give --size"),
        ("depth", ("--image", "RGB", "--lora", "none.safetensors"), "There is no LoRA 'none.safetensors'"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    folders, pictures, tmp_path, monkeypatch, capsys, name, options, words
):
    monkeypatch.chdir(tmp_path)
    text = pictures[0].with_name("text.png")
    text.write_text("no picture")
    named = {"RGB": str(pictures[0]), "TEXT": str(text)}
    assert run("task", name, "--model", folders["mgpt2"], *(named.get(o, o) for o in options)) == 2
    refused_with(capsys, words)
    assert not list(tmp_path.iterdir())
