"""A model that does not fit, with a LoRA and without, inside a real ComfyUI's memory manager; see `partial.py`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from lumina_core import load
from tests.core.test_lora import EMBED, UP, Q, kohya
from tests.host.server import ROOT


@pytest.fixture(scope="module")
def measured(comfy, tiny_folder, tmp_path_factory) -> dict:
    loras = tmp_path_factory.mktemp("loras")
    transformer = load(tiny_folder).transformer
    for name, alpha in (("strong", 2.0), ("weak", 0.01)):
        kohya(loras / f"{name}.safetensors", transformer, layers=(Q, UP, EMBED, "lm_head"), alpha=alpha)
    script = Path(__file__).with_name("partial.py").read_text("utf-8")
    command = [comfy.python, "-", str(ROOT), str(tiny_folder), str(loras)]
    done = subprocess.run(command, input=script, cwd=comfy.host, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("precision", ["None", "int8", "fp8"])
@pytest.mark.parametrize("share", [0.2, 0.7])
def test_a_partial_load_leaves_nothing_on_the_wrong_device(measured, precision, share):
    found = measured[f"{precision} {share}"]
    assert found["devices"] == ["meta"]
    for part in ("transformer", "vq"):
        placed, kept = found[part]["placed"], found[part]["kept"]
        assert kept > 0 and placed <= share * (placed + kept)


def test_a_network_of_plain_layers_would_fail_there(measured):
    assert "meta" in measured["plain layers"]


@pytest.mark.parametrize("precision", ["None", "int8", "fp8"])
@pytest.mark.parametrize("lora", ["strong", "weak"])
def test_a_lora_works_in_whole_and_partial_loads_and_goes_away(measured, precision, lora):
    found = measured[f"{lora} {precision}"]
    assert found["partly late"] == 4 and found["whole late"] == 0
    assert found["partly"] < 1e-4 * max(1, found["moved"]), (
        "the sum is exact where weights are patched at use"
    )
    assert found["whole"] < (1e-4 if precision == "None" else 0.2) * max(1, found["moved"])
    assert found["back"] < 1e-5
    if lora == "weak":
        assert found["whole bytes"] == found["partly bytes"], "int8 and fp8 stay small"
