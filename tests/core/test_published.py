"""What was published and a checkpoint relies on, as literals: token numbers, the words of tasks, settings."""

from __future__ import annotations

from dataclasses import astuple

import pytest

from lumina_core.prompts import MGPT2, fill
from tests.core import checkpoints as ck
from tests.core.test_families import ALL, source

MAPS = {"depth": "depth map", "canny": "canny edge map", "hed": "hed edge map", "pose": "pose estimation map"}


@pytest.mark.parametrize(
    ("family", "size", "codes", "numbers"),
    [
        ("mgpt1", 65536, 64, (8197, 8196, 8803, 8805, 8932)),
        ("pure", 73728, 64, (8197, 8196, 8803, 8805, 8932)),
        ("mgpt2", 171385, 16384, (151665, 151666, 151670, 151672, 151799)),
    ],
)
def test_what_a_full_sized_tokenizer_does_not_name_has_its_published_number(family, size, codes, numbers):
    separator = [] if family != "mgpt2" else ck.CONTROL[3:]
    names = [name for name in ck.token_names(family, sizes=0) if name not in ck.CONTROL]
    v = ALL[family].vocabulary(source([*names, *separator], vocab_size=size), codes)
    assert (v.image_start, v.image_end, v.row_end, v.grid[1], v.grid[128]) == numbers
    if family == "mgpt2":
        assert (int(v.code_ids[0]), int(v.code_ids[-1])) == (155000, 171383)
    else:
        assert v.separator == 8710


@pytest.mark.parametrize(("task", "name"), MAPS.items())
def test_the_maps_of_2_0_are_asked_for_in_the_published_words(task, name):
    words = (
        "Generate a dual-panel image of 96x64 where the <{}> displays a <{}>, while the <{}> retains the original "
        "image for direct visual comparison:\na cat"
    )
    lower, upper = (
        words.format("lower half", name, "upper half"),
        words.format("upper half", name, "lower half"),
    )
    for key, wanted in ((task, lower), (f"pair_{task}", lower), (f"control_{task}", upper)):
        assert fill(MGPT2[key].text, "a cat", (2, 3)) == wanted


@pytest.mark.parametrize(
    ("task", "shown"), [("edit", "the original image"), ("subject_described", "a clock")]
)
def test_edits_and_subjects_of_2_0_are_asked_for_in_the_words_of_its_report(task, shown):
    assert fill(MGPT2[task].text, "a cat", (2, 3), "a clock") == (
        f"Generate a dual-panel image of 96x64 where the <upper half> displays: {shown}, while the <lower half> "
        "shows the image according to the object and following prompt: a cat."
    )


@pytest.mark.parametrize(
    ("family", "task", "settings"),
    [
        ("mgpt1", "text_to_image", (4.0, 2000, 10, 1.0, 8192)),
        ("mgpt1", "edit", (1.0, 200, 5, 1.0, 5000)),
        ("mgpt1", "chat", (1.0, 2000, 5, 1.0, 2048)),
        ("mgpt1", "describe", (4.0, 2000, 10, 1.0, 8192)),
        ("mgpt2", "text_to_image", (4.0, 4096, 10, 1.0, 10240)),
        ("mgpt2", "control_depth", (4.0, 4096, 10, 1.0, 10240)),
        ("pure", "restore", (0.8, 2000, 1, 0.9, 8192)),
    ],
)
def test_guidance_top_k_temperature_and_length_are_the_recommended_ones(family, task, settings):
    assert astuple(ALL[family].defaults_for(task)) == settings
