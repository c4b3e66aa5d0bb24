"""Nodes about pictures without a ComfyUI: what reaches the model, and in which order its answers come out."""

from __future__ import annotations

from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from PIL import Image

import lumina_core
from lumina_core import AnswerFinished, Model, PictureFinished, TextPiece, TokenGrid, ask, load, to_tensor
from tests.core import checkpoints

SETTINGS = {"cfg": 2.5, "temperature": 0.25, "image_top_k": 7, "seed": 5, "decode": "ar"}


def noise(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, checkpoints.CODES, (rows, columns), generator=generator)


class Hosted:
    """Stands for a hosted model: keeps what it is asked for, and answers with noise or words."""

    def __init__(self, model: Model):
        self.model, self.prompts, self.samplings = model, [], []

    def place_vq(self, sizes):
        pass

    def drawn(self, prompt, number: int = 0) -> TokenGrid:
        shape = self.model.vocabulary.codes_shape(prompt.units)
        return TokenGrid(noise(*shape, number), prompt.family, prompt.panels)

    def draw(self, prompt, sampling):
        self.prompts.append(prompt)
        self.samplings.append(sampling)
        if prompt.units is None:
            words = tuple(self.model.tokenizer.encode("a cat"))
            return iter([TextPiece(0, words), AnswerFinished(0, words, "stop")])
        return iter([PictureFinished(i, self.drawn(prompt, i)) for i in range(sampling.batch)])


@pytest.fixture
def two(tiny_model) -> Hosted:
    return Hosted(tiny_model)


@pytest.fixture(scope="module")
def chatting(tmp_path_factory) -> Model:
    return load(checkpoints.build(tmp_path_factory.mktemp("alone") / "mgpt1", "mgpt1"))


def images(count: int = 1, width: int = 100, height: int = 60) -> torch.Tensor:
    rng = np.random.default_rng(count)
    return to_tensor(list(rng.integers(0, 256, (count, height, width, 3), np.uint8)))


def pictures(batch: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray((image * 255).round().byte().numpy()) for image in batch]


def shown(model: Model, *panels: TokenGrid) -> torch.Tensor:
    return to_tensor([model.decode(panel.codes) for panel in panels])


# What comes out


def test_a_pair_comes_out_as_picture_and_map(alone, two):
    picture, map_ = alone("edit").ImagePair.execute(two, "a cat", "pose", 64, 64, seed=3, batch=2)
    [prompt] = two.prompts
    assert (prompt.task, prompt.units) == ("pair_pose", (4, 2))
    upper, lower = zip(*(two.drawn(prompt, n).split() for n in range(2)), strict=True)
    assert torch.equal(picture, shown(two.model, *upper)) and torch.equal(map_, shown(two.model, *lower))


def test_panels_are_decoded_from_top_to_bottom_or_whole(alone, two):
    whole = TokenGrid(noise(16, 8), "mgpt2", panels=2)
    [[split], [together]] = (alone("decode").Decode.execute(two, [whole], s)[0] for s in (True, False))
    assert torch.equal(split, shown(two.model, *whole.split()))
    assert torch.equal(together, shown(two.model, whole))


def test_each_picture_of_a_batch_is_asked_about_and_answered_in_turn(alone, two):
    batch = images(2)
    depth, mask = alone("dense").Depth.execute(two, batch, seed=3)
    requests = [ask(two.model, "depth", picture) for picture in pictures(batch)]
    assert two.prompts == [request.prompt for request in requests] and len(set(two.prompts)) == 2
    answers = [r.place(two.model.decode(r.panel(two.drawn(r.prompt)).codes)) for r in requests]
    assert torch.equal(depth, to_tensor(answers)) and torch.allclose(mask, depth.mean(-1))


# What is asked


@pytest.mark.parametrize("kind", ["canny", "hed"])
def test_edges_are_those_of_the_kind_chosen(alone, two, kind):
    alone("dense").Edges.execute(two, images(), kind, seed=3)
    assert two.prompts == [ask(two.model, kind, *pictures(images())).prompt]


@pytest.mark.parametrize("kind", ["depth", "canny", "hed", "pose"])
def test_a_picture_follows_a_map_of_the_kind_chosen(alone, two, kind):
    alone("edit").Control.execute(two, images(), "a cat", kind, seed=3)
    assert two.prompts == [ask(two.model, f"control_{kind}", *pictures(images()), "a cat").prompt]


def test_an_edit_goes_on_with_the_tokens_connected(alone, two):
    tokens = TokenGrid(torch.full((8, 12), 9), "mgpt2")
    for given in (None, [tokens]):
        _, [answer] = alone("edit").Edit.execute(two, images(), "redden it", seed=3, tokens=given)
        assert torch.equal(answer.codes, two.drawn(two.prompts[-1]).split()[-1].codes)
    plain, again = two.prompts
    assert plain == ask(two.model, "edit", *pictures(images()), "redden it").prompt != again
    assert again == ask(two.model, "edit", *pictures(images()), "redden it", tokens=tokens).prompt


@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_a_picture_is_fitted_as_chosen(alone, two, fit):
    how = {"fit": fit, "resolution": 64}
    alone("edit").Edit.execute(two, images(), "redden it", seed=3, **how)
    alone("dense").Pose.execute(two, images(), seed=3, **how)
    alone("edit").Subject.execute(two, images(), "on a beach", "a clock", 64, 64, seed=3, fit=fit)
    [picture], m = pictures(images()), two.model
    assert two.prompts == [
        ask(m, "edit", picture, "redden it", fit=fit, side=64).prompt,
        ask(m, "pose", picture, fit=fit, side=64).prompt,
        ask(m, "subject_described", picture, "on a beach", fit=fit, size=(64, 64), subject="a clock").prompt,
    ]
    assert "displays: a clock," in two.prompts[-1].text


def test_a_chat_goes_on_with_the_chat_connected(alone, chatting):
    hosted, chat = Hosted(chatting), None
    for question in ("what is this?", "and now?"):
        answer, _, chat = alone("chat").ChatTurn.execute(hosted, question, chat=chat, seed=3)
        assert answer == "a cat"
    first, second = (prompt.tokens for prompt in hosted.prompts)
    said = (*first, *chatting.tokenizer.encode("a cat"), chatting.vocabulary.separator)
    assert second[: len(said)] == said and len(second) > len(said)
    assert chat.turns == ("what is this?", "a cat", "and now?", "a cat")


# How it is drawn


@pytest.mark.parametrize(
    ("file", "node", "inputs"),
    [
        ("dense", "Depth", (images(),)),
        ("dense", "Pose", (images(),)),
        ("dense", "Edges", (images(), "hed")),
        ("edit", "Edit", (images(), "redden it")),
        ("edit", "Control", (images(), "a cat", "depth")),
        ("edit", "Subject", (images(), "on a beach", "", 64, 64)),
        ("edit", "ImagePair", ("a cat", "depth", 64, 64)),
    ],
)
def test_settings_of_a_node_are_those_it_draws_with(alone, two, file, node, inputs):
    getattr(alone(file), node).execute(two, *inputs, **SETTINGS, window="8")
    [sampling] = two.samplings
    assert {name: getattr(sampling, name) for name in SETTINGS} == SETTINGS and sampling.window == 8


def test_settings_of_a_chat_are_those_it_answers_with(alone, chatting):
    hosted, more = Hosted(chatting), {"text_top_k": 3, "max_tokens": 77}
    alone("chat").ChatTurn.execute(hosted, "what is this?", **SETTINGS | more)
    [sampling] = hosted.samplings
    assert {name: getattr(sampling, name) for name in SETTINGS | more} == SETTINGS | more


def test_a_picture_is_restored_with_the_scale_colours_tiling_and_seed_chosen(alone, monkeypatch):
    monkeypatch.setattr(lumina_core, "Restoration", begun := MagicMock(side_effect=InterruptedError))
    with pytest.raises(InterruptedError):
        alone("restore").Restore.execute(Hosted(load("nano-pure")), images(), 2.0, 7, "adain", "one tile")
    assert begun.call_args.kwargs == {"seed": 7, "scale": 2.0, "colour": "adain", "tiling": "one tile"}
