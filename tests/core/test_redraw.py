"""Parts of a picture drawn again: what is kept comes out unchanged in every mode, batch and layout."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lumina_core import InputError, PictureFinished, Sampling, TokenGrid, generate, load
from lumina_core.regions import redraw, size_kept, touched
from tests.core import checkpoints as ck

HOT = Sampling(seed=5, cfg=3.0, image_top_k=0, decode="ar")
SIZE = (96, 64)


@pytest.fixture(scope="module", params=["mgpt1", "mgpt2"])
def model(request, tmp_path_factory):
    return load(ck.build(tmp_path_factory.mktemp("redraw") / request.param, request.param))


def drawn(model, prompt, sampling=HOT, **changes) -> list[TokenGrid]:
    events = generate(model.transformer, model.vocabulary, prompt, replace(sampling, **changes))
    return [e.grid for e in events if isinstance(e, PictureFinished)]


@pytest.fixture(scope="module")
def prompt(model):
    return model.prompt("a red circle", size=SIZE)


@pytest.fixture(scope="module")
def grids(model, prompt):
    return drawn(model, prompt, batch=2)


def box(left, top, right, bottom, size=SIZE) -> torch.Tensor:
    mask = torch.zeros(size[1], size[0])
    mask[top:bottom, left:right] = 1
    return mask


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize(("decode", "window"), [("ar", None), ("jacobi", 4), ("jacobi", 32), ("coupled", 8)])
def test_codes_outside_the_mask_come_out_unchanged_and_inside_they_change(
    model, prompt, grids, decode, window, cfg
):
    mask = box(32, 16, 80, 48)
    part = redraw(prompt, model.vocabulary, grids, mask)
    inside = touched(mask, tuple(grids[0].codes.shape))
    pictures = drawn(model, part, seed=77, cfg=cfg, decode=decode, window=window, batch=3)
    for i, picture in enumerate(pictures):
        same = picture.codes == grids[i % 2].codes
        assert same[~inside].all()
        assert not same[inside].all()


@pytest.mark.parametrize("window", [1, 4, 32])
def test_jacobi_redraws_what_plain_decoding_redraws(model, prompt, grids, window):
    mask = torch.stack([box(0, 0, 40, 20), box(50, 30, 96, 64)])
    part = redraw(prompt, model.vocabulary, grids, mask)
    plain = drawn(model, part, seed=77, batch=3)
    fast = drawn(model, part, seed=77, batch=3, decode="jacobi", window=window)
    assert all(torch.equal(a.codes, b.codes) for a, b in zip(plain, fast, strict=True))


@pytest.mark.parametrize("decode", ["ar", "jacobi"])
def test_a_mask_on_the_second_picture_leaves_the_first_as_it_is(model, prompt, grids, decode):
    mask = torch.stack([torch.zeros(64, 96), box(0, 40, 96, 64)])
    part = redraw(prompt, model.vocabulary, grids, mask)
    [alone] = drawn(model, part, seed=77, decode=decode)
    first, second = drawn(model, part, seed=77, decode=decode, batch=2)
    assert torch.equal(alone.codes, grids[0].codes) and torch.equal(first.codes, grids[0].codes)
    changed = second.codes != grids[1].codes
    assert changed.any() and not changed[~touched(mask[1], tuple(changed.shape))].any()


def test_one_picture_is_redrawn_under_each_of_several_masks(model, prompt, grids):
    masks = torch.stack([box(0, 0, 96, 32), box(0, 32, 96, 64)])
    pictures = drawn(model, redraw(prompt, model.vocabulary, grids[:1], masks), seed=77, batch=2)
    for picture, mask in zip(pictures, masks, strict=True):
        changed = picture.codes != grids[0].codes
        assert changed.any() and not changed[~touched(mask, tuple(changed.shape))].any()


def test_the_seed_that_drew_a_picture_draws_its_parts_again(model, prompt, grids):
    """What is drawn sees the kept codes, so with the picture's own noise it is that picture."""
    part = redraw(prompt, model.vocabulary, grids, box(32, 16, 80, 48))
    for grid, again in zip(grids, drawn(model, part, batch=2), strict=True):
        assert torch.equal(grid.codes, again.codes)


def test_a_redrawn_code_is_drawn_in_the_context_of_the_kept_ones(model, prompt, grids):
    """Other codes kept above give other codes below, with the same noise."""
    mask = box(0, 48, 96, 64)
    one, two = (redraw(prompt, model.vocabulary, [g], mask) for g in grids)
    below = [drawn(model, p, seed=3)[0].codes[touched(mask, tuple(grids[0].codes.shape))] for p in (one, two)]
    assert not torch.equal(*below)


def test_a_picture_is_continued_downwards(model, grids):
    taller = model.prompt("a red circle", size=(SIZE[0], 128))
    part = redraw(taller, model.vocabulary, grids[:1])
    rows = len(grids[0].codes)
    for decode in ("ar", "jacobi"):
        [picture] = drawn(model, part, decode=decode)
        assert picture.codes.shape[0] == 2 * rows
        assert torch.equal(picture.codes[:rows], grids[0].codes)
    assert not torch.equal(*(drawn(model, part, seed=s)[0].codes for s in (1, 2)))


def test_kept_rows_on_top_cost_one_pass(model, grids):
    taller = model.prompt("a red circle", size=(SIZE[0], 128))
    part = redraw(taller, model.vocabulary, grids[:1])
    passes = []
    hook = model.transformer.register_forward_hook(lambda *_: passes.append(1))
    try:
        drawn(model, part, cfg=1.0)
    finally:
        hook.remove()
    # one for all that is given, and one for each further code but one
    assert len(passes) == grids[0].codes.numel()


def test_the_wanted_panel_is_redrawn_beside_a_given_one(tmp_path):
    model = load(ck.build(tmp_path / "mgpt2", "mgpt2"))
    upper = Image.new("RGB", (64, 64), "red")
    prompt = model.prompt("a circle", task="control_depth", images=[upper], size=(64, 64))
    [whole] = drawn(model, prompt)
    mask = box(0, 96, 32, 128, (64, 128))
    part = redraw(prompt, model.vocabulary, [whole], mask)
    [again] = drawn(model, part, seed=9)
    inside = touched(mask, tuple(whole.codes.shape))
    assert torch.equal(again.codes[~inside], whole.codes[~inside])
    assert not torch.equal(again.codes, whole.codes)
    lower = redraw(prompt, model.vocabulary, whole.split()[1:], box(0, 32, 32, 64, (64, 64)))
    assert lower.kept[0][len(whole.codes) // 2 * 8 :] == part.kept[0][len(whole.codes) // 2 * 8 :]
    assert size_kept(model, "control_depth", [whole]) == (64, 64)
    assert size_kept(model, "control_depth", whole.split()) == (64, 64)
    assert size_kept(model, "text_to_image", [replace(whole, panels=1)]) == (64, 128)


@pytest.mark.parametrize("decode", ["ar", "jacobi", "coupled"])
def test_a_given_panel_stays_the_prompt_s_beside_tokens_of_another_picture(tmp_path, decode):
    model = load(ck.build(tmp_path / "mgpt2", "mgpt2"))
    colours = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    old, new = (model.prompt("a", task="control_depth", images=[c], size=(64, 64)) for c in colours)
    [whole] = drawn(model, old)
    given = model.encode(colours[1]).codes
    assert not torch.equal(whole.split()[0].codes, given)
    for mask in (
        box(0, 64, 64, 128, (64, 128)),
        box(0, 96, 32, 128, (64, 128)),
    ):  # all of the lower half, a part
        part = redraw(new, model.vocabulary, [whole], mask)
        [picture] = drawn(model, part, decode=decode)
        kept = ~touched(mask, tuple(whole.codes.shape))
        kept[: len(given)] = False
        assert torch.equal(picture.split()[0].codes, given)
        assert torch.equal(picture.codes[kept], whole.codes[kept])
        if decode == "jacobi":
            assert torch.equal(picture.codes, drawn(model, part)[0].codes)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 70), st.integers(1, 70), st.data())
def test_a_code_is_redrawn_exactly_where_a_masked_pixel_lies_on_it(h, w, height, width, data):
    y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    mask = torch.zeros(height, width)
    mask[y, x] = 1

    def lies_on(cell: int, pixel: int, cells: int, pixels: int) -> bool:
        return cell * pixels < (pixel + 1) * cells and pixel * cells < (cell + 1) * pixels

    expected = [[lies_on(r, y, h, height) and lies_on(c, x, w, width) for c in range(w)] for r in range(h)]
    assert touched(mask, (h, w)).tolist() == expected


def test_faint_and_broken_mask_pixels_touch_nothing():
    mask = torch.tensor([[0.49, float("nan")], [0.5, 0.0]])
    assert touched(mask, (2, 2)).tolist() == [[False, False], [True, False]]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m, p, g: redraw(p, m.vocabulary, g), "nothing to draw"),
        (lambda m, p, g: redraw(p, m.vocabulary, g, torch.zeros(5, 5)), "nothing to draw"),
        (lambda m, p, g: redraw(p, m.vocabulary, []), "no tokens to keep"),
        (lambda m, p, g: redraw(p, m.vocabulary, g, torch.zeros(2, 2, 2, 2)), "mask has shape"),
        (lambda m, p, g: redraw(m.prompt("x", size=(64, 64)), m.vocabulary, g), "96x64 pixels"),
        (lambda m, p, g: redraw(m.prompt("x", size=None), m.vocabulary, g), "size is set"),
        (lambda m, p, g: redraw(p, m.vocabulary, [TokenGrid(g[0].codes, "pure")]), "family pure"),
        (lambda m, p, g: redraw(p, m.vocabulary, [replace(g[0], codes=g[0].codes + 64)]), "hold code"),
    ],
)
def test_what_cannot_be_kept_is_told_in_one_line(model, prompt, grids, make, words):
    with pytest.raises(InputError, match=words) as caught:
        make(model, prompt, grids)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "task", "text", "images"),
    [("mgpt1", "describe", "", 1), ("mgpt1", "chat", "hello", 0), ("pure", "restore", "", 1)],
)
def test_a_task_that_writes_text_keeps_no_tokens_whatever_its_size(
    tmp_path, grids, family, task, text, images
):
    model = load(ck.build(tmp_path / family, family))
    for size in (None, (64, 64)):
        asked = model.prompt(text, task=task, images=[Image.new("RGB", (64, 64))] * images, size=size)
        with pytest.raises(InputError, match=f"'{task}' writes text.* Take a task that only draws") as caught:
            redraw(asked, model.vocabulary, grids)
        assert "size_mode" not in str(caught.value)
    if family == "mgpt1":
        with pytest.raises(InputError, match="size_mode to 'as given'"):
            redraw(model.prompt("a circle"), model.vocabulary, grids)
