"""What a real ComfyUI says of our nodes: frozen names, tooltips, limits, help."""

from __future__ import annotations

import json
import time

import pytest

from tests.host.server import FOLDER
from tests.nodes.test_help import FROZEN


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


def test_the_schemas_are_plain_json(ours):
    assert json.loads(json.dumps(ours)) == ours
