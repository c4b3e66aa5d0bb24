"""Nodes without a ComfyUI, above a stand-in for `nodes/host.py`."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from unittest.mock import MagicMock

import pytest

import lumina_core

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """Imports a file of `nodes/` by its name; the model folders are those in `tmp_path`."""
    host = types.ModuleType("extension.nodes.host")
    host.__getattr__ = lambda name: MagicMock()
    host.io = MagicMock(ComfyNode=object, NodeOutput=lambda *values: values)
    host.FOLDER, host.watched = "lumina_mgpt", iter
    host.for_output = lambda tensor: tensor
    host.list_folders = lambda kind: [str(tmp_path / kind)]
    host.find_file = lambda kind, name: str(tmp_path / kind / name)
    for name, path in (("extension", ROOT), ("extension.nodes", ROOT / "nodes")):
        package = types.ModuleType(name)
        package.__path__ = [str(path)]
        monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setitem(sys.modules, "extension.lumina_core", lumina_core)
    monkeypatch.setitem(sys.modules, "extension.nodes.host", host)
    yield lambda name: importlib.import_module(f"extension.nodes.{name}")
    for name in [n for n in sys.modules if n.startswith("extension.nodes.")]:
        del sys.modules[name]
