"""The world is exact, the judge tells right from wrong, and training goes on as if it had never stopped."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from lumina_core import InputError, PictureFinished, Sampling, generate, load
from lumina_core.prompts import IGNORE
from lumina_core.training import build, recipes, world
from lumina_core.training.adoption import adopt
from lumina_core.training.batches import Phase
from lumina_core.training.examples import Example
from lumina_core.training.judge import judge
from lumina_core.training.recipes import NANO_MGPT2, SQUARE, WIDE
from lumina_core.training.transformer import TransformerRecipe
from lumina_core.training.vq import VQRecipe
from lumina_core.transformer import Transformer

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


def shares(verdicts):
    return [float(np.mean([getattr(v, k) for v in verdicts])) for k in ("colour", "shape")]


def test_the_judge_accepts_every_true_picture(scenes):
    assert shares([v for s in scenes for v in judge(s, world.picture(s))]) == [1.0, 1.0]


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
    assert shares(wrong_shape)[1] < 0.02
    assert shares(wrong_shape)[0] > 0.98
    assert shares(wrong_colour)[0] == 0.0
    assert shares(other_scene)[0] < 0.2


SMALL = {("text_to_image", SQUARE): 0.5, ("depth_panel", SQUARE): 0.3, ("text_to_image", WIDE): 0.2}


def tiny_recipe(vq_steps: int, steps: int):
    return replace(
        NANO_MGPT2,
        vq=replace(NANO_MGPT2.vq, n_embed=32),
        vq_training=VQRecipe(
            steps=vq_steps, batch=2, refit_every=2, sizes=(SQUARE, WIDE), crop=32, crop_until=2
        ),
        more_vq_training=VQRecipe(steps=2, batch=2, sizes=(SQUARE,), frozen_codes=True),
        examples=dict.fromkeys(SMALL, 6),
        hidden=32,
        intermediate=64,
        layers=1,
        heads=2,
        looks_back=(),
        training=TransformerRecipe(
            phases=(Phase(2, {("text_to_image", SQUARE): 1.0}), Phase(steps, SMALL)), batch=3, warmup=2
        ),
    )


def run(folder, monkeypatch, recipe, **options):
    monkeypatch.setitem(recipes.RECIPES, recipe.name, recipe)
    lines = []
    out = build.train(recipe.name, folder, lines.append, **options)
    return out, lines


def weights_of(folder):
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "movqgan.safetensors")}


def test_training_resumed_equals_training_in_one_go_and_the_result_loads(tmp_path, monkeypatch):
    whole, _ = run(tmp_path / "whole", monkeypatch, tiny_recipe(4, 4))

    class Enough(KeyboardInterrupt):
        pass

    def stop_after(stage, count):
        original = build.Stage.steps

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
            m.setattr(build.Stage, "steps", stop_after(stage, count))
            with pytest.raises(Enough):
                run(tmp_path / "parts", monkeypatch, tiny_recipe(4, 4))
    parts, _ = run(tmp_path / "parts", monkeypatch, tiny_recipe(4, 4))
    assert weights_of(whole) == weights_of(parts)
    assert not list(tmp_path.rglob("*.part"))

    model = load(parts)
    prompt = model.prompt("a red circle", size=(96, 64))
    events = list(generate(model.transformer, model.vocabulary, prompt, Sampling(seed=1)))
    assert any(isinstance(e, PictureFinished) for e in events)


@pytest.mark.parametrize("named, quick", [("avx512_bf16", True), ("amx_bf16", True), ("avx2", False)])
def test_passes_run_in_bfloat16_where_the_processor_is_quick_in_it(tmp_path, monkeypatch, named, quick):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {named: True}, raising=False)
    computed = set()
    scores = Transformer.scores

    def watched(model, hidden):
        computed.add(model.lm_head(hidden).dtype)
        return scores(model, hidden)

    monkeypatch.setattr(Transformer, "scores", watched)
    run(tmp_path, monkeypatch, tiny_recipe(1, 2))
    assert computed == {torch.bfloat16 if quick else torch.float32}
    state = torch.load(tmp_path / "transformer.pt")["model"]
    assert {w.dtype for w in state.values()} == {torch.float32}, "the weights themselves stay whole"


def test_training_goes_on_from_an_earlier_checkpoint_with_other_words(tmp_path, monkeypatch):
    first, _ = run(tmp_path / "first", monkeypatch, tiny_recipe(2, 3))
    earlier = load(first)
    recipe = replace(tiny_recipe(2, 3), words=420)
    words = build.tokenizer_text(recipe, tmp_path / "tokenizer.json")
    model = build.new_transformer(recipe, words)
    tokenizer = build.language_of(recipe, words).tokenizer
    adopt(model, build.language_of(recipe, words), earlier)
    old, new = earlier.tokenizer.names(), tokenizer.names()
    assert len(new) != len(old)
    mine, theirs = model.state_dict(), earlier.transformer.state_dict()
    for name in ("<racm3:break>", "<MOVQGAN00031>", "a"):
        for key in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(mine[key][new[name]], theirs[key][old[name]]), name
    key = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(mine[key], theirs[key])

    second, _ = run(tmp_path / "second", monkeypatch, recipe, start_from=first)
    assert [load(first).vq.encode(torch.zeros(1, 3, 64, 64)).tolist()] == [
        load(second).vq.encode(torch.zeros(1, 3, 64, 64)).tolist()
    ]
    with pytest.raises(InputError, match="has shape"):
        run(tmp_path / "fourth", monkeypatch, replace(recipe, hidden=64), start_from=first)


def of_family(name: str) -> list[str]:
    """The recipes of a family."""
    return [recipe for recipe in sorted(recipes.RECIPES) if recipes.RECIPES[recipe].family.id == name]


@pytest.fixture(scope="module", params=sorted(recipes.RECIPES))
def language(request, tmp_path_factory):
    recipe = recipes.RECIPES[request.param]
    words = build.tokenizer_text(recipe, tmp_path_factory.mktemp("words") / "tokenizer.json")
    return recipe, words, build.language_of(recipe, words)


@pytest.mark.parametrize("language", of_family("mgpt2"), indirect=True)  # its wording may leave out the size
def test_only_the_answer_is_learned_and_bare_pictures_stand_alone(language):
    _, _, language = language
    s = world.scene("train", 1, 64, 64)
    e = Example("text_to_image", world.caption(s), (64, 64), s, drawn=(world.picture(s),))
    codes = torch.arange(64).view(8, 8)
    tokens, labels = language.sequence(e, [], [codes])
    picture = language.vocabulary.encode(codes)
    answer = [*picture, language.vocabulary.separator]
    assert tokens[-len(answer) :] == answer
    assert labels[-len(answer) :] == answer
    assert set(labels[: -len(answer)]) == {IGNORE}
    assert "64x64" in language.tokenizer.decode(tokens[: -len(answer)])
    assert "64x64" not in language.tokenizer.decode(language.sequence(e, [], [codes], says_size=False)[0])
    assert language.bare(tokens, labels) == (picture, picture)


def test_the_small_tokenizers_give_text_back_and_name_every_code(language):
    recipe, words, language = language
    for text in ("a red circle on the left", "Ünïcode, {braces} and\nlines"):
        assert language.tokenizer.decode(language.tokenizer.encode(text)) == text
    assert len(language.vocabulary.code_ids) == recipe.vq.n_embed
    assert json.loads(words)["added_tokens"][0]["content"] in ("<|endoftext|>", "<s>")
