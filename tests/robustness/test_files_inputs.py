"""Whatever a user or another node gives: pictures of every shape and number, any text, any setting, any tokens."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lumina_core import (
    Chat,
    InputError,
    LuminaError,
    PictureError,
    Restoration,
    Sampling,
    TokenGrid,
    ask,
    from_tensor,
    generate,
    load,
    masks_of,
    to_mask,
)
from lumina_core.image import STRIP, crop, on_white, open_picture, stretch
from lumina_core.tiles import blend, plan_tiles
from lumina_core.unirep import Vocabulary
from tests.core import checkpoints as ck

FEW = settings(max_examples=60, deadline=None, derandomize=True)
MANY = settings(max_examples=200, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    base = tmp_path_factory.mktemp("models")
    return {f: load(ck.build(base / f, f, dtype=torch.float32)) for f in ("mgpt1", "mgpt2", "pure")}


# pictures

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int64, torch.bool)
ODD = st.sampled_from([0.0, 1.0, 0.5, -1.0, 2.0, 1e30, -1e30, math.nan, math.inf, -math.inf, 254 / 255])
SHAPE = st.tuples(st.integers(0, 3), st.integers(0, 40), st.integers(0, 40), st.integers(0, 5))


@given(SHAPE, st.sampled_from(DTYPES), ODD, st.integers(0, 99))
@MANY
def test_a_tensor_becomes_pictures_or_is_refused(shape, dtype, odd, seed):
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    values[torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.7] = odd
    if not dtype.is_floating_point:
        values = values.nan_to_num(0, 1, 0).clamp(0, 1)
    images = values.to(dtype)
    if 0 in shape or shape[-1] not in (1, 3, 4):
        with pytest.raises(InputError, match="has shape"):
            from_tensor(images)
        return
    pictures = from_tensor(images)
    assert [p.size for p in pictures] == [(shape[2], shape[1])] * shape[0]
    assert all(p.mode == "RGB" for p in pictures)
    if shape[-1] == 3:
        sound = values.to(dtype).float().nan_to_num(0.0, 1.0, 0.0).clamp(0, 1)
        got = torch.from_numpy(np.stack([np.asarray(p) for p in pictures])) / 255
        assert (got - sound).abs().max() <= 0.5 / 255 + 1e-6, "the nearest byte; what is no number is black"


@given(st.lists(st.integers(0, 5), max_size=6))
@FEW
def test_a_tensor_of_any_other_rank_is_refused(shape):
    if len(shape) != 4:
        with pytest.raises(InputError, match="has shape"):
            from_tensor(torch.zeros(shape))


@given(
    st.sampled_from([(1, 1), (1, 700), (700, 1), (3, 5), (33, 31), (64, 64), (257, 90)]),
    st.sampled_from(["L", "RGB", "RGBA", "LA", "P", "1", "I", "F", "CMYK", "I;16"]),
    st.sampled_from(["stretch", "crop"]),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_any_picture_is_encoded_and_asked_about(models, size, mode, fit):
    picture = Image.new(mode, size)
    grid = models["mgpt1"].encode(picture, fit=fit)
    assert min(grid.codes.shape) >= 2 and grid.codes.max() < ck.CODES
    request = ask(models["mgpt1"], "depth", picture, fit=fit, side=32)
    drawn = np.zeros((request.placement.size[1], request.placement.size[0], 3), np.uint8)
    assert request.place(drawn).shape == (size[1], size[0], 3)


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.sampled_from([(32, 32), (96, 32), (32, 128)]),
    st.integers(),
)
@FEW
def test_a_crop_and_a_stretch_have_the_size_asked_for(width, height, size, seed):
    picture = Image.new("L", (width, height)).convert("RGB") if width * height < 1 << 20 else None
    if picture is not None:
        assert crop(picture, size).size == crop(picture, size, rng=random.Random(seed)).size == size
        assert stretch(picture, size).size == size


def test_a_large_transparent_picture_is_blended_in_strips_as_a_small_one_is():
    width, height = 64, STRIP // 64 * 2 + 3
    values = np.random.default_rng(1).integers(0, 256, (height, width, 4), dtype=np.uint8)
    whole = np.asarray(on_white(Image.fromarray(values, "RGBA")))
    alpha = values[..., 3:] / 255.0
    assert np.array_equal(whole, (values[..., :3] * alpha + 255.0 * (1 - alpha)).astype(np.uint8))


def test_a_picture_file_is_turned_as_its_camera_says_and_only_its_first_frame_is_taken(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert open_picture(tmp_path / "a.jpg").size == (20, 30)
    frames = [Image.new("RGB", (8, 9), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "b.gif", save_all=True, append_images=frames[1:])
    assert open_picture(tmp_path / "b.gif").convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    Image.new("RGB", (8, 8)).save(tmp_path / "c.eps")
    with pytest.raises(ValueError, match="cannot identify"):
        open_picture(tmp_path / "c.eps")  # Pillow would have Ghostscript draw it


@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), ODD, ODD, st.integers(0, 40))
@FEW
def test_masks_of_a_picture_of_two_colours_share_out_every_pixel(count, height, width, one, other, edge):
    images = torch.full((count, height, width, 3), one)
    images[:, :, edge:] = other
    assert to_mask(images).shape == images.shape[:3]
    masks, _ = masks_of(images, min_area=0.0)
    assert torch.equal(sum(masks), torch.ones(images.shape[:3]))
    shown = np.asarray(from_tensor(images)[0]).astype(int)
    assert len(masks) == 1 + (abs(shown[0, 0, 0] - shown[0, -1, 0]) > 64)
    assert all(
        mask[:, :, :edge].unique().numel() <= 1 >= mask[:, :, edge:].unique().numel() for mask in masks
    )


# tiles


@given(
    st.integers(1, 400), st.integers(1, 400), st.sampled_from([32, 64]), st.integers(0, 32), st.floats(-2, 2)
)
@FEW
def test_tiles_of_one_colour_blend_to_that_colour(width, height, tile, overlap, value):
    plan = plan_tiles((width, height), tile, min(overlap, tile // 2))
    pieces = [torch.full((3, tile, tile), value) for _ in plan.boxes]
    assert (blend(plan, pieces) - value).abs().max() < 1e-5


@given(st.integers(-3, 500), st.integers(-3, 500), st.integers(-64, 200), st.integers(-5, 200))
@MANY
def test_a_plan_of_tiles_covers_the_picture_or_is_refused(width, height, tile, overlap):
    try:
        plan = plan_tiles((width, height), tile, overlap)
    except InputError as e:
        assert any(word in str(e) for word in ("tile is", "overlap is", "picture would have"))
        return
    seen = np.zeros((plan.canvas[1], plan.canvas[0]), bool)
    for left, top, right, bottom in plan.boxes:
        seen[top:bottom, left:right] = True
    assert seen.all()


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, 1e9, 0.01, 16.5])
def test_an_impossible_scale_is_refused(models, scale):
    with pytest.raises(InputError, match="scale"):
        Restoration(models["pure"], Image.new("RGB", (40, 40)), scale)


# UniRep


def vocabulary(latents: int) -> Vocabulary:
    return Vocabulary(
        0, 1, "<sep>", 2, 3, 4, 5, {n: 20 + n for n in range(1, 5)}, torch.arange(100, 150), latents
    )


TOKENS = st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 21, 22, 100, 101, 149, 7, -1, 10**9]), max_size=60)


@given(TOKENS, st.sampled_from([2, 4]))
@MANY
def test_any_tokens_are_a_picture_or_refused_and_fold_to_text(tokens, latents):
    v = vocabulary(latents)
    try:
        codes = v.decode(tokens)
        assert v.encode(codes) == tokens
    except PictureError as e:
        assert str(e)
    for first, last in v.pictures(tokens):
        assert tokens[first] == v.image_start and tokens[last - 1] == v.image_end
    assert v.fold(tokens).count(v.placeholder) >= len(v.pictures(tokens))


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.sampled_from([2, 4]), st.integers(0, 99))
@FEW
def test_panels_split_and_stack_again(h, w, panels, latents, seed):
    codes = torch.randint(
        0, 50, (h * latents * panels, w * latents), generator=torch.Generator().manual_seed(seed)
    )
    parts = TokenGrid(codes, "mgpt2", panels).split()
    assert len(parts) == panels
    assert torch.equal(torch.cat([p.codes for p in parts]), codes)


@given(st.integers(-9, 9), st.integers(-9, 9))
@FEW
def test_codes_of_no_whole_unit_and_sizes_without_token_are_refused(h, w):
    v = vocabulary(4)
    if not (1 <= h <= 4 and 1 <= w <= 4):
        with pytest.raises(InputError, match="no size token"):
            v.header((h, w))
    if h > 0 and w > 0 and (h % 4 or w % 4):
        with pytest.raises(PictureError, match="no whole number"):
            v.units(torch.zeros(h, w))


# prompts

SPECIAL = (
    "<racm3:break>",
    "<eoss>",
    "<reserved08706>",
    "<reserved08799>",
    "<MOVQGAN00001>",
    "<|image|>",
    "<|endoftext|>",
)
PIECES = st.one_of(
    st.text(st.characters(), max_size=30),  # with lone surrogates
    st.sampled_from(
        [*SPECIAL, "😀", "\0", "\ud800", "\udfff\ud800", "\u202e", "{prompt}", "{width}", "\r\n", "\x1b[2J"]
    ),
)


@given(st.lists(PIECES, max_size=8).map("".join), st.sampled_from(["mgpt1", "mgpt2"]))
@MANY
def test_any_text_is_a_prompt_or_is_refused_in_a_line(models, text, family):
    model = models[family]
    try:
        prompt = model.prompt(text, size=(32, 32))
    except InputError as e:
        assert not text.strip() or "<|image|>" in text or "tokens" in str(e)
        assert str(e).isprintable()
        return
    assert all(0 <= t < model.config.vocab_size for t in prompt.tokens)
    assert prompt.units == (1, 1)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@MANY
def test_a_text_without_special_names_comes_back(models, text):
    tokenizer = models["mgpt2"].tokenizer
    if "<" not in text:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_half_a_surrogate_pair_counts_as_unknown_and_a_pair_as_its_character(models):
    tokenizer = models["mgpt2"].tokenizer
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.encode("\ud83d\ude00") == tokenizer.encode("😀")


@pytest.mark.parametrize("text", ["x" * 100_000, "😀" * 100_000, "<eoss>" * 20_000, " " * 99_999 + "a"])
def test_a_text_longer_than_the_positions_is_refused_in_a_line(models, text):
    with pytest.raises(InputError, match="positions") as caught:
        models["mgpt2"].prompt(text, size=(32, 32))
    assert len(str(caught.value)) < 500


@given(st.lists(PIECES, min_size=1, max_size=4))
@FEW
def test_any_conversation_is_a_prompt_or_is_refused_in_a_line(models, turns):
    chat = Chat("mgpt1")
    try:
        tokens = chat.ask(models["mgpt1"], turns[0], []).prompt(models["mgpt1"]).tokens
    except LuminaError as e:
        assert str(e).isprintable()
        return
    assert max(tokens) < models["mgpt1"].config.vocab_size


# settings

NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([0, 1, -1, 2**63, 2**64, 10**30, -(10**30)]))


@given(
    st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(
                ("cfg", "temperature", "image_top_k", "text_top_k", "batch", "max_tokens"), NUMBERS
            ),
            **{"decode": st.sampled_from(["ar", "jacobi", "x", ""]), "window": st.none() | st.integers()},
        },
    )
)
@MANY
def test_settings_are_within_their_limits_or_refused(given_):
    try:
        made = Sampling(**given_)
    except InputError as e:
        assert any(name in str(e) for name in given_)
        return
    assert math.isfinite(made.cfg) and 0 <= made.cfg <= 100 and 0 <= made.temperature <= 10
    assert 1 <= made.batch <= 4096 and 1 <= made.max_tokens <= 1 << 20


@pytest.mark.parametrize("seed", [0, -1, 2**63, 2**64 - 1, 10**30])
@pytest.mark.parametrize("decode", ["ar", "jacobi", "coupled"])
def test_every_seed_draws(models, seed, decode):
    model = models["mgpt2"]
    prompt = model.prompt("a", size=(32, 32))
    sampling = Sampling(seed=seed, decode=decode, window=4)
    grids = [
        e.grid for e in generate(model.transformer, model.vocabulary, prompt, sampling) if hasattr(e, "grid")
    ]
    assert grids[0].codes.shape == (4, 4)


@given(st.integers(-100, 10_000), st.integers(-100, 10_000))
@MANY
def test_a_size_is_taken_or_refused_with_what_is_allowed(models, width, height):
    model = models["mgpt2"]
    most = max(model.vocabulary.grid) * 32
    good = all(s % 32 == 0 and 32 <= s <= most for s in (width, height))
    if good:
        assert model.check_size(width, height) == (height // 32, width // 32)
    else:
        with pytest.raises(InputError, match="multiple of 32"):
            model.check_size(width, height)
