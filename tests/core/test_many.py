"""Many pictures from a file: every bad line is refused by number and key, batches change nothing, and it resumes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lumina_core import InputError, PictureFinished, Sampling, generate, many

PLAIN = Sampling(seed=3, cfg=1.0, image_top_k=20, decode="ar")
RED, BLUE = "a red circle", "a blue square"


def write(folder: Path, *lines: dict | str) -> Path:
    file = folder / "prompts.jsonl"
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    file.write_text("\n".join(text) + "\n", "utf-8")
    return file


def run(model, tmp_path, *lines, out="out", **options) -> many.Done:
    return many.run(model, write(tmp_path, *lines), tmp_path / out, PLAIN, size=(32, 32), **options)


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture)


def told(file: Path) -> dict:
    with Image.open(file) as picture:
        return json.loads(picture.text["lumina_mgpt"])


def alone(model, text: str, sampling: Sampling, size=(32, 32)) -> np.ndarray:
    for event in generate(model.transformer, model.vocabulary, model.prompt(text, size=size), sampling):
        if isinstance(event, PictureFinished):
            return model.decode(event.grid.codes)


def test_pictures_are_named_after_their_lines_and_tell_prompt_and_settings(tiny_model, tmp_path):
    lines = ({"prompt": RED}, "", {"prompt": BLUE, "name": "sky", "seed": 9, "cfg": 2, "size": "64x32"})
    done = run(tiny_model, tmp_path, *lines)
    assert [f.name for f in done.drawn] == ["000001.png", "sky.png"]
    first, second = map(told, done.drawn)
    assert (first["prompt"], first["seed"], first["cfg"], first["size"]) == (RED, 3, 1.0, "32x32")
    assert (second["seed"], second["cfg"], second["size"]) == (9, 2, "64x32")
    assert {"model", "task", *(f.name for f in dataclasses.fields(Sampling))} <= set(first)
    assert pixels(done.drawn[1]).shape == (32, 64, 3)


def test_a_picture_of_a_batch_is_the_one_drawn_alone(tiny_model, tmp_path):
    lines = [{"prompt": RED, "seed": s} for s in (5, 4, 6, 40)] + [{"prompt": BLUE, "seed": 5}]
    done = run(tiny_model, tmp_path, *lines)
    assert len(done.drawn) == 5
    for number, line in enumerate(lines, 1):
        sampling = dataclasses.replace(PLAIN, seed=line["seed"])
        assert np.array_equal(
            pixels(tmp_path / "out" / f"{number:06d}.png"), alone(tiny_model, line["prompt"], sampling)
        )


def passes(model, call) -> int:
    count = []
    handle = model.transformer.register_forward_hook(lambda *_: count.append(1))
    call()
    handle.remove()
    return len(count)


def test_seeds_in_a_row_share_their_passes(tiny_model, tmp_path):
    one = passes(tiny_model, lambda: run(tiny_model, tmp_path, {"prompt": RED}, out="one"))
    row = [{"prompt": RED, "seed": s} for s in range(3)]
    assert passes(tiny_model, lambda: run(tiny_model, tmp_path, *row, out="row")) == one
    assert passes(tiny_model, lambda: run(tiny_model, tmp_path, *row, out="single", at_once=1)) == 3 * one
    batch = {"prompt": RED, "batch": 3, "seed": 0}
    assert passes(tiny_model, lambda: run(tiny_model, tmp_path, batch, out="batch")) == one
    names = sorted(p.name for p in (tmp_path / "batch").iterdir())
    assert names == ["000001_00.png", "000001_01.png", "000001_02.png"]
    for i, name in enumerate(names):
        assert np.array_equal(
            pixels(tmp_path / "batch" / name), pixels(tmp_path / "row" / f"{i + 1:06d}.png")
        )


def test_it_resumes_with_what_lacks_or_was_drawn_otherwise(tiny_model, tmp_path):
    lines = [{"prompt": RED, "seed": s} for s in range(3)]
    first = run(tiny_model, tmp_path, *lines)
    kept = first.drawn[0].stat().st_mtime_ns
    first.drawn[1].unlink()
    lines[2]["temperature"] = 0.5
    again = run(tiny_model, tmp_path, *lines, {"prompt": BLUE})
    assert [f.name for f in again.drawn] == ["000002.png", "000004.png", "000003.png"]
    assert again.skipped == 1
    assert first.drawn[0].stat().st_mtime_ns == kept
    assert told(first.drawn[2])["temperature"] == 0.5
    assert run(tiny_model, tmp_path, *lines, {"prompt": BLUE}) == many.Done((), 4, ())


def test_what_was_stopped_in_the_middle_goes_on_there(tiny_model, tmp_path):
    lines = [{"prompt": RED, "seed": s} for s in (1, 5, 9)]

    def stop(done, total, text):
        if text.startswith("picture 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, tmp_path, *lines, report=stop)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["000001.png"]
    assert run(tiny_model, tmp_path, *lines).skipped == 1


def test_a_foreign_file_in_the_way_is_not_touched(tiny_model, tmp_path):
    mine = tmp_path / "out" / "000001.png"
    mine.parent.mkdir()
    Image.new("RGB", (4, 4)).save(mine)
    before = mine.read_bytes()
    with pytest.raises(InputError, match="stands in the way"):
        run(tiny_model, tmp_path, {"prompt": RED})
    assert mine.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "no JSON"),
        ("[1]", "no JSON object"),
        ("{}", "'prompt' is missing"),
        ({"prompt": "  "}, "prompt is empty"),
        ({"prompt": 3}, "'prompt' is 3; it must be a text"),
        ({"prompt": RED, "sise": "32x32"}, "key 'sise' is not known; there is prompt, size"),
        ({"prompt": RED, "size": "32"}, "'size' is \"32\""),
        ({"prompt": RED, "size": 32}, "'size' is 32"),
        ({"prompt": RED, "size": "40x32"}, "width is 40"),
        ({"prompt": RED, "size": "1024x1024"}, "'size' takes .* tokens"),
        ({"prompt": RED, "seed": 1.5}, "'seed' is 1.5; it must be a whole number"),
        ({"prompt": RED, "seed": True}, "'seed' is true"),
        ({"prompt": RED, "cfg": "3"}, "'cfg' is \"3\"; it must be a number"),
        ('{"prompt": "x", "cfg": NaN}', "cfg is nan"),
        ({"prompt": RED, "temperature": -1}, "temperature is -1"),
        ({"prompt": RED, "decode": "warp"}, "decode is 'warp'"),
        ({"prompt": RED, "window": 0}, "window is 0"),
        ({"prompt": RED, "window": "wide"}, "'window' is \"wide\""),
        ({"prompt": RED, "batch": 0}, "batch is 0"),
        ({"prompt": RED, "upstream_exact": 1}, "'upstream_exact' is 1; it must be true or false"),
        ({"prompt": RED, "task": "depth"}, "'task' is 'depth'; it may be text_to_image"),
        ({"prompt": RED, "task": "fly"}, "'task' is 'fly'"),
        ({"prompt": RED, "name": "../up"}, "'name' is"),
        ({"prompt": RED, "name": "nul.a"}, "'name' is"),
        ({"prompt": RED, "name": "000001"}, "'name' gives 000001.png, as line 1 does"),
    ],
)
def test_a_bad_line_is_refused_by_file_and_number_before_anything_is_drawn(tiny_model, tmp_path, line, words):
    with pytest.raises(InputError, match=f"prompts.jsonl, line 3: .*{words}"):
        run(tiny_model, tmp_path, {"prompt": RED}, "", line)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot be read"), (b"\xff\xfe\x00", "not UTF-8"), (b"\n \n", "holds no lines")],
)
def test_a_bad_file_is_refused(tiny_model, tmp_path, content, words):
    file = tmp_path / "p.jsonl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=words):
        many.run(tiny_model, file, tmp_path / "out", PLAIN)


def test_every_setting_can_stand_in_a_line(tiny_model, tmp_path):
    line = {"prompt": RED, **dataclasses.asdict(PLAIN), "window": "auto"}
    [job] = many.read(tiny_model, write(tmp_path, line), tmp_path, PLAIN, (32, 32))
    assert job.sampling == PLAIN
    [job] = many.read(tiny_model, write(tmp_path, {**line, "window": 8}), tmp_path, PLAIN, (32, 32))
    assert job.sampling.window == 8


def test_progress_counts_up_to_all_tokens(tiny_model, tmp_path):
    seen = []
    run(tiny_model, tmp_path, {"prompt": RED}, {"prompt": BLUE}, report=lambda *args: seen.append(args))
    done = [d for d, _, _ in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1][1] == 2 * (4 * 5 + 4)
    assert seen[0][2] == "picture 1 of 2: 000001.png"


def test_a_picture_the_model_does_not_finish_is_told_and_the_rest_goes_on(tiny_model, tmp_path):
    file = write(tmp_path, {"prompt": RED, "max_tokens": 5}, {"prompt": RED, "size": "32x32"})
    done = many.run(tiny_model, file, tmp_path / "out", PLAIN)
    assert [f.name for f in done.drawn] == ["000002.png"]
    assert done.failed[0][0].name == "000001.png" and done.failed[0][1]


def test_the_global_noise_is_left_alone(tiny_model, tmp_path):
    before = torch.get_rng_state()
    run(tiny_model, tmp_path, {"prompt": RED})
    assert torch.equal(before, torch.get_rng_state())
