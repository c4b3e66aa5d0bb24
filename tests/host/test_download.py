"""The loader's download inside a real ComfyUI, from a hub on the loopback: progress, Cancel, going on."""

from __future__ import annotations

import time

import pytest

from tests.core import checkpoints
from tests.core.hub_server import HubServer
from tests.host.server import Comfy
from tests.host.test_runs import LOAD, graph

VQ = "vq_ds8_c2i.pt"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A checkpoint of 40 MB under the name of PURE."""
    sizes = {"hidden_size": 1024, "intermediate_size": 2048}
    folder = checkpoints.build(tmp_path_factory.mktemp("hub") / "PURE", "pure", shards=1, **sizes)
    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    vq = {VQ: files.pop(VQ)}
    server = HubServer({"nonwhy/PURE": files, "FoundationVision/LlamaGen": vq})
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def online(comfy, hub):
    """A ComfyUI for which this hub is the network."""
    other = Comfy(comfy.host)
    other.start(HF_ENDPOINT=hub.address, HF_HUB_OFFLINE="0", NO_PROXY="127.0.0.1")
    yield other
    other.stop()


def test_it_is_fetched_on_request_cancelled_and_gone_on_with(online, hub, figure):
    prompt, folder = graph(model="nano-mgpt2"), online.base / "extra" / "PURE"
    prompt[LOAD]["inputs"]["download"] = "PURE"
    prompt["9"] = {"class_type": "PreviewAny", "inputs": {"source": [LOAD, 0]}}
    prompt = {key: prompt[key] for key in (LOAD, "9")}

    def some_has_come() -> None:
        end = time.monotonic() + 300
        while not any(p.stat().st_size > 9 << 20 for p in folder.glob("*.part")):
            assert time.monotonic() < end, online.log_text()[-2000:]
            time.sleep(0.1)

    hub.pause = 0.05
    run = online.run(prompt, cancel_in=LOAD, wait=some_has_come, timeout=600)
    figure("downloading", (run.cancel_took, run.slowdown))
    assert run.answered_within(1), (run.status, run.error, run.cancel_took, run.slowdown)
    assert "nonwhy/PURE/model.safetensors" in run.texts[LOAD], "what is being fetched shows on the node"
    came = (folder / "model.safetensors.part").stat().st_size
    assert came and not (folder / "model.safetensors").exists()
    hub.pause = 0.0
    run = online.run(prompt, timeout=600)
    assert run.status == "success", run.error
    assert ("model.safetensors", came) in hub.asked
    assert (folder / "model.safetensors").exists() and not list(folder.glob("*.part"))
