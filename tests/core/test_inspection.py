"""Reports on checkpoints: what they are, what lacks, what to do; from headers alone."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lumina_core import CheckpointError, load, memory
from lumina_core.cache import KVCache
from lumina_core.checkpoint import TokenNames
from lumina_core.convert import convert
from lumina_core.inspection import inspect
from lumina_core.memory import PUBLISHED_VQ, estimate
from lumina_core.text import Tokenizer
from lumina_core.transformer import TransformerConfig
from tests.core import checkpoints as ck

FAMILIES = {"mgpt1": "Lumina-mGPT 1.0", "mgpt2": "Lumina-mGPT 2.0", "pure": "PURE"}
SEVEN_B = TransformerConfig(65536, 4096, 11008, 32, 32, 32, 10240)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    top = tmp_path_factory.mktemp("originals")
    return {f: ck.build(top / f, f) for f in FAMILIES}


@pytest.fixture
def folder(originals, tmp_path):
    return shutil.copytree(originals["mgpt2"], tmp_path / "checkpoint")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_checkpoint_is_reported_usable(originals, family):
    report = inspect(originals[family])
    assert report.usable and report.family == FAMILIES[family] and report.precision == "bf16"
    assert report.sizes["hidden"] == 32 and report.sizes["key-value heads"] == 2 and report.files == 2
    assert report.missing == report.wrong == ()
    [encoder] = report.unexpected
    assert encoder.startswith("model.vqmodel.*")
    text = "\n".join(report.lines())
    assert FAMILIES[family] in text and "all there" in text and "to do" not in text


@pytest.mark.parametrize("precision", ["bf16", "fp16", "int8", "fp8"])
def test_a_converted_file_is_reported_with_its_precision(originals, tmp_path, precision):
    report = inspect(convert(originals["mgpt2"], tmp_path / "x.safetensors", precision))
    assert report.usable and report.precision == precision and report.unexpected == ()
    assert report.tokenizer.startswith("inside") and report.image_tokenizer.startswith("inside")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_of_an_image_tokenizer_is_reported_as_such(tmp_path, family, suffix):
    report = inspect(ck.save_vq(family, tmp_path / f"x{suffix}"))
    assert report.kind == "image tokenizer" and FAMILIES[family] in report.family and report.usable
    assert report.sizes["codes"] == ck.CODES


def test_what_lacks_is_listed_with_what_to_do(folder):
    (folder / "model-00002-of-00002.safetensors").unlink()
    (folder / "movqgan_270M.ckpt").unlink()
    report = inspect(folder)
    assert not report.usable and "lm_head.weight" in report.missing
    text = "\n".join(report.problems)
    for word in (
        "model-00002-of-00002.safetensors",
        "movqgan_270M.ckpt (1.1 GB)",
        str(folder),
    ):
        assert word in text
    assert all("\n" not in p for p in report.problems)


@pytest.mark.parametrize("family,vocabulary", [("mgpt1", 65536), ("mgpt2", 171385), ("pure", 73728)])
def test_without_its_tokenizer_a_released_checkpoint_is_known_by_its_vocabulary(tmp_path, family, vocabulary):
    folder = ck.build(tmp_path / "c", family, vocab_size=vocabulary, hidden_size=8)
    (folder / "tokenizer.json").unlink()
    report = inspect(folder)
    [problem] = report.problems
    assert report.family == FAMILIES[family] and "tokenizer.json is missing" in problem


def test_wrong_shapes_and_a_wrong_tokenizer_are_problems(folder):
    shard = folder / "model-00002-of-00002.safetensors"
    state = load_file(shard)
    state["model.layers.1.mlp.down_proj.weight"] = torch.zeros(32, 47, dtype=torch.bfloat16)
    save_file(state, shard)
    names = [n for n in ck.token_names("mgpt2") if n != "<eoss>"]
    (folder / "tokenizer.json").write_text(ck.tokenizer_json(names), "utf-8")
    report = inspect(folder)
    assert report.wrong and any("[32, 47]" in p for p in report.problems)
    assert any("'<eoss>'" in p for p in report.problems)


def test_a_configuration_that_contradicts_the_tensors_is_a_problem(folder):
    config = json.loads((folder / "config.json").read_text()) | {"num_attention_heads": 8}
    (folder / "config.json").write_text(json.dumps(config))
    [problem] = inspect(folder).problems
    assert "num_attention_heads = 8" in problem


def test_what_is_no_checkpoint_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    save_file({"model.layers.0.self_attn.q_proj.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="llama"):
        inspect(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        inspect(tmp_path / "nothing")


@pytest.mark.parametrize(
    "family,name,has,lacks,basis",
    [
        ("mgpt1", "Lumina-mGPT-7B-768", "text_to_image", "depth", "from the name"),
        ("mgpt1", "Lumina-mGPT-7B-768-Omni", "depth", None, "from the name"),
        ("mgpt2", "Lumina-mGPT-2.0", "pair_depth", "control_depth", "from the name"),
        ("mgpt2", "my own", "control_depth", None, "neither"),
        ("pure", "x", "restore", "depth", "all of the family"),
    ],
)
def test_tasks_come_with_what_tells_them(originals, tmp_path, family, name, has, lacks, basis):
    report = inspect(shutil.copytree(originals[family], tmp_path / name))
    assert has in report.tasks and lacks not in report.tasks and basis in report.tasks_basis


def test_tasks_in_the_configuration_win_over_the_name(folder):
    config = json.loads((folder / "config.json").read_text()) | {"tasks": ["depth"]}
    (folder / "config.json").write_text(json.dumps(config))
    report = inspect(folder)
    assert report.tasks == ("depth",) and "configuration" in report.tasks_basis


def test_special_names_are_read_from_the_text_as_the_library_reads_them():
    for family in FAMILIES:
        text = ck.tokenizer_json(ck.token_names(family))
        names = TokenNames.scan(text, {"bos_token": {"content": "<s>"}}, "x")
        full = Tokenizer(text, {}).names()
        assert names.bos_name == "<s>"
        assert {n: full[n] for n in ck.token_names(family)}.items() <= names.names().items()
        assert names.names().items() <= full.items()


def test_the_cache_in_the_estimate_is_what_the_cache_takes():
    m = estimate(SEVEN_B, PUBLISHED_VQ["mgpt1"], 0, "bf16", (768, 768))
    capacity = memory.PROMPT + 48 * 49 + 4
    assert m.cache == KVCache.nbytes(32, 2, capacity, 32, 128, torch.bfloat16)
    tall = estimate(SEVEN_B, PUBLISHED_VQ["mgpt1"], 0, "bf16", (768, 768), panels=2)
    assert 1.9 < tall.cache / m.cache < 2.0
    assert estimate(SEVEN_B, PUBLISHED_VQ["mgpt1"], 0, "bf16", (768, 768), rows=1).cache * 2 == m.cache


def test_the_weights_in_the_estimate_are_what_a_loaded_model_holds(originals):
    for kind in (None, "int8", "fp8"):
        model = load(originals["mgpt2"], dtype=torch.bfloat16, quantise=kind)
        state = model.transformer.state_dict()
        held = sum(t.nbytes for n, t in state.items() if not n.endswith("weight_scale"))
        assert memory.weights_nbytes(model.config, kind or "bf16") == held
    assert 13.9e9 < memory.weights_nbytes(SEVEN_B, "bf16") < 14.1e9
    assert 7.4e9 < memory.weights_nbytes(SEVEN_B, "int8") < 7.7e9
