"""The covariance of two-time data, against formulas written out and against simulated runs."""

from __future__ import annotations

import numpy as np
import pytest

from trajstats.inference.aging._wick import wick_covariances
from trajstats.inference.aging.curves.master_curves import clock

MU = 0.6
WAIT, LAG = (a.ravel() for a in np.meshgrid(np.geomspace(0.1, 10, 5), np.geomspace(0.05, 50, 6), indexing="ij"))
START, END = clock(WAIT, MU), clock(WAIT + LAG, MU)


def overlaps(variogram):
    """Products of displacements that follow from a variogram, point by point."""
    n = WAIT.size
    found = np.empty((n, n))
    for a in range(n):
        for b in range(n):
            found[a, b] = 0.5 * (
                variogram(abs(END[b] - START[a]))
                + variogram(abs(END[a] - START[b]))
                - variogram(abs(START[a] - START[b]))
                - variogram(abs(END[a] - END[b]))
            )
    return found


def relaxing(tau):
    """Variogram of an Ornstein-Uhlenbeck process."""
    return lambda gap: 1 - np.exp(-gap / tau)


def covariances(msd):
    """What the library makes of an exact curve."""
    return wick_covariances(WAIT, WAIT + LAG, np.log(END - START), np.log(msd), MU)


def relative(covariance, msd):
    """Covariance of the logarithms."""
    return covariance / np.outer(msd, msd)


def test_one_population_is_the_square_of_the_overlap():
    g = overlaps(relaxing(1.0))
    # a rate that lies between two of the mixture's is shared by both: they differ a little
    for found, off in zip(covariances(np.diagonal(g)), (0.005, 0.05), strict=True):
        np.testing.assert_allclose(found, relative(g**2, np.diagonal(g)), atol=off)


@pytest.mark.parametrize("drift", [0.0, 0.05])
def test_modes_that_are_alike_fluctuate_about_their_drift(drift):
    taus = (0.1, 10.0)
    steady = drift * np.outer(END - START, END - START)
    g = sum(overlaps(relaxing(tau)) for tau in taus) / 2
    msd = np.diagonal(g + steady)
    alike, _ = covariances(msd)
    # drift and slow terms look alike over a finite range
    np.testing.assert_allclose(alike, relative(g**2 + 2 * g * steady, msd), atol=0.1)
    both = simulated_covariance([taus, taus], drift)
    np.testing.assert_allclose(relative(both, msd), relative(g**2 + 2 * g * steady, msd), atol=0.1)


def test_populations_that_differ_add_their_squares():
    parts = [overlaps(relaxing(tau)) for tau in (0.1, 10.0)]
    msd = np.diagonal(sum(parts) / 2)
    alike, differing = covariances(msd)
    by_hand = relative(sum(part**2 for part in parts) / 2, msd)
    np.testing.assert_allclose(differing, by_hand, atol=0.15)
    assert np.abs(alike - by_hand).max() > 0.9
    # and by hand is what runs do that have one mode of each kind (two samples)
    np.testing.assert_allclose(relative(simulated_covariance([(0.1,), (10.0,)], 0.0), msd), by_hand, atol=0.1)


def simulated_covariance(modes, drift, runs=100_000):
    """Covariance of the MSD of runs; a mode is the sum of processes with its times, over the root of their number."""
    rng = np.random.default_rng(0)
    times = np.unique(np.concatenate([START, END]))
    first, second = np.searchsorted(times, START), np.searchsorted(times, END)
    msd = np.zeros((runs, START.size))
    for taus in modes:
        path = np.sqrt(drift) * times * rng.choice([-1.0, 1.0], (runs, 1))
        for tau in taus:
            gap = relaxing(tau)(np.abs(times[:, None] - times))
            factor = np.linalg.cholesky(0.5 * (gap[:, :1] + gap[:1] - gap) + 1e-9 * np.eye(times.size))
            path += rng.standard_normal((runs, times.size)) @ factor.T / np.sqrt(len(taus))
        msd += (path[:, second] - path[:, first]) ** 2 / len(modes)
    return np.cov(msd, rowvar=False)
