"""Pictures from anywhere: transparent, grey, tiny, narrow, broken, many: a right result or one clear message."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lumina_core import Chat, InputError, Restoration, ask, from_tensor, load
from lumina_core.image import on_white, open_picture
from tests.core import checkpoints as ck


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    base = tmp_path_factory.mktemp("inputs")
    few = {"max_position_embeddings": 300}
    return {
        f: load(ck.build(base / f, f, **(few if f == "pure" else {}))) for f in ("mgpt1", "mgpt2", "pure")
    }


def colours(images: torch.Tensor) -> list[list[int]]:
    return [np.asarray(picture).reshape(-1, 3)[0].tolist() for picture in from_tensor(images)]


def test_transparency_is_white_grey_is_grey_and_what_is_no_number_is_black():
    assert colours(torch.tensor([0.2, 0.4, 0.6, 0.0]).view(1, 1, 1, 4)) == [[255, 255, 255]]
    assert colours(torch.tensor([0.2, 0.4, 0.6, 1.0]).view(1, 1, 1, 4)) == [[51, 102, 153]]
    assert colours(torch.tensor([0.4]).view(1, 1, 1, 1)) == [[102, 102, 102]]
    odd = torch.tensor([float("nan"), float("inf"), -3.0]).view(1, 1, 1, 3)
    assert colours(odd) == [[0, 255, 0]]


def test_every_picture_of_a_batch_is_taken():
    batch = torch.stack([torch.full((5, 3, 3), v) for v in (0.0, 1.0)])
    assert [p.size for p in from_tensor(batch)] == [(3, 5)] * 2
    assert colours(batch) == [[0, 0, 0], [255, 255, 255]]


def seen(file) -> list[int]:
    """The first row of a picture's file as the networks get it; its channels are equal."""
    picture = np.asarray(on_white(open_picture(file)))
    assert (picture == picture[..., :1]).all() and picture.shape[-1] == 3
    return picture[0, :, 0].tolist()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_pictures_of_16_bits_keep_their_greys(tmp_path, suffix):
    levels = np.array([[0, 128, 129, 257 * 100, 257 * 200, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / f"a.{suffix}")
    assert seen(tmp_path / f"a.{suffix}") == [0, 0, 1, 100, 200, 255]


@pytest.mark.parametrize(
    ("levels", "greys"),
    [
        (np.array([[-5, 0, 255]], np.int32), [0, 0, 255]),
        (np.array([[-5, 257 * 100, 65535, 1 << 30]], np.int32), [0, 100, 255, 255]),
        (np.array([[0, 0.2, 1]], np.float32), [0, 51, 255]),
        (np.array([[-np.inf, np.nan, 51.4, 255]], np.float32), [0, 0, 51, 255]),
    ],
)
def test_grey_pictures_of_whole_numbers_and_decimals_keep_their_greys(tmp_path, levels, greys):
    Image.fromarray(levels).save(tmp_path / "a.tif")
    assert seen(tmp_path / "a.tif") == greys


@pytest.mark.parametrize("most", [300, np.inf])
def test_decimals_whose_white_nobody_knows_are_refused(most):
    with pytest.raises(InputError, match=f"decimals up to {most:g}; they may go up to 1 or up to 255"):
        on_white(Image.fromarray(np.array([[0, most]], np.float32)))


@pytest.mark.parametrize("shape", [(5, 5, 3), (1, 5, 5, 2), (0, 5, 5, 3), (1, 0, 5, 3)])
def test_what_is_no_picture_is_told_in_one_line(shape):
    with pytest.raises(InputError, match="The image has shape") as caught:
        from_tensor(torch.zeros(shape))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (33, 31)])
@pytest.mark.parametrize("channels", [1, 4])
def test_any_picture_is_encoded_asked_about_edited_and_restored(models, size, channels):
    [picture] = from_tensor(
        torch.rand(1, size[1], size[0], channels, generator=torch.Generator().manual_seed(1))
    )
    for family in ("mgpt1", "mgpt2"):
        for fit in ("crop", "stretch"):
            grid = models[family].encode(picture, fit=fit)
            assert min(grid.codes.shape) >= models[family].vocabulary.latents_per_unit
    chat = Chat("mgpt1").ask(models["mgpt1"], "what is this?", [picture])
    assert len(chat.prompt(models["mgpt1"]).tokens) > 20
    assert models["mgpt1"].prompt("redden it", task="edit", images=[picture]).units
    job = Restoration(models["pure"], picture, 1.0)
    assert job.plan.size == size
    assert all(tile.size == (32, 32) for tile in job.tiles)


@pytest.mark.parametrize(
    ("size", "units"), [((100, 50), (3, 2)), ((49, 47), (2, 1)), ((47, 49), (1, 2)), ((15, 80), (1, 2))]
)
def test_a_stretched_picture_has_the_nearest_whole_units(models, size, units):
    grid = models["mgpt2"].encode(Image.new("RGB", size), fit="stretch")
    assert models["mgpt2"].vocabulary.units(grid.codes) == units[::-1]


@pytest.mark.parametrize("family", ["mgpt1", "mgpt2"])
def test_what_is_asked_about_is_stretched_or_cropped_as_wished(models, family):
    m, ramp = models[family], Image.linear_gradient("L").resize((200, 64)).rotate(90, expand=True)
    wide = ramp.resize((200, 64)).convert("RGB")
    for fit, fitted in (
        ("stretch", wide.resize((64, 64), Image.BICUBIC)),
        ("crop", wide.crop((68, 0, 132, 64))),
    ):
        held = list(ask(m, "depth", wide, size=(64, 64), fit=fit).prompt.tokens)
        body = m.vocabulary.rows(m.encode(fitted).codes)
        assert any(held[i : i + len(body)] == body for i in range(len(held))), fit


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
@pytest.mark.parametrize(
    ("family", "task"), [("mgpt1", "text_to_image"), ("mgpt2", "text_to_image"), ("mgpt1", "edit")]
)
def test_an_empty_text_is_told_in_one_line(models, family, task, text):
    images = from_tensor(torch.zeros(1, 8, 8, 3)) if task == "edit" else []
    with pytest.raises(InputError, match="empty") as caught:
        models[family].prompt(text, task=task, size=(32, 32), images=images)
    assert "\n" not in str(caught.value)
