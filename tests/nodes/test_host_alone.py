"""`nodes/host.py` without a ComfyUI, above stand-ins for what it imports."""

from __future__ import annotations

import importlib
import logging
import sys
import types
from unittest.mock import MagicMock

import pytest

import lumina_core
from lumina_core import weights
from lumina_core.convert import convert
from tests.nodes.test_help import ROOT

COMFY = (
    *("comfy", "comfy.lora", "comfy.model_management", "comfy.ops", "comfy.utils", "comfy.cli_args"),
    *(
        "comfy.model_patcher",
        "comfy_api",
        "comfy_api.latest",
        "comfy_execution",
        "comfy_execution.graph_utils",
    ),
    *("comfy_execution.utils", "folder_paths", "server"),
)


@pytest.fixture
def host(monkeypatch, tmp_path):
    for name in COMFY:
        monkeypatch.setitem(sys.modules, name, MagicMock())
    for name in COMFY:
        owner, _, leaf = name.rpartition(".")
        if owner:
            setattr(sys.modules[owner], leaf, sys.modules[name])
    sys.modules["comfy.ops"].disable_weight_init = weights.Bare
    sys.modules["comfy.model_management"].get_torch_device = lambda: "cpu"
    sys.modules["folder_paths"].models_dir = str(tmp_path)
    for name, path in (("extension", ROOT), ("extension.nodes", ROOT / "nodes")):
        package = types.ModuleType(name)
        package.__path__ = [str(path)]
        monkeypatch.setitem(sys.modules, name, package)
    sys.modules["extension"].lumina_core = lumina_core
    monkeypatch.setitem(sys.modules, "extension.lumina_core", lumina_core)
    for error in ("Checkpoint", "Input", "Lumina", "OutOfMemory", "Picture", "Precision"):
        known = getattr(lumina_core, f"{error}Error")
        monkeypatch.setattr(known, "__module__", known.__module__)  # the host's file changes it
    yield importlib.import_module("extension.nodes.host")
    for name in [n for n in sys.modules if n.startswith("extension.nodes.")]:
        del sys.modules[name]


def test_a_file_stored_small_is_held_once_and_called_what_it_is(host, tiny_folder, tmp_path, caplog):
    file = convert(tiny_folder, tmp_path / "small.safetensors", "int8")
    with caplog.at_level(logging.INFO):
        held = [host.hosted("small", file, p, ("state",), []) for p in ("nf4", "auto", "fp8", "int8", "nf4")]
    assert len({id(model) for model in held}) == 1
    [loaded] = [line for line in caplog.messages if "loaded small" in line]
    assert " as int8 in " in loaded
    told = [line.partition(" is ")[2] for line in caplog.messages if "is stored as" in line]
    assert told == [f"stored as int8; precision {p} is not applied" for p in ("nf4", "fp8")]


def test_float_files_are_held_in_each_kind_asked_for(host, tiny_folder, caplog):
    with caplog.at_level(logging.INFO):
        held = [host.hosted("tiny", tiny_folder, p, ("state",), []) for p in ("auto", "int8")]
    assert held[0] is not held[1]
    assert [" as float32 in " in line or " as int8 in " in line for line in caplog.messages] == [True, True]


def test_an_odd_precision_over_a_link_is_refused_by_name(host, tiny_folder):
    with pytest.raises(lumina_core.InputError, match="^precision is 'int3'; it may be auto, bf16"):
        host.hosted("tiny", tiny_folder, "int3", ("state",), [])


def test_a_text_goes_to_the_page_that_asked_and_holds_no_html(host):
    server = host.PromptServer.instance
    host.get_executing_context.return_value = types.SimpleNamespace(node_id="7.0.2")
    server.client_id = "page"
    host.show_on_node("<img src=x onerror=alert(1)> 1 < 2 & 3")
    server.send_progress_text.assert_called_once_with(
        "&lt;img src=x onerror=alert(1)&gt; 1 &lt; 2 &amp; 3", "7", "page"
    )
    server.client_id = None  # asked for by a program
    host.show_on_node("nobody sees this")
    server.send_progress_text.assert_called_once()
