"""The table of what several hosts measured; no ComfyUI needed."""

from __future__ import annotations

from tests.host.report import ROWS, Measured, table

FIGURES = {
    "version": ["0.3.64, torch 2.13.0"],
    "nodes": [[21, 21]],
    "workflows": [[True, 1], [False, 1]],
    "prefill": [[0.31, 1.0], [0.274, 1.1]],
    "drawing": [[0.3, 1.0], [1.2, 3.0]],
    "memory": [[500 << 20, 720 << 20, 504 << 20, 200 << 20]],
    "cancelled": [[512 << 20, 514 << 20]],
    "previews": [[2, 0.7], [9, 4.04]],
    "reloads": [0, 0],
}


def test_hosts_stand_side_by_side_and_what_nobody_measured_is_said():
    old = Measured(FIGURES, {"passed": 3, "failed": 1, "skipped": 0})
    new = Measured({"version": ["0.24.0, torch 2.13.0"], "reloads": [1, 2]}, {"passed": 2})
    lines = table([old, new]).splitlines()
    rows = {
        cells[1].strip(): [c.strip() for c in cells[2:-1]] for cells in (line.split("|") for line in lines)
    }
    assert lines[0] == "| ComfyUI | 0.3.64, torch 2.13.0 | 0.24.0, torch 2.13.0 |"
    assert lines[1] == "| --- | --- | --- |"
    assert rows["nodes imported"] == ["21 of 21", "not measured"]
    assert rows["workflows run"][0] == "1 of 2"
    assert rows["Cancel to idle: prefill"][0] == "0.31 s", "the longest counts"
    assert rows["Cancel to idle: drawing"][0] == "0.40 s (1.20 s on a machine 3.0 times slower)"
    assert rows[ROWS["memory"][0]][0] == "500 → 720 → 504 MiB, 2.0% of 200 MiB kept"
    assert rows[ROWS["cancelled"][0]][0] == "512 → 514 MiB"
    assert rows["previews per picture"][0] == "2 in 0.7 s; 9 in 4.0 s"
    assert rows["reloads on the second run"] == ["0", "3"]
    assert rows["tests"] == ["3 passed, 1 failed", "2 passed"]
    assert len(lines) == len(ROWS) + 2
