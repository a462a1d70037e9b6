"""Ctrl-C: the end within two seconds, a consistent store, a word on how to go on; and going on gives the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import trajstats as ts

resource = pytest.importorskip("resource", reason="signals are POSIX")
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="CPU time is read from /proc")
# Of its own CPU time, so that a busy machine does not count; and on the clock, so that waiting does.
CPU_SECONDS, SECONDS = 2.0, 20.0

TRAIN = """
import sys, time
import numpy as np
import trajstats as ts

rows, n = int(sys.argv[2]), 400_000
with ts.TrajectoryWriter(sys.argv[1], {"w": (n,)}, sync=60.0) as run:
    for step in range(rows):
        if step not in run.committed:
            run.append(step, np.random.default_rng(step).standard_normal(n).astype("f4"), loss=1 / (1 + step))
        if step == 70:  # the first slab of 64 rows is being gathered into tiles
            print("ready", flush=True)
"""

PAIRS = """
import sys
from dask.callbacks import Callback
import trajstats as ts

run = ts.brownian(range(1, 161), layers={"w": (200_000,)}, rng=0)
run.attrs["uid"] = "interrupted"
with Callback(posttask=lambda *_: print("ready", flush=True)):
    ts.cached_pairs(run, sys.argv[1])
"""

# The command line, told of the moment at which one function of one module is called.
COMMAND = """
import importlib
# An interrupt that falls into the import of a library can be lost in Python's own locks; it is the work that counts.
import emcee, lmfit, numba, tqdm.auto
from trajstats.cli import run

module, name = importlib.import_module("{module}"), "{name}"
function = getattr(module, name)

def told(*args, **options):
    print("ready", flush=True)
    return function(*args, **options)

setattr(module, name, told)
run()
"""
FIT = COMMAND.format(module="trajstats.inference.decay.fit", name="fit_decay")
ANALYZE = COMMAND.format(module="trajstats.report.page.analysis", name="analyze")

SPECTRA = """
import sys, time
import numpy as np
import scipy.sparse.linalg as sla
import trajstats as ts

class Quadratic:
    n_parameters, layers = 40, {"w": (40,)}
    pause = float(sys.argv[2])

    def curvature(self, weights, kind="hessian"):
        time.sleep(self.pause)
        values = np.linspace(0.1, 4.0, 40) * (1 + weights[0] ** 2)
        return sla.LinearOperator((40, 40), matvec=lambda v: values * v.ravel(), matmat=lambda m: values[:, None] * m)

    def loss(self, weights):
        return float(weights @ weights)

weights = np.random.default_rng(0).standard_normal((6, 40))
run = ts.trajectory_dataset(weights, step=range(6), layers={"w": (40,)})
run.attrs["uid"] = "interrupted"
print("ready", flush=True)
result = ts.hessian_spectrum(Quadratic(), run, method="lanczos", probes=4, order=20, store=sys.argv[1], rng=0)
print(result["nodes"].values.sum().hex(), result["weights"].values.sum().hex())
"""


def start(*arguments):
    command = [sys.executable, *(str(a) for a in arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def cpu_seconds(pid):
    times = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[11:13]
    return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


def interrupt(process):
    """Send Ctrl-C; give the exit code, what was said, and check how long it took."""
    assert process.poll() is None, process.stderr.read()
    used, ended = cpu_seconds(process.pid), resource.getrusage(resource.RUSAGE_CHILDREN)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=SECONDS)
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert now.ru_utime + now.ru_stime - ended.ru_utime - ended.ru_stime - used < CPU_SECONDS
    return process.returncode, said


def wait_for(condition, process, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


def finish(*arguments):
    done = subprocess.run([sys.executable, *(str(a) for a in arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_writer_in_a_training_loop(tmp_path):
    path = tmp_path / "run.zarr"
    process = start("-c", TRAIN, path, 10_000)
    assert process.stdout.readline() == "ready\n"
    code, said = interrupt(process)
    assert code == -signal.SIGINT, said
    assert f"are safe in {path}. To continue the run, open the path again" in said
    kept = ts.open_trajectory(path)
    assert kept.state == "writing"
    rows = kept.sizes["step"]
    assert rows >= 71
    assert ts.verify(path).ok
    finish("-c", TRAIN, path, rows + 2)
    done = ts.open_trajectory(path)
    assert done.state == "finished"
    expected = [np.random.default_rng(step).standard_normal(400_000)[:5].astype("f4") for step in range(rows + 2)]
    np.testing.assert_array_equal(done.weights[0, :, :5], expected)
    np.testing.assert_array_equal(done.loss[0], 1 / (1 + np.arange(rows + 2)))
    assert ts.verify(path).ok


def test_the_command_ingest(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out.zarr"
    folder.mkdir()
    for step in range(256):
        np.save(folder / f"step{step}.npy", np.random.default_rng(step).standard_normal(100_000))
    process = start("-m", "trajstats.cli", "ingest", folder, out)
    wait_for(lambda: (out / "weights" / "c").is_dir(), process)
    code, said = interrupt(process)
    assert code == 130, said
    assert f"{out} holds the checkpoints read so far. The same ingest again goes on there." in said
    assert "Traceback" not in said
    assert ts.open_trajectory(out).sizes["step"] < 256
    finish("-m", "trajstats.cli", "ingest", folder, out)
    ts.ingest(folder, tmp_path / "whole.zarr")
    one, other = ts.open_trajectory(out), ts.open_trajectory(tmp_path / "whole.zarr")
    np.testing.assert_array_equal(one.weights, other.weights)
    np.testing.assert_array_equal(one.step, other.step)


def test_pairs_that_are_kept(tmp_path):
    path = tmp_path / "pairs.zarr"
    process = start("-c", PAIRS, path)
    assert process.stdout.readline() == "ready\n"
    code, said = interrupt(process)
    assert code == -signal.SIGINT, said
    assert f"{path} is not made. The same call again computes the missing pairs." in said
    assert list(tmp_path.iterdir()) == []


def test_kept_pairs_that_are_being_extended(tmp_path):
    path = tmp_path / "pairs.zarr"
    run = ts.brownian(range(1, 161), layers={"w": (200_000,)}, rng=0)
    run.attrs["uid"] = "interrupted"
    first = ts.cached_pairs(run.isel(step=slice(0, 8)), path).load()
    process = start("-c", PAIRS, path)
    assert process.stdout.readline() == "ready\n"
    code, said = interrupt(process)
    assert code == -signal.SIGINT, said
    assert f"{path} is as it was. The same call again computes the missing pairs." in said
    assert list(tmp_path.iterdir()) == [path]
    xr.testing.assert_identical(ts.cached_pairs(run.isel(step=slice(0, 8)), path).load(), first)
    np.testing.assert_array_equal(ts.cached_pairs(run, path)["msd"], ts.all_pairs(run)["msd"])


def test_spectra_that_are_kept(tmp_path):
    path = tmp_path / "spectra"
    process = start("-c", SPECTRA, path, 0.2)
    assert process.stdout.readline() == "ready\n"
    wait_for(lambda: len(list(path.glob("*-atoms"))) > 1, process)
    code, said = interrupt(process)
    assert code == -signal.SIGINT, said
    assert f"Finished tasks are kept in {path}." in said
    before = {entry.name: entry.stat().st_mtime_ns for entry in path.glob("replica*")}
    assert 8 <= len(before) < 18  # six losses, six atoms and six chunks of probes in all
    resumed = finish("-c", SPECTRA, path, 0)
    assert resumed == finish("-c", SPECTRA, tmp_path / "whole", 0)
    assert {name: (path / name).stat().st_mtime_ns for name in before} == before


def test_the_command_fit(tmp_path):
    store, out = tmp_path / "run.zarr", tmp_path / "decay.fit"
    steps = np.unique(np.rint(np.geomspace(1, 10_000, 120)).astype(int))
    with ts.TrajectoryWriter(store, {"w": (1,)}, sync=60.0) as writer:
        for step in steps.tolist():
            writer.append(step, np.zeros(1), loss=0.1 + step**-0.5)
    process = start("-c", FIT, "fit", "decay", store, "--out", out)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    code, said = interrupt(process)
    assert code == 130, said
    assert said == "Interrupted.\nGive the same command again to start anew.\n"
    assert not out.exists()


BATCH = """
import sys, time
import numpy as np
import xarray as xr
import trajstats as ts
from trajstats.inference.results import FitResult

def slow(data, *, rng):
    time.sleep(float(sys.argv[2]))
    draws = xr.Dataset({"mu": (("chain", "draw"), rng.standard_normal((2, 4)) + float(data[0]))})
    return FitResult("fit_decay", draws, xr.Dataset(), xr.Dataset())

cases = {k: xr.DataArray([float(k)], dims="step") for k in range(8)}
print("ready", flush=True)
options = {"scheduler": "threads", "workers": 2, "per_task": 1}
print(ts.fit_batch(slow, cases, rng=0, store=sys.argv[1], **options)["value"].sum().item().hex())
"""


def test_the_command_analyze(tmp_path):
    from trajstats.data.store.maintenance import append_from

    append_from(tmp_path / "run.zarr", ts.brownian(range(1, 60), layers={"w": (500,)}, rng=0))
    page = tmp_path / "page.html"
    page.write_text("as it was")
    process = start("-c", ANALYZE, "analyze", tmp_path / "run.zarr", "--out", page)
    assert process.stdout.readline() == "ready\n"
    time.sleep(1.0)
    code, said = interrupt(process)
    assert code == 130, said
    assert f"{page} was not touched." in said
    assert page.read_text() == "as it was"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["page.html", "run.zarr"]


def test_a_batch_of_fits(tmp_path):
    store = tmp_path / "fits.zarr"
    process = start("-c", BATCH, store, 1.0)
    assert process.stdout.readline() == "ready\n"
    time.sleep(3.5)
    code, said = interrupt(process)
    assert code == -signal.SIGINT, said
    assert str(store) in said.splitlines()[-1]
    resumed = finish("-c", BATCH, store, 0)
    assert resumed == finish("-c", BATCH, tmp_path / "whole.zarr", 0)
