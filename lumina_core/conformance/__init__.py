"""Holds the library against golden cases: an `index.json` with inputs and what upstream's programs made of them.

Nothing is taken from names of files or cases; only kind, family, files and contents count, so that cases nobody has
seen run as well. The kinds and their fields are those of the published set's own index.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..documents import read_json
from ..errors import InputError, LuminaError
from ..files import user_path
from . import decoding, distribution, geometry, networks, speculative, texts
from .case import Case, Mismatch, Skipped

KINDS: dict[str, Callable[[Case], None]] = {
    "crop_size_list": geometry.crop_size_list,
    "var_center_crop": geometry.var_center_crop,
    "crop_pixels": geometry.crop_pixels,
    "whiten": geometry.whiten,
    "color_fix": geometry.color_fix,
    "state_dict_layout": networks.state_dict_layout,
    "vq_model": networks.vq_model,
    "transformer": networks.transformer,
    "train_loss": networks.train_loss,
    "prompt_encoding": texts.prompt_encoding,
    "unirep": texts.unirep,
    "logits_pipeline": decoding.logits_pipeline,
    "dynamic_top_k": decoding.dynamic_top_k,
    "end_to_end_greedy": decoding.end_to_end_greedy,
    "exact_distribution": distribution.exact_distribution,
    "sjd_window": speculative.sjd_window,
    "sjd_accept": speculative.sjd_accept,
    "top_n_sigma": speculative.top_n_sigma,
}

__all__ = ["KINDS", "run"]


def run(
    folder: str | Path,
    report: Callable[[str], None],
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> tuple[int, int, int]:
    """Runs every case of `folder`/index.json; numbers of passed, failed and skipped cases.

    `report` is given a line for each failed case (what was expected, what came, where), one for each skipped case
    with the reason, and the summary last; `progress(done, total)` counts cases. Without an index: `InputError`.
    """
    folder = user_path(folder)
    if not (folder / "index.json").is_file():
        raise InputError(f"There is no index.json in {folder}; a folder of golden cases has one.")
    index = read_json(folder / "index.json")
    passed, failed, skipped = 0, 0, []
    cases = index.get("cases", [])
    if not isinstance(cases, list) or not all(isinstance(entry, dict) for entry in cases):
        raise InputError(f"{folder / 'index.json'}: 'cases' is no list of objects.")
    for done, entry in enumerate(cases, 1):
        name = entry.get("id", entry.get("kind"))
        try:
            run_case(Case(folder, entry))
            passed += 1
        except Skipped as e:
            skipped.append(f"skipped {name}: {e}")
        except (Mismatch, LuminaError) as e:
            failed += 1
            report(f"FAILED {name}: {_line(e)}")
        except Exception as e:  # a case that trips the code is a failed case, and the others still run
            failed += 1
            report(f"FAILED {name}: {type(e).__name__}: {_line(e)}")
        progress(done, len(cases))
    for line in skipped:
        report(line)
    if skipped:
        report(f"{len(skipped)} skipped")
    report(f"{passed} passed, {failed} failed")
    return passed, failed, len(skipped)


def run_case(case: Case) -> None:
    """Runs one case; `Mismatch` says what differs, `Skipped` why it does not apply."""
    check = KINDS.get(case.kind)
    if check is None:
        raise Skipped(f"the kind '{case.kind}' is not known")
    check(case)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
