"""A fixed sample of damaged inputs of every kind; `python tests/fuzz/run.py` runs any number of others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / "fuzz" / "run.py"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="cases run in forked children")
def test_damaged_inputs_give_errors():
    for package in ("h5py", "msgpack", "tensorstore", "orbax.checkpoint", "h5netcdf", "torch"):
        pytest.importorskip(package)
    done = subprocess.run(
        [sys.executable, str(RUN), "--cases", "2000", "--seed", "18"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
