"""What hosts share: names in the menu, the format that "auto" is, progress that can end a load, memory to ask for."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from lumina_core import (
    InputError,
    Sampling,
    default_dtype,
    families,
    generate,
    listing,
    load,
    sampling_nbytes,
)
from lumina_core.convert import convert
from lumina_core.training import world


@pytest.fixture
def models(tiny_folder, tmp_path):
    """A models folder with a checkpoint at the top, one below its owner, and a file made by `convert`."""
    for name in ("plain", "owner/nested", "a/b/deep", "a/b/c/too-deep", ".hidden"):
        shutil.copytree(tiny_folder, tmp_path / name)
    convert(tiny_folder, tmp_path / "owner" / "packed.safetensors")
    (tmp_path / "lora.safetensors").write_bytes(b"x" * 80)
    (tmp_path / "plain" / "inside").mkdir()
    (tmp_path / "plain" / "inside" / "config.json").write_text("{}")
    return tmp_path


def test_checkpoints_are_listed_by_their_path_in_the_models_folder(models):
    found = listing(["/nowhere", models])
    assert set(found) == {"plain", "owner/nested", "owner/packed.safetensors", "a/b/deep"}
    assert all(families.find(name, [models]) == path for name, path in found.items())


def test_of_two_checkpoints_of_one_name_that_of_the_first_folder_is_listed_and_found(tiny_folder, tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        shutil.copytree(tiny_folder, folder / "same")
    for order in (folders, folders[::-1]):
        assert listing(order) == {"same": order[0] / "same"} == {"same": families.find("same", order)}


def test_a_folder_that_cannot_be_read_is_left_out(models, monkeypatch):
    real = type(models).is_dir

    def is_dir(path):
        if path.name == "owner":
            raise PermissionError(path)
        return real(path)

    monkeypatch.setattr(type(models), "is_dir", is_dir)
    assert set(listing([models])) == {"plain", "a/b/deep"}
    assert listing([models / "plain" / "config.json", os.devnull]) == {}


def test_auto_is_bf16_only_for_a_large_checkpoint_on_a_device_that_has_it(tiny_folder, monkeypatch):
    monkeypatch.setattr(families, "_has_bf16", lambda device: device.type == "cuda")
    assert default_dtype(tiny_folder, "cuda") == torch.float32
    monkeypatch.setattr(families, "LARGE", 1000)
    assert default_dtype(tiny_folder, "cuda") == torch.bfloat16
    assert default_dtype(tiny_folder, torch.device("mps")) == torch.float32
    assert default_dtype(tiny_folder, "cpu") == torch.float32


def test_a_device_is_asked_whether_it_has_bf16():
    assert families._has_bf16(torch.device("cpu"))
    assert not families._has_bf16(torch.device("meta"))


def test_pictures_are_made_in_16_bit_beside_16_bit_on_a_card_that_has_it(monkeypatch):
    for has, wanted in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(families, "_has_bf16", lambda device, has=has: has)
        assert families.default_decode_dtype(torch.float16, "cuda") == wanted
        assert families.default_decode_dtype(torch.float32, "cuda") == torch.float32
        assert families.default_decode_dtype(torch.bfloat16, "cpu") == torch.float32


@pytest.mark.parametrize("name", ["nano-mgpt1", "nano-mgpt2", "nano-pure"])
def test_a_decoder_in_16_bit_changes_no_code_and_pictures_by_little(name):
    exact, small = load(name), load(name, decode_dtype=torch.bfloat16)
    scene = Image.fromarray(world.picture(world.scene("held-out", 3, 64, 64)))
    grid = small.encode(scene)
    assert torch.equal(grid.codes, exact.encode(scene).codes)
    off = small.decode(grid.codes).astype(int) - exact.decode(grid.codes)
    assert 0 < np.abs(off).max() <= 8
    assert np.square(off).mean() < 1


def test_loading_reports_every_tensor_and_can_be_ended(tiny_folder):
    seen = []
    load(tiny_folder, report=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen) and len(seen) > 50
    assert {total for _, total in seen} == {seen[-1][0]}

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(tiny_folder, report=stop)


def test_drawing_is_reckoned_with_its_cache_and_grows_with_what_is_asked(tiny_model):
    def needed(size=(64, 64), **settings) -> int:
        prompt = tiny_model.prompt("a red circle", size=size)
        return sampling_nbytes(tiny_model.transformer, tiny_model.vocabulary, prompt, Sampling(**settings))

    assert needed(cfg=1.0) < needed() < needed(batch=2) < needed(batch=2, size=(96, 96))
    assert needed(decode="ar") < needed(decode="jacobi", window=64)
    assert needed(size=None) > needed()
    assert needed(decode="ar") > tiny_model.transformer.cache_nbytes(2, 8 * 9, torch.float32)


def test_a_prompt_of_a_sibling_that_numbers_its_tokens_differently_is_refused():
    """Both are of one family; drawn nevertheless, a red circle came out as a red square."""
    one, other = load("nano-mgpt2"), load("nano-mgpt2-omni")
    prompt = one.prompt("a red circle in the center, white background", size=(64, 64))
    with pytest.raises(
        InputError, match="made with another checkpoint.* Make the prompt with the checkpoint"
    ):
        generate(other.transformer, other.vocabulary, prompt, Sampling())
