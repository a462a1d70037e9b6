"""One damaged byte anywhere in what trajstats writes: an error that says so, or the same result, never another one."""

import json
import shutil

import numpy as np
import pytest
import xarray as xr

import trajstats as ts
from trajstats.estimators.spectral_store import TaskStore

N_DAMAGED = 60  # of each kind; a test of minutes takes every byte


def fit(folder):
    draws = xr.Dataset({"mu": (("chain", "draw"), np.random.default_rng(0).standard_normal((2, 8)))})
    data = xr.Dataset({"y": ("x", np.arange(3.0))}, coords={"x": ["a", "b", "c"]})
    checks = xr.Dataset({"converged": True, "reason": ""})
    tables = {"models": xr.Dataset({"aic": ("model", [1.0, 2.0])}, coords={"model": [1, 2]})}
    ts.FitResult("fit_decay", draws, data, checks, tables, ("a flag",), "ok", {"rng": 1}).save(folder / "kept")

    def read():
        found = ts.FitResult.load(folder / "kept")
        parts = [found.posterior, found.data, found.diagnostics, *found.tables.values()]
        return [p.to_dict() for p in parts] + [found.kind, found.flags, found.status, dict(found.attrs)]

    return read


def pairs(folder):
    run = ts.trajectory_dataset(np.random.default_rng(0).standard_normal((4, 3)), step=range(4))
    ts.cached_pairs(run, folder / "kept")
    return lambda: ts.cached_pairs(run, folder / "kept").load().to_dict()


def task(folder):
    TaskStore(folder / "kept", {"seed": 1}).write("one", {"loss": np.arange(4.0), "n": np.array([3])})
    return lambda: {k: v.tolist() for k, v in TaskStore(folder / "kept", {"seed": 1}).read("one").items()}


def member(folder):
    def estimate(data, *, rng):
        return xr.DataArray(np.arange(16.0).reshape(2, 8), dims=("chain", "draw"), name="mu")

    def read():
        return ts.fit_batch(estimate, {"a": 0}, rng=0, store=folder / "kept", scheduler="synchronous").to_dict()

    read()
    return read


def damage(path, rng):
    """Change one bit of one file."""
    files = sorted(f for f in path.rglob("*") if f.is_file())
    file = files[rng.integers(len(files))]
    raw = bytearray(file.read_bytes())
    at = rng.integers(len(raw))
    raw[at] ^= 1 << rng.integers(8)
    file.write_bytes(raw)
    return file, at


def attempt(read):
    """Return what was read, or the error of this package that came instead; any other error is a failure."""
    try:
        return read(), None
    except ts.TrajstatsError as error:
        return None, error


def same(a, b):
    return json.dumps(a, default=str, sort_keys=True) == json.dumps(b, default=str, sort_keys=True)


@pytest.mark.parametrize("make", [fit, pairs, task, member])
def test_a_damaged_result_is_an_error_or_the_same(tmp_path, make):
    rng = np.random.default_rng(1)
    read = make(tmp_path)
    good, kept = tmp_path / "good", tmp_path / "kept"
    want = read()
    shutil.copytree(kept, good)
    errors = 0
    for _ in range(N_DAMAGED):
        file, at = damage(kept, rng)
        found, error = attempt(read)
        if error is not None:
            errors += 1
            assert str(tmp_path) in str(error), error
            assert len(str(error)) < 1500
        elif make is member:  # made again
            assert found["data_vars"]["mu"] == want["data_vars"]["mu"]
        else:
            assert same(found, want), (file, at)
        shutil.rmtree(kept)
        shutil.copytree(good, kept)
    assert errors > N_DAMAGED / 2 or make is member


@pytest.mark.parametrize("make", [fit, pairs, task, member])
@pytest.mark.parametrize("lost", ["chunk", "metadata"])
def test_a_file_that_is_missing_is_noticed(tmp_path, make, lost):
    read = make(tmp_path)
    want = read()
    files = sorted(f for f in (tmp_path / "kept").rglob("*") if f.is_file())
    file = next(f for f in files if (f.name == "zarr.json") == (lost == "metadata") and f.parent.parent.name != "")
    file.unlink()
    (tmp_path / "kept" / ".DS_Store").write_bytes(b"what a system leaves behind")
    if make is member and file.parent != tmp_path / "kept":
        assert read()["data_vars"]["mu"] == want["data_vars"]["mu"]
    else:
        with pytest.raises(ts.TrajstatsError):
            read()


def forget(kept):
    """Take the checksums out, as results were saved before there were any."""
    for file in kept.rglob("zarr.json"):
        node = json.loads(file.read_text())
        for key in ("checksums", "sealed"):
            node["attributes"].pop(key, None)
        file.write_text(json.dumps(node))


def test_results_without_checksums_are_read_and_say_so(tmp_path):
    read = fit(tmp_path)
    want = read()
    forget(tmp_path / "kept")
    found = ts.FitResult.load(tmp_path / "kept")
    assert "without checksums" in found.attrs["unverified"]
    assert same(read()[:-1], want[:-1])
    found.save(tmp_path / "again")
    assert "unverified" not in ts.FitResult.load(tmp_path / "again").attrs


@pytest.mark.parametrize("make", [fit, pairs, task, member])
def test_damaged_results_without_checksums_raise_no_error_of_a_library(tmp_path, make):
    rng = np.random.default_rng(2)
    read = make(tmp_path)
    good, kept = tmp_path / "good", tmp_path / "kept"
    forget(kept)
    read()
    shutil.copytree(kept, good)
    for _ in range(N_DAMAGED):
        damage(kept, rng)
        assert len(str(attempt(read)[1])) < 1500
        shutil.rmtree(kept)
        shutil.copytree(good, kept)


def test_a_coordinate_that_claims_gigabytes_is_not_read(tmp_path):
    read = fit(tmp_path)
    forget(tmp_path / "kept")
    file = tmp_path / "kept" / "observed_data" / "x" / "zarr.json"
    node = json.loads(file.read_text())
    node |= {"shape": [2**30], "data_type": "float64", "fill_value": 0.0}
    node["chunk_grid"]["configuration"]["chunk_shape"] = [2**20]
    node["codecs"] = [{"name": "bytes", "configuration": {"endian": "little"}}]
    file.write_text(json.dumps(node))
    with pytest.raises(ts.UnsafeInputError, match="claim"):
        read()
