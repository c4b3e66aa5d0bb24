"""Many pictures from a file: every bad line is refused by number and key, batches change nothing, and it resumes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lumina_core import InputError, PictureFinished, Sampling, TokenGrid, commands, generate, many
from lumina_core.cli import main
from lumina_core.sampling import abreast, room

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


def alone(model, text: str, sampling: Sampling, size=(32, 32)) -> torch.Tensor:
    """The codes that `generate` draws."""
    for event in generate(model.transformer, model.vocabulary, model.prompt(text, size=size), sampling):
        if isinstance(event, PictureFinished):
            return event.grid.codes


@pytest.fixture
def codes(tiny_model, monkeypatch) -> list[torch.Tensor]:
    """The codes of every picture that is drawn, as they come."""
    seen, decode = [], tiny_model.decode
    monkeypatch.setattr(tiny_model, "decode", lambda c: seen.append(c) or decode(c))
    return seen


def test_pictures_are_named_after_their_lines_and_tell_prompt_and_settings(tiny_model, tmp_path):
    lines = ({"prompt": RED}, "", {"prompt": BLUE, "name": "sky", "seed": 9, "cfg": 2, "size": "64x32"})
    done = run(tiny_model, tmp_path, *lines)
    assert [f.name for f in done.drawn] == ["000001.png", "sky.png"]
    first, second = map(told, done.drawn)
    assert (first["prompt"], first["seed"], first["cfg"], first["size"]) == (RED, 3, 1.0, "32x32")
    assert (second["seed"], second["cfg"], second["size"]) == (9, 2, "64x32")
    assert {"model", "task", *(f.name for f in dataclasses.fields(Sampling))} <= set(first)
    assert pixels(done.drawn[1]).shape == (32, 64, 3)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("how", [("ar", None), ("jacobi", 8), ("jacobi", None), ("coupled", 4)])
def test_a_picture_of_a_batch_is_the_one_drawn_alone(tiny_model, tmp_path, codes, how, cfg):
    wanted = [(RED, 5, "32x32"), (BLUE, 4, "64x32"), (f"{BLUE} in the rain", 6, "32x32"), (RED, 40, "64x32")]
    wanted += [(BLUE, 5, "32x32"), (RED, 6, "32x32")]
    lines = [{"prompt": p, "seed": s, "size": size} for p, s, size in wanted]
    sampling = dataclasses.replace(PLAIN, decode=how[0], window=how[1], cfg=cfg)
    done = many.run(tiny_model, write(tmp_path, *lines), tmp_path / "out", sampling)
    assert [f.stem for f in done.drawn] == ["000001", "000003", "000005", "000006", "000002", "000004"]
    for file, drawn in zip(done.drawn, list(codes), strict=True):
        prompt, seed, size = wanted[int(file.stem) - 1]
        pixels = tuple(map(int, size.split("x")))
        assert torch.equal(drawn, alone(tiny_model, prompt, dataclasses.replace(sampling, seed=seed), pixels))


def passes(model, call) -> int:
    count = []
    handle = model.transformer.register_forward_hook(lambda *_: count.append(1))
    call()
    handle.remove()
    return len(count)


def test_pictures_of_one_size_and_the_same_settings_share_their_passes(tiny_model, tmp_path):
    one = passes(tiny_model, lambda: run(tiny_model, tmp_path, {"prompt": RED}, out="one"))
    lines = [{"prompt": RED, "seed": 0}, {"prompt": BLUE, "seed": 7}, {"prompt": RED, "seed": 2}]
    together = passes(tiny_model, lambda: run(tiny_model, tmp_path, *lines, out="together"))
    assert together <= one + 1  # the size tokens have a pass of their own
    single = passes(tiny_model, lambda: run(tiny_model, tmp_path, *lines, out="single", at_once=1))
    assert single == 3 * one
    lines[1]["size"], lines[2]["temperature"] = "64x32", 0.5
    assert passes(tiny_model, lambda: run(tiny_model, tmp_path, *lines, out="unlike")) > 3 * one


def test_a_line_may_ask_for_several_pictures(tiny_model, tmp_path):
    row = run(tiny_model, tmp_path, *({"prompt": RED, "seed": s} for s in range(3)), out="row")
    batch = run(tiny_model, tmp_path, {"prompt": RED, "batch": 3, "seed": 0}, out="batch")
    assert [f.name for f in batch.drawn] == ["000001_00.png", "000001_01.png", "000001_02.png"]
    for a, b in zip(row.drawn, batch.drawn, strict=True):
        assert np.array_equal(pixels(a), pixels(b))


def cache_nbytes(model, text: str) -> int:
    return room.cache_nbytes(model.transformer, model.vocabulary, model.prompt(text, size=(32, 32)), PLAIN)


def leave_free(monkeypatch, nbytes: int) -> None:
    for module in (room, abreast):
        monkeypatch.setattr(module, "free_bytes", lambda device: nbytes)


def test_as_many_are_drawn_at_once_as_fit_in_free_memory(tiny_model, tmp_path, monkeypatch):
    one = passes(tiny_model, lambda: run(tiny_model, tmp_path, {"prompt": RED}, out="one"))
    lines = [{"prompt": RED, "seed": s} for s in range(4)]
    for fits, batches in ((1, 4), (2, 2), (4, 1)):
        leave_free(monkeypatch, cache_nbytes(tiny_model, RED) * fits * 4 // 3)
        out = f"fits {fits}"
        count = passes(tiny_model, lambda out=out: run(tiny_model, tmp_path, *lines, out=out))
        assert count == batches * (one + 1)
        assert len(list((tmp_path / out).iterdir())) == 4


def test_a_line_that_does_not_fit_in_memory_costs_the_others_nothing(tiny_model, tmp_path, monkeypatch):
    long = f"{RED} " * 20
    leave_free(monkeypatch, cache_nbytes(tiny_model, long) - 1)
    lines = [{"prompt": RED}, {"prompt": long}, {"prompt": BLUE}, {"prompt": RED, "size": "256x256"}]
    done = run(tiny_model, tmp_path, *lines)
    assert [f.name for f in done.drawn] == ["000001.png", "000003.png"]
    assert [f.name for f, _ in done.failed] == ["000002.png", "000004.png"]
    assert all("of key-value cache" in why for _, why in done.failed)
    monkeypatch.undo()
    again = run(tiny_model, tmp_path, *lines)
    assert ([f.name for f in again.drawn], again.skipped) == (["000002.png", "000004.png"], 2)


def test_what_cannot_be_drawn_side_by_side_is_drawn_alone(tiny_model, tmp_path, monkeypatch):
    def refused(*args):
        raise InputError("not these together")

    def drawn(transformer, vocabulary, prompt, sampling):
        if "blue" in prompt.text:
            raise InputError("no blue today")
        return generate(transformer, vocabulary, prompt, sampling)

    monkeypatch.setattr(many.Abreast, "draw", refused)
    monkeypatch.setattr(many, "generate", drawn)
    seen = []
    lines = ({"prompt": RED}, {"prompt": BLUE}, {"prompt": RED, "seed": 8})
    done = run(tiny_model, tmp_path, *lines, report=lambda *args: seen.append(args[0]))
    assert [f.name for f in done.drawn] == ["000001.png", "000003.png"]
    assert [(f.name, why) for f, why in done.failed] == [("000002.png", "no blue today")]
    assert seen == sorted(seen)


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


RED_STYLE = {"lora": [["red.safetensors", 1.0]], "precision": "auto"}


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        (RED_STYLE, RED_STYLE, True),
        (RED_STYLE, RED_STYLE | {"lora": [["red.safetensors", 0.5]]}, False),
        (RED_STYLE, {"lora": [], "precision": "auto"}, False),
        (None, {"lora": [], "precision": "auto"}, True),  # an earlier version told neither
        (None, RED_STYLE, False),
        (None, {"lora": [], "precision": "int8"}, False),
    ],
)
def test_pictures_of_other_loras_or_precision_are_drawn_again(tiny_model, tmp_path, before, after, kept):
    run(tiny_model, tmp_path, {"prompt": RED}, about=before)
    again = run(tiny_model, tmp_path, {"prompt": RED}, about=after)
    assert again.skipped == kept and len(again.drawn) == (not kept)
    assert kept or told(tmp_path / "out" / "000001.png")["lora"] == after["lora"]


def test_what_was_stopped_in_the_middle_goes_on_there(tiny_model, tmp_path):
    lines = [{"prompt": RED, "seed": s} for s in (1, 5, 9)]

    def stop(done, total, text):
        if text.startswith("picture 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, tmp_path, *lines, report=stop, at_once=1)
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
        ({"prompt": RED, "cfg": 10**400}, "cfg is 10000"),
        ({"prompt": RED, "batch": 10**400}, "batch is 10000"),
        ({"prompt": RED, "max_tokens": -(10**400)}, "max_tokens is -10000"),
        ('{"prompt": "x", "temperature": Infinity}', "temperature is inf"),
        ({"prompt": RED, "decode": "warp"}, "decode is 'warp'"),
        ({"prompt": RED, "window": 0}, "window is 0"),
        ({"prompt": RED, "window": "wide"}, "'window' is \"wide\""),
        ({"prompt": RED, "batch": 0}, "batch is 0"),
        ({"prompt": RED, "upstream_exact": 1}, "'upstream_exact' is 1; it must be true or false"),
        ({"prompt": RED, "task": "depth"}, "'task' is 'depth'; it may be text_to_image"),
        ({"prompt": RED, "task": "fly"}, "'task' is 'fly'"),
        ({"prompt": RED, "name": "../up"}, "'name' is"),
        ({"prompt": RED, "name": "nul.a"}, "'name' is"),
        ({"prompt": RED, "name": "绘" * 100}, "'name' is \"绘+\", 300 bytes in UTF-8; it may have 240"),
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
    assert seen[0][2] == "pictures 1 to 2 of 2: 000001.png ..."


def test_a_picture_the_model_does_not_finish_is_told_and_the_rest_goes_on(tiny_model, tmp_path):
    file = write(tmp_path, {"prompt": RED, "max_tokens": 5}, {"prompt": RED, "size": "32x32"})
    done = many.run(tiny_model, file, tmp_path / "out", PLAIN)
    assert [f.name for f in done.drawn] == ["000002.png"]
    assert done.failed[0][0].name == "000001.png" and done.failed[0][1]


def test_the_longest_names_can_be_numbered_and_written(tiny_model, tmp_path):
    done = run(tiny_model, tmp_path, {"prompt": RED, "name": "绘" * 80, "batch": 2})
    assert [f.name for f in done.drawn] == [f"{'绘' * 80}_{i:02d}.png" for i in range(2)]
    assert run(tiny_model, tmp_path, {"prompt": RED, "name": "绘" * 80, "batch": 2}).skipped == 2


def test_a_folder_too_deep_for_its_files_is_told(tiny_model, tmp_path):
    with pytest.raises(InputError, match="000001.png' cannot be written"):
        run(tiny_model, tmp_path, {"prompt": RED}, out="/".join(["d" * 200] * 25))


def test_the_global_noise_is_left_alone(tiny_model, tmp_path):
    before = torch.get_rng_state()
    run(tiny_model, tmp_path, {"prompt": RED})
    assert torch.equal(before, torch.get_rng_state())


def refused(capsys, *args) -> str:
    assert main(["generate", *map(str, args)]) == 2
    return capsys.readouterr().err


def test_a_line_may_leave_its_size_to_the_model(tiny_model, tmp_path):
    lines = {"prompt": RED}, {"prompt": RED, "size": "free"}, {"prompt": BLUE, "size": "free"}
    jobs = many.read(tiny_model, write(tmp_path, *lines), tmp_path, PLAIN, (32, 32))
    assert [job.prompt.units for job in jobs] == [(1, 1), None, None]
    assert [len(batch) for batch in many._batches(jobs, 8)] == [1, 1, 1]


@pytest.mark.parametrize("way", ["one", "many"])
def test_the_command_line_may_leave_the_size_to_the_model(tiny_folder, tmp_path, monkeypatch, way):
    asked = []

    def drawn(transformer, vocabulary, prompt, sampling):
        asked.append(prompt.units)
        yield PictureFinished(0, TokenGrid(torch.zeros(8, 4, dtype=torch.int64), prompt.family))

    for module in (commands, many):
        monkeypatch.setattr(module, "generate", drawn)
    words = [RED] if way == "one" else ["--prompts", write(tmp_path, {"prompt": RED})]
    out = tmp_path / ("a.png" if way == "one" else "out")
    options = ["--model", tiny_folder, "--size", "free", "--out", out]
    assert main(["generate", *map(str, [*words, *options])]) == 0
    assert asked == [None]


def test_batch_beside_prompts_is_the_most_drawn_side_by_side(tiny_folder, tmp_path, monkeypatch):
    seen, batches = [], many._batches
    monkeypatch.setattr(many, "_batches", lambda jobs, most: seen.append(most) or batches(jobs, most))
    options = ["--prompts", write(tmp_path, {"prompt": RED}), "--model", tiny_folder, "--size", "32x32"]
    for more in ([], ["--batch", 2]):
        assert main(["generate", *map(str, [*options, "--out", tmp_path / "out", *more])]) == 0
    assert seen == [abreast.MOST, 2]


def test_what_needs_no_model_is_checked_before_one_is_loaded(tmp_path, capsys):
    no_model = ("--model", "no-such-model", "--out", tmp_path / "out" / "a.png")
    good, bad = ("--prompts", write(tmp_path, {"prompt": RED})), tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "size": "32x32"}\n{"prompt": "a", "window": 0}\n', "utf-8")
    assert "window is 0" in refused(capsys, RED, "--window", 0, *no_model)
    assert "window is 0" in refused(capsys, *good, "--window", 0, *no_model)
    assert "cannot be read" in refused(capsys, "--prompts", tmp_path / "none.jsonl", *no_model)
    assert "bad.jsonl, line 2: window is 0" in refused(capsys, "--prompts", bad, *no_model)
    assert not (tmp_path / "out").exists()
    assert "no-such-model" in refused(capsys, *good, *no_model)


def test_lines_that_were_not_drawn_are_seen_in_the_exit_status(tiny_folder, tmp_path, capsys, monkeypatch):
    prompts = write(tmp_path, {"prompt": RED})
    options = ["--prompts", prompts, "--model", tiny_folder, "--size", "32x32", "--out", tmp_path / "out"]
    leave_free(monkeypatch, 1)
    assert main(["generate", *map(str, options)]) == 1
    said = capsys.readouterr().out
    assert "not drawn: 000001.png: A 32x32 picture takes" in said and "0 pictures drawn" in said
    monkeypatch.undo()
    assert main(["generate", *map(str, options)]) == 0


def test_both_ways_to_draw_tell_loras_and_precision(tiny_model, tiny_folder, tmp_path):
    from safetensors.torch import save_file

    down = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    up = down.replace("lora_A", "lora_B")
    lora = tmp_path / "red" / "adapter_model.safetensors"
    lora.parent.mkdir()
    save_file({down: torch.ones(1, 32), up: torch.ones(64, 1)}, lora)
    prompts, out = write(tmp_path, {"prompt": RED}), tmp_path / "out"
    options = ["--model", tiny_folder, "--size", "32x32", "--precision", "fp32", "--lora", f"{lora}:0.5"]
    assert main([str(o) for o in ["generate", RED, *options, "--out", tmp_path / "one.png"]]) == 0
    assert main([str(o) for o in ["generate", "--prompts", prompts, *options, "--out", out]]) == 0
    for file in (tmp_path / "one.png", out / "000001.png"):
        assert told(file)["lora"] == [["red", 0.5]] and told(file)["precision"] == "fp32"


def test_a_checkpoint_that_writes_text_only_is_refused(tiny_model, tmp_path, monkeypatch):
    masked = dataclasses.replace(tiny_model.config, mask_image_logits=True)
    monkeypatch.setattr(tiny_model, "config", masked)
    with pytest.raises(InputError, match="line 1: .* writes text only"):
        run(tiny_model, tmp_path, {"prompt": RED}, {"prompt": BLUE})
