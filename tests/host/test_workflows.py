"""Every bundled workflow runs in a real ComfyUI and shows up in its template browser."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image

from tests.host.convert import to_prompt
from tests.host.server import FOLDER, ROOT

WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda p: p.stem)
def test_it_runs_and_shows_a_picture(comfy, file, figure):
    run = comfy.run(to_prompt(json.loads(file.read_text("utf-8")), comfy.info))
    figure("workflows", (run.status == "success", 1))
    assert run.status == "success", run.error
    pictures = [Image.open(io.BytesIO(p)).convert("RGB") for p in comfy.pictures(run)]
    assert pictures and all(max(c[1] - c[0] for c in p.getextrema()) > 60 for p in pictures)


def test_all_are_offered_as_templates(comfy):
    assert set(comfy.get("/workflow_templates")[FOLDER]) == {p.stem for p in WORKFLOWS}
    for file in WORKFLOWS:
        status, body = comfy.get_bytes(f"/api/workflow_templates/{FOLDER}/{file.name}")
        assert status == 200 and json.loads(body)["version"] == 0.4
