"""Imports go downward only, and frameworks stay outside the core."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = sorted((ROOT / "trajstats").rglob("*.py"))
# The layers from the bottom up; a module may import its own layer and those below it.
LAYERS = [
    ["errors", "threads", "heap"],
    ["network"],
    ["data"],
    ["estimators", "theory"],
    ["inference"],
    ["report"],
    ["cli"],
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            found.append(node.module or "")
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def layer_of(path: Path) -> str:
    part = path.relative_to(ROOT / "trajstats").parts[0]
    part = part.removesuffix(".py")
    return "cli" if part.startswith("cli") else part


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downward(path):
    if path == ROOT / "trajstats" / "__init__.py":
        return
    own = RANK[layer_of(path)]
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "trajstats" or len(parts) < 2:
            continue
        target = "cli" if parts[1].startswith("cli") else parts[1]
        if target in RANK:
            assert RANK[target] <= own, f"{path} imports {name}, which lies above it"


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_framework_and_no_trainers_in_the_core(path):
    for name in imports(path):
        assert name.split(".")[0] not in {"torch", "jax", "jaxlib", "flax", "trainers"}, f"{path} imports {name}"


def test_only_block_modules_of_the_estimators_import_dask():
    using = {
        path.name
        for path in (ROOT / "trajstats" / "estimators").glob("*.py")
        if any(name.split(".")[0] in {"dask", "distributed"} for name in imports(path))
    }
    assert {name for name in using if "blocks" not in name} == set()


def test_every_layer_is_ranked():
    top = {layer_of(path) for path in CORE} - {"__init__"}
    assert top <= set(RANK), f"unranked: {top - set(RANK)}"
