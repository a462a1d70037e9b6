"""A batch in the smallest, for tests of clusters: a decaying curve, and a fit that takes long enough to be killed."""

from __future__ import annotations

import time

import numpy as np
import xarray as xr

import trajstats as ts


def decay(seed):
    """A power law to a floor."""
    step = np.unique(np.geomspace(1, 1e4, 60).astype(int))
    noise = np.exp(0.02 * np.random.default_rng(seed).standard_normal(step.size))
    return xr.DataArray((0.1 + step**-0.7) * noise, dims="step", coords={"step": step})


def fit(data, *, rng):
    """The draws of one coefficient, long enough to lose a worker or the scheduler in between."""
    time.sleep(0.05)
    draws = float(data.mean()) + 0.1 * rng.standard_normal((2, 50))
    judged = xr.Dataset({"converged": True, "reason": ""})
    return ts.FitResult("fit", xr.Dataset({"mu": (("chain", "draw"), draws)}), xr.Dataset(), judged)
