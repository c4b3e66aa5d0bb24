"""The loader's download inside a real ComfyUI, from a hub on the loopback: progress, Cancel, going on."""

from __future__ import annotations

import pytest

from tests.core import checkpoints
from tests.core.hub_server import HubServer
from tests.host.server import Comfy
from tests.host.test_runs import LOAD, graph

VQ = "vq_ds8_c2i.pt"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A whole small checkpoint under the name of PURE; its weights are padded, so that fetching them takes a while."""
    folder = checkpoints.build(tmp_path_factory.mktemp("hub") / "PURE", "pure", shards=1)
    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    vq = {VQ: files.pop(VQ)}
    server = HubServer(
        {"nonwhy/PURE": files | {"model-pad.safetensors": bytes(48 << 20)}, "FoundationVision/LlamaGen": vq}
    )
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
    prompt, folder = graph(model="nano-mgpt2"), online.base / "models" / "lumina_mgpt" / "PURE"
    prompt[LOAD]["inputs"]["download"] = "PURE"
    prompt["9"] = {"class_type": "PreviewAny", "inputs": {"source": [LOAD, 0]}}
    prompt = {key: prompt[key] for key in (LOAD, "9")}
    hub.pause = 0.02
    run = online.run(prompt, cancel_in=LOAD, after=8)
    figure("downloading", run.cancel_took)
    assert run.answered_within(1), (run.status, run.error, run.cancel_took, run.slowdown)
    assert LOAD in run.texts, "what is being fetched shows on the node"
    assert not any(p.suffix == ".part" and p.with_suffix("").exists() for p in folder.rglob("*"))
    hub.pause = 0.0
    run = online.run(prompt)
    assert "model-pad.safetensors" in {p.name for p in folder.iterdir()}
    assert not list(folder.rglob("*.part"))
    assert "Lumina-mGPT: complete" in online.log_text()
    assert run.status == "success" or "model-pad" in run.error
