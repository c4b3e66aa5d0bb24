"""A process that opens hostile files one by one and tells what each did: outcome, seconds, memory, trespasses.

`python -m tests.robustness.worker FOLDER` reads lines `TARGET FIRST` and answers with JSON lines. It watches itself: an
audit hook notes every write, process, connection and foreign code, and the kernel the peak of its memory.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
import time
import traceback
from pathlib import Path

from lumina_core import LuminaError
from tests.robustness import targets
from tests.robustness.opening import Target

ROOM = 1 << 30  # bytes of address space that a case may take on top, touched or not
ROOT = Path(__file__).parent.parent.parent
CHANGES = (
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.link", "os.symlink"),
    *("shutil.rmtree", "shutil.move", "shutil.copyfile", "tempfile.mkstemp", "tempfile.mkdtemp"),
)
PROGRAMS = (
    *("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn"),
    *("os.startfile", "pty.spawn", "socket.connect", "socket.bind", "socket.sendto", "pickle.find_class"),
    *("webbrowser.open", "urllib.Request"),
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Guard:
    """Notes what the process does that opening a file must not do."""

    def __init__(self):
        self.home = ""  # the folder of the file that is opened
        self.library = tuple({sysconfig.get_path(p) for p in ("stdlib", "platstdlib", "purelib", "platlib")})
        self.library += (
            str(ROOT / "lumina_core"),
            str(ROOT / "tests"),
            sys.base_prefix,
            "/proc/",
            "/sys/",
            "/dev/",
        )
        self.notes: list[str] | None = None

    def __call__(self, event: str, args: tuple) -> None:
        notes = self.notes
        if notes is None:
            return
        if event == "open":
            self._opened(*args)
        elif event in CHANGES or event in PROGRAMS:
            notes.append(f"{event} {args!r:.200}")
        elif event in ("exec", "compile"):
            code = args[0] if event == "exec" else args[1]
            name = getattr(code, "co_filename", code)
            if isinstance(name, str) and name.startswith(self.home):
                notes.append(f"{event} of {name}")

    def _opened(self, path, mode, flags) -> None:
        if isinstance(path, int) or path is None:
            return
        path = str(Path.cwd() / os.fsdecode(path))
        if isinstance(flags, int) and flags & WRITES and not path.startswith(("/proc/", "/dev/")):
            self.notes.append(f"writes {path}")
        elif not path.startswith((self.home, *self.library)):
            self.notes.append(f"reads {path}")


class Memory:
    """The peak of this process's memory since it was last asked; 0 where the kernel does not tell."""

    STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def begin(self) -> None:
        try:
            self.CLEAR.write_text("5")  # the peak starts anew from what is held now
            self.before = self._field("VmRSS")
        except OSError:
            self.before = None

    def extra(self) -> int:
        return 0 if self.before is None else max(0, self._field("VmHWM") - self.before)

    def _field(self, name: str) -> int:
        line = next(x for x in self.STATUS.read_text("utf-8").splitlines() if x.startswith(name))
        return int(line.split()[1]) * 1024

    def limit(self) -> None:
        """Address space is limited too, so that memory asked for and never touched is noticed."""
        try:
            import resource
        except ImportError:
            return
        most = self._field("VmSize") + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def put(home: Path, files: dict[str, bytes | None]) -> dict[str, bytes | None]:
    """Writes the files of a case; what stood there before."""
    before = {}
    for name, content in files.items():
        file = home / name
        before[name] = file.read_bytes() if file.is_file() else None
        if content is None:
            file.unlink(missing_ok=True)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    return before


def listed(home: Path) -> set[str]:
    return {str(p) for p in home.rglob("*")}


def run(target: Target, home: Path, first: int, guard: Guard) -> None:
    memory = Memory()
    target.open(home)  # what it needs is imported now
    memory.limit()
    for number, case in enumerate(target.cases(home)):
        if number < first:
            continue
        say(begin=case.name, number=number)
        before = put(home, case.files)
        there = listed(home)
        memory.begin()
        wall, cpu = time.monotonic(), time.process_time()
        message = trace = ""
        guard.notes = []
        try:
            target.open(home)
            outcome = "opened"
        except LuminaError as e:
            outcome, message = "refused", str(e)
        except BaseException as e:
            outcome, message = type(e).__name__, str(e)[:300]
            trace = "".join(traceback.format_tb(e.__traceback__)[-3:])
        notes, guard.notes = guard.notes, None
        seconds, waited = time.process_time() - cpu, time.monotonic() - wall
        notes += sorted(f"left {p}" for p in listed(home) - there)
        say(
            name=case.name,
            outcome=outcome,
            message=message,
            trace=trace,
            seconds=seconds,
            waited=waited,
            extra=memory.extra(),
            notes=notes,
            must=case.must,
            files=list(case.files),
        )
        put(home, before)
    say(end=target.name)


def say(**what) -> None:
    print(json.dumps(what), flush=True)


def main(folder: Path) -> None:
    guard = Guard()
    sys.addaudithook(guard)
    for line in sys.stdin:
        name, first = line.split()
        home = folder / name
        shutil.rmtree(home, ignore_errors=True)
        target = targets.TARGETS[name]
        target.build(home)
        guard.home = str(home) + os.sep
        run(target, home, int(first), guard)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
