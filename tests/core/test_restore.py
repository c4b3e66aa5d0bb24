"""Restoring: any size comes out at the size asked for, one seed gives one picture, every tile keeps its text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lumina_core import InputError, PictureFinished, Progress, Sampling, generate, load, settings
from lumina_core.restoration import Restoration, Restored, tile_side
from lumina_core.tiles import plan_tiles
from tests.core import checkpoints as ck
from tests.core.test_engine_equal import eager_to_draw

SAMPLING = Sampling(cfg=0.8, temperature=0.9, text_top_k=4, decode="ar", max_tokens=12)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Tiles of 32 pixels: two pictures of 24 tokens and some text fit its positions, of 76 they do not."""
    folder = ck.build(tmp_path_factory.mktemp("pure") / "pure", "pure", max_position_embeddings=300)
    return load(folder)


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(7)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


def restored(model, image, scale=2.0, at_once=8, sampling=SAMPLING, **options) -> Restored:
    job = Restoration(model, image, scale, **options)
    for _ in job.draw(job.abreast(job.prompts(), sampling), at_once):
        pass
    return job.finish()


def test_the_tile_is_the_largest_that_fits_the_positions(model):
    assert tile_side(model) == 32


@pytest.mark.parametrize(
    ("size", "scale", "tiles"),
    [((16, 16), 2.0, 1), ((25, 20), 2.0, 4), ((1, 1), 4.0, 1), ((3, 100), 1.0, 5), ((32, 32), 1.0, 1)],
)
def test_any_size_comes_out_at_the_size_asked_for(model, size, scale, tiles):
    done = restored(model, picture(*size), scale)
    assert done.picture.shape == (round(size[1] * scale), round(size[0] * scale), 3)
    assert done.picture.dtype == np.uint8
    assert len(done.plan) == len(done.texts) == len(done.lines()) == tiles
    assert done.outlined().shape == done.picture.shape


def test_one_seed_gives_one_picture_and_another_seed_another(model):
    first, again = (restored(model, picture(25, 20), seed=3) for _ in range(2))
    assert np.array_equal(first.picture, again.picture)
    assert first.texts == again.texts
    assert not np.array_equal(first.picture, restored(model, picture(25, 20), seed=4).picture)


@pytest.mark.parametrize("decode", ["ar", "jacobi"])
def test_tiles_side_by_side_are_the_ones_drawn_alone(model, decode):
    sampling = replace(SAMPLING, decode=decode)
    alone = restored(model, picture(25, 20), at_once=1)
    for at_once in (3, 8):
        together = restored(model, picture(25, 20), at_once=at_once, sampling=sampling)
        assert np.array_equal(alone.picture, together.picture)
        assert alone.texts == together.texts


def test_a_picture_of_one_pixel_is_told_in_words():
    """The bundled checkpoint went on with hundreds of codes."""
    nano = load("nano-pure")
    for value in ((255, 80, 31), (255, 0, 0)):
        job = Restoration(nano, Image.new("RGB", (1, 1), value), 0.25)
        for _ in job.draw(job.abreast(job.prompts(), settings(nano, "restore"))):
            pass
        [line] = job.finish().lines()
        assert "IMGIMG" not in line and "<reserved" not in line and len(line) < 400


def test_progress_goes_up_over_all_tiles_to_the_end(model):
    job = Restoration(model, picture(25, 20), 2.0)
    events = list(job.draw(job.abreast(job.prompts(), SAMPLING), 3))
    done = [e.done for e in events if isinstance(e, Progress)]
    assert done == sorted(done)
    assert done[-1] == next(e.total for e in events if isinstance(e, Progress))


def test_a_tile_is_the_picture_that_the_sampler_draws(model):
    """A picture of one tile with no colour fix is what Prompt, Sampler and Decode give with that seed."""
    hook = eager_to_draw(model, 2.0)
    try:
        sampling = replace(SAMPLING, seed=5, max_tokens=200)
        job = Restoration(model, picture(16, 16), 2.0, seed=5, colour="none")
        [prompt] = job.prompts()
        events = list(generate(model.transformer, model.vocabulary, prompt, sampling))
        grid = next(e.grid for e in events if isinstance(e, PictureFinished))
        list(job.draw(job.abreast([prompt], sampling)))
    finally:
        hook.remove()
    assert job.words[0], "some text comes first"
    assert torch.equal(job.grids[0].codes, grid.codes)
    assert np.array_equal(job.finish().picture, model.decode(grid.codes))


def test_tiles_that_look_alike_are_drawn_with_seeds_of_their_own(model):
    job = Restoration(model, Image.new("RGB", (64, 32), "gray"), 1.0, seed=3)
    list(job.draw(job.abreast(job.prompts(), SAMPLING)))
    first, *others = (grid.codes for _, grid in sorted(job.grids.items()))
    assert others and not any(torch.equal(first, codes) for codes in others)


def test_a_line_tells_where_its_tile_lies_on_the_picture():
    plan = plan_tiles((20, 100), 32, 5)
    assert plan.canvas == (32, 128)
    lines = Restored(np.zeros((100, 20, 3), np.uint8), plan, ("a\n b",) * len(plan)).lines()
    assert lines[:2] == ["tile 1 (x 0-20, y 0-25): a b", "tile 2 (x 0-20, y 19-44): a b"]
    assert lines[-1].endswith(" (x 0-20, y 75-100): a b")


def test_a_tile_is_given_to_the_model_as_upstream_gives_a_picture(model):
    image = picture(31, 47)
    one = Restoration(model, image, 1.0, tiling="one tile").prompts()
    assert one == [
        model.prompt("", task="restore", size=(32, 32), images=[image.resize((32, 32), Image.BICUBIC)])
    ]


def test_the_colours_of_the_input_come_back(model):
    image = Image.new("RGB", (40, 40), (150, 110, 128))
    gap = {
        colour: np.abs(
            restored(model, image, 1.0, colour=colour).picture.mean((0, 1)) - (150, 110, 128)
        ).max()
        for colour in ("wavelet", "adain", "none")
    }
    assert 2 * max(gap["wavelet"], gap["adain"]) < gap["none"], gap


def test_transparency_and_grey_are_taken(model):
    clear = picture(16, 16, "RGBA")
    clear.putalpha(0)
    white = Image.new("RGB", (16, 16), "white")
    assert np.array_equal(restored(model, clear).picture, restored(model, white).picture)
    assert restored(model, picture(16, 16, "L")).picture.shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scale": 0.0}, "scale is 0.0"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"colour": "blue"}, "color_fix is 'blue'"),
        ({"tiling": "some"}, "tiling is 'some'"),
    ],
)
def test_a_bad_setting_is_told_in_one_line(model, options, words):
    with pytest.raises(InputError, match=words):
        Restoration(model, picture(8, 8), **options)


def test_too_many_tiles_are_refused_before_any_work(model):
    with pytest.raises(InputError, match=r"takes \d+ tiles of 32 pixels; at most 1024"):
        Restoration(model, picture(300, 300), 16.0)


@pytest.mark.parametrize(("side", "fits"), [(1024, True), (1025, False)])
def test_a_result_beyond_all_bounds_is_refused_before_any_work(model, side, fits):
    large = Image.new("RGB", (side, 1024))
    if fits:
        assert Restoration(model, large, 16.0, tiling="one tile").plan.size == (16384, 16384)
        return
    says = "scale 16.0 makes 16400x16384 pixels of a picture of 1025x1024; .* Lower scale"
    with pytest.raises(InputError, match=says):
        Restoration(model, large, 16.0, tiling="one tile")


def test_another_family_cannot_restore(tiny_model):
    with pytest.raises(InputError, match="has no task 'restore'"):
        Restoration(tiny_model, picture(8, 8))


def test_as_many_tiles_are_drawn_at_once_as_the_memory_holds(model):
    job = Restoration(model, picture(50, 50), 2.0)
    abreast = job.abreast(job.prompts(), SAMPLING)
    assert abreast.at_once(free=abreast.nbytes() * 3) == 2
    assert abreast.at_once(free=abreast.nbytes() * 1000) == 8
    with pytest.raises(InputError, match="key-value cache"):
        abreast.at_once(free=abreast.nbytes() - 1)
