"""The command line, run as a user runs it: pictures on good input, one line and status 2 on bad."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lumina_core import commands
from lumina_core.cli import main
from lumina_core.prompts import Template
from lumina_core.training.measures import nearest_names

ROOT = Path(__file__).parent.parent.parent
RED = "a red circle"


def run(*args: object) -> int:
    return main([str(a) for a in args])


def test_generate_draws_a_png_that_tells_its_settings(tiny_folder, tmp_path, capsys):
    out = tmp_path / "a.png"
    assert (
        run("generate", "a red circle", "--model", tiny_folder, "--size", "96x64", "--seed", 7, "--out", out)
        == 0
    )
    assert capsys.readouterr().out.strip() == str(out)
    with Image.open(out) as picture:
        assert picture.size == (96, 64)
        told = json.loads(picture.text["lumina_mgpt"])
    assert (told["prompt"], told["seed"]) == ("a red circle", 7)


def test_a_batch_holds_the_pictures_drawn_alone(tiny_folder, tmp_path):
    common = ("generate", "a red circle", "--model", tiny_folder, "--size", "64x64")
    assert run(*common, "--seed", 7, "--batch", 3, "--out", tmp_path / "b.png") == 0
    assert run(*common, "--seed", 8, "--out", tmp_path / "alone.png") == 0
    assert sorted(p.name for p in tmp_path.glob("b*")) == ["b_00.png", "b_01.png", "b_02.png"]
    second, alone = (np.asarray(Image.open(tmp_path / n)) for n in ("b_01.png", "alone.png"))
    assert np.array_equal(second, alone)
    told = [json.loads(Image.open(tmp_path / f"b_{n:02d}.png").text["lumina_mgpt"])["seed"] for n in range(3)]
    assert told == [7, 8, 9]


class Terminal(io.StringIO):
    """Takes what is written to a terminal."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """What stands there in the end, empty lines left out."""
        rows = []
        for written in self.getvalue().split("\n"):
            row = ""
            for over in written.split("\r"):
                row = over + row[len(over) :]
            rows.append(row.strip())
        return [row for row in rows if row]


def on_terminal(monkeypatch) -> Terminal:
    """Standard error from now on, where progress bars are shown without delay."""
    monkeypatch.setattr(commands, "PATIENCE", 0)
    monkeypatch.setattr(sys, "stderr", there := Terminal())
    return there


def test_loading_and_drawing_have_their_bars_and_leave_nothing(tiny_folder, tmp_path, monkeypatch):
    terminal = on_terminal(monkeypatch)
    out = tmp_path / "a.png"
    assert run("generate", RED, "--model", tiny_folder, "--size", "64x64", "--out", out) == 0
    assert all(label in terminal.getvalue() for label in ("loading", "drawing", "decoding"))
    assert terminal.lines() == []


def test_conformance_has_a_bar_that_its_lines_are_not_mixed_with(tmp_path, monkeypatch):
    terminal = on_terminal(monkeypatch)
    cases = [{"id": n, "kind": "crop_size_list", "family": "none", "files": {}} for n in range(3)]
    (tmp_path / "index.json").write_text(json.dumps({"cases": cases}), "utf-8")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert run("conformance", tmp_path) == 1
    assert "checking" in terminal.getvalue()
    assert [line.split()[0] for line in terminal.lines()] == ["FAILED"] * 3 + ["0"]


def broken(tiny_folder: Path, folder: Path, name: str) -> Path:
    """A copy of the checkpoint with one fault."""
    shutil.copytree(tiny_folder, folder)
    weights = folder / "model.safetensors"
    if name == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif name == "missing weights":
        weights.unlink()
    elif name == "missing tokenizer":
        (folder / "tokenizer.json").unlink()
    elif name == "missing image tokenizer":
        (folder / "movqgan.safetensors").unlink()
    elif name == "not JSON":
        (folder / "config.json").write_text("{", "utf-8")
    elif name == "another model":
        (folder / "config.json").write_text('{"model_type": "llama", "vocab_size": 32000}', "utf-8")
        from safetensors.torch import load_file, save_file

        save_file({k.replace("q_norm", "x_norm"): v for k, v in load_file(weights).items()}, weights)
    return folder


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("truncated", "model.safetensors is cut short"),
        ("missing weights", r"lacks model\*\.safetensors\. Download them"),
        ("missing tokenizer", "tokenizer.json is missing"),
        ("missing image tokenizer", "image tokenizer .* is missing"),
        ("not JSON", "cannot be read as JSON"),
        ("another model", "of another kind .llama., not a Lumina-mGPT checkpoint"),
    ],
)
def test_a_faulty_checkpoint_gets_one_line_and_status_2(tiny_folder, tmp_path, capsys, fault, words):
    folder = broken(tiny_folder, tmp_path / "copy", fault)
    out = tmp_path / "a.png"
    assert run("generate", "a red circle", "--model", folder, "--out", out) == 2
    refused_with(capsys, words)
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--size", "64x40"), "height is 40; it must be a multiple of 32"),
        (("--model", "no-such-model"), "no checkpoint 'no-such-model'"),
        (("--cfg", "nan"), "cfg is nan"),
        (("--batch", "0"), "batch is 0"),
        (("--decode", "warp"), "decode is 'warp'"),
        (("--window", "0"), "window is 0"),
        (("--out", "picture.jpg"), "--out is 'picture.jpg'"),
        (("--device", "warp:0"), "--device warp:0"),
    ],
)
def test_a_bad_option_gets_one_line_and_status_2(tiny_folder, tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    model = () if "--model" in options else ("--model", tiny_folder)
    assert run("generate", "a red circle", *model, *options) == 2
    refused_with(capsys, words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["~no-such-user/x", "x" * 300])
@pytest.mark.parametrize(
    "words",
    [
        ("generate", RED, "--model"),
        ("generate", RED, "--model", "nano-mgpt2", "--vq"),
        ("generate", RED, "--model", "nano-mgpt2", "--lora"),
        ("inspect",),
        ("conformance",),
        ("download", "PURE"),
        ("describe", "--image"),
        ("train", "nano-mgpt2", "--start-from"),
    ],
)
def test_a_path_that_can_be_none_gets_one_line_and_status_2(tmp_path, monkeypatch, capsys, words, path):
    monkeypatch.chdir(tmp_path)
    assert run(*words, path) == 2
    refused_with(capsys, path)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "required: VERB"),
        (("paint",), "invalid choice: 'paint'"),
        (("generate", RED, "--size", "big"), "'big' is no size; write WIDTHxHEIGHT"),
        (("task", "fly"), "invalid choice: 'fly'"),
        (("train", "nano-mgpt2", "--threads", "many"), "invalid int value: 'many'"),
    ],
)
def test_what_is_no_option_gets_one_line_and_status_2(capsys, words, says):
    with pytest.raises(SystemExit) as ended:
        run(*words)
    assert ended.value.code == 2
    refused_with(capsys, rf"^error: .*{says}.* \(see `python -m lumina_core.* --help`\)$")


def test_too_few_threads_get_one_line_and_status_2(tmp_path, capsys):
    assert run("train", "nano-mgpt2", "--threads", -1, "--out", tmp_path / "run") == 2
    refused_with(capsys, "--threads is -1; it may be 0")


def test_a_lora_for_random_weights_gets_one_line_and_status_2(capsys):
    assert run("bench", "--random", "pure", "--lora", "style.safetensors") == 2
    refused_with(capsys, "--lora changes a checkpoint's weights")


def test_what_the_system_refuses_gets_one_line_and_status_2(monkeypatch, capsys):
    def refused(*args):
        raise PermissionError(13, "Permission denied", "secret.png")

    monkeypatch.setattr(commands, "run_inspect", refused)
    assert run("inspect", "any") == 2
    refused_with(capsys, r"^error: 'secret.png' cannot be used \(Permission denied\)")


def test_whoever_stops_reading_is_not_told_of_it():
    command = [sys.executable, "-m", "lumina_core", "inspect", "nano-mgpt2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as program:
        program.stdout.close()
        assert (program.stderr.read(), program.wait(timeout=60)) == ("", 1)


def test_an_empty_prompt_gets_one_line_and_status_2(tiny_folder, tmp_path, capsys):
    assert run("generate", " ", "--model", tiny_folder, "--out", tmp_path / "a.png") == 2
    refused_with(capsys, "prompt is empty")


def refused_with(capsys, words: str) -> None:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert re.search(words, lines[0]), lines[0]


def test_the_program_starts_as_a_module_and_shows_its_verbs():
    done = subprocess.run(
        [sys.executable, "-m", "lumina_core", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert {"demo", "generate", "train"} <= set(done.stdout.split())


def test_inspect_tells_what_a_checkpoint_is_and_fails_on_an_incomplete_one(tiny_folder, tmp_path, capsys):
    assert run("inspect", tiny_folder) == 0
    said = capsys.readouterr().out
    assert "Lumina-mGPT 2.0" in said
    assert "memory" in said.lower()
    assert run("inspect", broken(tiny_folder, tmp_path / "copy", "missing image tokenizer")) == 2
    assert "movqgan" in capsys.readouterr().out


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_letters_that_a_pipe_lacks_are_spelled_out(tiny_folder, tmp_path, monkeypatch, stream):
    pipe = io.TextIOWrapper(io.BytesIO(), "cp1252")
    monkeypatch.setattr(sys, stream, pipe)
    folder = tmp_path / "Füße модель"
    if stream == "stdout":
        shutil.copytree(tiny_folder, folder)
    assert run("inspect", folder) == (0 if stream == "stdout" else 2)
    pipe.flush()
    assert rf"Füße {'модель'.encode('unicode-escape').decode()}" in pipe.buffer.getvalue().decode("cp1252")


def test_a_converted_file_draws_the_picture_of_its_folder(tiny_folder, tmp_path, capsys):
    one = tmp_path / "one.safetensors"
    assert run("convert", tiny_folder, one) == 0
    for model, out in ((tiny_folder, "a.png"), (one, "b.png")):
        assert (
            run("generate", "a red circle", "--model", model, "--size", "64x64", "--out", tmp_path / out) == 0
        )
    a, b = (np.asarray(Image.open(tmp_path / n)) for n in ("a.png", "b.png"))
    assert np.array_equal(a, b)


@pytest.mark.parametrize("decode", ["ar", "jacobi"])
def test_the_seed_exact_modes_draw_one_picture(tiny_folder, tmp_path, decode):
    out = tmp_path / "a.png"
    common = (
        "generate",
        "a red circle",
        "--model",
        tiny_folder,
        "--size",
        "64x64",
        "--seed",
        2,
        "--out",
        out,
    )
    assert run(*common) == 0
    default = np.asarray(Image.open(out))
    assert run(*common, "--decode", decode, "--window", 8) == 0
    assert np.array_equal(np.asarray(Image.open(out)), default)


def test_conformance_ends_with_a_line_of_counts(capsys):
    golden = ROOT / "tests" / "data" / "golden"
    assert run("conformance", golden) == 0
    assert re.fullmatch(r"[1-9]\d* passed, 0 failed.*", capsys.readouterr().out.strip().splitlines()[-1])


def test_a_file_of_prompts_is_drawn_once_and_resumed(tiny_folder, tmp_path, capsys):
    file, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    file.write_text(
        '{"prompt": "a red circle", "seed": 1}\n{"prompt": "a blue square", "name": "two"}\n', "utf-8"
    )
    common = ("generate", "--prompts", file, "--model", tiny_folder, "--size", "64x64", "--out", out)
    assert run(*common) == 0
    assert len(list(out.glob("*.png"))) == 2
    assert (out / "two.png").exists()
    assert run(*common) == 0
    assert capsys.readouterr().out.strip().endswith("2 were there already")


def test_generate_without_words_says_what_to_give(capsys):
    assert run("generate") == 2
    refused_with(capsys, "give a PROMPT, or --prompts")


def test_the_examples_of_the_readme_and_of_an_empty_prompt_are_drawn_as_they_say(tmp_path):
    line = re.search(r'`(\{"prompt": .*?\})`', (ROOT / "README.md").read_text("utf-8"))[1]
    advised = re.search("'(.+)'", Template("any", "").asks)[1]
    file, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    file.write_text(f"{line}\n{json.dumps({'prompt': advised})}\n", "utf-8")
    assert run("generate", "--prompts", file, "--out", out) == 0
    for picture in sorted(out.iterdir()):
        seen = nearest_names(np.asarray(Image.open(picture)))
        middle, corner = seen[len(seen) // 2, len(seen[0]) // 2], seen[2, -3]
        assert (middle, corner) == ("red", "white"), picture.name
