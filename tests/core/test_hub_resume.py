"""Downloads by the real `huggingface_hub` from a hub on the loopback: gone on with, checked, stopped."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from lumina_core import InputError, LuminaError, fetching, hub
from lumina_core.fetching import Download
from tests.core.hub_server import FILES, WEIGHTS, HubServer

pytest.importorskip("huggingface_hub")
HALF = len(WEIGHTS) // 2
ALL = {name: data for files in FILES.values() for name, data in files.items()}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        "huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 16
    )  # of 10 MiB; less is lost in a cut
    server = HubServer()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetch(server, tmp_path):
    return lambda: hub.download("PURE", tmp_path, report=lambda line: None, hub=server.library())


def there(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_all_files_arrive(fetch, server):
    folder = fetch()
    assert there(folder) == ALL
    server.asked.clear()
    fetch()
    assert not server.asked, "a second run fetches nothing"


def test_a_cut_connection_is_gone_on_with(fetch, server):
    server.cut = [HALF]
    assert there(fetch()) == ALL
    assert [first for name, first in server.asked if name == "model.safetensors"] == [0, HALF]


def test_what_an_earlier_run_fetched_is_kept_and_nothing_half_is_taken_for_whole(fetch, server, tmp_path):
    server.cut = [HALF, 0]
    with pytest.raises(LuminaError, match="broke off") as caught:
        fetch()
    assert "\n" not in str(caught.value)
    found = there(tmp_path / "PURE")
    assert "model.safetensors" not in found and found["model.safetensors.part"] == WEIGHTS[:HALF]
    server.asked.clear()
    assert there(fetch()) == ALL
    assert ("model.safetensors", HALF) in server.asked


@pytest.mark.parametrize(
    ("place", "told"),
    [("hub.example", True), ("cdn.example", False), ("cdn.hub.example", False), ("hub.example:8443", False)],
)
def test_the_user_s_token_goes_to_the_hub_and_nowhere_else(tmp_path, place, told):
    token, sent = {"authorization": "Bearer secret"}, []
    library = SimpleNamespace(
        hf_hub_url=lambda repo, name: f"https://hub.example/{repo}/{name}",
        get_hf_file_metadata=lambda url: SimpleNamespace(location=f"https://{place}/bytes"),
        utils=SimpleNamespace(build_hf_headers=lambda: token),
    )
    file = hub.RemoteFile("owner/name", "config.json", 1)
    hub._go_on(library, lambda url, out, headers, **rest: sent.append(headers), file, tmp_path / "part")
    assert sent == [token if told else {}]


@pytest.mark.parametrize(("spare", "goes_on"), [(0, True), (-1, False)])
def test_a_disk_with_room_for_the_rest_alone_is_enough(fetch, tmp_path, monkeypatch, spare, goes_on):
    folder = tmp_path / "PURE"
    folder.mkdir()
    (folder / "model.safetensors.part").write_bytes(WEIGHTS[:HALF])
    (folder / "config.json.part").write_bytes(b"{")  # begins anew
    rest = sum(map(len, ALL.values())) - HALF
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: SimpleNamespace(free=rest + spare))
    if goes_on:
        assert there(fetch()).items() >= ALL.items()
    else:
        with pytest.raises(InputError, match="GB free"):
            fetch()


def test_a_file_that_cannot_be_written_is_said_without_advice_to_go_on(fetch, tmp_path):
    (tmp_path / "PURE" / "model.safetensors.part").mkdir(parents=True)
    with pytest.raises(InputError, match=r"model\.safetensors\.part' cannot be written") as caught:
        fetch()
    assert "broke off" not in str(caught.value)


def test_a_file_that_cannot_get_its_name_is_said_and_kept(fetch, server, tmp_path):
    in_the_way = tmp_path / "PURE" / "model.safetensors"
    in_the_way.mkdir(parents=True)
    with pytest.raises(InputError, match=r"cannot be written .* stays as model\.safetensors\.part"):
        fetch()
    in_the_way.rmdir()
    server.asked.clear()
    assert there(fetch()) == ALL
    assert "model.safetensors" not in [name for name, _ in server.asked]


@pytest.mark.parametrize("size", [HALF, len(WEIGHTS), len(WEIGHTS) + 1])
def test_a_spoilt_rest_of_an_earlier_run_is_told_or_fetched_anew(fetch, tmp_path, size):
    part = tmp_path / "PURE" / "model.safetensors.part"
    part.parent.mkdir()
    part.write_bytes(bytes(size))
    if size <= len(WEIGHTS):
        with pytest.raises(LuminaError, match="arrived damaged"):
            fetch()
        assert "model.safetensors" not in there(part.parent) and not part.exists()
    assert there(fetch()) == ALL


def test_other_bytes_than_the_checksum_s_are_refused(fetch, server, tmp_path):
    server.wrong = True
    with pytest.raises(LuminaError, match="arrived damaged: its checksum is not nonwhy/PURE's"):
        fetch()
    assert {"model.safetensors", "model.safetensors.part"}.isdisjoint(there(tmp_path / "PURE"))


def test_other_sizes_than_the_list_s_are_refused(fetch, tmp_path, monkeypatch):
    listed = hub._listed
    monkeypatch.setattr(hub, "_listed", lambda *a: [replace(f, nbytes=f.nbytes + 7) for f in listed(*a)])
    with pytest.raises(LuminaError, match=r"config\.json broke off: Consistency check failed"):
        fetch()
    assert "config.json" not in there(tmp_path / "PURE")


def test_it_is_watched_stopped_and_gone_on_with_in_a_process_of_its_own(server, tmp_path, monkeypatch):
    weights, small = WEIGHTS * 24, WEIGHTS[:5000]  # the library writes in steps of 10 MiB
    server.files = {
        "nonwhy/PURE": {"model.safetensors": weights},
        "FoundationVision/LlamaGen": {hub.VQ8.name: small},
    }
    for name, value in {"HF_ENDPOINT": server.address, "HF_HUB_OFFLINE": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(hub.RELEASES, "PURE", replace(hub.find("PURE"), nbytes=len(weights)))
    monkeypatch.setattr(fetching, "VQ_NBYTES", len(small))
    server.pause = 0.02
    with Download("PURE", tmp_path) as job:
        shares = []
        for share, _ in job.watch():
            shares.append(share)
            if share > 0.3:
                break
    found = there(tmp_path / "PURE")
    assert shares == sorted(shares) and len(set(shares)) > 1
    came = len(found["model.safetensors.part"])
    assert 0 < came < len(weights) and "model.safetensors" not in found
    server.pause = 0.0
    with Download("PURE", tmp_path) as job:
        assert list(job.watch())[-1][0] == 1.0
    assert there(tmp_path / "PURE") == {"model.safetensors": weights, hub.VQ8.name: small}
    assert ("model.safetensors", came) in server.asked
