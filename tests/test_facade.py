"""The facade: names that type checkers see, and the names of the package of trainers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import trajstats as ts

STUB = Path(ts.__file__).with_suffix(".pyi")
MISTAKES = """
import xarray as xr
import trajstats as ts

def right(run: xr.Dataset) -> ts.FitResult:
    pairs = ts.time_pairs(run, waiting_time=[100], lags_per_decade=8)
    return ts.fit_subaging(ts.msd(run, pairs), rng=0)

def wrong(run: xr.Dataset, pairs: xr.Dataset, delta: xr.DataArray) -> None:
    ts.mds(run, pairs)
    ts.msd(run, pairs, foo=1)
    ts.fit_subaging(delta)
"""


def stub() -> str:
    """Return the stub of the facade, from its own list and the modules in which its names are defined."""
    homes = {name: getattr(getattr(ts, name), "__module__", None) or ts._HOME[name] for name in ts.__all__}
    homes |= {name: module for name, (module, _) in ts._TRAINERS.items()}
    lines = [
        f"from {home} import {name} as {name}" for name, home in sorted(homes.items(), key=lambda pair: pair[::-1])
    ]
    return "\n".join(["from trajstats import theory as theory", *lines, "", "__version__: str", ""])


def test_the_stub_holds_the_names_of_the_facade():
    assert STUB.read_text(encoding="utf-8") == stub(), "run: python tests/test_facade.py"


def test_a_type_checker_sees_typos_wrong_keywords_and_missing_seeds(tmp_path):
    pytest.importorskip("mypy")
    file = tmp_path / "script.py"
    file.write_text(MISTAKES)
    root = STUB.parents[1]
    command = [sys.executable, "-m", "mypy", "--config-file", str(root / "pyproject.toml"), str(file)]
    told = subprocess.run(command, capture_output=True, text=True, cwd=root).stdout
    lines = [line for line in told.splitlines() if "error:" in line and "script.py" in line]
    assert [int(line.split(":")[1]) for line in lines] == [10, 11, 12], told
    for line, words in zip(lines, ('"mds"', '"foo"', '"rng"'), strict=True):
        assert words in line


@pytest.mark.parametrize("name", ts._TRAINERS)
def test_networks_and_the_recorder_are_names_of_the_facade(name):
    pytest.importorskip(ts._TRAINERS[name][1])
    assert getattr(ts, name).__doc__
    assert name in dir(ts)


def test_without_the_framework_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ts.UnsupportedError, match=r"trajstats\[torch\]"):
        _ = ts.TorchNetwork


def test_a_folder_called_trainers_does_not_shadow_ours(tmp_path):
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers" / "__init__.py").write_text("raise RuntimeError('of somebody else')")
    for code in ("import trajstats_trainers.recording", "import trajstats; trajstats.Recorder"):
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    help_ = [sys.executable, "-m", "trajstats.cli", "demo", "--help"]
    assert "digit" in subprocess.run(help_, cwd=tmp_path, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    STUB.write_text(stub(), encoding="utf-8")
