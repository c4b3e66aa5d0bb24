"""Downloads against a hub of our own: licence first, sizes checked, resumed, nothing fetched twice."""

from __future__ import annotations

import builtins
import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from lumina_core import InputError, LuminaError, families, hub


class FakeHub:
    """Repositories as {repo: {file: bytes}}; counts what is fetched."""

    def __init__(self, repos):
        self.repos, self.fetched, self.fail = repos, [], None

    def HfApi(self):
        return self

    def model_info(self, repo, files_metadata):
        assert files_metadata
        if repo not in self.repos:
            raise ConnectionError("no route to host\nmore")
        files = self.repos[repo]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=n, size=len(b)) for n, b in files.items()])

    def hf_hub_download(self, *, repo_id, filename, local_dir):
        if filename == self.fail:
            raise ConnectionError("broken off")
        self.fetched.append(filename)
        path = Path(local_dir) / filename
        path.write_bytes(self.repos[repo_id][filename])
        return str(path)


MODEL = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "model.safetensors.index.json": b"{}",
    "model-00001-of-00001.safetensors": b"x" * 100,
    "README.md": b"no",
    "optimizer.bin": b"no",
}


@pytest.fixture
def fake():
    return FakeHub(
        {
            "Alpha-VLLM/Lumina-mGPT-2.0": MODEL,
            "Alpha-VLLM/Lumina-mGPT-7B-768": MODEL,
            "nonwhy/PURE": MODEL,
            "ai-forever/MoVQGAN": {"movqgan_270M.ckpt": b"m" * 50, "movqgan_67M.ckpt": b"no"},
            "FoundationVision/LlamaGen": {"vq_ds8_c2i.pt": b"v" * 50, "c2i_B_256.pt": b"no"},
        }
    )


def test_weights_tokenizer_and_image_tokenizer_arrive_and_nothing_else(fake, tmp_path):
    lines = []
    folder = hub.download("Lumina-mGPT-2.0", tmp_path, report=lines.append, hub=fake)
    wanted = {n for n in MODEL if n not in ("README.md", "optimizer.bin")} | {"movqgan_270M.ckpt"}
    assert folder == tmp_path / "Lumina-mGPT-2.0" and {p.name for p in folder.iterdir()} == wanted
    assert not any("icen" in line for line in lines)


def test_a_second_run_fetches_what_lacks_or_has_the_wrong_size_only(fake, tmp_path):
    fake.fail = "movqgan_270M.ckpt"
    with pytest.raises(LuminaError, match="Run the same command"):
        hub.download("Lumina-mGPT-2.0", tmp_path, report=list, hub=fake)
    fake.fail, fake.fetched = None, []
    (tmp_path / "Lumina-mGPT-2.0" / "config.json").write_bytes(b"{")
    hub.download("Lumina-mGPT-2.0", tmp_path, report=lambda line: None, hub=fake)
    assert sorted(fake.fetched) == ["config.json", "movqgan_270M.ckpt"]


def test_a_file_of_the_wrong_size_is_an_error_that_names_it(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(
        fake,
        "hf_hub_download",
        lambda *, repo_id, filename, local_dir: (Path(local_dir) / filename).write_bytes(b"1"),
    )
    with pytest.raises(LuminaError, match=r"config\.json has 1 bytes, 2 are expected"):
        hub.download("Lumina-mGPT-2.0", tmp_path, report=lambda line: None, hub=fake)


@pytest.mark.parametrize("name", ["Lumina-mGPT-7B-768", "pure"])
def test_the_licence_note_comes_before_anything_is_asked_of_the_network(fake, tmp_path, name):
    lines = []
    fake.model_info = lambda *a, **k: (
        pytest.fail("asked before the note") if not lines else FakeHub.model_info(fake, *a, **k)
    )
    hub.download(name, tmp_path, report=lines.append, hub=fake)
    assert "Chameleon Research License" in lines[0]


def test_what_nobody_offers_for_download_is_said_with_its_place(fake, tmp_path):
    lines = []
    folder = hub.download("Alpha-VLLM/Lumina-mGPT-7B-768", tmp_path, report=lines.append, hub=fake)
    assert (
        "vqgan.ckpt" in lines[-1] and str(folder) in lines[-1] and "facebookresearch/chameleon" in lines[-1]
    )


def test_names_that_are_unknown_or_not_enough_list_the_choices(fake, tmp_path):
    for name, choice in (("mgpt2", "Lumina-mGPT-2.0-Omni"), ("llama", "PURE")):
        with pytest.raises(InputError, match=choice):
            hub.download(name, tmp_path, report=list, hub=fake)


def test_an_unreachable_hub_is_one_line(tmp_path):
    with pytest.raises(LuminaError) as caught:
        hub.download("Lumina-mGPT-2.0", tmp_path, report=lambda line: None, hub=FakeHub({}))
    assert "no route to host" in str(caught.value) and "\n" not in str(caught.value)


def test_a_disk_without_room_is_said_before_the_first_file(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(InputError, match="GB free"):
        hub.download("Lumina-mGPT-2.0", tmp_path, report=lambda line: None, hub=fake)
    assert not fake.fetched


@pytest.mark.parametrize("file_in_the_way", ["models", "models/Lumina-mGPT-2.0"])
def test_a_folder_that_cannot_be_made_is_one_line(fake, tmp_path, file_in_the_way):
    (tmp_path / file_in_the_way).parent.mkdir(exist_ok=True)
    (tmp_path / file_in_the_way).write_text("no folder")
    with pytest.raises(InputError, match="cannot be written .* another folder") as caught:
        hub.download("Lumina-mGPT-2.0", tmp_path / "models", report=lambda line: None, hub=fake)
    assert "\n" not in str(caught.value) and not fake.fetched


def test_a_missing_library_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "huggingface_hub":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(LuminaError, match="pip install huggingface_hub"):
        hub.download("pure", tmp_path, report=lambda line: None)


def test_every_release_is_of_a_family_and_names_its_image_tokenizer():
    hints = {f.id: f.vq_hint for f in families.FAMILIES}
    for release in hub.RELEASES.values():
        assert (release.vq.name if release.vq else "vqgan.ckpt") in hints[release.family]
        assert release.by_hand or release.vq


@pytest.mark.parametrize("as_mapping", [True, False])
def test_a_damaged_file_is_told_and_not_kept(fake, tmp_path, monkeypatch, as_mapping):
    whole = hashlib.sha256(b"m" * 50).hexdigest()

    def model_info(repo, files_metadata):
        lfs = {"sha256": whole} if as_mapping else SimpleNamespace(sha256=whole)
        listed = FakeHub.model_info(fake, repo, files_metadata)
        for s in listed.siblings:
            s.lfs = lfs if s.rfilename == "movqgan_270M.ckpt" else None
        return listed

    monkeypatch.setattr(fake, "model_info", model_info)
    hub.download("Lumina-mGPT-2.0", tmp_path / "whole", report=lambda line: None, hub=fake)
    fake.repos["ai-forever/MoVQGAN"]["movqgan_270M.ckpt"] = b"n" * 50
    with pytest.raises(LuminaError, match="arrived damaged"):
        hub.download("Lumina-mGPT-2.0", tmp_path / "damaged", report=lambda line: None, hub=fake)
    assert not (tmp_path / "damaged" / "Lumina-mGPT-2.0" / "movqgan_270M.ckpt").exists()
