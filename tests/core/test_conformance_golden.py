"""The golden cases in `tests/data/golden` hold, and the runner tells when one does not."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lumina_core import InputError, Sampling, conformance, load
from lumina_core.conformance import distribution
from lumina_core.conformance.case import Case
from lumina_core.prompts import Prompt
from tests.core import checkpoints as ck

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
CASES = json.loads((GOLDEN / "index.json").read_text("utf-8"))["cases"]


@pytest.mark.parametrize("entry", CASES, ids=[c["id"] for c in CASES])
def test_golden_case_holds(entry):
    conformance.run_case(Case(GOLDEN, entry))


def only(folder: Path, *kinds: str, **changes) -> list[dict]:
    """A copy of the golden set with the cases of some kinds alone, each changed."""
    shutil.copytree(GOLDEN, folder)
    cases = [dict(c, **changes) for c in CASES if c["kind"] in kinds]
    (folder / "index.json").write_text(json.dumps({"cases": cases}))
    return cases


def report_of(folder: Path) -> tuple[tuple[int, int, int], list[str]]:
    lines: list[str] = []
    return conformance.run(folder, lines.append), lines


def test_a_changed_expectation_fails_with_one_line_that_says_what_and_where(tmp_path):
    [case] = only(tmp_path / "g", "dynamic_top_k")
    file = tmp_path / "g" / case["files"]["case"]
    data = json.loads(file.read_text())
    data["tables"][0]["table"][4][1] += 1
    file.write_text(json.dumps(data))
    counts, lines = report_of(tmp_path / "g")
    assert counts == (0, 1, 0)
    right = data["tables"][0]["table"][4][1] - 1
    assert lines == [
        f"FAILED {case['id']}: tables[0][4]: expected {right + 1}, got {right} (lengths 35, 35)",
        "0 passed, 1 failed",
    ]


def test_names_of_cases_and_sets_decide_nothing(tmp_path):
    cases = only(tmp_path / "g", "crop_size_list", "unirep", id="anything")
    counts, lines = report_of(tmp_path / "g")
    assert counts == (len(cases), 0, 0)
    assert lines == [f"{len(cases)} passed, 0 failed"]


def test_the_family_of_a_case_counts(tmp_path):
    only(tmp_path / "g", "vq_model", family="pure")
    counts, lines = report_of(tmp_path / "g")
    assert counts == (0, 1, 0)
    assert "PURE" in lines[0]


def test_unknown_kinds_and_upstreams_speculative_mode_are_skipped_with_a_reason(tmp_path):
    entries = [
        {"id": "a", "kind": "sjd_accept", "files": {}},
        {"id": "b", "kind": "something new", "files": {}},
    ]
    (tmp_path / "index.json").write_text(json.dumps({"cases": entries}))
    counts, lines = report_of(tmp_path)
    assert counts == (0, 0, 2)
    assert lines[0].startswith("skipped a: ") and "not offered" in lines[0]
    assert lines[1] == "skipped b: the kind 'something new' is not known"
    assert lines[2:] == ["2 skipped", "0 passed, 0 failed"]


def test_a_case_without_its_files_fails_and_the_next_one_still_runs(tmp_path):
    cases = only(tmp_path / "g", "crop_size_list", "dynamic_top_k")
    (tmp_path / "g" / cases[0]["files"]["case"]).unlink()
    counts, lines = report_of(tmp_path / "g")
    assert counts == (1, 1, 0)
    assert "FileNotFoundError" in lines[0]


def test_a_folder_without_an_index_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no index.json"):
        conformance.run(tmp_path, print)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return load(ck.build(tmp_path_factory.mktemp("toy") / "m", "mgpt1"))


def open_prompt(model) -> Prompt:
    v = model.vocabulary
    tokens = (v.bos, 300, *v.header((1, 1)), int(v.code_ids[5]))
    return Prompt("mgpt1", "case", tokens, "image", (1, 1), open_at=2)


@pytest.mark.parametrize("cfg", [1.0, 2.5])
def test_draws_of_the_engine_fit_the_enumerated_distribution_and_those_of_another_do_not(toy, cfg):
    prompt, s = open_prompt(toy), Sampling(cfg=cfg, image_top_k=4, temperature=1.5, batch=500)
    expected = distribution.joint(toy.transformer, toy.vocabulary, prompt, s, 2)
    assert sum(expected.values()) == pytest.approx(1)
    right = distribution.fit(toy.transformer, toy.vocabulary, prompt, s, expected, 3000, 0)
    cold = replace(s, temperature=0.5)
    wrong = distribution.fit(toy.transformer, toy.vocabulary, prompt, cold, expected, 3000, 0)
    assert right > 1e-3
    assert wrong < 1e-6


def test_draws_with_entropy_top_k_fit_the_enumerated_distribution(toy):
    prompt = replace(open_prompt(toy), entropy_top_k=(2, 60))
    s = Sampling(cfg=0.8, temperature=0.9, batch=500)
    expected = distribution.joint(toy.transformer, toy.vocabulary, prompt, s, 2)
    fixed = distribution.joint(toy.transformer, toy.vocabulary, replace(prompt, entropy_top_k=None), s, 2)
    assert len(expected) != len(fixed)
    assert distribution.fit(toy.transformer, toy.vocabulary, prompt, s, expected, 3000, 0) > 1e-3


def test_chi_square_of_a_fair_and_of_a_loaded_die():
    die = {(i,): 1 / 6 for i in range(6)}
    fair = Counter({(i,): 100 + d for i, d in enumerate((3, -4, 5, -6, 2, 0))})
    loaded = Counter({(i,): n for i, n in enumerate((160, 88, 88, 88, 88, 88))})
    assert distribution.chi_square_p(fair, die) == pytest.approx(0.970, abs=0.002)
    assert distribution.chi_square_p(loaded, die) < 1e-5


def test_forced_tokens_take_no_part_in_a_joint(toy):
    v = toy.vocabulary
    prompt = replace(open_prompt(toy), tokens=(v.bos, *v.header((1, 1)), int(v.code_ids[5])), open_at=1)
    got = distribution.joint(toy.transformer, v, prompt, Sampling(cfg=1.0, image_top_k=2), 2)
    codes = set(v.code_ids.tolist())
    assert all(set(ids) <= codes for ids in got) and len(got) == 4
    assert torch.tensor(list(got.values())).sum() == pytest.approx(1)
