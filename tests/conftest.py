"""Fixtures that several folders of tests share."""

from __future__ import annotations

import pytest

from lumina_core import Model, load
from tests import tiny

NO_HOST = "no ComfyUI found (COMFYUI_PATH, ~/comfy/ComfyUI, the folder above custom_nodes)"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A tiny random checkpoint in upstream's layout; read it, do not change it."""
    return tiny.build(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def tiny_model(tiny_folder) -> Model:
    return load(tiny_folder)


@pytest.fixture(scope="session")
def comfy():
    """The running ComfyUI, one for all tests that need it; see `tests.host.server`."""
    from tests.host.server import server

    found = server()
    if found is None:
        pytest.skip(NO_HOST)
    return found


def pytest_terminal_summary(terminalreporter):
    if any(NO_HOST in str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])):
        terminalreporter.write_line(f"tests in a real ComfyUI skipped: {NO_HOST}")
