"""A model that does not fit, with a LoRA and without, inside a real ComfyUI's memory manager; see `partial.py`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lumina_core import bundled, load
from tests.core import test_load_memory as large
from tests.core.test_lora import EMBED, UP, Q, kohya
from tests.host.server import ROOT, Comfy
from tests.host.test_runs import LOAD, SAMPLE, graph, one_box

GIVES_BACK = {  # glibc keeps what is small for itself when it is freed, if it is not told not to
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
}


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


def test_without_a_graphics_card_layers_are_fused_as_they_are_without_a_host(measured):
    """But where ComfyUI moves or patches a weight in passing."""
    found = measured["fused"]
    assert found["groups"] == 2 * found["layers"] == 4
    assert found["not now"] == 2
    assert found["apart"] < 1e-6


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


def run(comfy, prompt: dict):
    done = comfy.run(prompt)
    assert done.status == "success", done.error
    return done


def loads(comfy, name: str) -> int:
    return comfy.log_text().count(f"Lumina-mGPT: loaded {name} ")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_free_gives_the_memory_back(comfy, figure):
    """Within 5 % of what was loaded; in a server of its own, whose memory no earlier test has left in pieces."""
    fresh = Comfy(comfy.host)
    try:
        nbytes = large.build(fresh.base / "models" / "lumina_mgpt" / "roomy", large.SMALL, 1)
        fresh.start(**GIVES_BACK)
        run(fresh, graph(text="so that everything is imported, kernels too", precision="bf16"))
        fresh.free()
        time.sleep(5)
        before = fresh.memory()
        run(fresh, graph(model="roomy", width=32, height=32, precision="bf16", text="a circle"))
        held = fresh.memory()
        fresh.free()
        end = time.monotonic() + 60  # the host frees in its own time
        while fresh.memory() - before > 0.05 * nbytes and time.monotonic() < end:
            time.sleep(0.5)
        after = fresh.memory()
    finally:
        fresh.stop()
    figure("memory", (before, held, after, nbytes))
    assert held - before > 0.8 * nbytes
    assert after - before <= 0.05 * nbytes


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_free_gives_a_bundled_checkpoint_back(comfy, figure):
    """Within 5 % of its file's size, in the middle of three times; a server's records of a run take about as much."""
    fresh, nbytes = Comfy(comfy.host), (bundled()["nano-mgpt2"] / "model.safetensors").stat().st_size
    kept = []
    try:
        fresh.start(**GIVES_BACK)
        for turn in range(5):  # the first two find what is loaded once, such as modules, and stays
            before = fresh.memory()
            run(fresh, graph(model="nano-mgpt2", width=64, height=64, seed=turn))
            held = fresh.memory()
            fresh.free()
            end, wanted = time.monotonic() + 10, before + 0.05 * nbytes if turn > 1 else held - nbytes
            while fresh.memory() > wanted and time.monotonic() < end:
                time.sleep(0.2)
            kept.append((before, held, fresh.memory(), nbytes))
    finally:
        fresh.stop()
    middle = sorted(kept[2:], key=lambda k: k[2] - k[0])[1]
    figure("bundled memory", middle)
    assert middle[1] - middle[0] > nbytes
    assert middle[2] - middle[0] <= 0.05 * nbytes


def test_two_loaders_of_the_same_files_share_the_weights(comfy):
    comfy.free()
    prompt, before = graph(model="owner/packed.safetensors"), loads(comfy, "owner/packed.safetensors")
    prompt["6"] = json.loads(json.dumps(prompt[LOAD]))
    prompt["6"]["inputs"]["download"] = "off"  # so that the host does not take them for one node
    prompt[SAMPLE]["inputs"]["model"] = ["6", 0]
    run(comfy, prompt)
    assert loads(comfy, "owner/packed.safetensors") == before + 1


@pytest.mark.parametrize("make", [graph, one_box])
def test_prompts_in_a_row_load_once(comfy, make, figure):
    """Each workflow by itself: older hosts forget a workflow when another one runs."""
    run(comfy, make(seed=30))
    before = loads(comfy, "tiny")
    for seed in (31, 32):
        run(comfy, make(seed=seed, text="a blue square"))
    figure("reloads", loads(comfy, "tiny") - before)
    assert loads(comfy, "tiny") == before


def test_without_a_cache_both_ways_of_drawing_work(comfy):
    other = Comfy(comfy.host, folder="A folder.of-any name")
    try:
        other.start("--cache-none")
        one, two = run(other, graph()), run(other, one_box())
        assert other.pictures(one)[0] and len(other.pictures(two)) == 1
        third = run(other, one_box(width=0, height=0, model="nano-mgpt2"))
        assert len(other.pictures(third)) == 1
    finally:
        other.stop()
