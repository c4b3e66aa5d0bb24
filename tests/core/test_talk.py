"""The verbs restore, describe and chat: files and text on good input, one line and status 2 on bad."""

from __future__ import annotations

import io
import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lumina_core import (
    Answered,
    AnswerFinished,
    PictureFinished,
    Progress,
    RowFinished,
    Sampling,
    TextPiece,
    TokenGrid,
    generate,
    load,
    talk,
)
from lumina_core.cli import main, say
from lumina_core.training import measures, world
from tests.core import checkpoints as ck
from tests.core.test_cli import on_terminal, refused_with


def run(*args: object) -> int:
    return main([str(a) for a in args])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("talk")
    return {
        "pure": ck.build(base / "pure", "pure", max_position_embeddings=300),
        "mgpt1": ck.build(base / "mgpt1", "mgpt1"),
        "mgpt2": ck.build(base / "mgpt2", "mgpt2"),
        "image": save(base / "in.png", Image.new("RGB", (30, 20), "red")),
    }


def save(file, picture):
    picture.save(file)
    return file


def test_restore_writes_the_picture_and_its_plan_and_tells_the_tiles(folders, tmp_path, capsys):
    out, plan = tmp_path / "new" / "a.png", tmp_path / "plan.png"
    common = ("restore", "--image", folders["image"], "--model", folders["pure"], "--scale", "2")
    assert run(*common, "--out", out, "--plan", plan) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-2:] == [str(out), str(plan)]
    assert len([line for line in said if re.match(r"tile \d+ \(x \d+-\d+, y \d+-\d+\): ", line)]) == 6
    pixels = np.asarray(Image.open(out))
    assert {"lora", "precision"} <= json.loads(Image.open(out).text["lumina_mgpt"]).keys()
    assert pixels.shape == np.asarray(Image.open(plan)).shape == (40, 60, 3)
    assert run(*common, "--out", tmp_path / "b.png", "--seed", 1) == 0
    assert not np.array_equal(pixels, np.asarray(Image.open(tmp_path / "b.png")))


def test_every_part_of_a_restoration_has_its_bar(folders, tmp_path, monkeypatch):
    terminal = on_terminal(monkeypatch)
    common = ("restore", "--image", folders["image"], "--model", folders["pure"], "--scale", "2")
    assert run(*common, "--out", tmp_path / "a.png") == 0
    assert all(label in terminal.getvalue() for label in ("loading", "encoding", "restoring", "decoding"))
    assert terminal.lines() == []


def test_a_bar_stands_below_the_words_and_is_gone_before_more_come(monkeypatch):
    terminal = on_terminal(monkeypatch)

    def piece(text: str) -> TextPiece:
        return TextPiece(0, tuple(map(ord, text)))

    picture = [Progress(1, 9), RowFinished(None, (1, 1)), Progress(9, 9), PictureFinished(0, None)]
    events = [piece("Here it is:"), *picture, piece("Like "), piece("it?"), AnswerFinished(0, (), "stop")]
    monkeypatch.setattr(talk, "generate", lambda *args: iter(events))
    monkeypatch.setattr(sys, "stdout", terminal)
    words = SimpleNamespace(decode=lambda ids: "".join(map(chr, ids)))
    letters = SimpleNamespace(size_of=lambda token: None)
    model = SimpleNamespace(tokenizer=words, transformer=None, vocabulary=letters)
    talk.written(model, None, None, say)
    assert "drawing" in terminal.getvalue()
    assert terminal.lines() == ["Here it is:", "Like it?"]


def test_a_question_is_answered_on_standard_output(folders, tmp_path, capsys):
    common = ("chat", "--model", folders["mgpt1"], "--max-tokens", 20, "--out", tmp_path)
    assert run(*common, "--image", folders["image"], "what is this?") == 0
    first = capsys.readouterr().out
    assert first.strip()
    assert run(*common, "--image", folders["image"], "what is this?") == 0
    assert capsys.readouterr().out == first
    assert run(*common, "what is this?") == 0
    assert capsys.readouterr().out != first, "the answer follows from the picture"


def test_each_picture_is_described_alone_by_what_it_shows(tmp_path, capsys):
    """Held-out scenes; the bundled checkpoint names every object of nearly all (its card)."""
    right = 0
    for n in range(6):
        scene = world.scene("held-out", n, 128, 128)
        file = save(tmp_path / f"{n}.png", Image.fromarray(world.picture(scene)))
        assert run("describe", "--image", file, "--image", file) == 0
        first, second = capsys.readouterr().out.splitlines()
        assert first == second
        right += measures.names_every_object(scene, first)
    assert right >= 4


def test_a_checkpoint_that_describes_nothing_says_so(folders, capsys):
    assert run("describe", "--image", folders["image"], "--model", folders["mgpt2"]) == 2
    refused_with(capsys, "has no task 'describe'")


def test_without_a_question_the_terminal_is_asked_until_an_empty_line(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("what is this?\nand now?\n\nnot asked\n"))
    assert run("chat", "--model", folders["mgpt1"], "--max-tokens", 8, "--out", tmp_path) == 0
    two = capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO("what is this?\n"))
    assert run("chat", "--model", folders["mgpt1"], "--max-tokens", 8, "--out", tmp_path) == 0
    one = capsys.readouterr().out
    assert two.startswith(one) and len(two) > len(one)


def test_a_question_follows_what_was_said_and_shown_before(folders, tmp_path, monkeypatch):
    asked = []

    def noted(transformer, vocabulary, prompt, sampling):
        asked.append(prompt)
        return generate(transformer, vocabulary, prompt, sampling)

    monkeypatch.setattr(talk, "generate", noted)
    monkeypatch.setattr("sys.stdin", io.StringIO("what is this?\nand now?\n"))
    common = ("chat", "--model", folders["mgpt1"], "--max-tokens", 8, "--out", tmp_path)
    assert run(*common, "--image", folders["image"]) == 0
    first, second = (prompt.tokens for prompt in asked)
    vocabulary = load(folders["mgpt1"]).vocabulary
    assert len(vocabulary.pictures(first)) == len(vocabulary.pictures(second)) == 1
    assert second[: len(first)] == first and second.count(vocabulary.separator) >= 3


def test_every_picture_of_a_conversation_has_a_file_of_its_own(folders, tmp_path, monkeypatch):
    model, said = load(folders["mgpt1"]), []

    def two_pictures(*_):
        answer = Answered(model)
        for code in (1, 2):
            answer.note(PictureFinished(0, TokenGrid(torch.full((4, 4), code), "mgpt1")))
        return answer

    monkeypatch.setattr(talk, "written", two_pictures)
    conversation = talk.Talk(model, Sampling(), tmp_path, lambda text: said.append(text), {})
    for question in ("draw", "again"):
        conversation.turn(question, [])
    assert said == [str(tmp_path / f"picture_{n:02d}.png") for n in range(4)]
    assert sorted(map(str, tmp_path.iterdir())) == said


def test_a_bad_question_does_not_end_the_conversation(folders, tmp_path, capsys, monkeypatch):
    common = ("chat", "--model", folders["mgpt1"], "--max-tokens", 8, "--out", tmp_path)
    assert run(*common, "and this?") == 0
    alone = capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO("what is <|image|>?\nand this?\n"))
    assert run(*common) == 0
    said = capsys.readouterr()
    assert said.out == alone and said.err.startswith("error: The question places 1 picture")


@pytest.mark.parametrize(
    ("verb", "options", "words"),
    [
        ("restore", ("--model", "mgpt2"), "has no task 'restore'"),
        ("restore", ("--model", "pure", "--scale", "99"), "scale is 99"),
        ("restore", ("--model", "pure", "--color-fix", "no"), "color_fix is 'no'"),
        ("restore", ("--model", "pure", "--out", "a.jpg"), "'a.jpg' is no PNG"),
        ("restore", ("--model", "pure", "--image", "none.png"), "no file 'none.png'"),
        ("chat", ("--model", "mgpt2", "hello"), "has no task 'chat'"),
        ("chat", ("--model", "mgpt1", " "), "question is empty"),
        ("chat", ("--model", "mgpt1", "--lora", "none.safetensors", "hello"), "There is no LoRA"),
        ("chat", ("--model", "mgpt1", "--text-top-k", "-1", "hello"), "text_top_k is -1"),
        ("restore", ("--model", "pure", "--lora", "none.safetensors"), "There is no LoRA"),
        ("chat", ("--model", "mgpt1", "--image", __file__, "hello"), "cannot be read as a picture"),
    ],
)
def test_a_mistake_gets_one_line_and_status_2(folders, tmp_path, monkeypatch, capsys, verb, options, words):
    monkeypatch.chdir(tmp_path)
    image = ("--image", folders["image"]) if verb == "restore" else ()
    assert run(verb, *image, *(folders.get(o, o) for o in options)) == 2
    refused_with(capsys, words)
    assert not list(tmp_path.iterdir())
