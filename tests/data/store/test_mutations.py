"""One damaged byte anywhere in what trajstats writes: an error that says so, or the same result, never another one."""

import json
import shutil
import warnings

import numpy as np
import pytest
import xarray as xr

import trajstats as ts
from trajstats.data.store.journal._records import byte_views, encode_header
from trajstats.data.store.maintenance import compact, delete_after
from trajstats.data.store.verification import verify
from trajstats.estimators.curvature._task_store import TaskStore

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
    files = sorted(f for f in path.rglob("*") if f.is_file() and f.stat().st_size)
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
    assert verify(kept).ok
    assert verify(kept).checked
    assert not verify(kept).unverified
    shutil.copytree(kept, good)
    errors = 0
    for _ in range(N_DAMAGED):
        file, at = damage(kept, rng)
        if make is not member:
            report, problem = attempt(lambda: verify(kept))
        found, error = attempt(read)
        if error is not None and file.parent != kept:
            assert problem is not None or not report.ok
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
    assert verify(tmp_path / "kept").unverified == [str(tmp_path / "kept")]
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


# --- stores -----------------------------------------------------------------------------------------------------------

LAYERS = {"a": (3,), "b": (2,)}


def finished_store(path):
    with ts.TrajectoryWriter(path, LAYERS, attrs={"lr": 0.1}) as writer:
        for step in range(6):
            writer.append(step, np.arange(5.0) + step, loss=float(step))


def unfinished_store(path):
    """Leave 4 rows in tiles and 2 in the journal."""
    finished_store(path)
    delete_after(path, row=4)
    writer = ts.TrajectoryWriter(path, LAYERS)
    for step in (4, 5):
        writer.append(step, np.arange(5.0) + step, loss=float(step))
    writer._lock.release()
    writer._journal.close()


def read_store(path):
    run = ts.open_trajectory(path).load()
    return run.drop_attrs().to_dict() | {"attrs": dict(run.attrs)}


def resume(path):
    with ts.TrajectoryWriter(path, LAYERS) as writer:
        writer.append(9, np.zeros(5), loss=0.0)
    return read_store(path)["coords"]["step"], read_store(path)["data_vars"]["weights"]


@pytest.mark.parametrize("make", [finished_store, unfinished_store])
def test_a_damaged_store_is_an_error_or_the_same(tmp_path, make):
    rng = np.random.default_rng(3)
    good, path = tmp_path / "good", tmp_path / "run.zarr"
    make(path)
    want = read_store(path)
    shutil.copytree(path, good)
    again = resume(path)
    for _ in range(N_DAMAGED):
        shutil.rmtree(path)
        shutil.copytree(good, path)
        where = damage(path, rng)
        found, error = attempt(lambda: read_store(path))
        assert len(str(error)) < 1500
        assert error is not None or same(found, want), where
        report, problem = attempt(lambda: verify(path))
        if error is not None:
            assert problem is not None or not report.ok, where
        with warnings.catch_warnings():  # a damaged last row is left out with a warning
            warnings.simplefilter("error")
            try:
                found, problem = attempt(lambda: resume(path))
            except UserWarning:
                continue
        assert problem is not None or same(found, again), where
        assert len(str(problem)) < 1500


@pytest.mark.parametrize(
    "name", ["store_format", "state", "committed_rows", "schema_version", "attributes", "checksums"]
)
@pytest.mark.parametrize("make", [finished_store, unfinished_store])
def test_a_damaged_name_does_not_make_a_store_a_plain_one(tmp_path, make, name):
    path = tmp_path / "run.zarr"
    make(path)
    raw = (path / "zarr.json").read_bytes()
    (path / "zarr.json").write_bytes(raw.replace(name.encode(), name[:-1].encode() + b"~"))
    before = {f: f.read_bytes() for f in path.rglob("*") if f.is_file() and f.name != "lock"}
    acts = [lambda: ts.open_trajectory(path), lambda: ts.TrajectoryWriter(path, LAYERS), lambda: compact(path)]
    if (make, name) == (finished_store, "schema_version"):
        acts.pop()  # there is nothing to compact
    for act in acts if name != "checksums" else ():
        with pytest.raises(ts.TrajstatsError):
            act()
    if name != "checksums":
        report, error = attempt(lambda: verify(path))
        assert error is not None or not report.ok
        assert all(f.read_bytes() == content for f, content in before.items())


def record(path, metadata, step=2):
    """Append a row to a journal that holds two, with valid checksums."""
    file = path / "journal" / "000000000000.rows"
    text = metadata if isinstance(metadata, bytes) else json.dumps(metadata).encode()
    row = np.zeros(5, np.float32)
    file.write_bytes(file.read_bytes() + encode_header(2, step, text, byte_views([row])) + text + row.tobytes())


@pytest.mark.parametrize(
    "metadata",
    [
        b"{", b"[]", b"null", b"\xff", b"[" * 5000, b'{"a": ' * 5000, b"[" + b"[]," * 700_000 + b"0]",
        {"series": []}, {"series": {"loss": "1"}}, {"series": {"loss": True}}, {"series": {"../../x": 1.0}},
        {"series": {"weights": 1.0}}, {"series": {"loss": 10**400}}, {"floor": 1}, {"floor": ["a", "b"]},
        {"floor": [1.0]}, {"floor": {}}, {"digest": [-1, 2]}, {"digest": [2**70, 1]}, {"digest": [1.0] * 3},
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_journal_records_with_valid_checksums_and_wrong_types(tmp_path, metadata):
    path = tmp_path / "run.zarr"
    writer = ts.TrajectoryWriter(path, LAYERS)
    for step in range(2):
        writer.append(step, np.zeros(5), loss=0.0)
    writer._lock.release()
    writer._journal.close()
    record(path, metadata)
    for act in (lambda: ts.open_trajectory(path), lambda: ts.TrajectoryWriter(path, LAYERS), lambda: compact(path)):
        with pytest.raises(ts.TrajstatsError) as caught:
            act()
        assert len(str(caught.value)) < 1500


def test_a_journal_whose_steps_go_back(tmp_path):
    path = tmp_path / "run.zarr"
    unfinished = ts.TrajectoryWriter(path, LAYERS)
    for step in range(2):
        unfinished.append(step, np.zeros(5))
    unfinished._lock.release()
    unfinished._journal.close()
    record(path, {}, step=0)
    for act in (lambda: ts.open_trajectory(path), lambda: ts.TrajectoryWriter(path, LAYERS)):
        with pytest.raises(ts.StoreError, match="does not belong"):
            act()
