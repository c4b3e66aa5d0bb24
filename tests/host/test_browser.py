"""ComfyUI's own page in a headless Chromium: the workflow runs there, the help opens, the templates are listed.

Needs node, playwright-core (in PLAYWRIGHT_DIR, here or in the home folder) and a Chromium (CHROMIUM or on the path).
The pictures of the page are left in SHOTS when that names a folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.host.server import FOLDER, ROOT

NODE = "LuminaMGPTLoadModel"


def tools() -> tuple[str, str, str] | None:
    """node, the folder of playwright-core and Chromium; None when one lacks."""
    folders = [Path(os.environ.get("PLAYWRIGHT_DIR", ROOT)), ROOT, Path.home()]
    playwright = next((str(f) for f in folders if (f / "node_modules" / "playwright-core").is_dir()), None)
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    chromium = next((found for name in names if name and (found := shutil.which(name))), None)
    node = shutil.which("node")
    return (node, playwright, chromium) if node and playwright and chromium else None


@pytest.fixture(scope="module")
def seen(comfy, tmp_path_factory) -> tuple[dict, Path]:
    found = tools()
    if found is None:
        pytest.skip("no browser to test with (node, playwright-core in PLAYWRIGHT_DIR, Chromium)")
    node, playwright, chromium = found
    shots = Path(os.environ.get("SHOTS") or tmp_path_factory.mktemp("shots"))
    script = Path(__file__).with_name("browser.mjs")
    workflow = ROOT / "workflows" / "text_to_image.json"
    address = f"http://127.0.0.1:{comfy.port}"
    command = [node, str(script), address, str(workflow), NODE, str(shots), playwright, chromium]
    done = subprocess.run(command, capture_output=True, text=True, timeout=450, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1]), shots


def test_the_page_runs_the_workflow_and_shows_its_picture(seen):
    report, shots = seen
    assert report["missing"] == [] and report["faults"] == []
    assert report["end"] == "success"
    assert report["pictures"] and min(report["pictures"][0]) >= 64
    assert Image.open(shots / "graph.png").size == (1600, 1000)


def test_a_workflow_saved_before_an_input_came_gets_its_default(seen):
    assert seen[0]["widgets"] == {"model": "nano-mgpt2", "precision": "auto", "download": "off"}


def test_the_help_page_opens_beside_the_node(seen):
    assert "Where checkpoints go" in seen[0]["help"]


def test_the_templates_are_offered_under_our_name(seen):
    assert FOLDER in seen[0]["templates"] or "text_to_image" in seen[0]["templates"]
