"""Safe defaults: no network, process, foreign code or writes elsewhere; by reading the code and by watching it."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from lumina_core import generate, load, settings
from tests import tiny
from tests.core import checkpoints as ck
from tests.robustness.of_texts import build_golden

ROOT = Path(__file__).parent.parent.parent
SOURCES = sorted(p for part in ("lumina_core", "nodes") for p in (ROOT / part).rglob("*.py"))
SOURCES.append(ROOT / "__init__.py")
PROCESSES = {"subprocess", "multiprocessing", "pty", "pexpect", "concurrent.futures.process"}
NETWORK = {
    *(
        "socket",
        "socketserver",
        "ssl",
        "http",
        "urllib",
        "requests",
        "httpx",
        "aiohttp",
        "websockets",
        "ftplib",
    ),
    *("smtplib", "xmlrpc", "telnetlib", "webbrowser", "huggingface_hub", "hf_xet", "boto3"),
}
CODE = {
    "pickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "joblib",
    "runpy",
    "code",
    "ctypes",
    "cffi",
    "imp",
}
MAY = {  # file -> what it may import of these, and why
    # the download itself, imported when it is asked for; of urllib the parser alone, which compares addresses
    "lumina_core/hub.py": {"huggingface_hub", "urllib"},
    "lumina_core/fetching.py": {"subprocess"},  # the same in a process of its own, so that Cancel can end it
    "lumina_core/bench/report.py": {"subprocess"},  # `bench` asks git and nvidia-smi what it measured
    "lumina_core/pickles.py": {"pickle"},  # for the name of an error
}
NEVER = {"eval", "exec", "compile", "__import__", "execfile"}
NEVER_OF = {  # attribute calls by their last two names
    *(
        "os.system",
        "os.popen",
        "os.startfile",
        "pickle.load",
        "pickle.loads",
        "pickle.Unpickler",
        "yaml.load",
    ),
    *(
        "torch.hub.load",
        "hub.load",
        "jit.load",
        "package.PackageImporter",
        "ops.load_library",
        "cpp_extension.load",
    ),
}


def name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dotted(node: ast.AST) -> str:
    return ast.unparse(node) if isinstance(node, (ast.Name, ast.Attribute)) else ""


def calls(file: Path) -> list[ast.Call]:
    return [n for n in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(n, ast.Call)]


def test_nothing_imports_network_processes_or_picklers_but_where_they_are_meant(record_property):
    record_property("cases", len(SOURCES))
    found = {}
    for file in SOURCES:
        for module in imported(ast.parse(file.read_text("utf-8"))):
            top = {module, module.split(".")[0]} & (PROCESSES | NETWORK | CODE)
            if top:
                found.setdefault(name(file), set()).update(top)
    assert found == MAY


def test_nothing_evaluates_text_or_starts_a_shell(record_property):
    seen = []
    for file in SOURCES:
        for call in calls(file):
            called = dotted(call.func)
            bad = called in NEVER or ".".join(called.split(".")[-2:]) in NEVER_OF
            bad |= called.startswith(("os.exec", "os.spawn", "os.fork", "os.posix_spawn"))
            bad |= any(
                k.arg == "shell" or k.arg == "trust_remote_code" or k.arg == "allow_pickle"
                for k in call.keywords
            )
            bad |= called.endswith("from_pretrained")
            if called == "importlib.import_module":  # of a package by its fixed name, where it is asked for
                bad |= not isinstance(call.args[0], ast.Constant)
            if bad:
                seen.append(f"{name(file)}:{call.lineno} {called}")
    assert not seen
    record_property("cases", len(SOURCES))


def test_torch_reads_files_as_plain_data_alone():
    loads = [(name(f), c) for f in SOURCES for c in calls(f) if dotted(c.func) == "torch.load"]
    assert {file for file, _ in loads} == {"lumina_core/pickles.py"}
    for _, call in loads:
        given = {k.arg: k.value for k in call.keywords}
        assert isinstance(given["weights_only"], ast.Constant) and given["weights_only"].value is True


def test_pickle_is_imported_for_the_name_of_an_error():
    tree = ast.parse((ROOT / "lumina_core" / "pickles.py").read_text("utf-8"))
    used = {
        dotted(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute) and dotted(n).startswith("pickle.")
    }
    assert used == {"pickle.UnpicklingError"}


def test_the_web_server_gets_no_route():
    words = ("routes", "add_routes", "add_get", "add_post", "web.get", "web.post", "aiohttp")
    for file in SOURCES:
        tree = ast.parse(file.read_text("utf-8"))
        names = {dotted(n) for n in ast.walk(tree) if isinstance(n, (ast.Attribute, ast.Name))}
        assert not [n for n in names if n.split(".")[-1] in words or n in words], name(file)
    assert not list((ROOT / "nodes" / "web").rglob("*.js")), "nothing runs in the browser either"


def test_a_download_begins_only_where_the_user_asks_for_it():
    """`huggingface_hub` is imported in one function; what leads there begins at the download input and the verb."""
    leads = {"_library": {"hub"}, "download": {"commands"}, "Download": {"folders"}, "fetch": {"load"}}
    for wanted, files in leads.items():
        users = {f.stem for f in SOURCES for c in calls(f) if dotted(c.func).split(".")[-1] == wanted}
        assert users == files, wanted
    tree = ast.parse((ROOT / "lumina_core" / "hub.py").read_text("utf-8"))
    owner = [
        f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and "huggingface_hub" in set(imported(f))
    ]
    assert [f.name for f in owner] == ["_library"]
    node = (ROOT / "nodes" / "load.py").read_text("utf-8")
    assert "model if download == OFF else fetch(download)" in node
    schema = json.loads((ROOT / "tests" / "data" / "nodes.json").read_text("utf-8"))["LuminaMGPTLoadModel"][
        "inputs"
    ]
    assert ["download", "COMBO", "optional"] in [entry[:3] for entry in schema]
    assert 'OFF = "off"' in (ROOT / "nodes" / "folders.py").read_text("utf-8")


def test_the_library_loads_and_draws_without_a_network(tiny_folder, monkeypatch):
    import socket

    def refuse(*_, **__):
        raise AssertionError("a connection was tried")

    for way in ("connect", "connect_ex", "bind", "sendto"):
        monkeypatch.setattr(socket.socket, way, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    model = load(tiny_folder)
    prompt = model.prompt("a red circle", size=(32, 32))
    grids = [
        e.grid
        for e in generate(model.transformer, model.vocabulary, prompt, settings(model))
        if hasattr(e, "grid")
    ]
    assert model.decode(grids[0].codes).shape == (32, 32, 3)


FOREIGN = """
from pathlib import Path
Path(__file__).with_name("canary").touch()
class Model: pass
"""


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> dict:
    """What came of all verbs, each on small checkpoints that bring code along."""
    top = tmp_path_factory.mktemp("audit")
    folders = {"mgpt2": tiny.build(top / "models" / "mgpt2")}
    for family in ("mgpt1", "pure"):
        sizes = {"max_position_embeddings": 300} if family == "pure" else {}
        folders[family] = ck.build(top / "models" / family, family, dtype=torch.float32, **sizes)
    for folder in folders.values():
        bring_code(folder)
    build_golden(top / "golden")
    (top / "home").mkdir()
    out = top / "out"
    out.mkdir()
    Image.new("RGB", (40, 40), "red").save(top / "in.png")
    (top / "prompts.jsonl").write_text('{"prompt": "a red circle"}\n', "utf-8")
    two, one, pure, image = (
        str(p) for p in (*(folders[f] for f in ("mgpt2", "mgpt1", "pure")), top / "in.png")
    )
    small = ["--size", "32x32"]
    verbs = [
        ["generate", "a red circle", "--model", two, *small, "--out", str(out / "a.png")],
        [
            "generate",
            "--prompts",
            str(top / "prompts.jsonl"),
            "--model",
            two,
            *small,
            "--out",
            str(out / "many"),
        ],
        ["inspect", two],
        ["inspect", one],
        ["convert", two, str(out / "one.safetensors"), "--precision", "int8"],
        [
            "task",
            "edit",
            "--model",
            one,
            "--image",
            image,
            "--prompt",
            "x",
            *small,
            "--out",
            str(out / "b.png"),
        ],
        ["restore", "--model", pure, "--image", image, "--scale", "1", "--out", str(out / "c.png")],
        [
            "chat",
            "what is it?",
            "--model",
            one,
            "--image",
            image,
            "--max-tokens",
            "9",
            "--out",
            str(out / "chat"),
        ],
        ["bench", "--model", two, *small, "--modes", "ar", "--seeds", "1", "--json", str(out / "bench.json")],
        ["conformance", str(top / "golden")],
        ["demo", "--out", str(out / "demo")],
    ]
    plan = {"verbs": verbs, "writable": [str(out)], "foreign": [str(top)]}
    (top / "plan.json").write_text(json.dumps(plan), "utf-8")
    home = {"HOME": str(top / "home"), "USERPROFILE": str(top / "home"), "XDG_CACHE_HOME": str(top / "home")}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("audit.py")), str(top / "plan.json")],
        cwd=top / "home",
        env=os.environ | home | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    left = [str(p) for p in (top / "home").rglob("*")]
    return {**said, "folders": list(folders.values()), "left": left, "verbs": verbs, "stderr": done.stderr}


def bring_code(folder: Path) -> None:
    """Adds to a checkpoint what makes other loaders run its code."""
    for file in (
        "modeling_x",
        "configuration_x",
        "tokenization_x",
        "__init__",
        "sitecustomize",
        "image_processing_x",
    ):
        (folder / f"{file}.py").write_text(FOREIGN, "utf-8")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    auto = {"AutoModel": "modeling_x.Model", "AutoConfig": "configuration_x.Model"}
    config |= {
        "auto_map": auto,
        "trust_remote_code": True,
        "custom_pipelines": {"x": {"impl": "modeling_x.Model"}},
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    told = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    told |= {"auto_map": {"AutoTokenizer": ["tokenization_x.Model", None]}, "tokenizer_class": "Model"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told), "utf-8")


def test_every_verb_but_download_and_train_works_under_the_eyes_of_the_audit(watched, record_property):
    assert set(watched["done"].values()) == {0}, (watched["done"], watched["stderr"][-2000:])
    assert len(watched["done"]) == len(watched["verbs"])
    record_property("cases", len(watched["verbs"]))


def test_no_verb_writes_elsewhere_connects_or_starts_a_process(watched):
    seen = [
        note for note in watched["seen"] if "'git'" not in note
    ]  # `bench` tells which version it measured
    assert not seen
    assert not watched["left"], "nothing is left in the home and working folder"


def test_code_that_a_checkpoint_brings_does_not_run(watched):
    for folder in watched["folders"]:
        assert not list(folder.rglob("canary")) and not list(folder.rglob("__pycache__"))
        assert not (folder / "canary").exists()


def test_the_audit_sees_what_it_is_there_for(tmp_path):
    """A negative control."""
    script = """
import json, socket, subprocess, sys
from pathlib import Path
from tests.robustness.audit import Audit
top = Path(sys.argv[1])
audit = Audit([str(top / "out")], [str(top)])
sys.addaudithook(audit)
(top / "out").mkdir(); (top / "out" / "x").write_text("x")
before = len(audit.seen)
(top / "other").write_text("x")
(top / "other").rename(top / "out" / "y")
subprocess.run([sys.executable, "-c", ""])
try:
    socket.create_connection(("127.0.0.1", 9), timeout=0.1)
except OSError:
    pass
(top / "out" / "code.py").write_text("1")
sys.path.insert(0, str(top / "out")); sys.dont_write_bytecode = True
import code as _; del sys.modules["code"]; import code
print(json.dumps([before, audit.seen]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    before, seen = json.loads(done.stdout.splitlines()[-1])
    assert before == 0, seen
    for word in ("open", "os.rename", "subprocess.Popen", "socket.", "exec"):
        assert any(note.startswith(word) for note in seen), (word, seen)
