"""A checkpoint begins with another's weights, its heads look where they are told, and codes go by what they show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lumina_core import load
from lumina_core.errors import InputError
from lumina_core.training import build, recipes, world
from lumina_core.training.adoption import adopt, codes_in
from lumina_core.training.batches import Phase
from lumina_core.training.dataset import to_network
from lumina_core.training.examples import example
from lumina_core.training.looking import looks_back
from lumina_core.training.recipes import BIG_SQUARE, NANO_MGPT1, NANO_PURE, RECIPES
from lumina_core.training.same_codes import on_the_sphere, one_level_finer
from lumina_core.training.transformer import TransformerRecipe
from lumina_core.training.vq import VQRecipe


@pytest.fixture(scope="module")
def bundled():
    return load("nano-mgpt2")


def made(recipe, folder):
    """Transformer, language and image tokenizer of a recipe, untrained."""
    words = build.tokenizer_text(recipe, folder / f"{recipe.name}.json")
    model, language = build.new_transformer(recipe, words), build.language_of(recipe, words)
    return model.eval(), language, build.new_vq(recipe).eval()


def attention_of(model, tokens, monkeypatch):
    """Attention weights (layers, heads, T, T) of a pass."""
    seen = []
    real = F.scaled_dot_product_attention

    def spy(q, k, v, *args, **kwargs):
        scores = q @ k.mT / q.shape[-1] ** 0.5
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        seen.append(scores.masked_fill(hidden, -torch.inf).softmax(-1)[0])
        return real(q, k, v, *args, **kwargs)

    with monkeypatch.context() as m, torch.inference_mode():
        m.setattr(F, "scaled_dot_product_attention", spy)
        model(torch.tensor([tokens]))
    return torch.stack(seen)


@pytest.mark.parametrize(
    ("name", "kind", "square", "number"),
    [
        ("nano-mgpt2-omni", "depth_panel", (64, 64), 0),
        ("nano-mgpt1", "depth", BIG_SQUARE, 0),
        # one, two and three objects, of which is told in between
        *(("nano-pure", "restore", (64, 64), number) for number in (5, 0, 10)),
    ],
)
def test_heads_look_at_the_same_place_of_the_picture_given(name, kind, square, number, tmp_path, monkeypatch):
    recipe = RECIPES[name]
    model, language, _ = made(recipe, tmp_path)
    e = example(kind, "train", number, square)
    rng = torch.Generator().manual_seed(1)
    codes = [torch.randint(recipe.vq.n_embed, (8, 8), generator=rng) for _ in range(2)]
    tokens, _ = language.sequence(e, codes[:1], codes if len(e.drawn) == 2 else codes[1:])
    places = [i for i, t in enumerate(tokens) if language.vocabulary.code_of(t) is not None]
    given, drawn = places[:64], places[64:]
    weights = attention_of(model, tokens, monkeypatch)
    for look in recipe.looks_back:
        seen = weights[look.layer, look.head][torch.tensor(drawn) - 1, torch.tensor(given)]
        if look.distance == drawn[0] - given[0] - 1:
            assert seen.min() > 0.6, look
        else:
            assert seen.max() < 0.6, look
    assert any(look.distance == drawn[0] - given[0] - 1 for look in recipe.looks_back)


def test_the_same_image_tokenizer_shows_the_same_in_the_same_codes(bundled):
    table = codes_in(bundled, bundled.vq, bundled.vocabulary, [("text_to_image", (64, 64))], count=64)
    assert torch.allclose(table.sum(1), torch.ones(len(table)))
    seen = table.max(1).values == 1
    assert seen.sum() > 100
    assert torch.equal(table.argmax(1)[seen], torch.arange(len(table))[seen])


def test_sizes_meet_where_both_make_as_many_codes(bundled, tmp_path):
    _, language, vq = made(NANO_MGPT1, tmp_path)
    table = codes_in(bundled, vq, language.vocabulary, [("depth", BIG_SQUARE)], count=8)
    assert table.shape == (512, 512)
    assert torch.allclose(table.sum(1), torch.ones(512))


def test_an_image_tokenizer_one_level_finer_sees_half_the_picture_in_the_same_codes(bundled):
    vq = build.new_vq(NANO_MGPT1).eval()
    one_level_finer(vq, bundled.vq)
    scenes = [world.picture(world.scene("held-out", n, *BIG_SQUARE)) for n in range(12)]
    pictures = to_network(np.stack(scenes))
    with torch.inference_mode():
        same = vq.encode(pictures) == bundled.vq.encode(F.avg_pool2d(pictures, 2))
    assert same.shape == (12, 8, 8)
    assert same.float().mean() > 0.8


def test_codes_told_by_direction_are_those_told_by_distance(bundled):
    vq = build.new_vq(NANO_PURE).eval()
    on_the_sphere(vq, bundled.vq)
    scenes = [world.picture(world.scene("held-out", n, 64, 64)) for n in range(24)]
    pictures = to_network(np.stack(scenes))
    with torch.inference_mode():
        assert (vq.encode(pictures) == bundled.vq.encode(pictures)).float().mean() > 0.999


@pytest.mark.parametrize(
    ("begin", "recipe", "sizes", "says"),
    [
        (one_level_finer, NANO_MGPT1, {"n_embed": 1024}, "its n_embed is 1024 and has to be 512"),
        (
            one_level_finer,
            NANO_MGPT1,
            {"ch_mult": (1, 1, 2, 2)},
            r"its ch_mult is .* has to be \(1, 1, 1, 2, 2\)",
        ),
        (on_the_sphere, NANO_PURE, {"embed_dim": 5}, "codes take 6 dimensions; this one's have 5"),
    ],
)
def test_an_image_tokenizer_that_cannot_have_the_codes_is_refused(begin, recipe, sizes, says, bundled):
    other = build.new_vq(replace(recipe, vq=replace(recipe.vq, **sizes)))
    with pytest.raises(InputError, match=says):
        begin(other, bundled.vq)


@pytest.mark.parametrize("recipe", [NANO_PURE, NANO_MGPT1], ids=lambda r: r.name)
def test_another_family_takes_words_layers_and_roles(recipe, bundled, tmp_path):
    model, language, _ = made(recipe, tmp_path)
    shares = torch.rand(recipe.vq.n_embed, 512, generator=torch.Generator().manual_seed(1)).softmax(1)
    adopt(model, language, bundled, recipe.looks_back, shares)
    mine, theirs = model.state_dict(), bundled.transformer.state_dict()
    v, earlier = language.vocabulary, bundled.vocabulary
    as_long = 4 * v.latents_per_unit // earlier.latents_per_unit
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        for role in ("bos", "separator", "image_start", "image_end", "row_end"):
            assert torch.equal(mine[key][getattr(v, role)], theirs[key][getattr(earlier, role)].float()), role
        assert torch.equal(mine[key][v.grid[4]], theirs[key][earlier.grid[as_long]].float())
        expected = shares @ theirs[key][earlier.code_ids].float()
        assert torch.allclose(mine[key][v.code_ids], expected, atol=1e-6)
    key = "model.layers.3.mlp.down_proj.weight"
    assert torch.equal(mine[key], theirs[key].float())
    looking = {(look.layer, look.head) for look in recipe.looks_back}
    for number, layer in enumerate(model.model.layers):
        for head in range(recipe.heads):
            assert looks_back(layer.self_attn, head) == ((number, head) in looking)


def test_training_goes_on_from_another_family(bundled, tmp_path, monkeypatch):
    recipe = replace(
        NANO_PURE,
        more_vq_training=VQRecipe(steps=2, batch=2, map_share=0.0, frozen_codes=True),
        training=TransformerRecipe(phases=(Phase(2, {("restore", (64, 64)): 1.0}),), batch=2),
        examples={("restore", (64, 64)): 4},
    )
    monkeypatch.setitem(recipes.RECIPES, recipe.name, recipe)
    out = build.train(recipe.name, tmp_path, lambda line: None, start_from=bundled.name)
    model = load(out)
    assert model.family.id == "pure"
    assert model.transformer.config.model_parallel_size == recipe.heads
