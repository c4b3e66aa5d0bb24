"""What the tests measure in several ComfyUI side by side, as a Markdown table.

`python -m tests.host.report [--out FILE] COMFYUI-FOLDER...` runs the tests that need a host in each, in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HEAD = """# Measured in ComfyUI

    python -m tests.host.report {hosts} --out tests/host/REPORT.md

Cancel to idle is the longest of all cases, from the request until the queue is empty. How many times slower the machine
was than one that does nothing else is measured right after each, by a fixed piece of work.

"""
ROOT = Path(__file__).parent.parent.parent
TESTS = ("tests/host", "tests/nodes", "tests/workflows")


@dataclass
class Measured:
    """What the tests of one host noted: values by the name of their row, and how many tests ended how."""

    figures: dict[str, list] = field(default_factory=dict)
    tests: dict[str, int] = field(default_factory=dict)


def longest(values: Sequence[tuple[float, float]]) -> str:
    """The longest of some times, each with how many times slower than usual the machine was."""
    took, slower = max(values, key=lambda value: value[0] / max(1.0, value[1]))
    if slower < 1.2:
        return f"{took:.2f} s"
    return f"{took / slower:.2f} s ({took:.2f} s on a machine {slower:.1f} times slower)"


def all_of(values: Sequence[tuple[int, int]]) -> str:
    return "{} of {}".format(*map(sum, zip(*values, strict=True)))


def memory(values: Sequence[tuple[int, int, int, int]]) -> str:
    before, held, after, nbytes = values[-1]
    kept = max(0, after - before) / nbytes
    return f"{before >> 20} → {held >> 20} → {after >> 20} MiB, {kept:.1%} of {nbytes >> 20} MiB kept"


def grown(values: Sequence[tuple[int, int]]) -> str:
    return f"{values[-1][0] >> 20} → {values[-1][1] >> 20} MiB"


def previews(values: Sequence[tuple[int, float]]) -> str:
    return "; ".join(f"{n} in {seconds:.1f} s" for n, seconds in values)


ROWS: dict[
    str, tuple[str, Callable[[Sequence], str]]
] = {  # name of a figure: title, and how its values are shown
    "version": ("ComfyUI", lambda values: values[0]),
    "nodes": ("nodes imported", all_of),
    "workflows": ("workflows run", all_of),
    "loading": ("Cancel to idle: loading", longest),
    "prefill": ("Cancel to idle: prefill", longest),
    "drawing": ("Cancel to idle: drawing", longest),
    "encoding": ("Cancel to idle: VQ encoding", longest),
    "decoding": ("Cancel to idle: VQ decoding", longest),
    "downloading": ("Cancel to idle: download", longest),
    "memory": ("memory before a load → loaded → after `/free`", memory),
    "bundled memory": ("the same with a bundled checkpoint", memory),
    "cancelled": ("memory over 20 runs cancelled at random", grown),
    "previews": ("previews per picture", previews),
    "reloads": ("reloads on the second run", lambda values: str(sum(values))),
}


def table(hosts: Sequence[Measured]) -> str:
    """Markdown with a row for each figure and a column for each host."""
    lines = []
    for name, (title, show) in ROWS.items():
        cells = [show(h.figures[name]) if name in h.figures else "not measured" for h in hosts]
        lines.append([title, *cells])
    lines.append(["tests", *(", ".join(f"{n} {k}" for k, n in h.tests.items() if n) for h in hosts)])
    lines.insert(1, ["---"] * (len(hosts) + 1))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def measure(host: Path) -> Measured:
    """Runs the tests in one host; what they print goes to the terminal."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        env = os.environ | {"COMFYUI_PATH": str(host), "HOST_REPORT": str(file)}
        subprocess.run([sys.executable, "-m", "pytest", *TESTS], cwd=ROOT, env=env, check=False)
        if not file.exists():
            sys.exit(f"{host}: no test ran in this ComfyUI")
        return Measured(**json.loads(file.read_text("utf-8")))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.host.report", description=__doc__)
    parser.add_argument("host", nargs="+", type=Path, help="the folder of a ComfyUI")
    parser.add_argument("--out", type=Path, help="write the table into this file too")
    given = parser.parse_args()
    hosts = [measure(host.expanduser()) for host in given.host]
    text = table(hosts) + "\n"
    print(f"\n{text}")
    if given.out:
        names = " ".join(map(str, given.host))
        given.out.write_text(HEAD.format(hosts=names) + text, "utf-8")
    sys.exit(any(h.tests.get(k) for h in hosts for k in ("failed", "error")))


if __name__ == "__main__":
    main()
