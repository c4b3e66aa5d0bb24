"""Runs verbs of the command line in this process and tells what else they did: `audit.py PLAN`, a JSON file.

The plan names the verbs, the folders that may be written, and the folders whose code must not run. On stdout comes one
JSON object: the exit status of each verb, and every write, process, connection and foreign code.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

CHANGES = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.truncate",
    "os.chmod",
    "os.link",
    "os.symlink",
)
PROCESSES = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "os.startfile",
)
NETWORK = (
    "socket.connect",
    "socket.bind",
    "socket.sendto",
    "socket.getaddrinfo",
    "urllib.Request",
    "http.client.connect",
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

OWN = (
    os.devnull,
    "/proc/self/clear_refs",
)  # the kernel's note of this process's memory, which `bench` starts anew


class Audit:
    """An audit hook that collects what is not allowed."""

    def __init__(self, writable: list[str], foreign: list[str]):
        self.writable, self.foreign, self.seen = tuple(writable), tuple(foreign), []

    def __call__(self, event: str, args: tuple) -> None:
        if event == "open":
            path, _, flags = args
            if isinstance(path, (str, bytes)) and isinstance(flags, int) and flags & WRITES:
                self._changed(event, path)
        elif event in CHANGES:
            for path in args[:2] if event in ("os.rename", "os.link", "os.symlink") else args[:1]:
                self._changed(event, path)
        elif event in PROCESSES or event in NETWORK:
            self.seen.append(f"{event} {args!r:.150}")
        elif event in ("exec", "compile"):
            name = getattr(args[0], "co_filename", "") if event == "exec" else args[1]
            name = os.fsdecode(name) if isinstance(name, (str, bytes)) else ""
            if name.startswith(self.foreign):
                self.seen.append(f"{event} {name}")

    def _changed(self, event: str, path) -> None:
        path = str(Path.cwd() / os.fsdecode(path)) if isinstance(path, (str, bytes, os.PathLike)) else ""
        if path and not path.startswith(self.writable) and path not in OWN:
            self.seen.append(f"{event} {path}")


def main(file: Path) -> None:
    plan = json.loads(file.read_text("utf-8"))
    sys.dont_write_bytecode = True
    from lumina_core import cli, demo

    demo.EACH = {}
    audit = Audit(plan["writable"], plan["foreign"])
    sys.addaudithook(audit)
    done = {}
    for argv in plan["verbs"]:
        try:
            done[" ".join(argv)[:60]] = cli.main(argv)
        except SystemExit as e:
            done[" ".join(argv)[:60]] = e.code
    said = json.dumps({"done": done, "seen": audit.seen})
    print("\n" + said)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
