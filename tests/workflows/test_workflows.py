"""Every bundled workflow fits the frozen nodes; no ComfyUI needed (tests/host runs them in one)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lumina_core import bundled
from lumina_core.families.mgpt1 import CHAT
from lumina_core.families.trained import tasks_of
from lumina_core.hub import RELEASES

ROOT = Path(__file__).parent.parent.parent
FROZEN = json.loads((ROOT / "tests" / "data" / "nodes.json").read_text("utf-8"))
FILES = sorted((ROOT / "workflows").glob("*.json"))
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
CORE = {
    *(
        "GrowMask",
        "ImageBlur",
        "ImageCompositeMasked",
        "ImageScale",
        "ImageScaleBy",
        "ImageStitch",
        "LoadImage",
    ),
    *("MarkdownNote", "MaskComposite", "MaskToImage", "PreviewAny", "PreviewImage", "SaveImage", "SolidMask"),
}
TITLE = 30  # pixels above a node's position that its title takes
PYTHON = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool, "COMBO": str}


@pytest.fixture(params=FILES, ids=lambda p: p.stem)
def workflow(request) -> dict:
    return json.loads(request.param.read_text("utf-8"))


def values(node: dict) -> dict:
    """The saved widget values of one of our nodes by name; a seed is followed by what happens to it.

    Optional inputs that came after the file was saved have no value in it.
    """
    saved, found = list(node["widgets_values"]), {}
    bare = {slot["name"] for slot in node["inputs"] if "widget" not in slot}
    for name, kind, group in FROZEN[node["type"]]["inputs"]:
        if kind in WIDGETS and name not in bare and (saved or group == "required"):
            found[name] = saved.pop(0)
            if name == "seed":
                found["control"] = saved.pop(0)
    assert not saved, f"{node['type']} has {len(saved)} values too many"
    return found


def offer_faults(node: dict) -> list[str]:
    """What keeps ComfyUI's page from offering the downloads that a loader names in `properties.models`."""
    chosen = [v for v in node.get("widgets_values", []) if isinstance(v, str)]
    faults = []
    for offer in node.get("properties", {}).get("models", []):
        name, url = offer.get("name", ""), offer.get("url", "")
        if lacks := {"name", "url", "directory"} - offer.keys():
            faults.append(f"{name}: no {', '.join(sorted(lacks))}")
        if name not in chosen:
            faults.append(f"{name}: not the value of a widget, so the page takes it for another model's")
        if "/" in name or not name.endswith((".safetensors", ".sft")):
            faults.append(f"{name}: not the name of one safetensors file, which alone are offered")
        if not url.startswith(("https://huggingface.co/", "https://civitai.com/")):
            faults.append(f"{name}: {url} is no place that the page fetches from")
        if not url.partition("?")[0].endswith("/" + name):
            faults.append(f"{name}: {url} is another file, so it would still be missing afterwards")
        if offer.get("directory") != "lumina_mgpt":
            faults.append(f"{name}: directory is {offer.get('directory')!r}, not 'lumina_mgpt'")
        if ("hash" in offer) != ("hash_type" in offer):
            faults.append(f"{name}: hash and hash_type belong together")
    return faults


OFFER = {
    "name": "Lumina-mGPT-2.0-int8.safetensors",
    "url": "https://huggingface.co/someone/some-repository/resolve/main/Lumina-mGPT-2.0-int8.safetensors",
    "directory": "lumina_mgpt",
}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, None),
        ({"hash": "0" * 64, "hash_type": "SHA256"}, None),
        ({"directory": "checkpoints"}, "not 'lumina_mgpt'"),
        ({"url": OFFER["url"].replace("https", "http")}, "no place"),
        ({"url": "https://example.org/Lumina-mGPT-2.0-int8.safetensors"}, "no place"),
        ({"url": OFFER["url"].replace("int8", "fp8")}, "another file"),
        ({"name": "Lumina-mGPT-2.0"}, "not the value of a widget"),
        ({"name": "Lumina-mGPT-2.0"}, "not the name of one safetensors file"),
        ({"hash": "0" * 64}, "belong together"),
    ],
)
def test_an_offer_of_a_download_is_checked(changes, says):
    loader = {"widgets_values": [OFFER["name"], "auto"], "properties": {"models": [OFFER | changes]}}
    faults = offer_faults(loader)
    assert any(says in fault for fault in faults) if says else not faults


def test_the_help_page_s_example_of_an_offer_is_a_true_one():
    page = (ROOT / "nodes" / "web" / "docs" / "LuminaMGPTLoadModel.md").read_text("utf-8")
    example = json.loads(page[page.index('{"models"') :].partition("\n\n")[0])
    [offer] = example["models"]
    assert not offer_faults({"widgets_values": [offer["name"]], "properties": example})


def test_downloads_it_offers_are_ones_the_page_can_do(workflow):
    assert not [fault for node in workflow["nodes"] for fault in offer_faults(node)]


def test_it_has_ours_and_only_known_nodes(workflow):
    kinds = {node["type"] for node in workflow["nodes"]}
    assert kinds <= FROZEN.keys() | CORE
    assert kinds & FROZEN.keys()
    assert "MarkdownNote" in kinds, "a note tells people what they see"


def test_links_join_sockets_of_one_type(workflow):
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert len(nodes) == len(workflow["nodes"])
    for link, source, out, target, slot, kind in workflow["links"]:
        assert nodes[source]["outputs"][out]["type"] == kind
        assert nodes[target]["inputs"][slot]["type"] in (kind, "*")
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


def test_it_saves_pictures_and_its_nodes_do_not_lie_on_each_other(workflow):
    assert any(node["type"] == "SaveImage" for node in workflow["nodes"])
    boxes = [(x, y - TITLE, x + w, y + h) for (x, y), (w, h) in _places(workflow)]
    for n, (left, top, right, bottom) in enumerate(boxes):
        for x0, y0, x1, y1 in boxes[n + 1 :]:
            assert right <= x0 or x1 <= left or bottom <= y0 or y1 <= top


def note(name: str) -> tuple[str, list[dict]]:
    """The note of a workflow, and its nodes."""
    nodes = json.loads((ROOT / "workflows" / f"{name}.json").read_text("utf-8"))["nodes"]
    [text] = [node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote"]
    return text, nodes


def test_settings_follow_the_checkpoint_so_that_another_one_draws_well_too(workflow):
    for node in workflow["nodes"]:
        if node["type"] in FROZEN:
            chosen = values(node)
            chosen.pop("temperature", None)  # raised where noise is to be seen, or candidates are to differ
            assert {chosen.get(name, -1) for name in ("cfg", "image_top_k", "text_top_k")} == {-1}
            assert chosen.get("max_tokens", CHAT.max_tokens) == CHAT.max_tokens


def test_the_note_of_image_pair_names_every_released_checkpoint_that_draws_pairs():
    text, _ = note("image_pair")
    for name, release in RELEASES.items():
        able = "pair_depth" in tasks_of(release.family, name, {})[0]
        assert (f"`{name}`" in text) == able, name


def _places(workflow: dict) -> list[tuple[list[int], list[int]]]:
    return [(node["pos"], node["size"]) for node in workflow["nodes"]]


def test_every_workflow_has_an_id_of_its_own():
    ids = [json.loads(file.read_text("utf-8"))["id"] for file in FILES]
    assert len(set(ids)) == len(ids)
