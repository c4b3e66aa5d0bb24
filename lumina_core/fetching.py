"""A download that can be watched and stopped at any moment: `hub.download` in a process of its own.

What has come stays, so that the next download goes on there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from . import hub
from .errors import LuminaError
from .files import user_path

VQ_NBYTES = 1_100_000_000  # of the largest image tokenizer, about
PAUSE = 0.2  # seconds between two looks
# The package is found by its place, because some interpreters look for modules neither in the folder they run in nor in
# one that the environment names. Its input ends when the parent does, however that ends: two must not write one file.
CHILD = """
import importlib.util, os, sys, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
_, package, name, folder = sys.argv
spec = importlib.util.spec_from_file_location("lumina_core", package + "/__init__.py")
sys.modules["lumina_core"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from lumina_core.cli import main
sys.exit(main(["download", name, folder]))
"""


class Download:
    """Fetches a release into `folder`/<its name>; a context manager that ends the fetching when it is left."""

    def __init__(self, name: str, folder: str | Path):
        self.release = hub.find(name)
        self.folder = user_path(folder)
        self.target = self.folder / self.release.name
        self.total = self.release.nbytes + (VQ_NBYTES if self.release.vq else 0)

    def __enter__(self) -> Download:
        self.room = tempfile.TemporaryDirectory(prefix="lumina-", ignore_cleanup_errors=True)
        self.said, self.faults = (Path(self.room.name) / name for name in ("said", "faults"))
        arguments = [str(Path(__file__).parent), self.release.name, str(self.folder)]
        # plain HTTP keeps what has come of a file; the chunked way starts it anew
        settings = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONUTF8": "1"}
        with self.said.open("wb") as out, self.faults.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-c", CHILD, *arguments],
                env=os.environ | settings,
                stdout=out,
                stderr=err,
                stdin=subprocess.PIPE,
            )
        return self

    def __exit__(self, *_) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process.stdin.close()
        self.room.cleanup()

    def watch(self) -> Iterator[tuple[float, str]]:
        """(share that is there, what is being done) a few times a second until all is there; `LuminaError` if not."""
        while self.process.poll() is None:
            yield min(0.99, self._there() / self.total), _last_line(self.said)
            time.sleep(PAUSE)
        if self.process.returncode:
            raise LuminaError(
                _last_line(self.faults).removeprefix("error: ") or "The download ended without a word."
            )
        yield 1.0, _last_line(self.said)

    def _there(self) -> int:
        """Bytes of all files in the target, unfinished ones included; files come and go meanwhile."""
        there = 0
        for path in self.target.rglob("*"):
            try:
                there += path.stat().st_size if path.is_file() else 0
            except OSError:
                continue
        return there


def _last_line(file: Path) -> str:
    lines = file.read_text("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else ""
