"""The house rules that a reader of the syntax tree can hold: import directions, the host boundary, no prints."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOST_MODULES = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "server", "execution", "latent_preview"}
LIBRARY = ROOT / "lumina_core"
PUBLIC = "__init__"  # stands for the public names of the library
MAY_IMPORT = {  # every module of lumina_core -> modules of lumina_core it may import; `errors` is open to all
    "errors": set(),
    "cache": set(),
    "int8": {"devices"},
    "packed": {"devices"},
    "fused": {"int8", "packed"},
    "norms": set(),
    "transformer": {"cache", "fused", "norms"},
    "unirep": set(),
    "text": set(),
    "files": set(),
    "shortage": set(),
    "documents": set(),
    "pickles": {"documents"},
    "weights": {"documents", "pickles"},
    "nf4": set(),
    "quant": {"nf4"},
    "lora": {"weights", "documents", "files", "quant", "nf4"},
    "checkpoint": {"weights", "documents", "hub", "text", "transformer"},
    "color": set(),
    "hub": {"files"},
    "fetching": {"files", "hub"},
    "prompts": {"text", "unirep"},
    "image": {"unirep"},
    "tiles": {"unirep"},
    "regions": {"prompts", "unirep"},
    "placement": {"image"},
    "segments": {"image"},
    "boxes": set(),
    "request": {"families", "sampling", "placement", "prompts", "image", "unirep"},
    "detection": {"families", "request", "boxes", "image", "unirep"},
    "vq": {"vq", "shortage"},
    "sampling": {"sampling", "unirep", "shortage"},
    "families": {
        *("families", "transformer", "vq", "unirep", "prompts", "text", "image"),
        *("weights", "checkpoint", "quant", "hub", "files", "shortage"),
    },
    "devices": set(),
    "sheet": set(),
    "memory": {"cache", "sampling", "transformer", "unirep", "vq"},
    "convert": {"checkpoint", "families", "files", "quant", "shortage", "weights"},
    "inspection": {"checkpoint", "families", "files", "memory", "quant", "transformer", "vq", "weights"},
    "chat": {"families", "prompts", "sampling", "text", "unirep"},
    "rating": {"chat", "families", "prompts", "sampling", "unirep"},
    "restoration": {"color", "families", "image", "prompts", "sampling", "tiles", "unirep"},
    "prompt_file": {"sampling"},
    "many": {"families", "files", "image", "prompt_file", "prompts", "sampling", "unirep"},
    "demo": {"families", "request", "sheet", "text", "training"},
    "training": {
        *("training", "families", "transformer", "vq", "unirep", "prompts", "text", "sampling", "boxes"),
        *("devices", "files", "pickles"),
    },
    "conformance": {
        *("conformance", "families", "transformer", "vq", "unirep", "prompts", "text", "sampling", "image"),
        *("color", "training", "documents", "files"),
    },
    "bench": {
        *("bench", PUBLIC, "families", "transformer", "vq", "unirep", "prompts", "sampling", "weights"),
        *("quant", "memory", "devices", "files"),
    },
    "commands": {
        *(PUBLIC, "many", "prompt_file", "sampling", "devices", "files"),
        *("bench", "conformance", "convert", "demo", "hub", "inspection", "training"),
    },
    "talk": {PUBLIC, "commands", "image", "many"},
    "task": {PUBLIC, "commands", "talk", "files", "many"},
    "cli": {
        *(PUBLIC, "commands", "talk", "task", "prompt_file", "shortage"),
        *("bench", "convert", "hub", "restoration", "training"),
    },
    "__main__": {"cli"},
    PUBLIC: {
        *("chat", "detection", "families", "fetching", "hub", "image", "lora", "memory", "prompts", "quant"),
        *("rating", "regions", "request", "restoration", "sampling", "segments", "unirep"),
    },
}
NODES_MAY_IMPORT = {  # the files under the nodes; none of them knows a node
    "preview": set(),
    "host": {"preview"},
    "folders": {"host"},
    "jobs": {"host"},
    "sockets": {"host", "folders"},
}


def sources(*folders: str) -> list[Path]:
    return sorted(p for folder in folders for p in (ROOT / folder).rglob("*.py"))


def imports(file: Path) -> list[tuple[int, str]]:
    """(level, module) of every import that runs; those only for type checkers do not."""
    tree = ast.parse(file.read_text("utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.module is None:
                found += [(node.level, alias.name) for alias in node.names]
            else:
                found.append((node.level, node.module))
    return found


def inner_module(file: Path, level: int, module: str) -> str | None:
    """The first part, below lumina_core, of what a relative import names; `PUBLIC` where that is no module."""
    package = file.relative_to(ROOT).parts[:-1]
    target = [*package[: len(package) - (level - 1)], *module.split(".")]
    if target[0] != "lumina_core" or len(target) == 1:
        return None
    is_module = (LIBRARY / f"{target[1]}.py").exists() or (LIBRARY / target[1]).is_dir()
    return target[1] if is_module else PUBLIC


@pytest.mark.parametrize("file", sources("lumina_core"), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_library_never_imports_the_host_or_the_nodes(file):
    for level, module in imports(file):
        first = module.split(".")[0]
        assert level or first not in HOST_MODULES | {"nodes", "lumina_core"}, f"{file} imports {module}"
        if level:
            package = file.relative_to(ROOT).parts[:-1]
            assert level <= len(package), f"{file} reaches out of lumina_core: {module}"


@pytest.mark.parametrize("file", sources("lumina_core"), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_inside_the_library_keep_their_direction(file):
    part = file.relative_to(LIBRARY).parts[0].removesuffix(".py")
    assert part in MAY_IMPORT, f"{part} is not listed in MAY_IMPORT"
    for level, module in imports(file):
        if level:
            target = inner_module(file, level, module)
            assert target is None or target in MAY_IMPORT[part] | {"errors"}, f"{file} imports {target}"


@pytest.mark.parametrize("file", sources("nodes"), ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_host_file_imports_comfyui_and_nodes_use_public_names(file):
    for level, module in imports(file):
        first = module.split(".")[0]
        if file.name != "host.py":
            assert level or first not in HOST_MODULES, f"{file} imports {module}"
        assert not module.startswith("lumina_core."), f"{file} reaches into {module}"
        assert level or first not in {"lumina_core", "nodes"}, f"{file} imports {module} absolutely"


@pytest.mark.parametrize("part", NODES_MAY_IMPORT)
def test_what_nodes_stand_on_does_not_import_them(part):
    for level, module in imports(ROOT / "nodes" / f"{part}.py"):
        if level == 1:
            assert module in NODES_MAY_IMPORT[part], f"{part} imports {module}"


@pytest.mark.parametrize("file", sources("lumina_core", "nodes"), ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_prints_but_the_command_line(file):
    calls = [n for n in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(n, ast.Call)]
    printing = [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
    assert not printing or file.name == "cli.py"


def test_a_forbidden_import_would_be_seen(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import server\nimport comfy.utils\n"
    )
    assert imports(bad) == [(0, "typing"), (0, "comfy.utils")]
