"""Fixtures that several folders of tests share."""

from __future__ import annotations

import pytest

from lumina_core import Model, load
from tests import tiny


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A tiny random checkpoint in upstream's layout; read it, do not change it."""
    return tiny.build(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def tiny_model(tiny_folder) -> Model:
    return load(tiny_folder)
