"""Files from anywhere: whatever a file holds, it opens or is refused in one line, quickly, in little memory, in peace.

Thousands of damaged files follow from the sound ones in `mutations`; a process of its own opens them (see `worker`), so
that one that crashes, hangs or takes all memory is a failed case and not the end of the tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from lumina_core import InputError, LuminaError, families, load
from lumina_core.files import write_whole
from tests import tiny
from tests.core import checkpoints as ck
from tests.robustness.of_pickles import Canary
from tests.robustness.targets import TARGETS

ROOT = Path(__file__).parent.parent.parent
SECONDS = 2.0  # of computing a case may take; on a busy machine it may wait for more
PATIENCE = 60.0  # seconds without a word, after which a case counts as hanging
MEMORY = 500 << 20  # bytes on top of what the process holds
LONGEST = 2000  # characters of a message
ALSO = {"prompts": ("line 1",)}  # what names a file besides its path and the checkpoint's name


class Watcher:
    """The process that opens files; started again when a case ends it."""

    def __init__(self, folder: Path):
        self.folder, self.process = folder, None

    def start(self) -> None:
        self.close()
        command = [sys.executable, "-m", "tests.robustness.worker", str(self.folder)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        variables = os.environ | {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=variables, text=True, encoding="utf-8", **pipes
        )
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, args=(self.process.stdout, self.lines), daemon=True).start()

    @staticmethod
    def _listen(pipe, lines: queue.Queue) -> None:
        for line in pipe:
            lines.put(line)
        lines.put("")

    def results(self, target: str) -> list[dict]:
        """What came of every case of a target."""
        out, first = [], 0
        while True:
            if self.process is None or self.process.poll() is not None:
                self.start()
            self.process.stdin.write(f"{target} {first}\n")
            self.process.stdin.flush()
            begun = None
            while True:
                try:
                    line = self.lines.get(timeout=PATIENCE * (1 if begun else 5))
                except queue.Empty:
                    line = ""
                if not line:  # it hangs, or is gone
                    assert begun, f"{target}: the process ends before its first case"
                    waits = self.process.poll() is None
                    self.close()
                    fault = {"outcome": "hangs" if waits else "ends the process", "message": "", "trace": ""}
                    zero = {"seconds": 0.0, "waited": 0.0, "extra": 0, "notes": [], "must": "", "files": []}
                    out.append({"name": begun["begin"], **fault, **zero})
                    first = begun["number"] + 1
                    break
                if not line.startswith("{"):
                    continue
                said = json.loads(line)
                if "end" in said:
                    return out
                if "begin" in said:
                    begun = said
                else:
                    out.append(said)

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def watcher(tmp_path_factory):
    watcher = Watcher(tmp_path_factory.mktemp("hostile"))
    yield watcher
    watcher.close()


def fault(case: dict, folder: Path) -> str:
    """What is wrong with how a case ended; empty where all is well."""
    message = case["message"]
    if case["outcome"] not in ("opened", "refused"):
        return f"{case['outcome']}: {message[:200]}\n{case['trace']}"
    if case["must"] and case["outcome"] != case["must"]:
        return f"was {case['outcome']}"
    if case["notes"]:
        return "; ".join(case["notes"][:3])
    if case["seconds"] > SECONDS:
        return f"took {case['seconds']:.1f} s"
    if case["extra"] > MEMORY:
        return f"took {case['extra'] >> 20} MB"
    if case["outcome"] == "refused":
        if len(message) > LONGEST or not message.isprintable():
            return f"the message is no line to read: {message[:100]!r}"
        names = [Path(f).name for f in case["files"]]
        named = (*names, str(folder), f"'{folder.name}'", *ALSO.get(folder.name, ()))
        if not any(name in message for name in named):
            return f"the message names no file: {message[:300]}"
    return ""


@pytest.mark.parametrize("target", TARGETS)
def test_a_damaged_file_opens_or_is_refused_in_peace(watcher, target, record_property):
    results = watcher.results(target)
    faults = [f"{case['name']}: {text}" for case in results if (text := fault(case, watcher.folder / target))]
    assert not faults, f"{len(faults)} of {len(results)}:\n" + "\n".join(faults[:20])
    outcomes = {case["outcome"] for case in results}
    assert "refused" in outcomes or target == "conformance", "no damage was noticed"
    record_property("cases", len(results))
    record_property("slowest", max(case["seconds"] for case in results))
    record_property("largest", max(case["extra"] for case in results))


def test_the_watcher_sees_what_it_is_there_for(tmp_path):
    """A negative control: opening that writes, starts a program, takes memory or time is noticed."""
    script = """
import json, subprocess, sys
from pathlib import Path
from tests.robustness import opening, targets, worker
from tests.robustness.mutations import Case

def harm(home):
    what = (home / "what").read_text()
    if what == "write":
        (home / "new").write_text("x")
    if what == "run":
        subprocess.run([sys.executable, "-c", ""])
    if what == "memory":
        bytearray(b"x" * (600 << 20))
    if what == "reserve":
        bytearray(20 << 30)
    if what == "read":
        (home.parent / "secret").read_text()
    if what == "time":
        sum(range(10**9))

def cases(home):
    for what in ("write", "run", "memory", "reserve", "read"):
        yield Case(what, {"what": what.encode()})

def build(home):
    home.mkdir()
    (home.parent / "secret").write_text("x")
    (home / "what").write_text("nothing")

targets.TARGETS["harm"] = opening.Target("harm", build, harm, cases)
worker.main(Path(sys.argv[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        **{"cwd": ROOT, "input": "harm 0\n", "capture_output": True, "text": True, "check": True},
    )
    said = [json.loads(line) for line in done.stdout.splitlines()]
    seen = {case["name"]: case for case in said if "outcome" in case}
    assert any("new" in note for note in seen["write"]["notes"])
    assert any("subprocess.Popen" in note for note in seen["run"]["notes"])
    assert any("secret" in note for note in seen["read"]["notes"])
    if sys.platform == "linux":
        assert seen["reserve"]["outcome"] == "MemoryError"
        assert seen["memory"]["outcome"] == "MemoryError" or seen["memory"]["extra"] > MEMORY


# links


def link(at: Path, to: Path) -> None:
    try:
        at.symlink_to(to, target_is_directory=to.is_dir())
    except OSError:
        pytest.skip("this system makes no links for this user")


@pytest.mark.parametrize("what", ["folder", "files"])
def test_a_linked_checkpoint_loads_as_users_and_caches_link_them(tmp_path, what):
    """The user links a folder from another disk; huggingface_hub's cache links every file to a blob."""
    real = tiny.build(tmp_path / "blobs")
    at = tmp_path / "models" / "linked"
    at.parent.mkdir()
    if what == "folder":
        link(at, real)
    else:
        at.mkdir()
        for n, file in enumerate(sorted(real.iterdir())):
            blob = file.rename(real / f"{n:040x}")
            link(at / file.name, blob)
    assert load(at).family.id == "mgpt2"
    assert "linked" in families.listing([at.parent])


def test_a_link_that_leads_nowhere_in_a_circle_or_to_a_device_is_refused(tmp_path):
    for n, name in enumerate(("model.safetensors", "config.json", "tokenizer.json")):
        for k, to in enumerate(("nowhere", name, "/dev/zero", "..")):
            folder = tiny.build(tmp_path / f"{n}-{k}")
            (folder / name).unlink()
            link(folder / name, Path(to) if to.startswith("/") else folder / to)
            with pytest.raises(LuminaError, match=str(folder.name)):
                load(folder)


def test_an_index_that_leads_out_through_a_linked_folder_is_refused(tmp_path):
    other = tiny.build(tmp_path / "other")
    folder = ck.build(tmp_path / "c", shards=2)
    link(folder / "sub", other)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "sub/model.safetensors"}}), "utf-8")
    with pytest.raises(LuminaError, match="outside its folder"):
        load(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_does_not_stop_a_load(tmp_path):
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        folder = tiny.build(tmp_path / name)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(LuminaError):
            load(folder)


# pickles


def test_torch_refuses_what_a_pickle_names_before_it_is_called(tmp_path):
    """A canary that would sing under a plain unpickler: the file itself is harmful, and no canary comes of loading."""
    import pickle

    canary = tmp_path / "canary"
    trap = pickle.dumps({"state_dict": {"x": Canary((Path.touch, (canary,)))}})
    with contextlib.suppress(Exception):
        pickle.loads(trap)
    assert canary.exists(), "the trap itself must work"
    canary.unlink()
    folder = ck.build(tmp_path / "c", "mgpt1", vq=False)
    (folder / "vqgan.ckpt").write_bytes(trap)
    torch.save({"x": Canary((Path.touch, (canary,)))}, folder / "other.pt")
    for path in (None, folder / "vqgan.ckpt", folder / "other.pt"):
        with pytest.raises(LuminaError, match=r"run|plain"):
            load(folder, vq_path=path)
    assert not canary.exists()


# names


def test_names_that_no_system_takes_are_told_and_listings_pass_them_over(tmp_path):
    known = tiny.build(tmp_path / "models" / "known")
    for name in ("~no-such-user/models", "x" * 300, "zero\0byte"):
        with pytest.raises(InputError, match="cannot be opened|user that is not known"):
            load(name)
        assert families.listing([name, known.parent]) == {"known": known}
    with pytest.raises(
        InputError, match="cannot be written"
    ):  # the name fits, what is written beside it does not
        write_whole(tmp_path / ("x" * 253), lambda part: part.write_text("text"))
