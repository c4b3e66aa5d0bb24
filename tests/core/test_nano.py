"""The bundled checkpoint: small, whole, and able to draw what it is told, judged by pixels."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lumina_core import Sampling, bundled, load
from lumina_core.cli import main
from lumina_core.training import world
from lumina_core.training.evaluate import draw, evaluate_text_to_image, evaluate_tokenizer
from lumina_core.training.recipes import RECIPES

ALL = sorted(RECIPES)


@pytest.fixture(scope="module", params=ALL)
def model(request):
    return load(request.param)


def defaults(model, seed: int) -> Sampling:
    d = model.defaults
    return Sampling(seed=seed, cfg=d.cfg, temperature=d.temperature, image_top_k=d.image_top_k)


def test_every_recipe_is_bundled_in_upstreams_layout_within_ten_megabytes():
    assert sorted(bundled()) == ALL
    for folder in bundled().values():
        assert {"config.json", "tokenizer.json", "model.safetensors", "README.md"} <= {
            p.name for p in folder.iterdir()
        }
        assert sum(p.stat().st_size for p in folder.iterdir()) <= 10_000_000


def test_held_out_captions_are_drawn_as_told(model):
    """A sample of what `train evaluate` measures: above chance by far, and near the model card's 88.3 % and 72.4 %."""
    drawn = evaluate_text_to_image(model, defaults(model, 0), RECIPES[model.name].sizes, captions=32)
    assert drawn.colour >= 0.75
    assert drawn.shape >= 0.55


def test_the_image_tokenizer_keeps_pictures(model):
    psnr, ceiling = evaluate_tokenizer(model, RECIPES[model.name].sizes, pictures=24)
    assert psnr > 26
    assert ceiling.colour > 0.95


def test_the_ground_follows_the_caption(model):
    for ground, colour in world.GROUNDS.items():
        picture = draw(
            model, f"a red circle in the center, {ground} background", (64, 64), defaults(model, 1), 0
        )
        border = np.concatenate([picture[0], picture[-1]]).astype(float)
        assert np.linalg.norm(np.median(border, 0) - colour) < 40, ground


def test_the_demo_draws_a_contact_sheet(tmp_path, capsys):
    from PIL import Image

    assert main(["demo", "--out", str(tmp_path)]) == 0
    with Image.open(tmp_path / "demo.png") as sheet:
        assert min(sheet.size) > 400
        assert np.asarray(sheet.convert("RGB")).std() > 20
    assert "demo.png" in capsys.readouterr().out


def test_evaluate_writes_its_scores(tmp_path, capsys):
    file = tmp_path / "scores.json"
    assert main(["train", "evaluate", "--captions", "4", "--json", str(file)]) == 0
    assert json.loads(file.read_text("utf-8"))["text_to_image"]["captions"] == 4
    assert "colour at the named place" in capsys.readouterr().out
