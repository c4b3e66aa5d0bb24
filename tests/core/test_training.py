"""The world is exact, the judge tells right from wrong, and training goes on as if it had never stopped."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from lumina_core import PictureFinished, Sampling, generate, load
from lumina_core.prompts import IGNORE
from lumina_core.training import recipes, world
from lumina_core.training.evaluate import judge, score
from lumina_core.training.recipes import NANO_MGPT2, SQUARE, WIDE
from lumina_core.training.transformer import Phase, TransformerRecipe
from lumina_core.training.vq import VQRecipe

SIZES = ((64, 64), (96, 64), (64, 96), (96, 96))


@pytest.fixture(scope="module")
def scenes():
    return [world.scene("held-out", n, *SIZES[n % 4]) for n in range(100)]


def test_a_scene_is_a_function_of_its_number_and_the_splits_differ():
    assert world.scene("train", 5, 64, 64) == world.scene("train", 5, 64, 64)
    train = {world.caption(world.scene("train", n, 64, 64)) for n in range(300)}
    held_out = [world.caption(world.scene("held-out", n, 64, 64)) for n in range(300)]
    assert sum(c in train for c in held_out) < 15  # one-object captions may meet by chance


def test_labels_are_exact(scenes):
    for s in scenes:
        picture, segments, depth = world.picture(s), world.segmentation(s), world.depth(s)
        assert picture.shape == (s.height, s.width, 3)
        for o, (left, top, right, bottom) in zip(s.objects, world.boxes(s), strict=True):
            x, y = int(o.x), int(o.y)
            assert tuple(picture[y, x]) == world.COLOURS[o.colour]
            assert tuple(segments[y, x]) == world.SEGMENT_COLOURS[o.shape]
            assert depth[y, x] > depth[0, 0]
            assert left < o.x < right
            assert top < o.y < bottom
        assert np.allclose(np.linalg.norm(world.normals(s), axis=-1), 1, atol=1e-6)


def test_the_judge_accepts_every_true_picture(scenes):
    verdicts = [v for s in scenes for v in judge(s, world.picture(s))]
    result = score(len(scenes), verdicts)
    assert (result.colour, result.shape) == (1.0, 1.0)


def test_the_judge_refuses_wrong_colours_shapes_and_other_scenes(scenes):
    others = ["circle", "square", "triangle", "cross", "circle"]
    wrong_shape, wrong_colour, other_scene = [], [], []
    for s in scenes:
        reshaped = [replace(o, shape=others[others.index(o.shape) + 1]) for o in s.objects]
        recoloured = [replace(o, colour="red" if o.colour != "red" else "cyan") for o in s.objects]
        wrong_shape += judge(s, world.picture(replace(s, objects=tuple(reshaped))))
        wrong_colour += judge(s, world.picture(replace(s, objects=tuple(recoloured))))
        other = world.scene("held-out", s.width * 1000 + len(s.objects), s.width, s.height)
        other_scene += judge(s, world.picture(other))
    assert score(1, wrong_shape).shape < 0.02
    assert score(1, wrong_shape).colour > 0.98
    assert score(1, wrong_colour).colour == 0.0
    assert score(1, other_scene).colour < 0.2


def tiny_recipe(vq_steps: int, steps: int):
    return replace(
        NANO_MGPT2,
        vq=replace(NANO_MGPT2.vq, n_embed=32),
        vq_training=VQRecipe(steps=vq_steps, batch=2, revive_every=2, sizes=(SQUARE, WIDE)),
        pictures={SQUARE: 6, WIDE: 4},
        hidden=32,
        intermediate=64,
        layers=1,
        heads=2,
        training=TransformerRecipe(
            phases=(Phase(2, {SQUARE: 1.0}), Phase(steps, {SQUARE: 0.5, WIDE: 0.5})), batch=3, warmup=2
        ),
    )


def run(folder, monkeypatch, recipe):
    monkeypatch.setitem(recipes.RECIPES, recipe.name, recipe)
    lines = []
    out = recipes.train(recipe.name, folder, lines.append)
    return out, lines


def weights_of(folder):
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "movqgan.safetensors")}


def test_training_resumed_equals_training_in_one_go_and_the_result_loads(tmp_path, monkeypatch):
    whole, _ = run(tmp_path / "whole", monkeypatch, tiny_recipe(4, 4))

    class Enough(KeyboardInterrupt):
        pass

    def stop_after(stage, count):
        original = recipes.Stage.steps

        def steps(self, first, total, snapshot):
            inner = original(self, first, total, snapshot)
            try:
                for step in inner:
                    if self.name == stage and step - first == count:
                        inner.throw(Enough())
                    yield step
            finally:
                inner.close()

        return steps

    for stage, count in (("vq", 3), ("transformer", 1), ("transformer", 2)):
        with monkeypatch.context() as m:
            m.setattr(recipes.Stage, "steps", stop_after(stage, count))
            with pytest.raises(Enough):
                run(tmp_path / "parts", monkeypatch, tiny_recipe(4, 4))
    parts, _ = run(tmp_path / "parts", monkeypatch, tiny_recipe(4, 4))
    assert weights_of(whole) == weights_of(parts)
    assert not list(tmp_path.rglob("*.part"))

    model = load(parts)
    prompt = model.prompt("a red circle", size=(96, 64))
    events = list(generate(model.transformer, model.vocabulary, prompt, Sampling(seed=1)))
    assert any(isinstance(e, PictureFinished) for e in events)


def test_only_the_answer_is_learned_and_bare_pictures_stand_alone(tmp_path):
    words = recipes.tokenizer_text(NANO_MGPT2, tmp_path / "tokenizer.json")
    language = recipes.language_of(NANO_MGPT2, words)
    s = world.scene("train", 1, 64, 64)
    item = recipes_item(s)
    tokens, labels = language.sequence(item, says_size=True, bare=False)
    picture = language.vocabulary.encode(item.codes)
    answer = [*picture, language.vocabulary.separator]
    assert tokens[-len(answer) :] == answer
    assert labels[-len(answer) :] == answer
    assert set(labels[: -len(answer)]) == {IGNORE}
    assert "64x64" in language.tokenizer.decode(tokens[: -len(answer)])
    assert "64x64" not in language.tokenizer.decode(language.sequence(item, False, False)[0])
    assert language.sequence(item, True, bare=True) == (picture, picture)


def recipes_item(s):
    from lumina_core.training.pictures import Item

    return Item(s, torch.arange(64).view(8, 8))


def test_the_small_tokenizer_gives_text_back_and_names_every_code(tmp_path):
    words = recipes.tokenizer_text(NANO_MGPT2, tmp_path / "tokenizer.json")
    language = recipes.language_of(NANO_MGPT2, words)
    for text in ("a red circle on the left", "Ünïcode, {braces} and\nlines"):
        assert language.tokenizer.decode(language.tokenizer.encode(text)) == text
    assert len(language.vocabulary.code_ids) == NANO_MGPT2.vq.n_embed
    assert json.loads(words)["added_tokens"][0]["content"] == "<|endoftext|>"
