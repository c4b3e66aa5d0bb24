"""One line for each of the six things that are promised: how many tests held it, over how many cases.

A test that goes through many generated cases says how many with `record_property("cases", n)`; it counts as one else.
"""

from __future__ import annotations

TOPICS = {  # file -> what it holds; a file's name begins with one of these
    "test_files": "files from anywhere",
    "test_faults": "faults",
    "test_endurance": "endurance",
    "test_numbers": "numbers stay right",
    "test_defaults": "safe defaults",
    "test_everywhere": "everywhere",
}


def pytest_terminal_summary(terminalreporter):
    lines = []
    for prefix, topic in TOPICS.items():
        counts = {"passed": 0, "failed": 0, "error": 0, "skipped": 0}
        cases = 0
        for outcome in counts:
            for report in terminalreporter.stats.get(outcome, []):
                if f"robustness/{prefix}" not in report.nodeid:
                    continue
                counts[outcome] += 1
                if outcome == "passed":
                    cases += dict(report.user_properties).get("cases", 1)
        if any(counts.values()):
            seen = ", ".join(f"{n} {outcome}" for outcome, n in counts.items() if n)
            lines.append(f"{topic}: {seen}, {cases} cases")
    if lines:
        terminalreporter.section("promises")
        for line in lines:
            terminalreporter.write_line(line)
