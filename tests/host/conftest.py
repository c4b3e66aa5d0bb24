"""What tests of a host measured: a table at the end of the run, and JSON where HOST_REPORT names a file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.host.report import Measured, table

PREFIX = "host: "


@pytest.fixture
def figure(comfy, record_property) -> Callable[[str, object], None]:
    """Notes a figure for the report under the name of one of its rows."""
    record_property(PREFIX + "version", versions(comfy))
    return lambda row, value: record_property(PREFIX + row, value)


def versions(comfy) -> str:
    system = comfy.get("/system_stats")["system"]
    return f"{system['comfyui_version']}, torch {system['pytorch_version']}"


def pytest_terminal_summary(terminalreporter):
    found = Measured()
    for outcome in ("passed", "failed", "error", "skipped"):
        reports = terminalreporter.stats.get(outcome, [])
        found.tests[outcome] = len(reports)
        for name, value in (pair for report in reports for pair in report.user_properties):
            if name.startswith(PREFIX):
                found.figures.setdefault(name.removeprefix(PREFIX), []).append(value)
    if not found.figures:
        return
    terminalreporter.section("in ComfyUI")
    terminalreporter.write_line(table([found]))
    if file := os.environ.get("HOST_REPORT"):
        Path(file).write_text(json.dumps(vars(found)), "utf-8")
