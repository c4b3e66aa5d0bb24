"""A training run on disk: resumable state, atomic writes, a log line now and then.

State files hold tensors and plain values only and are read as such; see `pickles`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from ..files import cannot_write, write_state
from ..pickles import read_plain


@dataclass
class Stage:
    """One stage of a run: `name.pt` holds its state, `log.jsonl` its history; `report` shows a line to the user."""

    folder: Path
    name: str
    report: Callable[[str], None]
    save_every: float = 60.0  # seconds

    @property
    def state_file(self) -> Path:
        return self.folder / f"{self.name}.pt"

    def load(self) -> dict | None:
        """The saved state, or None when the stage starts from nothing."""
        if not self.state_file.exists():
            return None
        state = read_plain(self.state_file)
        if not isinstance(state, dict):
            raise CheckpointError(
                f"{self.state_file} is no state of a training run. Delete it to start {self.name} anew."
            )
        return state

    @contextmanager
    def resuming(self) -> Iterator[dict | None]:
        """The saved state, to be taken over inside; where it does not fit, a `CheckpointError` names its file."""
        state = self.load()
        try:
            yield state
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
            raise CheckpointError(
                f"{self.state_file} is no state of this run ({e}). Delete it to start {self.name} anew."
            ) from None

    def save(self, state: dict) -> None:
        write_state(self.state_file, state)

    def steps(self, first: int, total: int, snapshot: Callable[[int], dict]) -> Iterator[int]:
        """Step numbers `first` to `total`; saves `snapshot(steps done)` once a minute, on Ctrl-C and at the end."""
        saved_at = time.monotonic()
        done = first
        try:
            while done < total:
                yield done
                done += 1
                if time.monotonic() - saved_at > self.save_every:
                    self.save(snapshot(done))
                    saved_at = time.monotonic()
        except KeyboardInterrupt:
            self.report(f"{self.name}: stopped at step {done} of {total}; run the same command to go on")
            raise
        finally:
            if done > first:
                self.save(snapshot(done))

    def log(self, step: int, total: int, seconds: float, **figures: float) -> None:
        """Appends a line to the history and shows it."""
        row = {"stage": self.name, "step": step, "seconds": round(seconds, 1)}
        row |= {k: round(v, 5) for k, v in figures.items()}
        history = self.folder / "log.jsonl"
        try:
            with history.open("a", encoding="utf-8") as f:
                f.write(json.dumps(row) + "\n")
        except OSError as e:
            raise cannot_write(history, e) from None
        shown = "  ".join(f"{k} {v:.4g}" for k, v in figures.items())
        self.report(f"{self.name} {step}/{total}  {shown}  {seconds:.0f} s")
