"""The command line: what it offers, what it prints, how it fails."""

from __future__ import annotations

import json

import numpy as np
from click.testing import CliRunner

import trajstats as ts
from trajstats.cli import main


def write(path):
    with ts.TrajectoryWriter(path, {"w": (2, 3)}) as writer:
        for step in (1, 10, 100):
            writer.append(step, np.full(6, step, "float32"), loss=1 / step)


def test_help_lists_own_and_installed_commands():
    shown = CliRunner().invoke(main, ["--help"])
    assert shown.exit_code == 0
    assert "info" in shown.output
    assert "demo" in shown.output


def test_every_command_has_help_with_an_example():
    context = main.make_context("trajstats", ["info", "x"])
    for name in main.list_commands(context):
        shown = CliRunner().invoke(main, [name, "--help"])
        assert shown.exit_code == 0, name
        assert "Example" in shown.output, name


def test_info(tmp_path):
    write(tmp_path / "run.zarr")
    shown = CliRunner().invoke(main, ["info", str(tmp_path / "run.zarr")])
    assert shown.exit_code == 0
    assert "3 checkpoints of 6 weights" in shown.output
    assert "steps 1 to 100" in shown.output


def test_info_json(tmp_path):
    write(tmp_path / "run.zarr")
    shown = CliRunner().invoke(main, ["info", "--json", str(tmp_path / "run.zarr")])
    facts = json.loads(shown.output)
    assert facts["checkpoints"] == 3
    assert facts["parameters"] == 6
    assert facts["series"] == ["loss"]


def test_missing_store_is_one_clear_line(tmp_path):
    shown = CliRunner().invoke(main, ["info", str(tmp_path / "nowhere.zarr")])
    assert shown.exit_code != 0
    assert "nowhere.zarr" in shown.output
    assert "Traceback" not in shown.output


def test_unknown_command():
    shown = CliRunner().invoke(main, ["analyse-all"])
    assert shown.exit_code == 2
    assert "No such command" in shown.output


def test_demo_names_what_is_missing(monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "jax" else found(name, *a))
    shown = CliRunner().invoke(main, ["demo"])
    assert shown.exit_code == 1
    assert "pip install 'trajstats[demo]'" in shown.output
