"""NaN and infinity are found by layer, step and replica, in weights, series, clocks and buffers."""

from __future__ import annotations

import numpy as np
import pytest

import trajstats as ts
from trajstats.data import finite


@pytest.mark.parametrize("chunks", [None, {"step": 1, "parameter": 3}])
def test_every_bad_value_is_counted_where_it_is(monkeypatch, chunks):
    monkeypatch.setattr(finite, "_BLOCK_BYTES", 40)
    weights = np.random.default_rng(0).standard_normal((2, 4, 9)).astype(np.float32)
    weights[0, 1, 4], weights[1, 3, :2], weights[1, 3, 8] = np.nan, np.inf, -np.inf
    loss = np.ones((2, 4))
    loss[1, 2] = np.nan
    run = ts.trajectory_dataset(
        weights,
        step=[0, 1, 10, 100],
        layers={"a": (2, 2), "none": (0,), "b": (4,), "c": ()},
        replica=[3, 7],
        series={"loss": loss},
        clocks={"proper_time": [0.0, 1.0, 2.0, np.inf]},
    )
    found = ts.check_finite(run if chunks is None else run.chunk(chunks), progress=False)
    expected = np.zeros((2, 4, 4), dtype=int)
    expected[0, 1, 2], expected[1, 3, 0], expected[1, 3, 3] = 1, 2, 1
    np.testing.assert_array_equal(found["weights"], expected)
    assert found.attrs["finite"] == 0
    text = found.attrs["found"]
    assert "layer 'b', step 1, replica 3: 1 of 4 values" in text
    assert "layer 'a', step 100, replica 7: 2 of 4 values" in text
    assert "loss: 1 of 8 values, first at step 10" in text
    assert "proper_time: 1 of 4 values, first at step 100" in text
    assert int(found["loss"].sum()) == 1


def test_infinite_buffers_are_listed_and_do_not_count():
    run = ts.trajectory_dataset(
        np.zeros((2, 3)), step=[0, 1], buffers={"mask": np.full((2, 2), -np.inf, dtype=np.float16)}
    )
    found = ts.check_finite(run)
    assert found.attrs["finite"] == 1
    assert "buffer 'mask': 4 values over all steps" in found.attrs["found"]
    assert found["buffers"].sum() == 4
    whole = ts.check_finite(ts.trajectory_dataset(np.zeros((2, 3)), step=[0, 1]))
    assert whole.attrs["found"] == "all values are finite"
