"""What a checkpoint was trained for: by its configuration, else by its name; and which checkpoints can do a task."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from .. import hub
from ..prompts import MGPT1, MGPT2, PURE
from ..unirep import UNIT

LARGEST = 1 << 15  # pixels a side that a configuration may name
NANO = Path(__file__).parent.parent / "nano"
FIRST = "nano-mgpt2"  # stands first in menus, so it is what a new node begins with
TEMPLATES = {"mgpt1": MGPT1, "mgpt2": MGPT2, "pure": PURE}
# What the released checkpoints can do that are no Omni ones: tasks that begin so.
PLAIN = {"mgpt1": ("text_to_image", "describe", "chat"), "mgpt2": ("text_to_image", "pair_")}
NAMED = {  # released checkpoints that a message names where they have the task
    "mgpt1": ("Lumina-mGPT-7B-768-Omni",),
    "mgpt2": ("Lumina-mGPT-2.0", "Lumina-mGPT-2.0-Omni"),
    "pure": ("PURE",),
}


def bundled() -> dict[str, Path]:
    """The checkpoints that ship inside, by name; the one to begin with is the first."""
    folders = sorted(p.parent for p in NANO.glob("*/config.json"))
    return {folder.name: folder for folder in sorted(folders, key=lambda folder: folder.name != FIRST)}


def tasks_of(family: str, name: str, config: Mapping) -> tuple[tuple[str, ...], str]:
    """Tasks a checkpoint of a family (its id) was trained for, and what says so."""
    every = tuple(TEMPLATES[family])
    said = config.get("tasks")
    if isinstance(said, list) and all(isinstance(t, str) for t in said):
        return tuple(said), "from the configuration"
    if family not in PLAIN:
        return every, "all of the family"
    if "omni" in name.lower():
        return every, "from the name: Omni"
    if is_released(family, name):
        plain = tuple(t for t in every if t.startswith(PLAIN[family]))
        return plain, "from the name; the rest needs the Omni checkpoint"
    return every, "of the family; neither configuration nor name tells which it was trained for"


def is_released(family: str, name: str) -> bool:
    """Whether a checkpoint has the name of a released one of the family (its id)."""
    return name in {r.repo.rpartition("/")[2] for r in hub.RELEASES.values() if r.family == family}


def side_of(family: str, name: str) -> int | None:
    """Pixels a side of the square that a released checkpoint is named after; None where it is named after none."""
    size = re.search(r"-(\d{3,4})(?:-|$)", name) if is_released(family, name) else None
    return int(size[1]) if size else None


def sizes_of(config: Mapping) -> tuple[tuple[int, int], ...]:
    """Sizes (width, height) in pixels of one panel that the configuration names, its own default first; or none."""
    said = config.get("picture_sizes")
    if not isinstance(said, list):
        return ()
    pairs = [tuple(size) for size in said if isinstance(size, list) and len(size) == 2]
    sound = (p for p in pairs if all(type(n) is int and 0 < n <= LARGEST and n % UNIT == 0 for n in p))
    return tuple(dict.fromkeys(sound))


def able(task: str) -> list[str]:
    """Checkpoints that can do a task: bundled ones that name it or what it is trained as, then released ones."""
    tables = {family: table for family, table in TEMPLATES.items() if task in table}
    names = []
    for name, folder in bundled().items():
        said = set(json.loads((folder / "config.json").read_text("utf-8")).get("tasks", ()))
        # Another family may have a task of the name it is trained as, but then tasks besides that this one lacks.
        if any(said <= table.keys() and said & {task, table[task].like} for table in tables.values()):
            names.append(f"the bundled {name}")
    released = ((family, name) for family in tables for name in NAMED[family])
    return names + [name for family, name in released if task in tasks_of(family, name, {})[0]]
