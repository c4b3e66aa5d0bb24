"""What a real ComfyUI says of our nodes: frozen names, tooltips, limits, help."""

from __future__ import annotations

import json
import os
import re
import time

import pytest

from tests.host.server import FOLDER
from tests.nodes.test_help import FROZEN, ROOT


def inputs(schema: dict) -> list[tuple[str, str, str, dict]]:
    """(name, type, required or optional, options) of every input in order."""
    found = []
    for group in ("required", "optional"):
        for name in schema["input_order"].get(group, []):
            kind, options = [*schema["input"][group][name], {}][:2]
            if isinstance(kind, list):  # older hosts give the choices instead of the type
                kind, options = "COMBO", {**options, "options": kind}
            found.append((name, kind, group, options))
    return found


@pytest.fixture(scope="module")
def ours(comfy) -> dict:
    return {name: schema for name, schema in comfy.info.items() if name.startswith("LuminaMGPT")}


def test_ids_inputs_and_outputs_are_the_frozen_ones(ours):
    """A change here breaks saved workflows: ids and names stay for ever, new inputs go to the end."""
    seen = {
        name: {
            "inputs": [list(entry[:3]) for entry in inputs(schema)],
            "outputs": [list(pair) for pair in zip(schema["output"], schema["output_name"], strict=True)],
        }
        for name, schema in ours.items()
    }
    assert seen == FROZEN


def test_everything_is_explained(ours):
    for name, schema in ours.items():
        assert schema["category"] == "Lumina-mGPT"
        assert schema["display_name"].startswith("Lumina-mGPT ")
        assert len(schema["description"]) > 40, name
        assert all(schema["output_tooltips"]), name
        for entry, _, _, options in inputs(schema):
            assert len(options.get("tooltip", "")) > 20, f"{name}.{entry}"


def test_numbers_say_which_values_are_good(ours):
    for name, schema in ours.items():
        for entry, kind, _, options in inputs(schema):
            free = entry == "seed" or options.get("forceInput")  # any value is as good as another
            if kind in ("INT", "FLOAT") and not free:
                assert re.search(r"\d", options["tooltip"]), f"{name}.{entry}"


def test_every_node_is_found_by_other_words(comfy, ours):
    if not any("search_aliases" in schema for schema in comfy.info.values()):
        pytest.skip("this ComfyUI does not know search_aliases")
    for name, schema in ours.items():
        assert len(set(schema["search_aliases"])) >= 3, name


def test_numbers_have_limits_and_defaults_within(ours):
    for name, schema in ours.items():
        for entry, kind, _, options in inputs(schema):
            if kind in ("INT", "FLOAT"):
                assert options["min"] <= options["default"] <= options["max"], f"{name}.{entry}"
            if kind == "COMBO" and "default" in options:
                assert options["default"] in options["options"], f"{name}.{entry}"


def test_rare_inputs_are_folded_away(ours):
    options = {name: options for name, _, _, options in inputs(ours["LuminaMGPTSampler"])}
    assert options["text_top_k"]["advanced"] is options["window"]["advanced"] is True


def test_new_choices_come_last(ours):
    options = {name: options for name, _, _, options in inputs(ours["LuminaMGPTTextToImage"])}
    assert options["precision"]["options"] == ["auto", "bf16", "fp16", "fp32", "int8", "fp8", "nf4"]
    assert options["decode"]["options"] == ["ar", "jacobi", "coupled"]
    assert (options["decode"]["default"], options["window"]["default"]) == ("jacobi", "auto")


def test_checkpoints_of_every_place_are_listed(ours):
    for node in ("LuminaMGPTLoadModel", "LuminaMGPTTextToImage"):
        choices = inputs(ours[node])[0][3]["options"]
        assert {"tiny", "owner/cut", "elsewhere", "owner/packed.safetensors"} <= set(choices)
        assert "owner/other-kind.safetensors" not in choices


def test_listing_is_fast(comfy):
    start = time.monotonic()
    comfy.get("/object_info/LuminaMGPTLoadModel")
    assert time.monotonic() - start < 0.5


def test_help_pages_are_served(comfy):
    for name in FROZEN:
        status, page = comfy.get_bytes(f"/extensions/{FOLDER}/docs/{name}.md")
        assert status == 200 and page.startswith(b"# Lumina-mGPT"), name


def english(ours: dict) -> dict:
    """The nodes' own texts as a locale; without those that hold signs which a locale may not."""

    def entry(name: str, tooltip: str) -> dict:
        return {"name": name} | ({} if set(tooltip) & set("{}|@") else {"tooltip": tooltip})

    return {
        node: {
            "display_name": ours[node]["display_name"],
            "description": ours[node]["description"],
            "inputs": {name: entry(name, options["tooltip"]) for name, _, _, options in inputs(ours[node])},
            "outputs": {
                str(i): entry(*pair)
                for i, pair in enumerate(
                    zip(ours[node]["output_name"], ours[node]["output_tooltips"], strict=True)
                )
            },
        }
        for node in FROZEN
    }


def test_the_english_locale_says_what_the_nodes_say(ours):
    """Where texts of nodes have changed, running this with WRITE_ENGLISH=1 writes them into the locale."""
    file = ROOT / "locales" / "en" / "nodeDefs.json"
    if os.environ.get("WRITE_ENGLISH"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(english(ours), indent=1) + "\n", "utf-8")
    assert json.loads(file.read_text("utf-8")) == english(ours)
