"""Van Hove histograms of known laws, and against numpy.histogram."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

import trajstats as ts
from trajstats.data.synthetic.jumps import displacement_noise
from trajstats.data.synthetic.processes import brownian
from trajstats.errors import ArgumentError

N = 100_000


def test_counts_are_those_of_numpy():
    run = brownian([0, 1, 5], rng=0, layers={"a": (60, 50), "b": (5000,)}, start=1.0, replicas=2)
    pairs = ts.time_pairs(run)
    got = ts.van_hove(run, pairs, bins=20, per="layer").compute()
    w = run.weights.values[1, :, 3000:].astype(np.float64)
    d = w[2] - w[1]
    x = d / np.sqrt((d**2).mean())
    want, edges = np.histogram(x, bins=20, range=(-6, 6))
    mine = got.isel(replica=1, pair=2).sel(layer="b")
    # A weight within the float32 rounding of an edge may fall on its other side.
    assert np.abs(mine["count"] - want).sum() <= 4
    np.testing.assert_allclose(mine.density * 5000 * got.bin_width + 0, mine["count"], rtol=1e-12)
    assert float(mine.outside) == pytest.approx(1 - want.sum() / 5000, abs=1e-12)
    np.testing.assert_allclose(got.bin, (edges[1:] + edges[:-1]) / 2)


@pytest.mark.parametrize(
    ("law", "density"),
    [
        ("gaussian", stats.norm.pdf),
        ("laplace", stats.laplace(scale=np.sqrt(0.5)).pdf),
        ("student", lambda x: stats.t(5).pdf(x * np.sqrt(5 / 3)) * np.sqrt(5 / 3)),
        (
            "two_populations",
            lambda x: 0.5 * stats.norm(0, np.sqrt(1.9)).pdf(x) + 0.5 * stats.norm(0, np.sqrt(0.1)).pdf(x),
        ),
    ],
)
@pytest.mark.parametrize("scale", ["linear", "log"])
def test_known_laws_within_binomial_scatter(law, density, scale):
    run = displacement_noise([0, 1], rng=0, law=law, n_parameters=N)
    got = ts.van_hove(run, ts.time_pairs(run), bins=60, scale=scale).compute().isel(replica=0, pair=0)
    width, centre = got.bin_width.values, got.bin.values
    fine = (np.arange(50) + 0.5) / 50 - 0.5
    grid = centre[:, None] + width[:, None] * fine if scale == "linear" else None
    if scale == "log":
        low = centre * centre[0] / np.sqrt(centre[0] * centre[1])
        grid = low[:, None] + width[:, None] * (fine + 0.5)
    share = density(grid).mean(axis=1) * width * (2 if scale == "log" else 1)
    scatter = np.sqrt(N * share) + 1
    # The sample's own rms sets the unit: heavy tails move it by a per cent.
    assert np.max(np.abs(got["count"] - N * share) / (scatter + 0.03 * N * share)) < 5


def test_gaussian_null_is_beside_the_density():
    run = brownian([0, 1], rng=0, n_parameters=N)
    for scale in ("linear", "log"):
        got = ts.van_hove(run, ts.time_pairs(run), bins=30, scale=scale).compute().isel(replica=0, pair=0)
        expected = N * got["null"] * got.bin_width
        assert float((abs(got["count"] - expected) / np.sqrt(expected + 1)).max()) < 5


def test_bad_bins_are_refused():
    run = brownian([0, 1], rng=0)
    with pytest.raises(ArgumentError, match="unknown scale 'lin'"):
        ts.van_hove(run, ts.time_pairs(run), scale="lin")
    with pytest.raises(ArgumentError, match="bins=1"):
        ts.van_hove(run, ts.time_pairs(run), bins=1)
