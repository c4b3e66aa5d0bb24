"""Single nodes without a ComfyUI, above a stand-in for `nodes/host.py`."""

from __future__ import annotations

import dataclasses
import os
import types
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from PIL import Image

import lumina_core
from lumina_core import CheckpointError, InputError, PictureFinished, RowFinished, TextPiece, TokenGrid
from tests.core import checkpoints


def grid(value: int = 0, height: int = 4, width: int = 4) -> TokenGrid:
    return TokenGrid(torch.full((height, width), value), "mgpt2")


def prompt_of(task: str) -> types.SimpleNamespace:
    return types.SimpleNamespace(task=task)


# Best Of


def best_of(alone, **changes) -> tuple:
    model, prompt = types.SimpleNamespace(model=lumina_core.load("nano-mgpt2")), prompt_of("text_to_image")
    inputs = {"model": [model], "prompt": [prompt], "seed": [7], "candidates": [4], "score": ["given"]}
    inputs |= {"question": [""], "keep": [0], "tokens": [[grid(1)], [grid(2)]], "scores": [0.1, 0.9]}
    return alone("best").BestOf.execute(**inputs | changes)


@pytest.mark.parametrize("name", ["model", "prompt", "seed", "candidates", "score", "judge", "window"])
def test_best_of_refuses_a_list_where_it_takes_one_value(alone, name):
    with pytest.raises(InputError, match=f"^{name} has 3 values; .* tokens and scores. Connect one"):
        best_of(alone, **{name: [None, None, None]})


def test_best_of_takes_lists_of_tokens_and_scores(alone):
    grids, scores, _ = best_of(alone)
    assert [int(g.codes[0, 0]) for g in grids] == [2, 1]
    assert scores == [0.9, 0.1]


def test_best_of_refuses_an_unknown_score_before_anything_is_drawn(alone):
    with pytest.raises(InputError, match="^score is 'nicest'; it may be likelihood, answer, given"):
        best_of(alone, score=["nicest"])


# Models and LoRAs in their folders


def test_a_lora_is_read_again_when_its_configuration_comes_or_changes(alone, tmp_path):
    folders, folder = alone("folders"), tmp_path / "loras" / "style"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    seen = [folders.lora_fingerprint("style/adapter_model.safetensors")]
    beside = folder / "adapter_config.json"
    for text, changed in (("{}", 1), ('{"lora_alpha": 8}', 1), ('{"lora_alpha": 9}', 2)):
        beside.write_text(text, "utf-8")
        os.utime(beside, ns=(changed, changed))
        seen.append(folders.lora_fingerprint("style/adapter_model.safetensors"))
    assert len(set(seen)) == 4


def test_the_configuration_of_another_lora_is_none_of_a_single_file(alone, tmp_path):
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "style.safetensors").write_bytes(b"x")
    before = alone("folders").lora_fingerprint("style.safetensors")
    (tmp_path / "loras" / "adapter_config.json").write_text("{}", "utf-8")
    assert alone("folders").lora_fingerprint("style.safetensors") == before


def test_nothing_is_fetched_where_the_image_tokenizer_lies_in_the_vae_folder(alone, tmp_path, monkeypatch):
    checkpoints.build(tmp_path / "lumina_mgpt" / "PURE", "pure", vq=False)
    (tmp_path / "vae").mkdir()
    monkeypatch.setattr(lumina_core, "Download", MagicMock(side_effect=AssertionError("it is all there")))
    with pytest.raises(AssertionError):
        alone("folders").fetch("PURE")
    checkpoints.save_vq("pure", tmp_path / "vae" / "vq_ds8_c2i.pt")
    assert alone("folders").fetch("PURE") == "PURE"


@pytest.mark.parametrize("lacking", ["tokenizer.json", "config.json"])
def test_a_download_goes_on_in_the_model_folder_that_has_the_rest(alone, tmp_path, monkeypatch, lacking):
    folders, places = alone("folders"), [tmp_path / "first", tmp_path / "second"]
    places[0].mkdir()
    (checkpoints.build(places[1] / "PURE", "pure") / lacking).unlink()
    monkeypatch.setattr(folders, "list_folders", lambda kind: [str(place) for place in places])
    monkeypatch.setattr(lumina_core, "Download", began := MagicMock(side_effect=InterruptedError))
    for name, place in (("PURE", places[1]), ("Lumina-mGPT-2.0", places[0])):
        with pytest.raises(InterruptedError):
            folders.fetch(name)
        began.assert_called_with(name, place)


def test_an_image_tokenizer_that_comes_by_hand_is_asked_for_without_a_network(alone, tmp_path, monkeypatch):
    monkeypatch.setattr(lumina_core, "Download", MagicMock(side_effect=InterruptedError))
    name = "Lumina-mGPT-7B-768"
    folder = checkpoints.build(tmp_path / "lumina_mgpt" / name, "mgpt1", vq=False)
    fetch = alone("folders").fetch
    with pytest.raises(CheckpointError, match=r"is missing: put vqgan\.ckpt"):
        fetch(name)
    (folder / "vqgan.ckpt").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"vqgan\.ckpt"):
        fetch(name)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InterruptedError):
        fetch(name)


def test_a_download_needs_no_checkpoint_chosen_as_model(alone):
    check = alone("load").LoadModel.validate_inputs
    assert check("nobody/nothing", "Lumina-mGPT-2.0") is True
    assert check("nano-mgpt2") is check("nano-mgpt2", "off") is True
    assert check(None, "off") is check("nano-mgpt2", None) is True, "names over links"
    for download in ({}, {"download": "off"}):
        assert "There is no checkpoint 'nobody/nothing'" in check("nobody/nothing", **download)
    assert "download is 'elsewhere'; it may be off, Lumina-mGPT-7B-512" in check("nano-mgpt2", "elsewhere")


def test_comfyui_runs_a_download_whatever_is_chosen_as_model(comfy):
    """The server of these tests has no network, so the run ends there."""
    inputs = {"model": "nobody/nothing", "precision": "auto", "download": "Lumina-mGPT-2.0"}
    prompt = {
        "1": {"class_type": "LuminaMGPTLoadModel", "inputs": inputs},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }
    run = comfy.run(prompt)
    assert run.status == "error" and "Lumina-mGPT-2.0 cannot be listed" in run.error
    for download, says in (("off", "There is no checkpoint"), ("elsewhere", "download is 'elsewhere'")):
        inputs["download"] = download
        run = comfy.run(prompt)
        assert run.status == "refused" and says in run.error


# Preview


class Painted:
    """A model whose pictures have the brightness of their codes, a pixel for each."""

    vq = types.SimpleNamespace(config=types.SimpleNamespace(factor=1))

    def decode(self, codes: torch.Tensor) -> np.ndarray:
        return codes.numpy().astype(np.uint8)[..., None].repeat(3, -1)


@pytest.mark.parametrize("shape", [(4, 4), (8, 4), (3, 6)])
def test_the_preview_of_a_second_picture_shows_that_picture(alone, monkeypatch, shape):
    preview = alone("preview")
    now = [0.0]
    monkeypatch.setattr(preview, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    shown = preview.Preview(Painted(), 64)

    def rows(value: int, shape: tuple[int, int]) -> list[np.ndarray | None]:
        pictures = []
        for row in range(1, shape[0] + 1):
            event = RowFinished(torch.full((1, row, shape[1]), value), shape)
            picture = shown.update(event)
            pictures.append(picture and np.asarray(picture))
        return pictures

    assert (rows(10, (4, 4))[-1] == 10).all()
    *early, last = rows(200, shape)
    assert not any(p is not None for p in early), "too early for another picture"
    assert last.shape == (*shape, 3) and (last == 200).all()
    now[0] = 100.0
    first, *_ = rows(30, shape)
    assert (first[0] == 30).all() and (first[1:] == 0x80).all(), "rows to come are grey"


# Sampler


def sampled(alone, model, batch: int, events: list) -> tuple:
    hosted = types.SimpleNamespace(model=model, draw=lambda prompt, sampling: iter(events))
    return alone("sample").Sampler.execute(hosted, prompt_of("text_to_image"), seed=0, batch=batch)


def test_every_answer_of_a_batch_has_its_line_of_text(alone, tiny_model):
    words = tiny_model.tokenizer.encode
    events = [
        TextPiece(0, tuple(words("a red\n\n circle"))),
        TextPiece(2, tuple(words("left"))),
        PictureFinished(2, grid(5)),
        TextPiece(2, tuple(words("ri"))),
        TextPiece(2, tuple(words("ght"))),
    ]
    grids, text = sampled(alone, tiny_model, 4, events)
    assert text.split("\n") == ["a red circle", "", "left right", ""]
    assert [int(g.codes[0, 0]) for g in grids] == [5]


def test_an_answer_alone_keeps_its_lines(alone, tiny_model):
    _, text = sampled(alone, tiny_model, 1, [TextPiece(0, tuple(tiny_model.tokenizer.encode("a\n\nb")))])
    assert text == "a\n\nb"


def test_a_batch_that_only_draws_has_no_text(alone, tiny_model):
    grids, text = sampled(alone, tiny_model, 2, [PictureFinished(i, grid(i)) for i in range(2)])
    assert text == "" and [int(g.codes[0, 0]) for g in grids] == [0, 1]


# Settings


@pytest.mark.parametrize(
    ("checkpoint", "task", "cfg", "temperature", "text_top_k"),
    [
        ("nano-mgpt2", "text_to_image", 2.0, 0.5, 10),
        ("nano-mgpt1", "text_to_image", 2.0, 0.1, 10),
        ("nano-mgpt1", "depth", 1.0, 0.0, 5),
        ("nano-pure", "restore", 1.0, 0.0, 1),
    ],
)
def test_a_sampler_left_as_it_comes_draws_as_the_checkpoint_recommends(
    alone, checkpoint, task, cfg, temperature, text_top_k
):
    asked = []
    hosted = types.SimpleNamespace(
        model=lumina_core.load(checkpoint), draw=lambda prompt, sampling: asked.append(sampling) or ()
    )
    fresh = {name: alone("sockets").OWN for name in ("cfg", "temperature", "image_top_k", "text_top_k")}
    for changes in ({}, {"cfg": 1.5}):
        alone("sample").Sampler.execute(hosted, prompt_of(task), seed=3, **fresh | changes)
    drawn, changed = asked
    assert (drawn.cfg, drawn.temperature, drawn.text_top_k, drawn.seed) == (cfg, temperature, text_top_k, 3)
    assert changed == dataclasses.replace(drawn, cfg=1.5)


@pytest.mark.parametrize("window", ["5", "none", 8])
def test_an_odd_window_over_a_link_is_refused_by_name(alone, tiny_model, window):
    hosted = types.SimpleNamespace(model=tiny_model)
    with pytest.raises(InputError, match=f"^window is '{window}'; it may be auto, 4, 8, 16, 32, 64"):
        alone("sample").Sampler.execute(hosted, prompt_of("text_to_image"), seed=0, window=window)


# What ComfyUI does not check


def test_an_odd_download_over_a_link_is_refused_by_name(alone):
    with pytest.raises(InputError, match="^download is 'Lumina-mGPT-3'; it may be off, Lumina-mGPT-7B-512"):
        alone("folders").fetch("Lumina-mGPT-3")


@pytest.mark.parametrize(
    ("file", "node"), [("load", "LoadModel"), ("lora", "LoadLora"), ("picture", "TextToImage")]
)
def test_a_choice_that_lacks_is_left_to_comfyui_to_tell(alone, file, node):
    assert getattr(alone(file), node).validate_inputs() is True


@pytest.mark.parametrize("index", [-1, 2])
def test_a_segment_that_is_not_there_is_refused(alone, index):
    picture = torch.zeros(1, 16, 16, 3)
    picture[:, :, 8:] = 1
    with pytest.raises(InputError, match=f"^index is {index}; there are 2 segments"):
        alone("dense").SegmentsToMasks.execute(picture, index, tolerance=64.0, min_area=0.0, drop_black=False)


# Encode


@pytest.mark.parametrize(
    ("size", "box"),
    [((100, 80), (2, 8, 98, 72)), ((95, 33), (15, 0, 79, 32)), ((64, 32), (0, 0, 64, 32))],
)
def test_encode_cuts_the_middle_out_and_resamples_nothing(alone, tiny_model, size, box):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    hosted = types.SimpleNamespace(model=tiny_model, place_vq=lambda sizes: None)
    [[codes]] = alone("decode").Encode.execute(hosted, torch.from_numpy(noise)[None] / 255, "crop")
    middle = tiny_model.encode(Image.fromarray(noise).crop(box))
    assert torch.equal(codes.codes, middle.codes)


@pytest.mark.parametrize("size", [(20, 50), (100, 7)])
def test_encode_takes_pictures_smaller_than_a_unit(alone, tiny_model, size):
    hosted = types.SimpleNamespace(model=tiny_model, place_vq=lambda sizes: None)
    [[codes]] = alone("decode").Encode.execute(hosted, torch.zeros(1, size[1], size[0], 3), "crop")
    units = tuple(max(1, side // 32) for side in size)
    assert codes.codes.shape == (4 * units[1], 4 * units[0])
