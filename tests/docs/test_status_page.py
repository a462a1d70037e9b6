"""The page on status, flags and errors lists every word that the code can give, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from trajstats import errors

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "status-flags-errors.md"
INFERENCE = ROOT / "trajstats" / "inference"
# functions whose returned text becomes a flag
WORDED = {"structured", "overlap_gap", "runs_into", "clock_flag"}
STATUSES = {"ok", "not converged", "not identified", "structured residuals"}


def template(node: ast.expr) -> str:
    """The fixed words of a text, with … for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return ""


def texts(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant | ast.JoinedStr):
        if word := template(node):
            yield word
    elif isinstance(node, ast.List | ast.Tuple):
        for part in node.elts:
            yield from texts(part)
    elif isinstance(node, ast.ListComp | ast.GeneratorExp):
        yield from texts(node.elt)
    elif isinstance(node, ast.IfExp):
        yield from texts(node.body)
        yield from texts(node.orelse)


def flags_in(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "append":
            if isinstance(node.func.value, ast.Name) and node.func.value.id in ("flags", "words"):
                yield from texts(node.args[0])
        elif isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            named = [t.elts if isinstance(t, ast.Tuple) else [t] for t in targets]
            if any(isinstance(t, ast.Name) and t.id == "flags" for group in named for t in group):
                value = node.value
                # flags, status = [...], "ok"
                # rows, flags = np.ones(...), []
                pair = isinstance(value, ast.Tuple) and isinstance(node, ast.Assign) and len(named[0]) > 1
                yield from texts(value.elts[0] if pair else value)
        elif isinstance(node, ast.FunctionDef) and node.name in WORDED:
            for inner in ast.walk(node):
                if isinstance(inner, ast.Return | ast.Assign | ast.AugAssign) and inner.value is not None:
                    yield from (word for word in texts(inner.value) if " " in word)


def every_flag() -> set[str]:
    return {
        flag
        for path in sorted(INFERENCE.rglob("*.py"))
        for flag in flags_in(ast.parse(path.read_text(encoding="utf-8")))
        if flag.strip("… ")
    }


def listed(heading: str) -> list[str]:
    part = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^### `` (.+) ``$", part, re.MULTILINE) or re.findall(r"^\| `([^`]+)` \|", part, re.MULTILINE)


def test_every_flag_is_on_the_page_and_no_other():
    assert len(every_flag()) > 25
    assert sorted(listed("Flags of a fit")) == sorted(every_flag())


def test_every_status_is_on_the_page_and_no_other():
    quoted = set(re.findall(r'``"([^`]+)"``', (INFERENCE / "results.py").read_text(encoding="utf-8")))
    assert quoted >= STATUSES
    assert listed("Status of a fit") == ["ok", "not converged", "not identified", "structured residuals"]
    for path in INFERENCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "status" for t in node.targets):
                assert set(texts(node.value)) <= STATUSES, path.name
    assert {"failed: …", "missing"} <= set(listed("Status of a row of a batch or sweep"))


def test_every_kind_of_error_is_on_the_page_and_no_other():
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert sorted(listed("Errors")) == sorted(kinds)
