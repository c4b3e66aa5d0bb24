"""What a checkpoint's name and configuration tell: who can do a task, and how large pictures asked about are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lumina_core import Chat, Model, load
from lumina_core.families.trained import able
from lumina_core.request import working_size
from tests.core import checkpoints as ck

OMNI1, PLAIN2, OMNI2 = "Lumina-mGPT-7B-768-Omni", "Lumina-mGPT-2.0", "Lumina-mGPT-2.0-Omni"


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("denoise", ["the bundled nano-mgpt1", OMNI1]),  # trained as an edit
        ("edit", ["the bundled nano-mgpt1", "the bundled nano-mgpt2-omni", OMNI1, OMNI2]),
        ("pair_depth", ["the bundled nano-mgpt2-omni", PLAIN2, OMNI2]),
        ("control_pose", ["the bundled nano-mgpt2-omni", OMNI2]),
        ("restore", ["the bundled nano-pure", "PURE"]),
        ("swim", []),
    ],
)
def test_a_message_names_every_kind_of_checkpoint_that_can_do_a_task(task, names):
    assert able(task) == names


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(ck.build(tmp_path_factory.mktemp("trained") / "m", "mgpt1"))


def named(model: Model, side: int) -> Model:
    """The checkpoint as if it were named after a square of this side, with positions and size tokens enough."""
    grid = {n: n for n in range(1, 129)}
    out = replace(model, side=side, vocabulary=replace(model.vocabulary, grid=grid))
    out.config = replace(model.config, max_position_embeddings=10240)
    return out


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.full((height, width, 3), 90, np.uint8))


@pytest.mark.parametrize("way", ["prompt", "conversation", "chat", "prompt of a chat"])
def test_a_picture_is_as_large_in_a_prompt_as_in_the_node_of_the_task(model, way):
    m, image = replace(model, side=192), picture(400, 300)
    size = working_size(m, "depth", image)
    assert 160 * 160 < size[0] * size[1] <= 192 * 192
    prompt = {
        "prompt": lambda: m.prompt("", task="depth", images=[image]),
        "conversation": lambda: m.converse(["what is it?"], [image]),
        "chat": lambda: Chat("mgpt1").ask(m, "what is it?", [image]).prompt(m),
        "prompt of a chat": lambda: m.prompt("what is it?", task="chat", images=[image]),
    }[way]()
    [(first, last)] = m.vocabulary.pictures(prompt.tokens)
    units = m.vocabulary.units(m.vocabulary.decode(prompt.tokens[first:last]))
    assert units == (size[1] // 32, size[0] // 32)


def test_omni_is_asked_about_pictures_of_768_and_describes_them_at_512(model):
    m = named(model, 768)
    assert working_size(m, "depth", picture(1024, 1024)) == (768, 768)
    assert m.target == 768 and (768, 768) in m.sizes_given("depth") and (768, 768) in m.sizes_given("chat")
    assert max(w * h for w, h in m.sizes_given("describe")) == 512 * 512
    assert replace(m, picture_sizes=((64, 32),)).sizes_given("describe") == [(64, 32)]
