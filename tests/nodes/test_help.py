"""The frozen list of nodes and their help pages agree; no ComfyUI needed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent.parent
FROZEN = json.loads((ROOT / "tests" / "data" / "nodes.json").read_text("utf-8"))
DOCS = ROOT / "nodes" / "web" / "docs"
PICTURE = re.compile(r"!\[(.*?)\]\((.*?)\)")


@pytest.mark.parametrize("node", FROZEN)
def test_a_help_page_names_every_input(node):
    page = (DOCS / f"{node}.md").read_text("utf-8")
    missing = [name for name, *_ in FROZEN[node]["inputs"] if name not in page]
    assert not missing


def test_every_help_page_belongs_to_a_node():
    assert {p.stem for p in DOCS.glob("*.md")} == set(FROZEN)


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda p: p.stem)
def test_pictures_of_a_help_page_are_there_and_small(page):
    pictures = PICTURE.findall(page.read_text("utf-8"))
    assert pictures
    for alt, file in pictures:
        assert alt
        assert (DOCS / file).stat().st_size < 40_000
        assert max(Image.open(DOCS / file).size) <= 800


def test_every_picture_is_on_a_help_page():
    shown = {file for page in DOCS.glob("*.md") for _, file in PICTURE.findall(page.read_text("utf-8"))}
    assert shown == {f"images/{file.name}" for file in (DOCS / "images").iterdir()}


def test_without_comfyui_the_door_offers_nothing():
    script = "import runpy, sys; print(sorted(k for k in runpy.run_path(sys.argv[1]) if k[0] != '_'))"
    command = [sys.executable, "-I", "-c", script, str(ROOT / "__init__.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['find_spec']"


def test_the_chinese_translation_covers_every_node_and_input():
    translated = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text("utf-8"))
    assert translated.keys() == FROZEN.keys()
    for node, texts in translated.items():
        assert list(texts["inputs"]) == [name for name, *_ in FROZEN[node]["inputs"]]
        assert list(texts["outputs"]) == [str(i) for i in range(len(FROZEN[node]["outputs"]))]
        assert all(t["name"] and t["tooltip"] for part in ("inputs", "outputs") for t in texts[part].values())


@pytest.mark.parametrize("file", sorted(ROOT.glob("locales/*/*.json")), ids=lambda p: p.parent.name)
def test_translations_hold_no_signs_that_older_pages_take_for_commands(file):
    """Up to frontend 1.27 a brace or a bar in a translation is a place to fill in or a choice of plurals."""
    assert not [t for t in texts_of(json.loads(file.read_text("utf-8"))) if set(t) & set("{}|@")]


@pytest.fixture(params=["en", "zh"])
def tooltip(request):
    """The text of an input in one of the languages."""
    nodes = json.loads((ROOT / "locales" / request.param / "nodeDefs.json").read_text("utf-8"))
    return lambda node, name: nodes[f"LuminaMGPT{node}"]["inputs"][name]["tooltip"]


@pytest.mark.parametrize("side", ["width", "height"])
def test_a_size_of_0_is_explained_for_the_task_of_the_node(tooltip, side):
    """Two panels of 768x768 do not fit into the positions of the released checkpoints of 2.0."""
    own = {
        node: {size for size in ("768", "512", "nano-mgpt2", "nano-mgpt2-omni") if said(size, text)}
        for node in ("TextToImage", "Prompt", "ImagePair", "Subject")
        for text in [tooltip(node, side)]
    }
    one, two = {"768", "nano-mgpt2"}, {"512", "nano-mgpt2-omni"}
    assert own == {"TextToImage": one, "Prompt": one | two, "ImagePair": two, "Subject": two}


def said(word: str, text: str) -> bool:
    return re.search(rf"(?<![\w-]){word}(?![\w-])", text, re.ASCII) is not None


def test_image_pair_names_every_released_checkpoint_that_draws_pairs(tooltip):
    assert said("Lumina-mGPT-2.0", tooltip("ImagePair", "model"))
    assert said("2.0-Omni", tooltip("ImagePair", "model"))


def test_sizes_that_the_model_chooses_are_said_to_follow_image_top_k(tooltip):
    """`lumina_core.sampling.answer` draws them so."""
    sizes = re.compile("sizes that the model chooses|由模型决定的图片尺寸")
    assert sizes.search(tooltip("Sampler", "image_top_k"))
    assert not sizes.search(tooltip("Sampler", "text_top_k"))


def texts_of(entry) -> list[str]:
    return [entry] if isinstance(entry, str) else [t for value in entry.values() for t in texts_of(value)]
