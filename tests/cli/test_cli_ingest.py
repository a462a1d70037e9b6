"""The command line door to ingest."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

import trajstats as ts
from trajstats.cli import main
from trajstats.cli._options import printable


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    for step in (1, 20):
        np.savez(
            tmp_path / "in" / f"step{step}.npz",
            **{"module.w": np.full((2, 2), step, "f4"), "module.b": np.ones(2, "f4")},
        )
    return tmp_path / "in"


def run(*arguments):
    return CliRunner().invoke(main, ["ingest", *(str(a) for a in arguments)])


def test_ingest(folder, tmp_path):
    done = run(folder, tmp_path / "out.zarr", "--strip", "module.", "--rename", "w=weight", "--replica", 3)
    assert done.exit_code == 0, done.output
    opened = ts.open_trajectory(tmp_path / "out.zarr")
    assert opened.layer.values.tolist() == ["b", "weight"]
    assert opened.step.values.tolist() == [1, 20]
    assert opened.replica.values.tolist() == [3]


def test_dry_run(folder, tmp_path):
    done = run(folder, tmp_path / "out.zarr", "--dry-run")
    assert done.exit_code == 0
    assert "steps 1 to 20" in done.output
    assert not (tmp_path / "out.zarr").exists()


def test_json_lists_what_was_done_and_found(folder, tmp_path):
    (folder / "step20.npz").write_bytes((folder / "step1.npz").read_bytes())
    done = run(folder, tmp_path / "out.zarr", "--json")
    facts = json.loads(done.stdout)
    assert facts["steps"] == [1, 20]
    assert facts["layers"] == {"b": [2], "w": [2, 2]}
    assert [finding["kind"] for finding in facts["findings"]] == ["identical"]
    assert facts["written"]


@pytest.mark.parametrize(
    ("arguments", "code"), [(("--rename", "x"), 2), (("--step-from", "("), 2), (("--step-from", "no"), 1)]
)
def test_mistakes_are_explained(folder, tmp_path, arguments, code):
    done = run(folder, tmp_path / "out.zarr", *arguments)
    assert done.exit_code == code
    assert "Error" in done.output
    assert "Traceback" not in done.output


def test_names_reach_no_terminal_unescaped():
    assert printable("\x1b]0;title\x07ok\n") == "\\x1b]0;title\\x07ok\n"


def test_follow_adds_what_comes_and_ends_when_idle(folder, tmp_path):
    done = run(folder, tmp_path / "out.zarr", "--follow", "--idle", "0.3", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["added"] == json.loads(done.stdout)["steps"]
    assert run(folder, tmp_path / "out.zarr", "--idle", "3").exit_code == 2
