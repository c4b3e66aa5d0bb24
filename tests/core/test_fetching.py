"""A download in a process of its own: watched, stopped at once, its faults told in one line."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from lumina_core import InputError, LuminaError
from lumina_core.fetching import Download

LIBRARY = """
import time, pathlib
from types import SimpleNamespace as N
FILES = {"config.json": b"{}", "model.safetensors": b"x" * 1000, "movqgan_270M.ckpt": b"y" * 10}
class HfApi:
    def model_info(self, repo, files_metadata):
        if MODE == "down":
            raise ConnectionError("no route to host")
        return N(siblings=[N(rfilename=n, size=len(b)) for n, b in FILES.items()])
def hf_hub_download(*, repo_id, filename, local_dir):
    part = pathlib.Path(local_dir) / ".cache" / (filename + ".incomplete")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(FILES[filename][:-1])
    time.sleep(60 if MODE == "slow" else 0)
    part.unlink()
    (pathlib.Path(local_dir) / filename).write_bytes(FILES[filename])
"""


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A stand-in for huggingface_hub in the process that downloads."""

    def install(mode: str):
        (tmp_path / "lib").mkdir()
        (tmp_path / "lib" / "huggingface_hub.py").write_text(f"MODE = {mode!r}\n{LIBRARY}")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))

    return install


def test_it_is_watched_to_its_end(library, tmp_path):
    library("fine")
    with Download("Lumina-mGPT-2.0", tmp_path / "models") as job:
        seen = list(job.watch())
    assert seen[-1][0] == 1.0 and "complete" in seen[-1][1]
    assert [a for a, _ in seen] == sorted(a for a, _ in seen)
    there = {p.name for p in (tmp_path / "models" / "Lumina-mGPT-2.0").iterdir()}
    assert {"config.json", "model.safetensors", "movqgan_270M.ckpt"} <= there


def test_leaving_stops_it_at_once_and_keeps_what_came(library, tmp_path):
    library("slow")
    part = tmp_path / "models" / "Lumina-mGPT-2.0" / ".cache" / "config.json.incomplete"
    with Download("Lumina-mGPT-2.0", tmp_path / "models") as job:
        for share, _ in job.watch():
            assert share < 1
            if part.exists():
                break
        start = time.monotonic()
    assert time.monotonic() - start < 1
    assert job.process.returncode and part.exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_it_ends_with_the_process_that_asked_for_it(library, tmp_path):
    """A killed ComfyUI leaves no download behind that would write into the file of the next."""
    library("slow")
    parent = (
        "import sys, time\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from lumina_core.fetching import Download\n"
        "with Download('Lumina-mGPT-2.0', sys.argv[2]) as job:\n"
        "    print(job.process.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    root = Path(__file__).parent.parent.parent
    asked = [sys.executable, "-c", parent, str(root), str(tmp_path / "models")]
    with subprocess.Popen(asked, stdout=subprocess.PIPE) as process:
        child = int(process.stdout.readline())
        process.kill()
    deadline = time.monotonic() + 30
    while running(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not running(child)


def running(pid: int) -> bool:
    """Whether a process of this number does anything any more."""
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] not in "ZX"


def test_its_faults_are_one_line(library, tmp_path):
    library("down")
    with Download("Lumina-mGPT-2.0", tmp_path / "models") as job, pytest.raises(LuminaError) as e:
        list(job.watch())
    assert "cannot be listed: no route to host" in str(e.value) and "\n" not in str(e.value)
    assert not str(e.value).startswith("error")


def test_an_unknown_release_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(InputError, match="choose one of"):
        Download("nothing", tmp_path)
