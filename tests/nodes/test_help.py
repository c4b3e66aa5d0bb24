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


def texts_of(entry) -> list[str]:
    return [entry] if isinstance(entry, str) else [t for value in entry.values() for t in texts_of(value)]
