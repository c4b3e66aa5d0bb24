"""The running server as a fixture; the schemas under test are those it reports."""

from __future__ import annotations

import pytest

from tests.host.server import NO_HOST, Comfy, say_skipped, server


@pytest.fixture(scope="session")
def comfy() -> Comfy:
    found = server()
    if found is None:
        pytest.skip(NO_HOST)
    return found


def pytest_terminal_summary(terminalreporter):
    say_skipped(terminalreporter)
