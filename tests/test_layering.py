"""The house: imports go one way, rooms stay small, private modules say so, dask stays where tasks are made."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

import trajstats

ROOT = Path(__file__).parents[1]
CORE = sorted((ROOT / "trajstats").rglob("*.py"))
TRAINERS = sorted((ROOT / "trainers" / "trajstats_trainers").rglob("*.py"))
# The layers from the bottom up, the longest prefix of a module's path decides; a module may import its own layer and
# those below it.
LAYERS = [
    ["errors"],
    ["network", "runtime"],
    ["data", "data.safety"],
    ["data.store"],
    ["data.formats", "data.hub", "data.sweep", "data.synthetic"],
    ["data.ingest"],
    ["theory"],
    ["estimators.linalg", "estimators._checkpoints", "estimators._checkpoint_buffers", "estimators._layer_order"],
    ["estimators"],
    ["inference"],
    ["inference.sampling", "inference.batch"],
    ["inference.aging", "inference.transition", "inference.decay", "inference.response"],
    ["report"],
    ["cli"],
]
RANK = {f"trajstats.{name}": rank for rank, names in enumerate(LAYERS) for name in names}
MODULES_IN_A_ROOM = 15
LINES = 400
DASK = (
    "trajstats.runtime.",
    "trajstats.data.store.open",
    "trajstats.data.sweep.",
    "trajstats.inference.batch.",
    "trajstats.report.",
)


def module_of(path: Path) -> str:
    """Return the dotted name of a module of one of the two packages."""
    base = ROOT / "trainers" if "trajstats_trainers" in path.parts else ROOT
    return ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Return every module that a file imports from, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module or "" for name in names}
    return found


MODULES = {module_of(path): path for path in [*CORE, *TRAINERS]}


def rank(module: str) -> int | None:
    """Return the layer of a module of the core."""
    while module and module not in RANK:
        module = module.rpartition(".")[0]
    return RANK.get(module)


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downward(path):
    module = module_of(path)
    if module == "trajstats":
        return
    own = rank(module)
    assert own is not None, f"{module} has no layer"
    for name in imports(path):
        other = rank(name)
        if name.startswith("trajstats.") and other is not None:
            assert other <= own, f"{module} imports {name}, which lies above it"


def test_no_circles():
    """No module reaches itself, not even by imports inside functions."""
    edges = {module: {name for name in imports(path) if name in MODULES} for module, path in MODULES.items()}
    done: set[str] = set()

    def walk(module, trail):
        assert module not in trail, "circle: " + " -> ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for name in sorted(edges[module] - {module}):
                walk(name, [*trail, module])
            done.add(module)

    for module in edges:
        walk(module, [])


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_framework_and_no_trainers_in_the_core(path):
    for name in imports(path):
        top = name.split(".")[0]
        if module_of(path) == "trajstats":
            assert top not in {"torch", "jax", "jaxlib", "flax"}
        else:
            assert top not in {"torch", "jax", "jaxlib", "flax", "trajstats_trainers"}, f"{path} imports {name}"


def test_dask_is_imported_only_where_tasks_are_made():
    using = {
        module
        for module, path in MODULES.items()
        if module.startswith("trajstats.")
        and any(name.split(".")[0] in {"dask", "distributed"} for name in imports(path))
    }
    assert {m for m in using if not m.startswith(DASK) and "_dask_" not in m} == set()


def test_rooms_and_modules_stay_small():
    rooms = Counter(path.parent for path in MODULES.values() if path.name != "__init__.py")
    assert {str(room): n for room, n in rooms.items() if n > MODULES_IN_A_ROOM} == {}
    long = {module: n for module, path in MODULES.items() if (n := len(path.read_text("utf-8").splitlines())) > LINES}
    assert long == {}


def test_a_module_without_a_public_name_starts_with_an_underscore():
    public = set(trajstats._MODULES)
    for module, path in MODULES.items():
        if path.name in {"__init__.py", "__main__.py"} or not module.startswith("trajstats."):
            continue
        private = any(part.startswith("_") for part in module.split("."))
        documented = any(module == name or module.startswith(name + ".") for name in public)
        assert private != documented or module.startswith(("trajstats.report.plots.", "trajstats.theory.")), module
