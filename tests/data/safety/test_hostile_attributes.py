"""Stores from strangers: attributes of other types, with checksums that hold, and metadata that claim too much."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import trajstats as ts
from trajstats.data.ingest.into_store import ingest
from trajstats.data.sketch import Sketch
from trajstats.data.store import maintenance
from trajstats.data.store._metadata_sums import with_sums


def reseal(path, **attrs):
    """Change attributes of a store, and make its checksums hold again."""
    node = json.loads((path / "zarr.json").read_text())
    sums = node["attributes"]["checksums"]
    arrays = {name: value for name, value in sums.items() if (path / name / "zarr.json").exists()}
    node["attributes"] = with_sums({**node["attributes"], **attrs}, arrays)
    (path / "zarr.json").write_text(json.dumps(node))


@pytest.fixture
def sketched(tmp_path):
    """A sketched run that ended early."""
    writer = ts.TrajectoryWriter(tmp_path / "live.zarr", {"w": (6,)}, sketch=Sketch(buckets=4, hashes=2, seed=1))
    for step in range(3):
        writer.append(step, np.arange(6.0) + step)
    shutil.copytree(tmp_path / "live.zarr", tmp_path / "run.zarr")
    writer.close()
    (tmp_path / "run.zarr" / "journal" / "lock").unlink(missing_ok=True)
    return tmp_path / "run.zarr"


@pytest.mark.parametrize("value", ["x", ["a"], {"a": 1}, "[" * 100_000, None])
@pytest.mark.parametrize("name", ["sketch_buckets", "sketch_hashes", "sketch_seed"])
def test_attributes_of_a_sketch_that_are_no_numbers(sketched, name, value):
    reseal(sketched, **{name: value})
    with pytest.raises(ts.StoreError, match=rf"run\.zarr/zarr\.json.*{name}") as caught:
        maintenance.compact(sketched)
    assert len(str(caught.value)) < 1000


def test_attributes_of_another_sketch_than_is_stored(sketched):
    reseal(sketched, sketch_hashes=10**40)
    with pytest.raises(ts.StoreError, match="sketch_hashes and sketch_buckets") as caught:
        maintenance.compact(sketched)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("names", [None, ["step"], ["replica", "step", "x"]])
def test_arrays_of_a_plain_store_without_a_name_for_each_dimension(tmp_path, names):
    run = ts.trajectory_dataset(np.ones((6, 4)), step=range(6), layers={"w": (4,)}, series={"loss": np.ones(6)})
    run.to_zarr(tmp_path / "run.zarr", consolidated=False)
    file = tmp_path / "run.zarr" / "loss" / "zarr.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dimension_names": names}))
    with pytest.raises(ts.StoreError, match=r"run\.zarr.*dimension"):
        ts.verify(tmp_path / "run.zarr")
    with pytest.raises(ts.StoreError, match=r"run\.zarr.*dimension"):
        ts.open_trajectory(tmp_path / "run.zarr")


@pytest.mark.parametrize("rows", [2**31, 2**62])
def test_a_run_that_goes_on_and_claims_more_rows_than_there_can_be(tmp_path, rows):
    with ts.TrajectoryWriter(tmp_path / "run.zarr", {"w": (3,)}) as writer:
        writer.append(0, np.zeros(3))
        shutil.copytree(tmp_path / "run.zarr", tmp_path / "live.zarr")
    (tmp_path / "live.zarr" / "journal" / "lock").unlink(missing_ok=True)
    file = tmp_path / "live.zarr" / "weights" / "zarr.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"shape": [1, rows, 3]}))
    with (
        pytest.raises(ts.TrajstatsError, match=r"live\.zarr.*rows"),
        ts.TrajectoryWriter(tmp_path / "live.zarr", {"w": (3,)}) as writer,
    ):
        writer.append(1, np.zeros(3))
    assert ts.open_trajectory(tmp_path / "live.zarr").step.values.tolist() == [0, 1]


@pytest.mark.parametrize("value", [0, None, "x", "[1]", '[["a"]]', "[[1, 2, 3, 4]]", '{"a": 1}', "[" * 100_000])
def test_findings_of_an_ingest_that_are_none(tmp_path, value):
    source = {step: {"w": np.full(5, step + 1.0)} for step in range(3)}
    out = tmp_path / "run.zarr"
    ingest(source, out)
    reseal(out, findings=value)
    with pytest.raises(
        (ts.StoreError, ts.UnsafeInputError), match=r"run\.zarr/zarr\.json: the attribute 'findings'"
    ) as caught:
        ingest(source, out)
    assert len(str(caught.value)) < 1000


# Each child makes its own attack, so that memory is that of one store.
CHILD = """
import json, os, resource, sys, time
from pathlib import Path
import numpy as np
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore
import trajstats as ts

place, what, rows = sys.argv[1], sys.argv[2], int(sys.argv[3])
with ts.TrajectoryWriter(place, {"w": (3,)}) as writer:
    writer.append(0, np.ones(3), loss=1.0)
ts.open_trajectory(place).load()
root = Path(place)

def edit(name, change):
    node = json.loads((root / name).read_text())
    change(node)
    (root / name).write_text(json.dumps(node))

def forget(node):
    node.pop("consolidated_metadata", None)
    node["attributes"].pop("checksums")
    if what in ("plain", "wide"):
        for name in ("store_format", "committed_rows", "state", "uid"):
            node["attributes"].pop(name)
    elif what != "text":
        node["attributes"]["committed_rows"] = rows

def claim(node):
    dims = node.get("dimension_names") or []
    if "step" in dims:
        node["shape"][dims.index("step")] = rows

edit("zarr.json", forget)
if what == "text":
    edit("layer/zarr.json", lambda node: node.update(codecs=[{"name": "vlen-utf8", "configuration": {}}]))
    chunk = next(file for file in (root / "layer" / "c").rglob("*") if file.is_file())
    chunk.write_bytes((2**32 - 1).to_bytes(4, "little") + b"\\x01\\0\\0\\0w")
elif what == "wide":
    edit("weights/zarr.json", lambda node: node["shape"].__setitem__(2, rows * 3))
else:
    for file in root.glob("*/zarr.json"):
        edit(file.relative_to(root), claim)
if what == "remote":
    edit("weights/zarr.json", lambda n: n["chunk_grid"]["configuration"]["chunk_shape"].__setitem__(1, 32))
    new = default_buffer_prototype().buffer.from_bytes
    files = [file for file in root.rglob("*") if file.is_file()]
    place = MemoryStore({file.relative_to(root).as_posix(): new(file.read_bytes()) for file in files})

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()
try:
    ts.open_trajectory(place)
    found = "ACCEPTED"
except ts.UnsafeInputError as error:
    found = str(error)
used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(json.dumps([found, time.process_time() - start, used]))
"""


@pytest.mark.parametrize(
    ("what", "rows", "match"),
    [
        ("own", 2 * 10**9, "elements"),
        ("plain", 2 * 10**9, "elements"),
        ("plain", 6 * 10**7, "claim"),
        ("wide", 2 * 10**7, "claim"),
        ("remote", 6 * 10**7, "claim"),
        ("text", 1, "claims 4294967295 strings"),
    ],
)
def test_claims_are_refused_in_two_seconds_and_200_mib(tmp_path, what, rows, match):
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "run.zarr"), what, str(rows)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found, seconds, mib = json.loads(done.stdout)
    assert match in found
    assert len(found) < 1000
    assert seconds < 2.0
    assert mib < 200


@pytest.mark.parametrize("name", ["layer_stop", "layer_shape"])
def test_coordinates_of_layers_along_something_else(tmp_path, name):
    run = ts.trajectory_dataset(np.ones((6, 4)), step=range(6), layers={"w": (2,), "b": (2,)})
    run = run.drop_vars(name).assign_coords({name: ("step", np.arange(6))})
    run.to_zarr(tmp_path / "run.zarr", consolidated=False)
    with pytest.raises(ts.SchemaError, match=f"{name} has dims"):
        ts.open_trajectory(tmp_path / "run.zarr")


@pytest.mark.parametrize("attributes", [[], [1], "x", 3])
def test_attributes_of_an_array_that_are_no_mapping(tmp_path, attributes):
    path = tmp_path / "run.zarr"
    with ts.TrajectoryWriter(path, {"w": (3,)}, buffers={"n": ((), "int64")}) as writer:
        writer.append(0, np.zeros(3), buffers={"n": np.int64(1)})
    file = path / "buffer_bytes" / "zarr.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"attributes": attributes}))
    calls = [ts.open_trajectory, lambda p: ts.TrajectoryWriter(p, {"w": (3,)}, buffers={"n": ((), "int64")})]
    for call in calls:
        with pytest.raises(ts.TrajstatsError, match=r"run\.zarr") as caught:
            call(path)
        assert len(str(caught.value)) < 1000
