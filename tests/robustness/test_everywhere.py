"""Everywhere: what can be said of MPS, Windows and odd folders without them, by reading the code and by moving it."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from PIL import Image

from lumina_core import CheckpointError, InputError, Sampling, families, many
from lumina_core.devices import pick_device
from lumina_core.weights import shard_names

ROOT = Path(__file__).parent.parent.parent
SOURCES = sorted(p for part in ("lumina_core", "nodes") for p in (ROOT / part).rglob("*.py"))
SOURCES.append(ROOT / "__init__.py")
LONGEST = 140  # characters of a path below the repository; Windows gives 260 in all
POSIX = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog", "crypt", "readline"}
POSIX_CALLS = re.compile(
    r"os\.(fork|forkpty|getuid|geteuid|getgid|getegid|setsid|mkfifo|mknod|nice|getloadavg|sched_\w+|kill|killpg|chown|"
    r"posix_\w+|pread|pwrite|sysconf|uname|statvfs)$|signal\.(SIGKILL|SIGHUP|SIGUSR\d|SIGALRM|alarm|setitimer)$"
)
RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$)")
# What is asked of CUDA by name: each stands behind a question for the device, as the next tests hold.
CUDA = {
    "lumina_core/devices.py",  # picks the best device there is, and tells where 16 bits are quick
    "lumina_core/families/__init__.py",  # whether a card computes in bf16
    "lumina_core/int8.py",  # the products of int8 that a CPU and CUDA have, other devices not
    "lumina_core/sampling/graphs.py",  # CUDA graphs
    "lumina_core/sampling/room.py",  # free memory
    "lumina_core/shortage.py",  # what CUDA says when memory runs out, and its caches
    "lumina_core/errors.py",  # the same, for a host that waits for torch's own error
    *(
        f"lumina_core/bench/{name}.py" for name in ("baseline", "floor", "measure", "report")
    ),  # clocks and peaks
}
DOUBLE = {  # where 64-bit floats are made, which MPS has not, and why that is no matter
    "lumina_core/image.py": "numpy, made float32 before it is a tensor on a device",
    "lumina_core/weights.py": "the name of a type in files; made the model's own type on the way to a device",
    "lumina_core/tiles.py": "shares of tiles, made on the CPU and brought to the pieces' own type",
    "lumina_core/sampling/logits.py": "asks for mps first",
    "lumina_core/training/world.py": "numpy",
    "lumina_core/training/maps.py": "numpy",
    "lumina_core/conformance/case.py": "comparisons on the CPU",
    "lumina_core/conformance/decoding.py": "comparisons on the CPU",
    "lumina_core/conformance/distribution.py": "statistics on the CPU",
}


def name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


def tracked() -> list[str]:
    """The files of the repository, or those that lie here where it is none."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
        return [p for p in done.stdout.decode("utf-8").split("\0") if p]
    skip = {".git", ".venv", "__pycache__", ".pytest_cache", ".ruff_cache", ".hypothesis", "runs", "output"}
    every = (p.relative_to(ROOT) for p in ROOT.rglob("*") if p.is_file())
    return [p.as_posix() for p in every if not skip & set(p.parts)]


def code_of(file: Path) -> str:
    """The text of a file without comments and strings."""
    with file.open("rb") as f:
        tokens = [
            t for t in tokenize.tokenize(f.readline) if t.type not in (tokenize.COMMENT, tokenize.STRING)
        ]
    return " ".join(t.string for t in tokens)


# devices


def test_cuda_is_named_only_where_it_is_meant(record_property):
    record_property("cases", len(SOURCES))
    found = set()
    for file in SOURCES:
        for node in ast.walk(tree(file)):
            literal = isinstance(node, ast.Constant) and isinstance(node.value, str)
            if literal and re.fullmatch(r"cuda(:\d+)?", node.value):
                found.add(name(file))
            if isinstance(node, ast.Attribute) and node.attr == "cuda":
                found.add(name(file))
    assert found == CUDA


def test_no_tensor_or_module_is_sent_to_a_device_by_name():
    seen = []
    for file in SOURCES:
        for call in (n for n in ast.walk(tree(file)) if isinstance(n, ast.Call)):
            last = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            given = [*call.args, *(k.value for k in call.keywords if k.arg == "device")]
            texts = [a.value for a in given if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            if last in (
                "to",
                "empty",
                "zeros",
                "ones",
                "tensor",
                "arange",
                "rand",
                "randn",
                "Generator",
                "cuda",
            ):
                seen += [f"{name(file)}:{call.lineno}" for t in texts if re.match(r"(cuda|mps|xpu)\b", t)]
            if last in ("cuda", "mps") and isinstance(call.func, ast.Attribute):
                seen.append(f"{name(file)}:{call.lineno}")
    assert not seen


def test_doubles_stay_away_from_devices(record_property):
    record_property("cases", len(SOURCES))
    found = {name(f) for f in SOURCES if re.search(r"\bfloat64\b|\bdouble \(|\bcomplex128\b", code_of(f))}
    assert found == set(DOUBLE)
    from lumina_core.sampling.logits import top_k_of_entropy

    class Apple:
        """Stands for a tensor on a device that has no doubles."""

        def __init__(self, values):
            self.values, self.device, self.asked = values, torch.device("mps"), []

        def to(self, dtype):
            self.asked.append(dtype)
            return self.values.to(dtype)

    nats = torch.linspace(0, 10, 200)
    apple = Apple(nats)
    assert torch.equal(top_k_of_entropy(apple, 1, 2000), top_k_of_entropy(nats, 1, 2000))
    assert apple.asked == [torch.float32]


def test_autocast_takes_the_type_of_the_device():
    for file in SOURCES:
        for call in (n for n in ast.walk(tree(file)) if isinstance(n, ast.Call)):
            if ast.unparse(call.func).endswith("autocast"):
                assert not isinstance(call.args[0], ast.Constant), f"{name(file)}:{call.lineno}"


def test_a_device_that_is_not_here_is_told_in_one_line():
    for device in ("mps", "xpu", "nonsense", "cuda:99", ""):
        if device == "mps" and torch.backends.mps.is_available():
            continue
        with pytest.raises(InputError, match="try cpu"):
            pick_device(device)


# systems


def test_nothing_is_for_posix_alone(record_property):
    seen = []
    for file in SOURCES:
        for node in ast.walk(tree(file)):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            seen += [f"{name(file)}: {m}" for m in modules if m.split(".")[0] in POSIX]
            if isinstance(node, ast.Attribute) and POSIX_CALLS.match(ast.unparse(node)):
                seen.append(f"{name(file)}:{node.lineno} {ast.unparse(node)}")
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and node.value.startswith("/proc/")
            ):
                seen.append(f"{name(file)}: {node.value}")
    # `bench` reads the peak of memory there where there is one, and goes without elsewhere
    assert {s for s in seen if not s.startswith("lumina_core/bench/measure.py: /proc/")} == set()
    record_property("cases", len(SOURCES))


def test_text_is_read_and_written_in_utf_8():
    """Windows would take its own code page."""
    seen = []
    for file in SOURCES:
        for call in (n for n in ast.walk(tree(file)) if isinstance(n, ast.Call)):
            last = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            given = {k.arg for k in call.keywords}
            parts = [n.value for a in call.args for n in ast.walk(a) if isinstance(n, ast.Constant)]
            modes = [t for t in parts if isinstance(t, str) and set(t) <= set("rwab+x")]
            if last == "read_text" and not call.args and "encoding" not in given and not kernel(call):
                seen.append(f"{name(file)}:{call.lineno}")
            if last == "write_text" and len(call.args) < 2 and "encoding" not in given and not kernel(call):
                seen.append(f"{name(file)}:{call.lineno}")
            if last == "open" and "encoding" not in given:
                binary = modes and all("b" in mode for mode in modes)
                other = ast.unparse(call.func) in ("Image.open", "os.open")
                if not (binary or other):
                    seen.append(f"{name(file)}:{call.lineno}")
    assert not seen


def kernel(call: ast.Call) -> bool:
    """Whether a call reads or writes what the kernel tells of this process, in ASCII."""
    return ast.unparse(call.func) in ("self.STATUS.read_text", "self.CLEAR.write_text")


def test_paths_are_joined_by_pathlib():
    for file in SOURCES:
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in ("os.path.join", "os.sep", "os.path.sep"), name(file)


def test_every_path_of_the_repository_can_be_on_every_disk(record_property):
    paths = tracked()
    assert len(paths) > 200
    assert max(map(len, paths)) < LONGEST
    low = {}
    for path in paths:
        assert path.isascii() and path.isprintable(), path
        for part in PurePosixPath(path).parts:
            assert not re.search(r'[<>:"\\|?*]', part) and not part.endswith((".", " ")), path
            assert not RESERVED.match(part), path
        for parent in (PurePosixPath(path), *PurePosixPath(path).parents):
            assert low.setdefault(str(parent).lower(), str(parent)) == str(parent), f"{path} differs by case"
    record_property("cases", len(paths))


@pytest.mark.parametrize(
    "odd", ["..\\x", "C:\\x", "C:x", "\\\\host\\share\\x", "x:stream", "a/b", "..", "\\x"]
)
def test_names_out_of_files_are_checked_for_every_system(tiny_model, tmp_path, odd):
    """What leads out of a folder on Windows is refused on every system: in shard indexes and in names of pictures."""
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": odd}}), "utf-8")
    with pytest.raises(CheckpointError, match="points outside its folder"):
        shard_names(tmp_path)
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": "a", "name": odd}), "utf-8")
    with pytest.raises(InputError, match="plain file name"):
        many.read(tiny_model, file, tmp_path, Sampling(), (32, 32))


def test_names_that_differ_by_case_are_one_file(tiny_model, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": "a", "name": n}) for n in ("Cat", "cat")), "utf-8")
    with pytest.raises(InputError, match="line 2"):
        many.read(tiny_model, file, tmp_path, Sampling(), (32, 32))


def test_names_in_menus_have_forward_slashes(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "owner" / "checkpoint")
    assert list(families.listing([tmp_path])) == ["owner/checkpoint"]


# folders


MOVED = "extensions mit Leerzeichen/Lumina 模型.v1"


def drawn(root: Path, out: Path, model: str) -> np.ndarray:
    """A picture by the command line of the repository at a place."""
    command = [
        sys.executable,
        "-m",
        "lumina_core",
        "generate",
        "a large yellow triangle in the center, black background",
        "--model",
        model,
    ]
    command += ["--size", "64x64", "--seed", "1", "--out", str(out)]
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--device", "cpu"],
        cwd=root,
        env=variables,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with Image.open(io.BytesIO(out.read_bytes())) as picture:
        return np.asarray(picture)


@pytest.fixture(scope="module")
def moved(tmp_path_factory) -> Path:
    """A copy of the extension, its tests left out, in a folder with blanks, a dot and letters of another script."""
    to = tmp_path_factory.mktemp("moved") / MOVED
    skip = shutil.ignore_patterns(".*", "__pycache__", "tests", "runs", "output", "workflows")
    return Path(shutil.copytree(ROOT, to, ignore=skip))


def test_a_copy_in_a_folder_with_blanks_and_other_letters_draws_the_same_picture(moved, tmp_path):
    here = drawn(ROOT, tmp_path / "here.png", "nano-mgpt2")
    there = drawn(moved, tmp_path / "bilder für 你" / "ein bild ø.png", "nano-mgpt2")
    assert np.array_equal(here, there)
    assert here.std() > 10, "a picture, not a plain colour"


def test_a_checkpoint_in_such_a_folder_is_found_by_path_and_by_name(moved, tiny_folder, tmp_path):
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "models дом" / "my model é"))
    assert families.load("my model é", folders=[folder.parent]).name == "my model é"
    assert list(families.listing([folder.parent])) == ["my model é"]
    assert families.load(folder).name == "my model é"
