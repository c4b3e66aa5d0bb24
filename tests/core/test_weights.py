"""Loading checkpoints as people have them, and one clear error for everything that is wrong with a file."""

from __future__ import annotations

import json
import os
import shutil
import sys
import types

import pytest
import torch
from safetensors.torch import load_file, save_file

from lumina_core import CheckpointError, families, load, weights
from lumina_core.weights import read_pickle
from tests.core import checkpoints as ck

FAMILIES = ("mgpt1", "mgpt2", "pure")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """One checkpoint of each family; copied before a test changes it."""
    top = tmp_path_factory.mktemp("originals")
    return {f: ck.build(top / f, f) for f in FAMILIES}


@pytest.fixture
def folder(originals, tmp_path):
    return shutil.copytree(originals["mgpt2"], tmp_path / "checkpoint")


def error(name, **options) -> str:
    """The one line a front end would show."""
    with pytest.raises(CheckpointError) as caught:
        load(name, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- layouts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_released_folder_loads_as_its_family_with_every_tensor_as_stored(originals, family):
    model = load(originals[family], dtype=torch.bfloat16)
    assert model.family.id == family
    stored = {}
    for file in originals[family].glob("model-*.safetensors"):
        stored |= load_file(file)
    for name, tensor in model.transformer.state_dict().items():
        assert torch.equal(tensor, stored[name]), name
    vq = ck.vq_state(family)
    for name, tensor in model.vq.state_dict().items():
        assert torch.equal(tensor, vq[name]), name
    assert not any(
        p.requires_grad or p.is_meta for p in (*model.transformer.parameters(), *model.vq.parameters())
    )


def test_folder_and_file_names_do_not_decide_the_family(originals, tmp_path):
    for family, wrong in (("mgpt1", "Lumina-mGPT-2.0"), ("mgpt2", "PURE"), ("pure", "Lumina-mGPT-7B-768")):
        model = load(shutil.copytree(originals[family], tmp_path / wrong))
        assert model.family.id == family


def test_a_single_file_and_shards_without_index_load_too(originals, tmp_path):
    one = ck.build(tmp_path / "one", shards=1)
    assert load(one).transformer
    none = shutil.copytree(originals["mgpt2"], tmp_path / "none")
    (none / "model.safetensors.index.json").unlink()
    assert load(none).transformer


def test_a_name_is_looked_up_in_the_model_folders(originals):
    models = originals["mgpt2"].parent
    assert load("mgpt1", folders=["/nowhere", models]).name == "mgpt1"
    assert set(families.listing([models, "/nowhere"])) == set(FAMILIES)
    assert f"'mgpt9' in {models}" in error("mgpt9", folders=[models])


def test_chameleons_own_name_of_the_tokenizer_file_is_understood(originals, tmp_path):
    folder = shutil.copytree(originals["mgpt1"], tmp_path / "x")
    (folder / "tokenizer.json").rename(folder / "text_tokenizer.json")
    assert load(folder).family.id == "mgpt1"


# --- image tokenizers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".pt"])
@pytest.mark.parametrize("container", ["", "state_dict", "model"])
def test_an_image_tokenizer_loads_from_any_container_under_any_name(tmp_path, family, suffix, container):
    folder = ck.build(tmp_path / "c", family, vq=False)
    file = ck.save_vq(family, tmp_path / f"renamed{suffix}", container)
    model = load(folder, vq_path=file)
    assert torch.equal(model.vq.state_dict()["quant_conv.weight"], ck.vq_state(family)["quant_conv.weight"])


def test_an_image_tokenizer_is_found_inside_beside_and_in_folders_given(tmp_path):
    folder = ck.build(tmp_path / "models" / "c", vq=False)
    places = [
        folder / "movqgan" / "270M" / "movqgan_270M.ckpt",
        folder.parent / "beside.safetensors",
        tmp_path / "vae" / "sub" / "odd.pt",
    ]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        ck.save_vq("mgpt2", place)
        assert load(folder, vq_folders=[tmp_path / "vae"]).vq
        assert families.open_parts(folder, vq_folders=[tmp_path / "vae"]).vq_file == place
        place.unlink()


def test_other_files_in_the_vae_folder_do_no_harm(tmp_path):
    folder, vae = ck.build(tmp_path / "c", vq=False), tmp_path / "vae"
    vae.mkdir()
    save_file({"decoder.conv_in.weight": torch.zeros(2, 2)}, vae / "a-vae.safetensors")
    (vae / "b-broken.safetensors").write_bytes(b"no")
    (vae / "c-broken.pt").write_bytes(b"no")
    ck.save_vq("mgpt1", vae / "d.ckpt")
    ck.save_vq("mgpt2", vae / "e.ckpt")
    assert families.open_parts(folder, vq_folders=[vae]).vq_file == vae / "e.ckpt"


def test_a_missing_image_tokenizer_is_named_with_size_and_place(tmp_path):
    folder = ck.build(tmp_path / "c", vq=False)
    text = error(folder)
    assert "movqgan_270M.ckpt (1.1 GB)" in text and str(folder) in text
    places = [tmp_path / "vae", tmp_path / "lumina_mgpt"]
    assert all(str(place) in error(folder, vq_folders=places) for place in (folder, *places))


@pytest.mark.parametrize("family,other", [("mgpt1", "mgpt2"), ("mgpt2", "pure"), ("pure", "mgpt1")])
def test_an_image_tokenizer_of_another_family_is_refused_by_name(tmp_path, family, other):
    folder = ck.build(tmp_path / "c", family, vq=False)
    wrong = ck.save_vq(other, tmp_path / "vq.pt")
    right = {"mgpt1": "vqgan.ckpt", "mgpt2": "movqgan_270M.ckpt", "pure": "vq_ds8_c2i.pt"}[family]
    title = next(f.title for f in families.FAMILIES if f.id == other)
    for text in (error(folder, vq_path=wrong), error(folder, vq_folders=[tmp_path])):
        assert str(wrong) in text and title in text and right in text


# --- pickles -------------------------------------------------------------------------------------------------------


class Runs:
    """Would make a folder if its pickle were executed."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path, zipped):
    folder, trap = ck.build(tmp_path / "c", vq=False), tmp_path / "trap"
    file = folder / "movqgan_270M.ckpt"
    torch.save(ck.vq_state("mgpt2") | {"x": Runs(trap)}, file, _use_new_zipfile_serialization=zipped)
    for text in (error(folder), error(folder, vq_path=file)):
        assert str(file) in text and "run code" in text and "mkdir" in text and ".safetensors" in text
    assert not trap.exists()


def test_what_training_programs_pickle_beside_the_weights_is_left_aside(tmp_path, monkeypatch):
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    state = {"state_dict": {"a": torch.ones(2)}, "callbacks": {module.ModelCheckpoint: {"best": 1}}}
    file = tmp_path / "vqgan.ckpt"
    torch.save(state | {"object": module.ModelCheckpoint()}, file)
    monkeypatch.undo()
    assert list(read_pickle(file)) == ["a"]


@pytest.mark.parametrize("data", [b"", b"no pickle at all", b"PK\x03\x04 cut off"])
def test_a_damaged_pickle_is_named(tmp_path, data):
    file = tmp_path / "vq.pt"
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"vq\.pt"):
        read_pickle(file)


# --- faults --------------------------------------------------------------------------------------------------------


def test_a_truncated_shard_is_named(folder):
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    text = error(folder)
    assert str(shard) in text and "cut short" in text and "Download it again" in text


@pytest.mark.parametrize("data", [b"", b"\xff" * 20, (50).to_bytes(8, "little") + b"{" * 50])
def test_a_shard_without_a_sound_header_is_named(folder, data):
    shard = folder / "model-00001-of-00002.safetensors"
    shard.write_bytes(data)
    text = error(folder)
    assert str(shard) in text and "Download it again" in text


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard_is_named_with_or_without_index(folder, index):
    (folder / "model-00002-of-00002.safetensors").unlink()
    if not index:
        (folder / "model.safetensors.index.json").unlink()
    text = error(folder)
    assert "model-00002-of-00002.safetensors" in text and str(folder) in text


def test_a_half_fetched_release_lists_all_that_lacks_with_size_and_place(tmp_path):
    folder = ck.build(tmp_path / "Lumina-mGPT-2.0", shards=4)
    for name in ("config.json", "tokenizer.json", *(f"model-0000{n}-of-00004.safetensors" for n in (2, 4))):
        (folder / name).unlink()
    text = error(folder)
    assert "config.json, model-00002-of-00004.safetensors (about 3.9 GB), model-00004" in text
    assert "tokenizer.json. They come from https://huggingface.co/Alpha-VLLM/Lumina-mGPT-2.0;" in text
    assert f"download Lumina-mGPT-2.0 {tmp_path}" in text


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..\\x.safetensors", "C:x", ".."]
)
def test_an_index_that_points_outside_its_folder_is_refused(folder, name):
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    text = error(folder)
    assert str(index) in text and "outside" in text


def test_a_tensor_that_is_in_no_shard_is_named(folder):
    shard = folder / "model-00002-of-00002.safetensors"
    state = load_file(shard)
    del state["lm_head.weight"]
    save_file(state, shard)
    assert "'lm_head.weight' is missing" in error(folder)


def test_a_tensor_of_wrong_shape_is_named_with_its_file(folder):
    shard = folder / "model-00002-of-00002.safetensors"
    state = load_file(shard)
    state["model.layers.1.mlp.down_proj.weight"] = torch.zeros(32, 47, dtype=torch.bfloat16)
    save_file(state, shard)
    text = error(folder)
    assert (
        "'model.layers.1.mlp.down_proj.weight' is [32, 47]" in text
        and shard.name in text
        and "[32, 48]" in text
    )


def test_a_configuration_of_another_checkpoint_is_noticed(folder):
    config = weights.read_json(folder / "config.json")
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    text = error(folder)
    assert "config.json says hidden_size = 64" in text and "do not belong together" in text


def test_rope_scaling_is_refused_rather_than_ignored(folder):
    config = weights.read_json(folder / "config.json")
    scaled = config | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    (folder / "config.json").write_text(json.dumps(scaled))
    assert "rope scaling" in error(folder)


def test_a_tokenizer_without_the_special_names_is_named(folder):
    (folder / "tokenizer.json").write_text(ck.tokenizer_json(["<|endoftext|>"]), "utf-8")
    text = error(folder)
    assert str(folder / "tokenizer.json") in text and "own" in text


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tokenizer_that_lacks_one_control_name_is_named(tmp_path, family):
    names = [n for n in ck.token_names(family) if n != "<eoss>"]
    text = error(ck.build(tmp_path / "c", family, names=names))
    assert "tokenizer.json" in text and "'<eoss>'" in text


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_a_missing_json_file_is_named(folder, file):
    (folder / file).unlink()
    text = error(folder)
    assert file in text and str(folder) in text


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors.index.json"])
def test_a_damaged_json_file_is_named(folder, file):
    (folder / file).write_text('{"a": [')
    assert str(folder / file) in error(folder)


def test_a_llama_checkpoint_is_told_apart_without_reading_its_tokenizer(tmp_path):
    folder = tmp_path / "llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 32000}))
    save_file({"model.layers.0.self_attn.q_proj.weight": torch.zeros(4, 4)}, folder / "model.safetensors")
    text = error(folder)
    assert str(folder) in text and "language model of another kind (llama)" in text and "PURE" in text


def test_a_diffusion_checkpoint_is_told_apart(tmp_path):
    file = tmp_path / "sd.safetensors"
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4)}, file)
    assert "diffusion checkpoint" in error(file)
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    assert "diffusion pipeline" in error(tmp_path / "pipeline")


def test_a_lora_and_an_image_tokenizer_are_no_checkpoints(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({"a.lora_A.weight": torch.zeros(4, 4)}, file)
    assert "a LoRA" in error(file)
    ck.save_vq("mgpt2", tmp_path / "vq.safetensors")
    assert "an image tokenizer" in error(tmp_path / "vq.safetensors")


def test_a_shard_given_for_its_folder_opens_the_folder(folder):
    assert load(folder / "model-00001-of-00002.safetensors").name == folder.name


def test_another_kind_of_file_or_nothing_there_is_said(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"")
    assert "x.gguf is not a checkpoint" in error(tmp_path / "x.gguf")
    assert "There is no checkpoint" in error(tmp_path / "nothing")
    assert "lacks config.json, model*.safetensors, tokenizer.json" in error(tmp_path)
