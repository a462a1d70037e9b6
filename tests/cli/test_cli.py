"""The command line: what it offers, what it prints, how it fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import click
import numpy as np
import pytest
from click.testing import CliRunner

import trajstats as ts
from trajstats.cli import main
from trajstats.runtime._cluster import computing


def write(path):
    with ts.TrajectoryWriter(path, {"w": (2, 3)}) as writer:
        for step in (1, 10, 100):
            writer.append(step, np.full(6, step, "float32"), loss=1 / step)


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def store(tmp_path):
    write(tmp_path / "run.zarr")
    return tmp_path / "run.zarr"


def commands(group=main, prefix=()):
    context = click.Context(main, info_name="trajstats")
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*prefix, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*prefix, name))


def test_help_lists_own_and_installed_commands_and_exit_codes():
    shown = run("--help")
    assert shown.exit_code == 0
    for text in ("analyze", "completion", "demo", "fit", "info", "ingest", "validate", "130"):
        assert text in shown.output


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_every_command_has_help_with_an_example(words):
    shown = run(*words, "--help")
    assert shown.exit_code == 0
    assert "Example: " in shown.output or "Example:\n" in shown.output


def test_every_command_that_prints_has_json():
    # `demo` writes a page, `completion` a script, `fit` alone does nothing.
    for words in commands():
        if words[0] not in {"demo", "completion"} and words != ("fit",):
            assert "--json" in run(*words, "--help").output, words


def test_info(store):
    shown = run("info", store)
    assert shown.exit_code == 0
    assert "3 checkpoints of 6 weights, finished" in shown.output
    assert "steps 1 to 100" in shown.output


def test_info_json(store):
    facts = json.loads(run("info", "--json", store).output)
    assert facts["checkpoints"] == 3
    assert facts["parameters"] == 6
    assert facts["series"] == ["loss"]


def test_info_of_a_url():
    write("memory://cli-info.zarr")
    assert json.loads(run("info", "--json", "memory://cli-info.zarr").output)["last_step"] == 100


def test_sweeps_are_listed_and_validated(tmp_path):
    for width in (4, 8):
        with ts.TrajectoryWriter(tmp_path / f"w{width}.zarr", {"w": (width,)}, attrs={"width": width}) as writer:
            writer.append(7, np.zeros(width))
    facts = json.loads(run("info", "--json", tmp_path).output)
    assert [one["path"] for one in facts["runs"]] == ["w4", "w8"]
    assert facts["settings"]["width"] == [4, 8]
    assert "  width: 4, 8\n" in run("info", tmp_path).output
    assert run("validate", tmp_path).output.count("whole") == 2
    (tmp_path / "w8.zarr" / "zarr.json").write_text("{")
    for command in ("info", "validate"):
        shown = run(command, tmp_path)
        assert shown.exit_code == 3
        assert "w8" in shown.output


def test_missing_store_is_one_clear_line(tmp_path):
    for command in ("info", "validate"):
        shown = run(command, tmp_path / "nowhere.zarr")
        assert shown.exit_code == 1
        assert "nowhere.zarr" in shown.output
        assert "Traceback" not in shown.output


def test_unknown_command():
    shown = run("analyse-all")
    assert shown.exit_code == 2
    assert "No such command" in shown.output


def test_demo_names_what_is_missing(monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "jax" else found(name, *a))
    shown = run("demo")
    assert shown.exit_code == 1
    assert "pip install 'trajstats[demo]'" in shown.output


def test_validate_says_whole(store):
    shown = run("validate", store)
    assert shown.exit_code == 0
    assert "whole, 1 tiles read, finished" in shown.output


def test_validate_finds_every_damage_and_reads_on(tmp_path, store):
    bad = tmp_path / "bad.zarr"
    shutil.copytree(store, bad)
    tile = next(file for file in (bad / "weights" / "c").rglob("*") if file.is_file())
    raw = bytearray(tile.read_bytes())
    raw[-6] ^= 255
    tile.write_bytes(raw)
    shown = run("validate", "--json", bad, store)
    first, second = (json.loads(line) for line in shown.output.splitlines())
    assert shown.exit_code == 3
    assert not first["ok"]
    assert str(tile.relative_to(bad)) in first["damaged"][0]
    assert second["ok"]


def test_validate_names_a_broken_schema(tmp_path):
    import zarr

    write(tmp_path / "odd.zarr")
    zarr.open_group(tmp_path / "odd.zarr", mode="r+").attrs["schema_version"] = 99
    shown = run("validate", tmp_path / "odd.zarr")
    assert shown.exit_code == 3
    assert "99" in shown.output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell):
    if shell == "bash" and shutil.which("bash") is None:
        pytest.skip("no bash")
    shown = run("completion", shell)
    assert shown.exit_code == 0
    assert "_TRAJSTATS_COMPLETE" in shown.output


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "run.zarr"), "run.zarr: No space left on device"),
        (PermissionError(13, "Permission denied", "run.zarr"), "run.zarr: Permission denied"),
        (MemoryError("8 GiB"), "out of memory (8 GiB)"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (ts.StoreError("bad \x1b[31m name"), "bad \\x1b[31m name"),
    ],
)
def test_no_error_reaches_the_user_as_a_traceback(monkeypatch, store, error, said):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr("trajstats.data.store.open.open_trajectory", fail)
    shown = run("info", store)
    assert shown.exit_code == 1
    assert f"Error: {said}" in shown.output
    assert "Traceback" not in shown.output
    assert run("--traceback", "info", store).exception is error


def test_interruption_has_its_own_code_and_says_how_to_go_on(monkeypatch, store):
    def stop(*_args, **_options):
        error = KeyboardInterrupt()
        error.add_note("3 rows are safe")
        raise error

    monkeypatch.setattr("trajstats.data.store.open.open_trajectory", stop)
    shown = run("info", store)
    assert shown.exit_code == 130
    assert "Interrupted.\n3 rows are safe" in shown.output


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--version"], 0), (["info", "nowhere.zarr"], 1), (["info", "--no-such-option"], 2)]
)
def test_exit_codes_of_the_program(arguments, code):
    ended = subprocess.run([sys.executable, "-m", "trajstats.cli._main", *arguments], capture_output=True, text=True)
    assert ended.returncode == code
    assert "Traceback" not in ended.stderr
    assert bool(ended.stdout) == (code == 0)


class TestComputing:
    def test_workers(self, monkeypatch):
        import dask

        monkeypatch.setattr("trajstats.runtime._cluster._workers", lambda *_: {})  # whatever cores there are
        with computing(workers=2):
            assert dask.config.get("scheduler") == "threads"
            assert dask.config.get("num_workers") == 2
        with computing(workers=1):
            assert dask.config.get("scheduler") == "synchronous"
        assert dask.config.get("scheduler", None) is None

    def test_both_are_one_too_many(self, store, tmp_path):
        shown = run("fit", "decay", store, "--out", tmp_path / "o", "--workers", 2, "--scheduler", "tcp://127.0.0.1:1")
        assert shown.exit_code == 2
        assert "not both" in shown.output

    @pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense://x", "127.0.0.1"])
    def test_an_unreachable_scheduler_is_told(self, store, tmp_path, address, monkeypatch):
        pytest.importorskip("distributed")
        monkeypatch.setattr("trajstats.runtime._cluster.CONNECT_SECONDS", 1)
        shown = run("fit", "decay", store, "--out", tmp_path / "out", "--scheduler", address)
        assert shown.exit_code == 1
        assert f"no dask scheduler answers at '{address}'" in shown.output

    def test_a_cluster_is_used(self):
        distributed = pytest.importorskip("distributed")
        import dask

        with distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster:
            with computing(cluster.scheduler_address):
                name = dask.delayed(lambda: distributed.get_worker().address)().compute()
            assert name == next(iter(cluster.scheduler.workers))
