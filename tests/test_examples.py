"""What every example promises; that they run is checked by `make examples`."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
from pathlib import Path

import pytest

EXAMPLES = sorted(Path(__file__).parents[1].joinpath("examples").glob("[!_]*.py"))


@pytest.fixture(scope="module")
def common():
    spec = importlib.util.spec_from_file_location("_common", EXAMPLES[0].with_name("_common.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_command_line_and_end(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert f"python examples/{path.name} [--quick] [--out FOLDER]" in ast.get_docstring(tree)
    # as _common.parse(...) or, imported by name, parse(...)
    functions = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    called = {getattr(function, "attr", getattr(function, "id", None)) for function in functions}
    assert {"parse", "conclude"} <= called


def test_short_runs_have_their_own_folder(common, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, folder in (([], "runs/some"), (["--quick"], "runs/some-quick"), (["--out", "there"], "there")):
        monkeypatch.setattr("sys.argv", ["some.py", *words])
        given = common.parse("What it does.", "examples/some.py")
        assert given.out == Path(folder)
        assert given.out.is_dir()
        assert given.quick == ("--quick" in words)


def test_results_are_kept_as_text_and_in_full(common, tmp_path, capsys):
    given = argparse.Namespace(quick=True, out=tmp_path, began=0.0)
    row = {"|net|": "a", "n": 4045, "mu": (0.61234, 0.5612, 0.6733), "loss": 0.123456, "none": float("nan"), "ok": True}
    common.conclude(given, {"Exponents": [row]}, ["It agrees."])
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert text.splitlines()[:5] == [
        "## Exponents",
        "",
        "| &#124;net&#124; | n | mu | loss | none | ok |",
        "| --- | --- | --- | --- | --- | --- |",
        "| a | 4,045 | 0.612 [0.561, 0.673] | 0.123 | - | yes |",
    ]
    assert "It agrees." in text
    kept = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert kept["setting"] == "quick"
    assert kept["tables"]["Exponents"][0]["mu"] == [0.61234, 0.5612, 0.6733]
