"""The bench: passes are counted as they happen, transformers draws what we draw, tables and JSON agree."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

from lumina_core import InputError, PictureFinished, Progress, Sampling, bench, generate, load
from lumina_core.bench import measure, shapes
from lumina_core.transformer import TransformerConfig
from lumina_core.vq.blocks import VQConfig
from tests.core import checkpoints

PLAIN = Sampling(seed=3, cfg=3.0, image_top_k=20, decode="ar")
TEXT = "a red circle"
TINY = shapes.Shape(
    "mgpt2",
    TransformerConfig(200, 32, 48, 2, 4, 4, 1024),
    VQConfig(32, (1, 1, 1, 1), 1, frozenset({3}), 4, 4, 64),
    (64, 32),
    ((100, 64),),
    image_start=90,
    image_end=91,
    row_end=92,
    separator=93,
    grid_0=93,
    latents_per_unit=4,
)


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--size", type=lambda s: tuple(map(int, s.split("x"))))
    bench.add_options(parser)
    return parser.parse_args(words)


def run(model, *words: str) -> list[str]:
    return list(bench.run(options(*words), lambda _: model, lambda _: (32, 32)))


def codes_of(model, prompt, sampling) -> list[int]:
    for event in generate(model.transformer, model.vocabulary, prompt, sampling):
        if isinstance(event, PictureFinished):
            return model.vocabulary.rows(event.grid.codes)


@pytest.fixture(scope="module")
def baseline():
    pytest.importorskip("transformers")
    from lumina_core.bench import baseline

    return baseline


@pytest.mark.parametrize(
    ("sizes", "cfg"),
    [
        ({}, 1.0),
        ({}, 3.0),
        ({"swin_norm": True, "num_key_value_heads": 4, "model_parallel_size": 2}, 0.8),
        ({"attention_bias": True, "mlp_bias": True, "rope_theta": 500.0}, 3.0),
    ],
    ids=["plain", "guided", "swin", "bias"],
)
def test_transformers_draws_the_same_codes_where_nothing_is_left_to_chance(baseline, tmp_path, sizes, cfg):
    model = load(checkpoints.build(tmp_path / "c", shards=1, **sizes))
    prompt = model.prompt(TEXT, size=(64, 32))
    sampling = dataclasses.replace(PLAIN, cfg=cfg, temperature=0.0)
    theirs = baseline.build(model.transformer)
    assert baseline.draw(theirs, model.vocabulary, prompt, sampling) == codes_of(model, prompt, sampling)


def test_transformers_draws_the_lower_panel_of_a_given_upper_one(baseline, tiny_model):
    from PIL import Image

    prompt = tiny_model.prompt(TEXT, task="control_depth", size=(64, 32), images=[Image.new("RGB", (64, 32))])
    sampling = dataclasses.replace(PLAIN, temperature=0.0)
    theirs = baseline.build(tiny_model.transformer)
    drawn = baseline.draw(theirs, tiny_model.vocabulary, prompt, sampling)
    assert len(drawn) == 4 * 9
    assert drawn == codes_of(tiny_model, prompt, sampling)[-len(drawn) :]


def test_transformers_follows_pures_entropy(baseline, tmp_path):
    model = load(checkpoints.build(tmp_path / "c", "pure", shards=1))
    prompt = bench.text_prompt(model, TEXT, (32, 32))
    assert prompt.entropy_top_k
    sampling = dataclasses.replace(PLAIN, cfg=0.8, temperature=0.0)
    theirs = baseline.build(model.transformer)
    assert baseline.draw(theirs, model.vocabulary, prompt, sampling) == codes_of(model, prompt, sampling)


def test_transformers_samples_by_seed_within_top_k_and_leaves_the_global_noise(baseline, tiny_model):
    prompt = tiny_model.prompt(TEXT, size=(32, 32))
    theirs = baseline.build(tiny_model.transformer)
    before = torch.get_rng_state()

    def draw(**changes):
        return baseline.draw(theirs, tiny_model.vocabulary, prompt, dataclasses.replace(PLAIN, **changes))

    assert draw() == draw() != draw(seed=4)
    assert draw(image_top_k=1) == draw(temperature=0.0)
    assert torch.equal(before, torch.get_rng_state())
    rows = torch.tensor(draw()).view(4, 5)
    assert (rows[:, -1] == tiny_model.vocabulary.row_end).all()
    assert torch.isin(rows[:, :-1], tiny_model.vocabulary.code_ids).all()


def test_transformers_shares_our_weights_which_lie_as_a_file_has_them(baseline, tiny_model):
    ours = tiny_model.transformer.state_dict()
    theirs = baseline.build(tiny_model.transformer).state_dict()
    names = [name for name in ours if "q_norm" not in name and "k_norm" not in name]  # a row a head there
    assert len(names) > 20
    for name in names:
        assert theirs[name].data_ptr() == ours[name].data_ptr(), name
        assert ours[name].is_contiguous(), name


def test_transformers_is_refused_on_quantised_weights(baseline, tiny_folder):
    model = load(tiny_folder, quantise="int8")
    with pytest.raises(InputError, match="not quantised"):
        run(model, "--against", "transformers", "--modes", "ar")


def test_passes_are_counted_as_they_happen(tiny_model):
    prompt = tiny_model.prompt(TEXT, size=(64, 32))
    plain = measure.draw(tiny_model, prompt, PLAIN)
    assert (plain.passes, plain.width) == (4 * 8 - 1, 1)  # the last code is never fed; row ends ride along
    fast = measure.draw(tiny_model, prompt, dataclasses.replace(PLAIN, decode="jacobi", window=8))
    assert fast.width == 8
    assert 4 <= fast.passes <= plain.passes
    assert not tiny_model.transformer._forward_hooks and not tiny_model.transformer._forward_pre_hooks
    assert min(plain.prefill, plain.decode, plain.vq) > 0


@pytest.mark.parametrize("mode", ["ar", "jacobi", "coupled"])
def test_the_events_tell_the_same_number_of_passes(tiny_model, mode):
    """On CUDA a recorded pass runs no forward; there the events are counted."""
    prompt = tiny_model.prompt(TEXT, size=(64, 32))
    sampling = dataclasses.replace(PLAIN, decode=mode, window=None if mode == "ar" else 8)
    events = generate(tiny_model.transformer, tiny_model.vocabulary, prompt, sampling)
    told = measure.passes_told(sum(isinstance(e, Progress) for e in events), mode)
    assert told == measure.draw(tiny_model, prompt, sampling).passes


@pytest.mark.parametrize("mode", ["ar", "jacobi", "coupled"])
@pytest.mark.parametrize("most", [2, 9, 20, 35, 36, 99])
def test_a_picture_is_left_when_it_has_the_tokens_asked_for(tiny_model, monkeypatch, mode, most):
    prompt = tiny_model.prompt(TEXT, size=(64, 32))
    sampling = dataclasses.replace(PLAIN, decode=mode, window=None if mode == "ar" else 8)
    told = []

    def counted(*given):
        for event in generate(*given):
            told.append(isinstance(event, Progress))
            yield event

    monkeypatch.setattr(measure, "generate", counted)
    got = measure.draw(tiny_model, prompt, sampling, most)
    assert min(most, 36) <= got.tokens <= min(36, most + (1 if mode == "ar" else 8))
    assert got.passes == measure.passes_told(sum(told), mode, got.tokens == 36)
    if mode == "ar" and most <= 20:  # of 20 tokens 2 are row ends, which share a pass
        assert got.passes == most - most // 9
    assert got.vq > 0


def test_a_recording_on_another_stream_is_no_pass(tiny_model, monkeypatch):
    device = torch.device("cpu")
    capturing = []
    with measure.Passes(tiny_model.transformer, device, lambda *_: False) as passes:
        tiny_model.transformer(torch.ones(1, 1, dtype=torch.int64))
        monkeypatch.setattr(measure, "stream_of", lambda _: "side")
        monkeypatch.setattr(measure, "is_capturing", lambda _: bool(capturing))
        for _ in range(2):  # the rehearsal, then the recording
            tiny_model.transformer(torch.ones(1, 1, dtype=torch.int64))
            capturing.append(True)
    assert (passes.decoding, passes.graphs) == (1, 1)
    assert passes.capture > 0


def test_passes_of_transformers_are_two_a_token_with_guidance(baseline, tiny_model):
    prompt = tiny_model.prompt(TEXT, size=(64, 32))
    theirs = baseline.build(tiny_model.transformer)
    for cfg, passes in ((3.0, 2), (1.0, 1)):
        sampling = dataclasses.replace(PLAIN, cfg=cfg)
        took = baseline.measured(theirs, tiny_model.vocabulary, prompt, sampling, 36)
        assert took.passes == passes * 35  # the first token comes of the prefill
        assert (took.tokens, took.vq) == (36, 0)
        assert baseline.measured(theirs, tiny_model.vocabulary, prompt, sampling, 10).tokens == 10


def test_the_table_the_ratios_and_the_json_agree(baseline, tiny_model, tmp_path):
    file = tmp_path / "b.json"
    words = (
        "--windows",
        "4,8",
        "--seeds",
        "1",
        "--cfg",
        "3",
        "--against",
        "transformers",
        "--json",
        str(file),
    )
    lines = run(tiny_model, *words)
    told = json.loads(file.read_text("utf-8"))
    modes = [(r["mode"], r["window"]) for r in told["rows"]]
    ours = [("ar", None), ("jacobi", 4), ("jacobi", 8), ("coupled", 4), ("coupled", 8)]
    assert modes == [("transformers", None), *ours]
    assert lines[1].split()[:6] == ["mode", "window", "seeds", "tokens", "passes", "tokens/pass"]
    for line, row in zip(lines[2:], told["rows"], strict=False):
        assert line.split()[0] == row["mode"]
        assert [float(x) for x in line.split()[2:5]] == [1, row["drawn"], row["passes"]]
    by_name = {r["mode"]: r for r in told["ratios"]}
    theirs, plain, jacobi = told["rows"][:3]
    assert by_name["jacobi, window 4"]["fewer_passes"] == pytest.approx(plain["passes"] / jacobi["passes"])
    assert by_name["ar"]["faster_than_transformers"] == pytest.approx(
        theirs["ms_per_token"] / plain["ms_per_token"]
    )
    assert any(
        re.match(r"jacobi, window 8: .* fewer passes than ar, .* as fast as transformers", x) for x in lines
    )
    assert {"date", "commit", "torch", "device", "threads"} <= set(told["about"])
    assert told["settings"]["cfg"] == 3.0


def test_all_ways_draw_the_first_tokens_and_read_keys_of_these_depths(baseline, tiny_model, tmp_path):
    file = tmp_path / "b.json"
    words = ("--modes", "ar,jacobi", "--windows", "4", "--seeds", "1", "--cfg", "3", "--json", str(file))
    whole = run(tiny_model, *words)
    assert "only the first" not in whole[0]
    depth = json.loads(file.read_text("utf-8"))["floor"]["cache"]
    lines = run(tiny_model, *words, "--against", "transformers", "--tokens", "8")
    assert lines[0].endswith("; only the first 8 of 20 tokens are drawn")
    assert lines[-1].startswith("that is the average of the tokens drawn")
    told = json.loads(file.read_text("utf-8"))
    assert told["settings"]["tokens"] == 8
    assert [r["drawn"] for r in told["rows"][:2]] == [8, 8]
    assert 8 <= told["rows"][2]["drawn"] <= 12
    assert [r["passes"] for r in told["rows"][:2]] == [2 * 7, 7]
    assert 0 < told["floor"]["cache"] < depth


def test_beside_transformers_a_large_picture_is_cut_for_every_way(baseline, tiny_model, monkeypatch):
    monkeypatch.setattr(bench, "AGAINST_TOKENS", 10)
    words = ("--modes", "ar", "--seeds", "1")
    lines = run(tiny_model, *words, "--against", "transformers")
    assert [line.split()[3] for line in lines[2:4]] == ["10", "10"]
    assert run(tiny_model, *words)[2].split()[3] == "20"


def test_a_long_warm_up_is_cut_and_a_quick_one_settles(tiny_model, monkeypatch):
    asked = []

    def draw(model, prompt, sampling, most):
        asked.append((sampling.seed, most))
        return measure.Run(10, most, 1, 0.1, 0.2, 0.1, None)

    monkeypatch.setattr(measure, "draw", draw)
    run(tiny_model, "--modes", "ar", "--seeds", "2")
    assert asked == [(0, 20), (1, 20), (2, 20), (0, 20), (1, 20)]
    asked.clear()
    monkeypatch.setattr(bench, "WARM_TOKENS", 5)
    run(tiny_model, "--modes", "ar", "--seeds", "2")
    assert asked == [(0, 5), (0, 20), (1, 20)]


def test_rows_come_as_they_are_measured_and_medians_at_the_end(tiny_model, monkeypatch, tmp_path):
    file, seen = tmp_path / "b.json", []
    monkeypatch.setattr(bench, "keep", lambda where, told: seen.append([r["seeds"] for r in told["rows"]]))
    words = ("--modes", "ar,coupled", "--windows", "4", "--seeds", "2", "--json", str(file))
    lines = bench.run(options(*words), lambda _: tiny_model, lambda _: (32, 32))
    first = [next(lines) for _ in range(3)]
    assert [first[2].split()[i] for i in (0, 2)] == ["ar", "1"]
    assert seen == [[1]]
    rest = list(lines)
    assert seen == [[1], [1, 1], [2, 1], [2, 2]]
    assert rest[0].split()[0] == "coupled"
    assert rest[1] == "medians of the seeds:"
    assert [line.split()[2] for line in rest[3:5]] == ["2", "2"]


def test_what_was_measured_is_told_after_ctrl_c(tiny_model, monkeypatch, tmp_path):
    file, real = tmp_path / "b.json", measure.draw

    def draw(model, prompt, sampling, most):
        if sampling.decode == "coupled":
            raise KeyboardInterrupt
        return real(model, prompt, sampling, most)

    monkeypatch.setattr(measure, "draw", draw)
    lines, words = [], ("--windows", "4", "--seeds", "1", "--json", str(file))
    with pytest.raises(KeyboardInterrupt):
        for line in bench.run(options(*words), lambda _: tiny_model, lambda _: (32, 32)):
            lines.append(line)
    assert [line.split()[0] for line in lines[2:4]] == ["ar", "jacobi"]
    assert "fewer passes than ar" in lines[4]
    assert [r["mode"] for r in json.loads(file.read_text("utf-8"))["rows"]] == ["ar", "jacobi"]


def test_one_picture_of_random_weights_is_drawn_and_three_of_others():
    assert bench.seeds_of(options()) == 3
    assert bench.seeds_of(options("--random", "7b-2")) == 1
    assert bench.seeds_of(options("--random", "7b-2", "--seeds", "2")) == 2


def test_a_model_of_a_published_shape_is_built_of_random_numbers(monkeypatch):
    monkeypatch.setitem(shapes.SHAPES, "7b-2", TINY)
    lines = run(None, "--random", "7b-2", "--modes", "ar,jacobi", "--windows", "4")
    assert lines[0].startswith("random 7b-2, 64x32 (32 codes, 4 row ends), float32 on cpu")
    assert lines[-1].startswith("random weights")
    assert [line.split()[2] for line in lines[2:4]] == ["1", "1"]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "fp8", "nf4"])
def test_random_weights_come_in_every_precision_and_give_scores_of_a_size(precision):
    if precision == "nf4":
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    model = shapes.build("tiny", TINY, torch.device("cpu"), precision)
    weight = model.transformer.model.layers[0].mlp.up_proj.weight
    assert (
        weight.dtype
        == {
            "fp32": torch.float32,
            "bf16": torch.bfloat16,
            "int8": torch.int8,
            "fp8": torch.float8_e4m3fn,
            "nf4": torch.uint8,
        }[precision]
    )
    assert not any(p.is_meta for p in (*model.transformer.parameters(), *model.vq.parameters()))
    scores = model.transformer.scores(model.transformer(torch.arange(50)[None]))
    assert 0.2 < scores.std() < 5
    again = shapes.build("tiny", TINY, torch.device("cpu"), precision)
    assert torch.equal(again.transformer.model.layers[0].mlp.up_proj.weight.float(), weight.float())
    assert measure.draw(model, shapes.prompt_of(model, TINY, (32, 32)), PLAIN).passes == 15


@pytest.mark.parametrize("name", list(shapes.SHAPES))
def test_the_published_shapes_are_whole(name):
    shape = shapes.SHAPES[name]
    vocabulary = shapes.vocabulary(shape)
    assert len(vocabulary.code_ids) == shape.vq.n_embed
    assert int(vocabulary.code_ids.max()) < shape.config.vocab_size
    body = sum(p for p in shapes.memory.parameters(shape.config))
    assert 6.8e9 < body < 8e9
    model = shapes.Model(
        "m", next(f for f in shapes.FAMILIES if f.id == shape.family), *[_meta(shape)] * 2, None, vocabulary
    )
    prompt = shapes.prompt_of(model, shape, shape.size)
    h, w = vocabulary.codes_shape(prompt.units)
    assert len(prompt.tokens) + h * (w + 1) + 4 <= shape.config.max_position_embeddings


def _meta(shape):
    with torch.device("meta"):
        return shapes.Transformer(dataclasses.replace(shape.config, num_hidden_layers=1), shapes.weights.Bare)


def test_random_weights_that_do_not_fit_are_refused_with_numbers(monkeypatch):
    monkeypatch.setattr(shapes, "free_bytes", lambda device: 3_000_000_000)
    with pytest.raises(InputError, match=r"7b-2 in bf16 takes 26\.\d GB .* 768x768; cpu has 3.0 GB free"):
        run(None, "--random", "7b-2", "--precision", "bf16")
    with pytest.raises(InputError, match=r"7b-2 in bf16 takes 18\.\d GB .* 256x256; cpu"):
        run(None, "--random", "7b-2", "--precision", "bf16", "--size", "256x256")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--modes", "ar,warp"), "decode is 'warp'"),
        (("--windows", "0"), "window is 0"),
        (("--windows", "wide"), "--windows is 'wide'"),
        (("--seeds", "0"), "--seeds is 0"),
        (("--tokens", "1"), "--tokens is 1; at least 2"),
        (("--random", "7b-1", "--device", "warp:0"), "--device warp:0"),
    ],
)
def test_bad_options_are_refused_before_a_model_is_loaded(words, message):
    with pytest.raises(InputError, match=message):
        list(bench.run(options(*words), pytest.fail, pytest.fail))


def test_results_on_a_gpu_say_whether_they_were_measured():
    text = (Path(__file__).parent.parent / "gpu" / "RESULTS.md").read_text("utf-8")
    assert "not been measured" in text or re.search(r"\d{4}-\d\d-\d\d", text)
    assert "python -m lumina_core bench --random 7b-2" in text
