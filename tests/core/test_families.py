"""Which family a checkpoint is, its token table, and the prompts of its tasks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lumina_core import CheckpointError, InputError, load
from lumina_core.families.base import Source
from lumina_core.families.mgpt1 import Mgpt1
from lumina_core.families.mgpt2 import Mgpt2
from lumina_core.families.pure import Pure
from lumina_core.image import nearest_size, to_network
from lumina_core.prompts import MGPT1, MGPT2, PURE, answer_text, encode_training, fill
from lumina_core.text import IMAGE, Tokenizer
from lumina_core.training.objective import without_prompt
from tests.core import checkpoints as ck

ALL = {"mgpt1": Mgpt1(), "mgpt2": Mgpt2(), "pure": Pure()}
LAYER = {"model.layers.0.self_attn.q_norm.weight": (1, 8)}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {f: load(ck.build(tmp_path_factory.mktemp(f) / "m", f)) for f in ALL}


def picture(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    values = np.stack([x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), 0 * x], -1)
    return Image.fromarray(values.astype(np.uint8), "RGB")


def source(names: list[str], path: Path = Path("nowhere"), **config) -> Source:
    tokenizer = Tokenizer(ck.tokenizer_json(names), {"bos_token": names[0]})
    size = max(tokenizer.names().values()) + 1
    return Source(path, {"vocab_size": size, **config}, tokenizer, LAYER, ())


def detected(s: Source) -> list[str]:
    return [name for name, family in ALL.items() if family.detect(s)]


# Which family


@pytest.mark.parametrize("family", ALL)
def test_a_small_checkpoint_is_of_one_family_alone(models, family):
    assert models[family].family.id == family


def test_names_of_codes_tell_1_0_from_2_0():
    assert detected(source(ck.token_names("mgpt1"))) == ["mgpt1"]
    assert detected(source(ck.token_names("mgpt2"))) == ["mgpt2"]


def test_more_codes_than_chameleon_has_are_pures():
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    codes = [f"IMGIMG{str(c).translate(letters)}Z" for c in range(8193)]
    assert detected(source([*ck.token_names("pure"), *codes[64:]])) == ["pure"]
    assert detected(source([*ck.token_names("pure"), *codes[64:-1]])) == ["mgpt1"]


def test_a_small_pure_is_known_by_its_settings_or_by_the_tokenizer_beside_it(tmp_path):
    names = ck.token_names("pure")
    assert detected(source(names, apply_lora=False)) == ["pure"]
    ck.save_vq("mgpt1", tmp_path / "model_vq.safetensors")
    assert detected(source(names, tmp_path)) == ["mgpt1"]
    ck.save_vq("pure", tmp_path / "anything.pt")
    assert detected(source(names, tmp_path)) == ["pure"]


def test_a_full_sized_1_0_stays_itself_beside_the_tokenizer_of_pure(tmp_path):
    ck.save_vq("pure", tmp_path / "vq_ds8_c2i.pt")
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    rest = [f"IMGIMG{str(c).translate(letters)}Z" for c in range(64, 8192)]
    assert detected(source([*ck.token_names("mgpt1"), *rest], tmp_path)) == ["mgpt1"]


def test_another_transformer_is_nobodys():
    s = replace(source(ck.token_names("mgpt1")), shapes={"model.layers.0.self_attn.q_proj.weight": (8, 8)})
    assert detected(s) == []


# Token tables


def test_codes_follow_their_names_whatever_the_ids():
    names = ck.token_names("mgpt1")
    codes = [n for n in names if n.startswith("IMGIMG")]
    turned = iter(codes[::-1])
    shuffled = [next(turned) if n.startswith("IMGIMG") else n for n in names]
    straight = Mgpt1().vocabulary(source(names), ck.CODES)
    backward = Mgpt1().vocabulary(source(shuffled), ck.CODES)
    assert backward.code_ids.tolist() == straight.code_ids.tolist()[::-1]
    assert backward.code_of(int(straight.code_ids[0])) == ck.CODES - 1
    name = f"IMGIMG{'GD'}Z"  # 63
    assert int(straight.code_ids[63]) == source(names).tokenizer.id(name)


@pytest.mark.parametrize("family", ["mgpt1", "mgpt2"])
def test_codes_that_the_tokenizer_does_not_name_are_an_error(family):
    with pytest.raises(CheckpointError, match="names 64 image tokens.*100 codes"):
        ALL[family].vocabulary(source(ck.token_names(family)), 100)


@pytest.mark.parametrize("missing", ["<racm3:break>", "<eoss>", "<reserved08799>", "<reserved08706>"])
def test_a_tokenizer_without_a_control_name_is_an_error_that_names_it(missing):
    names = [n for n in ck.token_names("mgpt1") if n != missing]
    with pytest.raises(CheckpointError, match=missing):
        Mgpt1().vocabulary(source(names), ck.CODES)


def test_latents_per_unit_are_2_in_1_0_and_4_elsewhere(models):
    assert {f: m.vocabulary.latents_per_unit for f, m in models.items()} == {
        "mgpt1": 2,
        "mgpt2": 4,
        "pure": 4,
    }


# Wording


@pytest.mark.parametrize(
    ("table", "task", "text"),
    [
        (MGPT1, "text_to_image", "Generate an image of 96x64 according to the following prompt:\na cat"),
        (MGPT1, "segment", "Segmentic segmentation. <|image|>"),
        (MGPT1, "depth", "Depth estimation. <|image|>"),
        (MGPT1, "normals", "Surface normal estimation. <|image|>"),
        (MGPT1, "pose", "Human pose estimation. <|image|>"),
        (MGPT1, "detect", "Detect: a cat <|image|>"),
        (MGPT1, "edit", "a cat <|image|>"),
        (
            MGPT1,
            "control",
            "Generate an image according to the provided image, and according to the following caption:\n"
            "a cat <|image|>",
        ),
        (
            MGPT2,
            "pair_pose",
            "Generate a dual-panel image of 96x64 where the <lower half> displays a <pose estimation map>, while the "
            "<upper half> retains the original image for direct visual comparison:\na cat",
        ),
        (
            MGPT2,
            "subject",
            "Generate a dual-panel image of 96x64 where the <upper half> displays a <Bubbly and effervescent with a "
            "sparkling allure.>, while the <lower half> retains the original image for direct visual comparison:\n"
            "a cat",
        ),
        (
            PURE,
            "restore",
            "Perceive the degradation level, understand the image content, and restore the high-quality image. "
            "<|image|>",
        ),
    ],
)
def test_wording_is_upstreams(table, task, text):
    entry = table[task]
    assert fill(entry.text, "a cat", (2, 3), entry.subject) == text


@pytest.mark.parametrize("said", ["Make the circle green", "Make the circle green."])
def test_a_full_stop_of_one_s_own_is_not_doubled(said):
    assert fill(MGPT2["edit"].text, said, (2, 2)).endswith("following prompt: Make the circle green.")
    assert fill(MGPT2["text_to_image"].text, said, (2, 2)).endswith(f":\n{said}")


def test_braces_of_the_prompt_stay_as_they_are():
    assert fill("{prompt} at {width}", "a {width} {sign}", (1, 2)) == "a {width} {sign} at 64"


# Prompts


def test_settings_differ_by_task(models):
    family = models["mgpt1"].family
    assert family.defaults_for("text_to_image").cfg == 4.0
    assert (family.defaults_for("depth").cfg, family.defaults_for("depth").image_top_k) == (1.0, 200)
    assert family.defaults_for("chat").max_tokens == 2048
    pure = models["pure"].family.defaults_for("restore")
    assert (pure.cfg, pure.temperature, pure.text_top_k) == (0.8, 0.9, 1)


@pytest.mark.parametrize(
    ("family", "task", "images"),
    [
        ("mgpt1", "depth", 0),
        ("mgpt1", "text_to_image", 1),
        ("mgpt2", "control_depth", 2),
        ("pure", "restore", 0),
    ],
)
def test_a_wrong_number_of_pictures_is_an_error_that_names_both_numbers(models, family, task, images):
    wanted = models[family].family.templates[task].images
    with pytest.raises(InputError, match=f"takes {wanted} picture.*{images} given"):
        models[family].prompt("a cat", task=task, images=[picture(64, 64)] * images)


@pytest.mark.parametrize("marks", [1, 3])
def test_marks_and_pictures_must_be_as_many(models, marks):
    with pytest.raises(InputError, match=f"places {marks} picture"):
        models["mgpt1"].converse([f"{IMAGE} " * marks], [picture(64, 64)] * 2)


def test_an_unknown_task_is_an_error_that_lists_the_tasks(models):
    with pytest.raises(InputError, match="has no task 'depth'; it has restore"):
        models["pure"].prompt("", task="depth", images=[picture(64, 64)])


def test_an_image_task_of_1_0_forces_the_size_of_the_picture_it_is_given(models):
    m = models["mgpt1"]
    wide = m.prompt("", task="depth", images=[picture(200, 100)])
    w, h = nearest_size(200, 100, m.sizes())
    assert wide.units == (h // 32, w // 32)
    asked = m.prompt("", task="depth", images=[picture(200, 100)], size=(64, 96))
    assert asked.units == (3, 2)
    assert asked.expects == "image"


def test_a_free_size_of_1_0_leaves_the_answer_to_the_model(models):
    prompt = models["mgpt1"].prompt("a cat")
    assert (prompt.units, prompt.expects) == (None, "text_then_image")
    assert prompt.text == "Generate an image according to the following prompt:\na cat"


@pytest.mark.parametrize("task", ["text_to_image", "pair_depth"])
def test_a_free_size_of_2_0_leaves_out_the_size_alone(models, task):
    whole = MGPT2[task].text
    prompt = models["mgpt2"].prompt("a cat", task=task)
    assert prompt.text == fill(whole, "a cat", (1, 1)).replace(" of 32x32", "")
    assert (prompt.units, prompt.panels) == (None, MGPT2[task].panels)


def test_words_of_one_s_own_lose_the_size_too_or_are_refused(models):
    m = models["mgpt2"]
    assert m.prompt("a cat", template="Draw{prompt} of {width}x{height}!").text == "Drawa cat!"
    with pytest.raises(
        InputError, match=r"names \{width\} or \{height\}.*'\{width\} wide.*Set width and height"
    ):
        m.prompt("a cat", template="{width} wide: {prompt}")
    assert m.prompt("a cat", template="{width} wide: {prompt}", size=(64, 32)).text == "64 wide: a cat"


def test_pure_brings_every_picture_to_the_square_without_keeping_proportions(models):
    m = models["pure"]
    side = m.target
    wide = picture(300, 100)
    prompt = m.prompt("", task="restore", images=[wide])
    v = m.vocabulary
    [(first, last)] = v.pictures(prompt.tokens)
    squeezed = wide.resize((side, side), Image.Resampling.BICUBIC)
    expected = m.vq.encode(to_network(squeezed))[0]
    assert torch.equal(v.decode(prompt.tokens[first:last]), expected)
    assert prompt.units == (side // 32, side // 32)
    assert prompt.expects == "text_then_image"
    assert prompt.entropy_top_k == (1, 2000)


def test_the_square_of_pure_is_512_where_the_positions_allow(models):
    m = models["pure"]
    wide = replace(m.vocabulary, grid={n: n for n in range(1, 65)})
    big = type(m)(m.name, m.family, m.transformer, m.vq, m.tokenizer, wide)
    assert big.target == 224  # half of 2,048 positions hold 28 rows of 28 codes, not 32 of 32
    big.config = replace(m.config, max_position_embeddings=11776)
    assert big.target == 512


def test_a_reference_of_2_0_is_cropped_to_its_panel_at_the_centre(models):
    m = models["mgpt2"]
    tall = picture(64, 192)
    prompt = m.prompt("a cat", task="control_depth", size=(64, 64), images=[tall])
    codes = m.encode(tall.crop((0, 64, 64, 128))).codes
    opened = list(prompt.tokens[prompt.open_at :])
    assert opened == m.vocabulary.open_panel(codes)
    assert prompt.units == (4, 2)
    assert "of 64x128 where" in prompt.text


def test_a_reference_of_2_0_without_a_size_keeps_its_whole_units(models):
    m = models["mgpt2"]
    prompt = m.prompt("a cat", task="control_canny", images=[picture(100, 70)])
    assert prompt.units == (4, 3)


def test_pictures_are_cut_to_sizes_that_have_size_tokens(models):
    sizes = models["mgpt1"].sizes()
    assert max(max(s) for s in sizes) == 256  # the largest size token of this checkpoint
    assert models["mgpt1"].sizes(64) == [
        (128, 32),
        (96, 32),
        (64, 32),
        (64, 64),
        (32, 64),
        (32, 96),
        (32, 128),
    ]


def test_crop_seed_moves_the_cut_and_names_it(models):
    m = models["mgpt1"]
    options = {"task": "edit", "images": [picture(64, 400)], "size": (64, 64)}
    centre, one, again = (m.prompt("x", **options, crop_seed=s) for s in (None, 3, 3))
    assert one == again
    assert one != centre


def test_a_map_of_2_0_needs_no_caption_and_a_picture_does(models):
    assert models["mgpt2"].prompt("", task="depth", images=[picture(64, 64)]).panels == 2
    with pytest.raises(InputError, match="empty"):
        models["mgpt2"].prompt(" ")


def test_a_prompt_longer_than_the_positions_is_refused(models):
    with pytest.raises(InputError, match="2048 positions"):
        models["mgpt1"].converse(["word " * 2000])


# Conversations


def test_pictures_may_stand_in_any_turn_and_earlier_answers_come_as_codes(models):
    m, v = models["mgpt1"], models["mgpt1"].vocabulary
    drawn = m.encode(picture(64, 32))
    asked = picture(64, 64)
    prompt = m.converse([f"Depth. {IMAGE}", f"Sure. {IMAGE}", "And now?"], [asked, drawn], target=64)
    spans = v.pictures(prompt.tokens)
    assert len(spans) == 2
    assert torch.equal(v.decode(prompt.tokens[slice(*spans[0])]), m.encode(asked).codes)
    assert torch.equal(v.decode(prompt.tokens[slice(*spans[1])]), drawn.codes)
    assert prompt.tokens[0] == v.bos
    assert list(prompt.tokens).count(v.separator) == 3
    assert prompt.expects == "text_then_image"
    text = answer_text(prompt.tokens[1:], m.tokenizer, v)
    sep = v.separator_name
    assert text == f"Depth. {IMAGE}{sep}Sure. {IMAGE}{sep}And now?"


def test_unplaced_pictures_go_before_the_first_turn(models):
    m, v = models["mgpt1"], models["mgpt1"].vocabulary
    prompt = m.converse(["What is it?"], [picture(64, 64), picture(32, 64)], target=64)
    assert prompt.tokens[1] == v.image_start
    assert len(v.pictures(prompt.tokens)) == 2


def test_labels_cover_answers_with_their_pictures_and_separators(models):
    m, v = models["mgpt1"], models["mgpt1"].vocabulary
    given, drawn = (v.encode(m.encode(p).codes) for p in (picture(32, 32), picture(64, 32)))
    turns = [f"Depth. {IMAGE}", IMAGE, "Hi", "Ho"]
    ids, labels = encode_training(turns, [given, drawn], m.tokenizer, v)
    answers = [*drawn, v.separator, *m.tokenizer.encode("Ho"), v.separator]
    assert [x for x in labels if x != -100] == answers
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))


def test_an_item_that_is_one_drawn_picture_can_lose_its_prompt(models):
    m, v = models["mgpt2"], models["mgpt2"].vocabulary
    drawn = v.encode(m.encode(picture(32, 32)).codes)
    assert without_prompt(*encode_training(["a cat", IMAGE], [drawn], m.tokenizer, v), v) == drawn
    two = encode_training([f"{IMAGE}", IMAGE], [drawn, drawn], m.tokenizer, v)
    assert without_prompt(*two, v) is None
    text = encode_training([f"{IMAGE}", "a cat"], [drawn], m.tokenizer, v)
    assert without_prompt(*text, v) is None


def test_a_task_without_its_picture_says_what_to_connect(tiny_model):
    with pytest.raises(InputError, match=r"takes 1 picture; 0 given\. Connect 1 picture to .*--image FILE"):
        tiny_model.prompt("", task="depth")
