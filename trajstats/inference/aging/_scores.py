r"""How well a model of aging predicts data left out of the fit, and its evidence: the noise level integrated out.

With the residual r of a curve and :math:`q=r^TR^{-1}r`, :math:`y\sim N(f,\sigma^2R)` and the prior :math:`1/\sigma`
give :math:`p(y|\theta)=\frac12\Gamma(\frac n2)(\pi q)^{-n/2}|R|^{-1/2}`; where the spline is integrated out too, two
degrees of freedom less. The ratio of that of all points and that of all but a group is the density of the group given
the others, :math:`p(y_g|y_{-g},\theta)`: points of one run share their noise, so that this, and not
:math:`p(y_g|\theta)`, is what leaving a group out asks for. The factor 1/2 is left out throughout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import xarray as xr
from scipy.special import gammaln

from trajstats.data.schema import REPLICA, WAITING_TIME
from trajstats.errors import FitError
from trajstats.inference.aging._alternatives import fit_parametric, parametric_limits, parametric_log_msd
from trajstats.inference.aging._grid import GridPosterior
from trajstats.inference.aging.curves._spline import FreeCurve
from trajstats.inference.aging.curves.master_curves import MASTER_CURVES, MasterCurve
from trajstats.inference.model_scores import log_evidence

GROUPS = (WAITING_TIME, REPLICA)
_FEWEST = 100

Bounds = Mapping[str, tuple[float, float]]


def left_out_waiting_times(data: FreeCurve, posterior: xr.Dataset, curve: MasterCurve | None) -> xr.Dataset:
    r"""Log density of each waiting time given the others, :math:`\ln p(y_g|y_{-g},\theta)`, at each draw.

    Source: Bürkner, Gabry, Vehtari 2021, arXiv:1810.10559 (leaving out parts of a Gaussian that does not factorise).
    """
    waits = np.unique(data.waiting_time)
    whole = _log_density(data, posterior, curve, data.log_msd[None])
    columns = []
    for wait in waits:
        keep = data.waiting_time != wait
        columns.append(whole - _log_density(data.part(keep), posterior, curve, data.log_msd[None, keep]))
    return _table(posterior, np.stack(columns, axis=-1), WAITING_TIME, waits)


def left_out_replicas(
    data: FreeCurve,
    posterior: xr.Dataset,
    curve: MasterCurve | None,
    replicas: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
) -> xr.Dataset:
    r"""Log density of each replica given the others, where all share one curve and one exponent.

    Replicas are independent: :math:`p(y|\theta)=\prod_rp(y_r|\theta)` but for the common noise level, which is
    integrated out. The fit saw the mean of the replicas only; its draws are drawn again with the weights that turn them
    into draws given all replicas.
    """
    whole = _log_density(data, posterior, curve, replicas)
    weight = whole - _log_density(data, posterior, curve, data.log_msd[None])
    share = np.exp(weight - weight.max())
    share /= share.sum()
    if 1 / np.square(share).sum() < _FEWEST:
        msg = (
            f"groups='replica': {1 / np.square(share).sum():.0f} draws count given all {len(labels)} replicas; they do "
            "not look alike enough to share one curve. Use groups='waiting_time'."
        )
        raise FitError(msg)
    rows = rng.choice(share.size, size=share.size, p=share.ravel())
    columns = []
    for r in range(len(labels)):
        others = _log_density(data, posterior, curve, np.delete(replicas, r, axis=0), of=len(labels))
        columns.append((whole - others).ravel()[rows].reshape(whole.shape))
    return _table(posterior, np.stack(columns, axis=-1), REPLICA, labels)


def _table(posterior: xr.Dataset, values: np.ndarray, group: str, labels: np.ndarray) -> xr.Dataset:
    coords = {"chain": posterior["chain"].values, "draw": posterior["draw"].values, group: labels}
    return xr.Dataset({"msd": (("chain", "draw", group), values)}, coords=coords)


def _log_density(
    data: FreeCurve, posterior: xr.Dataset, curve: MasterCurve | None, rows: np.ndarray, of: int | None = None
) -> np.ndarray:
    # ln p(rows | theta), (chain, draw): rows are replicas of the points of data; strengths of the penalty are relative
    # to the noise of the mean of `of` of them
    count = len(rows)
    mean = rows.mean(axis=0)
    within = float(np.square((rows - mean) @ data.whiten.T).sum())
    log_det = 2 * np.log(np.diagonal(data.whiten)).sum()
    if curve is None:
        mu, smooth = (posterior[name].values.ravel() for name in ("mu", "log_smoothing"))
        mean_of = replace(data, log_msd=mean)
        misfit, log_matrix = mean_of.best_misfit(mu, smooth + np.log((of or count) / count))
        n = count * mean.size - 2
        squares = count * misfit + within
        rest = -0.5 * (log_matrix + (data.intervals + 3) * np.log(count))
    else:
        names = [str(name) for name in posterior.data_vars if name != "N_eff"]
        table = np.stack([posterior[name].values.ravel() for name in names], axis=-1)
        squares = count * parametric_squares(replace(data, log_msd=mean), curve, names, table) + within
        n, rest = count * mean.size, 0.0
    value = gammaln(n / 2) - 0.5 * n * np.log(np.pi * squares) + 0.5 * count * log_det + rest
    return value.reshape(posterior["mu"].shape)


def parametric_squares(data: FreeCurve, curve: MasterCurve, names: list[str], theta: np.ndarray) -> np.ndarray:
    """Whitened sums of squares of a parametric curve."""
    model = np.stack(
        [
            parametric_log_msd(curve, dict(zip(names, row, strict=True)), data.waiting_time, data.lag, data.form)
            for row in theta.tolist()
        ]
    )
    return np.square((data.log_msd - model) @ data.whiten.T).sum(axis=1)


def curve_evidence(
    data: FreeCurve, grid: GridPosterior, bounds: Bounds, curves: Mapping[str, MasterCurve], rng: np.random.Generator
) -> xr.Dataset:
    """Evidence of every master curve, the free one first, under the same priors of mu, level and noise.

    mu is uniform on its prior and the level on 60 and twice the range of the data about; exponents and scales of a
    parametric curve are uniform on the curve's own bounds. The free curve's level and mean slope in ln u have the
    priors of the power law's level and exponent, its smoothing that of the fit: at infinite smoothing it is the power
    law.
    """
    n = data.log_msd.size
    constant = gammaln(n / 2) - 0.5 * n * np.log(np.pi) + np.log(np.diagonal(data.whiten)).sum()
    found = {"free": (_free_evidence(data, grid), 0.0)}
    for name, curve in curves.items():
        best = fit_parametric(data, curve, grid.mean, bounds)
        names = list(best.values)
        prior = parametric_limits(data, curve, best, bounds)

        def function(theta: np.ndarray, curve: MasterCurve = curve, names: list[str] = names) -> np.ndarray:
            return -0.5 * n * np.log(parametric_squares(data, curve, names, theta))

        value, error = log_evidence(function, {k: prior[k] for k in names}, rng=rng)
        found[name] = (value + float(constant), error)
    values = np.array(list(found.values()))
    return xr.Dataset(
        {
            "log_evidence": ("curve", values[:, 0]),
            "log_evidence_stderr": ("curve", values[:, 1]),
            "log_bayes_factor": ("curve", values[:, 0] - values[0, 0]),
        },
        coords={"curve": list(found)},
    )


def _free_evidence(data: FreeCurve, grid: GridPosterior) -> float:
    size = data.intervals + 3
    log_penalty = np.log(np.linalg.eigvalsh(data.penalty)[2:]).sum()
    # volume of the coefficients of straight lines per unit of level and of slope, the width of an interval apart
    line = np.arange(size) - (size - 1) / 2
    log_volume = 0.5 * np.log(size * (line @ line))
    _, low, high = MASTER_CURVES["power_law"].start["beta"]
    level = 2 * (30.0 + np.ptp(data.log_msd))
    n = data.log_msd.size - 2
    return float(
        grid.log_evidence
        + gammaln(n / 2)
        - 0.5 * n * np.log(np.pi)
        + np.log(np.diagonal(data.whiten)).sum()
        + 0.5 * log_penalty
        - log_volume
        - np.log(level * (high - low))
    )
