"""Which model the data prefer: information criteria, Bayes factors, and leave-one-group-out scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data._inputs import FITS, accepts
from trajstats.errors import ArgumentError, optional_package
from trajstats.inference._labels import labelled
from trajstats.inference._priors import Priors
from trajstats.inference.results import FitResult

PARETO_LIMIT = 0.7
_CONSTANT = 1e-9
_GIVEN = ("msd", "learning_time", "learned")
_NO_GROUPS = {
    "fit_decay": "a training curve is one series with drifting noise, of which nothing can be left out. Compare the "
    "models in its tables['models'].",
    "": "the points of one run share their noise. Give fit_subaging(..., groups='waiting_time'), or compare the models "
    "in its tables['models'].",
}


def information_criteria(log_likelihood: float, n_coefficients: int, n_data: int) -> dict[str, float]:
    r"""AICc and BIC of one maximum-likelihood fit.

    :math:`\mathrm{AICc}=2k-2\ln L+\frac{2k(k+1)}{n-k-1}`, :math:`\mathrm{BIC}=k\ln n-2\ln L`; smaller is better.
    """  # noqa: DOC201
    k, n = n_coefficients, n_data
    correction = 2 * k * (k + 1) / (n - k - 1) if n > k + 1 else float("inf")
    return {
        "log_likelihood": float(log_likelihood),
        "n_coefficients": float(k),
        "aicc": 2 * k - 2 * log_likelihood + correction,
        "bic": k * float(np.log(n)) - 2 * log_likelihood,
    }


def savage_dickey(draws: np.ndarray, value: float, prior: tuple[float, float]) -> float:
    r"""Log Bayes factor of a fixed coefficient against a free one with a uniform prior.

    :math:`\ln[p(\theta=\theta_0|y)/p(\theta=\theta_0)]`, the density by a kernel that is reflected at the ends of the
    prior.
    """  # noqa: DOC201
    low, high = prior
    if not low <= value <= high:
        return float("nan")
    spread = min(float(np.std(draws)), float(np.subtract(*np.quantile(draws, [0.75, 0.25]))) / 1.34)
    width = max(0.9 * spread * draws.size**-0.2, 1e-12 * (high - low))
    density = sum(
        float(np.exp(-0.5 * ((centre - value) / width) ** 2).mean())
        for centre in (draws, 2 * low - draws, 2 * high - draws)
    ) / (width * np.sqrt(2 * np.pi))
    return float(np.log(density * (high - low))) if density > 0 else float("-inf")


@accepts(FITS)
def compare_fits(fits: Mapping[str, FitResult], /) -> xr.Dataset:
    r"""Compare fits of the same data by their scores on groups left out (PSIS-LOO).

    :math:`\sum_g\ln p(y_g|y_{-g})` by Pareto-smoothed importance sampling. `fit_divergence` keeps the log likelihood of
    each width, or with ``groups="run"`` of each run (one seed at a width): they are independent given the coefficients.
    Of several losses a run or width is left out with all of them, and counts once: its part of the likelihood is the
    geometric mean of its densities over the losses, no density itself, so that such scores compare fits of the same
    losses and mean nothing else. Of several depths a width of one depth (or a run) is left out.
    The points of one run's MSD share their noise, so that a group depends on the others even then: with
    ``groups="waiting_time"`` or ``"replica"`` `fit_subaging` keeps its density given the others,
    :math:`p(y_g|y_{-g},\theta)`, which is the valid form. A training curve is one series with drifting noise:
    `fit_decay` keeps none.

    Parameters
    ----------
    fits : mapping name -> FitResult
        Two or more fits of the same groups.

    Returns
    -------
    xarray.Dataset
        Dim `model`, best first: ``score`` (larger is better), ``score_difference`` from the best and its
        ``difference_stderr`` (over groups), ``effective_coefficients``, ``pareto_k`` (the largest; above 0.7 the
        score is not to be trusted, see ``reliable``).

    Raises
    ------
    ArgumentError
        If a fit keeps no log likelihood of groups, or groups or data differ.

    Notes
    -----
    Needs the extra ``arviz``; without it UnsupportedError names the line to install it.

    References
    ----------
    Vehtari, Gelman, Gabry 2017, arXiv:1507.04544; Vehtari et al. 2024, arXiv:1507.02646; Bürkner, Gabry, Vehtari 2021,
    arXiv:1810.10559.

    Examples
    --------
    >>> from trajstats.inference.transition.fit import fit_divergence
    >>> width = np.repeat([6.0, 8.0, 12.0, 20.0, 40.0], 4)
    >>> noise = np.random.default_rng(0).normal(0, 0.05, 20)
    >>> times = xr.DataArray(100 / (width - 4) * np.exp(noise), dims="run", coords={"width": ("run", width)})
    >>> fits = {f"nu = {nu}": fit_divergence(times, rng=0, nu=nu, max_steps=2000) for nu in (1, 2)}
    >>> compare_fits(fits)["model"].values.tolist()
    ['nu = 1', 'nu = 2']
    """
    if len(fits) < 2:
        msg = f"{len(fits)} fits: give two or more to compare"
        raise ArgumentError(msg)
    array_stats = optional_package("arviz_stats.base", "compare_fits", "trajstats[arviz]").array_stats
    scores, rows = {}, {}
    for name, fit in fits.items():
        if not fit.log_likelihood.data_vars:
            msg = f"{name!r} ({fit.kind}) keeps no log likelihood of groups: {_NO_GROUPS.get(fit.kind, _NO_GROUPS[''])}"
            raise ArgumentError(msg)
        table = fit.log_likelihood.to_dataarray().isel(variable=0)
        groups = str(table.dims[-1])
        pointwise, pareto, effective = _left_out(array_stats, np.moveaxis(table.values, -1, 0))
        scores[name] = xr.DataArray(pointwise, dims=groups, coords={groups: table[groups].values})
        rows[name] = (float(np.sum(effective)), float(np.max(pareto)))
    first, data = next(iter(scores.values())), next(iter(fits.values())).data
    for name, score in scores.items():
        if score.sizes != first.sizes or not all(np.array_equal(score[d], first[d]) for d in first.dims):
            msg = f"{name!r} was fitted to other groups than {next(iter(scores))!r}: compare fits of the same data"
            raise ArgumentError(msg)
        if not all(np.array_equal(fits[name].data[d], data[d]) for d in data.data_vars if d in _GIVEN):
            msg = f"{name!r} was fitted to other values than {next(iter(scores))!r}: compare fits of the same data"
            raise ArgumentError(msg)
    order = sorted(scores, key=lambda name: -float(scores[name].sum()))
    best = scores[order[0]]
    gaps = {name: scores[name] - best for name in order}
    n = first.size
    result = xr.Dataset(
        {
            "score": ("model", [float(scores[name].sum()) for name in order]),
            "score_difference": ("model", [float(gaps[name].sum()) for name in order]),
            "difference_stderr": ("model", [float(np.sqrt(n) * gaps[name].std(ddof=1)) for name in order]),
            "effective_coefficients": ("model", [rows[name][0] for name in order]),
            "pareto_k": ("model", [rows[name][1] for name in order]),
            "reliable": ("model", [rows[name][1] <= PARETO_LIMIT for name in order]),
        },
        coords={"model": order},
        attrs={"estimator": "compare_fits", "groups": str(first.dims[0])},
    )
    return labelled(result, "scores")


def _left_out(array_stats: Any, table: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # a group that says the same at every draw (censored far below its budget) has no tail to fit: its score is exact
    varied = np.ptp(table, axis=(1, 2)) > _CONSTANT
    pointwise, pareto, effective = table[:, 0, 0].copy(), np.full(len(table), -np.inf), np.zeros(len(table))
    if varied.any():
        pointwise[varied], pareto[varied], effective[varied] = array_stats.loo(table[varied])
    return pointwise, pareto, effective


def log_evidence(
    log_likelihood: Callable[[np.ndarray], np.ndarray],
    prior: Priors,
    /,
    *,
    rng: int | np.random.Generator | None,
    live_points: int = 250,
) -> tuple[float, float]:
    r"""Logarithm of the evidence :math:`\int L(\theta)\,p(\theta)\,d\theta`, uniform priors, by nested sampling."""
    # Source: Speagle 2020, arXiv:1904.02180.
    dynesty = optional_package("dynesty", "the evidence", "trajstats[evidence]")
    low, high = np.array(list(prior.values())).T

    def one(theta: np.ndarray) -> float:
        with np.errstate(all="ignore"):
            value = float(log_likelihood(theta[None])[0])
        return value if np.isfinite(value) else -1e300

    # random walks: banana-shaped posteriors such as that of (w_c, nu) make rejection from ellipsoids inefficient
    sampler = dynesty.NestedSampler(
        one,
        lambda u: low + u * (high - low),
        low.size,
        nlive=live_points,
        sample="rwalk",
        rstate=np.random.default_rng(rng),
    )
    sampler.run_nested(print_progress=False)
    return float(sampler.results.logz[-1]), float(sampler.results.logzerr[-1])
