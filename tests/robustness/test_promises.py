"""The page of promises names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "tests" / "PROMISES.md").read_text("utf-8")
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
HEADINGS = [
    *("Files from anywhere", "Faults", "Endurance", "Numbers stay right"),
    *("Safe defaults", "Everywhere"),
]


def test_every_test_that_the_page_names_exists(record_property):
    named = NAMED.findall(PAGE)
    assert len(named) > 20
    for file, test in named:
        path = ROOT / file
        assert path.is_file(), f"{file} is named and not there"
        tree = ast.parse(path.read_text("utf-8"))
        tests = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
        assert test in tests, f"{file}::{test} is named and not there"
    record_property("cases", len(named))


def test_every_promise_names_its_test():
    assert re.findall(r"^## (.+)$", PAGE, re.M) == HEADINGS
    promises = re.findall(r"^- (.+?)(?=^- |^## |\Z)", PAGE, re.M | re.S)
    assert promises
    for promise in promises:
        assert NAMED.search(promise), f"no test holds: {promise[:80]}"
