"""chi_4, local exponents and epoch echoes of processes with known answers."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import trajstats as ts
from trajstats.data.schema import trajectory_dataset
from trajstats.data.synthetic.processes import ballistic, brownian, scaled_brownian
from trajstats.errors import ArgumentError, FitError, TooFewReplicasError

STEPS = [0, 1, 3, 10, 30, 100, 300, 1000]


@pytest.mark.parametrize(
    ("make", "exponent"),
    [(ballistic, 2.0), (brownian, 1.0), (lambda s, **k: scaled_brownian(s, exponent=0.5, **k), 0.5)],
)
def test_local_exponent_of_power_laws(make, exponent):
    run = make(STEPS, rng=0, replicas=4, n_parameters=5000)
    got = ts.local_exponent(ts.msd(run, ts.time_pairs(run, waiting_time=[0]), per="all"))
    assert got.attrs["error_from"] == "replica"
    pull = (got.exponent - exponent) / np.maximum(got.stderr, 1e-4)
    assert float(abs(pull).max()) < 8  # Student's t with 3 degrees of freedom, 7 points: P < 0.5 %
    assert float(abs(got.exponent - exponent).max()) < 0.02


def test_local_exponent_says_where_its_error_is_from():
    run = brownian(STEPS, rng=0, n_parameters=6400)
    pairs = ts.time_pairs(run, waiting_time=[0, 10])
    alone = ts.local_exponent(ts.msd(run, pairs, per="all"))
    assert alone.stderr.isnull().all()
    assert alone.attrs["error_from"] == "none: one replica"
    blocks = ts.local_exponent(ts.msd(run, pairs, per="all", blocks=16))
    assert blocks.attrs["error_from"] == "block"
    assert float(abs((blocks.exponent - 1) / blocks.stderr).max()) < 5
    with pytest.raises(ArgumentError, match="points=1"):
        ts.local_exponent(ts.msd(run, pairs), points=1)


def test_chi4_of_independent_weights_is_binomial():
    run = brownian([0, 1], rng=0, replicas=200, n_parameters=500, start=1.0, diffusion=0.5)
    q = ts.two_time(run, ts.time_pairs(run), observables="overlap", per="all", epsilon=0.8).overlap
    got = ts.dynamic_susceptibility(q).compute()
    # A variance over 200 replicas scatters by sqrt(2/199) = 10 %.
    assert float(got.chi4[0]) == pytest.approx(float(got["null"][0]), rel=0.4)
    assert float(got.stderr[0] / got.chi4[0]) == pytest.approx(np.sqrt(2 / 199), rel=0.4)


def test_chi4_of_replicas_that_move_as_one_is_large():
    rng = np.random.default_rng(0)
    w = np.zeros((60, 2, 400))
    w[:, 1] = np.where(rng.random(60) < 0.5, 0.1, 2.0)[:, None]
    run = trajectory_dataset(w, step=[0, 1])
    q = ts.two_time(run, ts.time_pairs(run), observables="overlap", per="all", epsilon=1.0).overlap
    assert float(ts.dynamic_susceptibility(q).chi4[0]) == pytest.approx(100, rel=0.15)


def test_chi4_needs_replicas():
    run = brownian([0, 1], rng=0, replicas=2)
    q = ts.two_time(run, ts.time_pairs(run), observables="overlap", per="all").overlap
    with pytest.raises(TooFewReplicasError, match="needs 3 or more; there are 2"):
        ts.dynamic_susceptibility(q)


def test_echo_is_found_and_not_invented():
    epoch, lag = 100, np.arange(10, 500, 10)
    coords = {"waiting_time": ("pair", 0 * lag), "lag": ("pair", lag)}
    noise = 1 + 0.01 * np.random.default_rng(0).standard_normal(lag.size)
    smooth = xr.DataArray((lag * noise)[None], dims=("replica", "pair"), coords=coords)
    assert not ts.epoch_echo(smooth, epoch=epoch).detected
    dip = smooth * np.where(lag % epoch == 0, 0.8, 1.0)
    found = ts.epoch_echo(dip, epoch=epoch)
    assert found.detected
    assert float(found.mean_depth) == pytest.approx(0.2, abs=0.03)
    assert found.multiple.values.tolist() == [1, 2, 3, 4]
    with pytest.raises(ArgumentError, match="no saved lag is a whole number of epochs"):
        ts.epoch_echo(smooth, epoch=3)


def test_echo_of_a_cyclic_path():
    # Diffusion with a part that returns every 50 steps: the returning part vanishes at whole epochs.
    t = np.arange(0, 300, 5)
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.standard_normal((t.size, 2000)), axis=0) * 0.1
    cycle = np.cos(2 * np.pi * t[:, None] / 50 + 2 * np.pi * rng.random(2000))
    run = trajectory_dataset(walk + cycle, step=t)
    pairs = ts.time_pairs(run, waiting_time=[0, 50])
    assert ts.epoch_echo(ts.msd(run, pairs, per="all"), epoch=50).detected


@pytest.mark.parametrize("lazy", [False, True])
def test_copies_among_replicas_are_refused(lazy):
    lag = np.array([1.0, 2.0, 4.0, 8.0])
    rows = np.stack([0.9 - 0.05 * lag, 0.8 - 0.04 * lag, (0.9 - 0.05 * lag) * (1 + 1e-9)])
    coords = {"waiting_time": ("pair", 0 * lag), "lag": ("pair", lag), "replica": [4, 5, 6], "n_parameters": 100}
    values = xr.DataArray(rows, dims=("replica", "pair"), coords=coords)
    overlap = values.chunk(replica=1) if lazy else values
    with pytest.raises(FitError, match="replica 6 is a copy of replica 4"):
        ts.dynamic_susceptibility(overlap).compute()
    with pytest.raises(FitError, match="replica 6 is a copy of replica 4"):
        ts.local_exponent(overlap)
    assert (
        float(
            ts.dynamic_susceptibility(values.isel(replica=[0, 1, 0]) * xr.DataArray([1, 1, 2.0], dims="replica")).chi4[
                0
            ]
        )
        > 0
    )
