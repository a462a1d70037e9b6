"""Opening, choosing pairs and calling an estimator compute nothing; metadata alone is read."""

from __future__ import annotations

import numpy as np
import pytest

import trajstats as ts


@pytest.fixture
def stored(tmp_path, small_run):
    paths = []
    for k in range(small_run.sizes["replica"]):
        path = tmp_path / f"run{k}.zarr"
        layers = {"0.weight": (4, 5), "0.bias": (4,), "1.weight": (1, 2)}
        with ts.TrajectoryWriter(path, layers, replica=k) as writer:
            for row, step in enumerate(small_run.step.values):
                writer.append(int(step), small_run.weights.values[k, row], loss=float(small_run.loss[k, row]))
        paths.append(str(path))
    return paths


def test_the_guard_works(no_compute):
    import dask.array as da

    with no_compute(), pytest.raises(AssertionError, match="stayed lazy"):
        da.ones(3).sum().compute()


def test_open_and_estimate_stay_lazy(stored, no_compute):
    with no_compute():
        run = ts.open_trajectory(stored)
        pairs = ts.time_pairs(run, lags_per_decade=4)
        delta = ts.msd(run, pairs)
        every = ts.all_pairs(run)
    assert run.weights.chunks is not None
    assert delta.chunks is not None
    assert every.msd.chunks is not None
    assert np.isfinite(delta.compute()).all()
