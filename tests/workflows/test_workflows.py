"""Every bundled workflow fits the frozen nodes; no ComfyUI needed (tests/host runs them in one)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lumina_core import bundled

ROOT = Path(__file__).parent.parent.parent
FROZEN = json.loads((ROOT / "tests" / "data" / "nodes.json").read_text("utf-8"))
FILES = sorted((ROOT / "workflows").glob("*.json"))
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
CORE = {"ImageScale", "LoadImage", "MarkdownNote", "PreviewAny", "PreviewImage", "SaveImage"}
PYTHON = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool, "COMBO": str}


@pytest.fixture(params=FILES, ids=lambda p: p.stem)
def workflow(request) -> dict:
    return json.loads(request.param.read_text("utf-8"))


def values(node: dict) -> dict:
    """The saved widget values of one of our nodes by name; a seed is followed by what happens to it.

    Optional inputs that came after the file was saved have no value in it.
    """
    saved, found = list(node["widgets_values"]), {}
    for name, kind, group in FROZEN[node["type"]]["inputs"]:
        if kind in WIDGETS and (saved or group == "required"):
            found[name] = saved.pop(0)
            if name == "seed":
                found["control"] = saved.pop(0)
    assert not saved, f"{node['type']} has {len(saved)} values too many"
    return found


def test_it_has_ours_and_only_known_nodes(workflow):
    kinds = {node["type"] for node in workflow["nodes"]}
    assert kinds <= FROZEN.keys() | CORE
    assert kinds & FROZEN.keys()
    assert "MarkdownNote" in kinds, "a note tells people what they see"


def test_links_join_sockets_of_one_type(workflow):
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert len(nodes) == len(workflow["nodes"])
    for link, source, out, target, slot, kind in workflow["links"]:
        assert nodes[source]["outputs"][out]["type"] == kind == nodes[target]["inputs"][slot]["type"]
        assert link in nodes[source]["outputs"][out]["links"]
        assert nodes[target]["inputs"][slot]["link"] == link
    used = [slot["link"] for node in nodes.values() for slot in node["inputs"] if slot["link"] is not None]
    assert sorted(used) == sorted(link[0] for link in workflow["links"])


def test_our_nodes_have_their_sockets_and_values(workflow):
    for node in workflow["nodes"]:
        if node["type"] not in FROZEN:
            continue
        frozen = FROZEN[node["type"]]
        kinds = {name: kind for name, kind, _ in frozen["inputs"]}
        for slot in node["inputs"]:
            assert kinds[slot["name"]] == slot["type"]
        assert [[o["type"], o["name"]] for o in node["outputs"]] == frozen["outputs"]
        linked = {slot["name"] for slot in node["inputs"] if slot["link"] is not None}
        for name, kind, group in frozen["inputs"]:
            assert kind in WIDGETS or group == "optional" or name in linked, f"{node['type']}.{name} is open"
        for name, value in values(node).items():
            assert isinstance(value, PYTHON[kinds.get(name, "STRING")]), f"{node['type']}.{name}"


def test_it_works_out_of_the_box(workflow):
    """A bundled checkpoint, and a seed that stays, so that everyone sees the thumbnail's picture."""
    for node in workflow["nodes"]:
        chosen = values(node) if node["type"] in FROZEN else {}
        assert chosen.get("control", "fixed") == "fixed"
        if "precision" in chosen:
            assert chosen["model"] in bundled()


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.stem)
def test_it_has_a_thumbnail(file):
    from PIL import Image

    picture = file.with_suffix(".jpg")
    assert picture.stat().st_size < 200_000
    assert min(Image.open(picture).size) >= 256
