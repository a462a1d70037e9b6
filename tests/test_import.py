"""`import trajstats` is light, and every public name is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import trajstats as ts

HEAVY = ["dask.distributed", "distributed", "matplotlib.pyplot", "lmfit", "torch", "jax", "emcee"]


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_import_stays_light():
    assert loaded_by("import trajstats").isdisjoint(HEAVY)


def test_estimators_need_no_plotting_nor_fitting():
    assert loaded_by("import trajstats; trajstats.msd; trajstats.open_trajectory").isdisjoint(HEAVY)


@pytest.mark.parametrize("name", ts.__all__)
def test_public_name_exists(name):
    assert getattr(ts, name).__doc__


def test_unknown_name_is_told():
    with pytest.raises(AttributeError, match="no attribute 'msdd'"):
        ts.msdd  # noqa: B018


def test_there_is_one_version_number():
    root = Path(__file__).parents[1]
    assert f"version: {ts.__version__}\n" in (root / "CITATION.cff").read_text(encoding="utf-8")
    assert f"trajstats {ts.__version__}," in (root / "docs/reference/citing.md").read_text(encoding="utf-8")
