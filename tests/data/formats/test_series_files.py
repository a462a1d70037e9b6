"""Series in one file: the same numbers as xarray's own readers, and claims that are compared with what is there."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import xarray as xr

import trajstats as ts
from trajstats.data.formats._series_files import open_dataset
from trajstats.data.formats._tensor import input_size
from trajstats.data.ingest._whole_series import read_series
from trajstats.data.safety._budget import Budget


def series(rows=6):
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {
            "w": (("time", "a", "b"), rng.standard_normal((rows, 4, 3)).astype("f4")),
            "v": (("time", "b"), rng.standard_normal((rows, 3))),
            "n": (("time",), np.arange(rows, dtype="i4")),
            "still": (("a",), np.arange(4.0)),
        },
        coords={"time": 10 * np.arange(rows)},
    )


def opened(path):
    return open_dataset(path, Budget.for_size(input_size(path)))


@pytest.mark.parametrize("packed", [False, True])
def test_netcdf_4_as_h5netcdf_reads_it(tmp_path, packed):
    pytest.importorskip("h5netcdf")
    encoding = {}
    if packed:
        encoding = {
            "w": {"dtype": "i2", "scale_factor": 0.01, "_FillValue": -999, "zlib": True, "chunksizes": (2, 2, 3)}
        }
        encoding["v"] = {"zlib": True, "shuffle": True, "fletcher32": True, "chunksizes": (4, 3)}
    data = series()
    data["w"][1, 2, 1] = np.nan
    data["v"].attrs |= {"note": "text", "many": [1.0, 2.0]}
    data.to_netcdf(tmp_path / "x.nc", engine="h5netcdf", encoding=encoding, unlimited_dims=["time"])
    mine = opened(tmp_path / "x.nc")
    with xr.open_dataset(tmp_path / "x.nc", engine="h5netcdf") as want:
        xr.testing.assert_identical(mine.load(), want.load())
    again = opened(tmp_path / "x.nc")
    for part in ({"time": 3}, {"time": [5, 0]}, {"a": slice(None, None, -2)}, {"a": slice(2, 2)}):
        xr.testing.assert_identical(again.isel(part).load(), mine.isel(part))


def zarr_series(path):
    series().to_zarr(path, consolidated=False, zarr_format=3)
    return path


def edit(path, change):
    node = json.loads((path / "zarr.json").read_text())
    change(node)
    (path / "zarr.json").write_text(json.dumps(node))


def test_zarr_as_xarray_reads_it(tmp_path):
    path = zarr_series(tmp_path / "x.zarr")
    xr.testing.assert_identical(opened(path).load(), series())


ABSURD = {
    "time of 8 GiB": ("time", [2**30]),
    "integers of 8 GiB": ("n", [2**31]),
    "a huge row": ("w", [6, 2**20, 2**10]),
    "chunks of 8 GiB": ("w", None),
    "shapes that are text": ("v", ["6", "3"]),
    "shape that is a number": ("v", 6),
}


@pytest.mark.parametrize("name", ABSURD)
def test_zarr_that_claims_more_than_it_holds(tmp_path, name):
    path = zarr_series(tmp_path / "x.zarr")
    array, shape = ABSURD[name]
    if shape is None:
        edit(path / array, lambda n: n["chunk_grid"]["configuration"].update(chunk_shape=[1, 2**16, 2**10]))
    else:
        edit(path / array, lambda n: n.update(shape=shape))
    with pytest.raises((ts.UnsafeInputError, ts.StoreError), match=rf"x\.zarr.*{array}"):
        read_series(path, {"step": "time"})


def test_many_steps_without_a_coordinate(tmp_path):
    path = zarr_series(tmp_path / "x.zarr")
    shutil.rmtree(path / "time")
    for name in ("w", "v", "n"):
        edit(path / name, lambda n: n.update(shape=[10**6, *n["shape"][1:]], data_type="float32"))
    with pytest.raises(ts.UnsafeInputError, match=r"x\.zarr"):
        read_series(path, {"step": "time"})


@pytest.mark.parametrize(
    "content", [b"", b"CDF", b"CDF\x01", b"CDF\x01" + bytes(60), b"CDF\x02" + b"\xff" * 80, b"GIF89a"]
)
def test_damaged_files(tmp_path, content):
    (tmp_path / "x.nc").write_bytes(content)
    with pytest.raises((ts.UnsafeInputError, ts.StoreError, ts.UnsupportedError, ts.ArgumentError)):
        read_series(tmp_path / "x.nc", {"step": "time"})


def read_all(path):
    for _, found in read_series(path, {"step": "time"})[0]:
        for tensor in found.tensors.values():
            tensor.read(0, tensor.size)


@pytest.mark.parametrize("engine", ["h5netcdf", "scipy"])
def test_truncated_netcdf(tmp_path, engine):
    pytest.importorskip(engine)
    series().drop_vars("n").astype("f4").to_netcdf(tmp_path / "x.nc", engine=engine)
    raw = (tmp_path / "x.nc").read_bytes()
    for length in (9, 50, len(raw) // 3, len(raw) - 1):
        (tmp_path / "y.nc").write_bytes(raw[:length])
        with pytest.raises((ts.UnsafeInputError, ts.StoreError)):
            read_all(tmp_path / "y.nc")
