"""Checkpoint folders as other programs and their users leave them: read rightly, or refused with what to do."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lumina_core import CheckpointError, load
from lumina_core.convert import convert
from lumina_core.inspection import inspect
from tests.core import checkpoints as ck

LAYER = "model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return ck.build(tmp_path_factory.mktemp("originals") / "2.0", shards=1)


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "checkpoint")


def change(file, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# Small files of other programs


@pytest.mark.parametrize(
    "name",
    [f"{LAYER}.{s}" for s in ("scale_weight", "weight_scale_inv", "weight_scale_2")] + ["scaled_fp8"],
)
def test_fp8_as_other_programs_store_it_is_refused_and_not_read_as_noise(folder, name):
    file = folder / "model.safetensors"
    state = load_file(file)
    state[f"{LAYER}.weight"] = (state[f"{LAYER}.weight"] * 100).to(torch.float8_e4m3fn)
    save_file(state | {name: torch.ones(1)}, file)
    for use in (load, inspect):
        with pytest.raises(CheckpointError, match=rf"{folder}.*not read \('{name}'\).*original.*convert"):
            use(folder)


def test_a_quantised_configuration_is_refused_and_a_plain_one_is_not(folder):
    change(folder / "config.json", quantization_config=None)
    assert inspect(folder).usable and load(folder)
    change(folder / "config.json", quantization_config={"quant_method": "fp8"})
    for use in (load, inspect):
        with pytest.raises(CheckpointError, match=r"not read \('quantization_config' in its configuration\)"):
            use(folder)


def test_a_small_file_keeps_its_kind_and_says_so_once(folder, tmp_path, caplog):
    small = convert(folder, tmp_path / "small.safetensors", "int8")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            weight = load(small, quantise="nf4").transformer.model.layers[0].mlp.down_proj.weight
            assert weight.dtype == torch.int8
        load(small, quantise="int8")
    said = [line for line in caplog.messages if "is stored as" in line]
    assert said == ["Lumina-mGPT: checkpoint is stored as int8; precision nf4 is not applied"]


# The token that prompts begin with


def test_2_0_without_its_first_token_is_refused_everywhere(folder, tmp_path):
    for settings in (None, "{}"):
        file = folder / "tokenizer_config.json"
        file.unlink()
        if settings is not None:
            file.write_text(settings)
        with pytest.raises(
            CheckpointError, match=rf"tokenizer_config.json is missing in {folder}.*Download it"
        ):
            load(folder)
        assert ["tokenizer_config.json is missing" in p for p in inspect(folder).problems] == [True]
        with pytest.raises(CheckpointError, match=r"tokenizer_config\.json is missing"):
            convert(folder, tmp_path / "x.safetensors")
        file.touch()


@pytest.mark.parametrize("family", ["mgpt1", "pure"])
def test_chameleons_prompts_begin_with_s_where_nothing_says_so(tmp_path, family):
    folder = ck.build(tmp_path / "c", family)
    known = load(folder).vocabulary.bos
    (folder / "tokenizer_config.json").unlink()
    assert load(folder).vocabulary.bos == known
    assert inspect(folder).usable


def test_the_settings_of_a_tokenizer_in_a_subfolder_may_stand_in_the_folder(folder):
    first = load(folder).vocabulary.bos
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer.json").rename(folder / "tokenizer" / "tokenizer.json")
    assert load(folder).vocabulary.bos == first
    (folder / "tokenizer_config.json").rename(folder / "tokenizer" / "tokenizer_config.json")
    assert load(folder).vocabulary.bos == first


# What else lies in the folder


@pytest.mark.parametrize("shards", [1, 2])
def test_a_file_converted_into_the_checkpoints_own_folder_leaves_it_as_it_was(tmp_path, shards):
    folder = ck.build(tmp_path / "c", shards=shards)
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    before = inspect(folder).files
    for name in ("model-int8.safetensors", "model-00009-of-00009.safetensors"):
        convert(folder, folder / name, "int8")
    report = inspect(folder)
    assert (report.precision, report.files, report.usable) == ("bf16", before, True)
    assert load(folder).transformer.model.layers[0].mlp.down_proj.weight.dtype == torch.float32


def test_another_copy_beside_model_safetensors_is_no_part_of_it(folder):
    state = load_file(folder / "model.safetensors")
    save_file({n: torch.zeros_like(t) for n, t in state.items()}, folder / "model_old.safetensors")
    save_file(state, folder / "model-00001-of-00002.safetensors")
    assert load(folder).transformer.lm_head.weight.any()
    assert inspect(folder).files == 1


def test_the_only_weights_of_a_folder_may_have_a_longer_name(folder):
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    assert inspect(folder).files == 1 and load(folder).transformer.lm_head.weight.any()


# The folder one stands in


@pytest.mark.parametrize("name", [".", "", "inside/.."])
def test_a_checkpoint_is_opened_from_inside_its_folder(original, tmp_path, monkeypatch, name):
    folder = shutil.copytree(original, tmp_path / "models" / "Lumina-mGPT-2.0-Omni")
    (folder / "movqgan_270M.ckpt").rename(folder.parent / "movqgan_270M.ckpt")
    (folder / "inside").mkdir()
    monkeypatch.chdir(folder)
    report = inspect(name)
    assert report.usable and report.tasks_basis == "from the name: Omni"
    assert load(name).name == "Lumina-mGPT-2.0-Omni"


def test_the_root_is_no_checkpoint():
    with pytest.raises(CheckpointError):
        load("/")


# Image tokenizers as training programs save them


@pytest.mark.parametrize("prefix", ["model.", "module.", "first_stage_model.", "vq_model."])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_an_image_tokenizer_is_known_behind_a_prefix(folder, prefix, suffix):
    (folder / "movqgan_270M.ckpt").unlink()
    state, file = ck.vq_state("mgpt2"), folder / f"movqgan_270M{suffix}"
    wrapped = {prefix + n: t for n, t in state.items()} | {"loss.weight": torch.ones(1)}
    save_file(wrapped, file) if suffix == ".safetensors" else torch.save(wrapped, file)
    assert inspect(file).kind == "image tokenizer"
    assert torch.equal(load(folder).vq.state_dict()["quant_conv.weight"], state["quant_conv.weight"])


def test_an_image_tokenizer_saved_as_averages_alone_is_read(folder):
    ck.save_vq("mgpt2", folder / "movqgan_270M.ckpt", "ema")
    assert load(folder).vq


def test_a_file_with_the_usual_name_that_is_something_else_is_named(folder):
    file = folder / "movqgan_270M.ckpt"
    torch.save({"x": torch.ones(1)}, file)
    with pytest.raises(
        CheckpointError, match=rf"{file} holds no image tokenizer of Lumina-mGPT 2.0; replace"
    ):
        load(folder)
