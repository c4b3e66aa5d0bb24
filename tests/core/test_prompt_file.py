"""A file of prompts reads alike, however an editor saved it."""

from __future__ import annotations

import pytest

from lumina_core import prompt_file

LINES = '{"prompt": "a\u2028b\u0085c"}\n\n{"prompt": "d", "seed": 3}\n'


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_marks_in_front_and_ends_of_lines_do_not_matter(tmp_path, mark, end):
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(mark + LINES.replace("\n", end).encode())
    lines = prompt_file.read(file).lines
    assert [(line.number, line.prompt) for line in lines] == [(1, "a\u2028b\u0085c"), (3, "d")]
    assert lines[1].settings == {"seed": 3}
