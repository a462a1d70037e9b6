"""fit_divergence: the width below which a network does not learn, from learning times that diverge there."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from trajstats.errors import ArgumentError, optional_package, unknown_name_message
from trajstats.inference._options import check_sampling, check_switches, generator, positive_number
from trajstats.inference._priors import Priors, check_free
from trajstats.inference.results import FitResult
from trajstats.inference.transition._joint import fit_depths, fit_losses
from trajstats.inference.transition._likelihood import STUCK
from trajstats.inference.transition._single import fit_single
from trajstats.inference.transition.learning_times import learning_table
from trajstats.runtime._threads import one_thread

GROUPS = ("width", "run")
_FIXED = "a fixed exponent is a positive number; leave it out to have it fitted"


@one_thread()
def fit_divergence(
    times: xr.Dataset | xr.DataArray,
    /,
    *,
    rng: int | np.random.Generator | None,
    nu: float | None = None,
    stuck: bool = False,
    budget: float | None = None,
    prior: Priors | None = None,
    groups: str = "width",
    evidence: bool = False,
    sampler: str = "batched",
    max_steps: int = 20_000,
    progress: bool = False,
) -> FitResult:
    r"""Fit the divergence of the learning time, :math:`T(w)=A/(w-w_c)^\nu`.

    Log-normal scatter over seeds, wider near w_c (a scatter :math:`\delta` of w_c from seed to seed):
    :math:`\ln T_{ij}\sim N(m_i,\sigma^2+(\nu\delta/(w_i-w_c))^2)`. Runs that did not learn are right-censored; none is
    dropped.

    Parameters
    ----------
    times : Dataset of `learning_times`, or DataArray
        ``learning_time`` and ``learned`` along `run` with coordinate ``width``. A DataArray has a coordinate ``width``;
        runs at infinity, or at or above `budget`, count as not learned. With a dim `loss` the losses are fitted
        jointly and w_c is extrapolated to loss 0; with a coordinate ``depth`` of several values, each depth has its
        own w_c and their exponents are drawn from one population (``nu``, ``nu_spread``).
    rng : int or numpy.random.Generator
        Seed.
    nu : float, optional
        Fix the exponent (1 is the usual hypothesis); free if not given. Both are compared in ``tables["models"]``.
    stuck : bool
        Let a fraction of the runs never learn whatever the width.
    budget : float, optional
        Largest time watched: runs at or above it count as not learned. Needed with infinite times and no ``budget``
        variable.
    prior : mapping name -> (lower, upper), optional
        Uniform priors of ``w_c``, ``nu``, ``log_middle``, ``log_sigma``, ``log_delta``, ``stuck_fraction`` (with
        several depths ``nu_spread`` too); defaults in `default_priors`.
    groups : str
        What `compare_fits` leaves out: a ``"width"`` with all its seeds (can the others predict it?), or a ``"run"``,
        one seed at a width (where a width has several, the others at it are kept). A run is left out with all its
        losses; of several depths, one width of one depth is.
    evidence : bool
        Add the evidence of nu = 1 and of nu free to ``tables["models"]`` by nested sampling (the extra ``evidence``;
        one loss, one depth; some ten seconds).
    sampler : str
        ``"batched"`` (all ensembles in one NumPy call: the fastest for so few points) or ``"emcee"``; same moves, same
        rules.
    max_steps : int
        Longest chain.
    progress : bool
        Show a progress bar.

    Returns
    -------
    FitResult
        Posterior ``w_c``, ``nu``, ``A``, ``sigma``, ``delta`` (and ``stuck_fraction``). Where the posterior of w_c or
        nu runs into its prior, ``status`` is ``"not identified"``, and ``tables["bounds"]`` has one-sided bounds of
        w_c.

    Raises
    ------
    ArgumentError
        If an option is not among what it allows, a prior is given to a coefficient that is held, or labels are missing.

    Notes
    -----
    A time that is NaN raises NonFiniteError; no run that learned, fewer than 3 distinct widths or times that are not
    positive raise FitError. `evidence` without dynesty raises UnsupportedError.

    w_c and nu are strongly anti-correlated: report them jointly. Several losses come from the same runs; their joint
    likelihood is raised to the power one over their number, so that a run counts once.

    References
    ----------
    chorales (arXiv:2412.10094).

    Examples
    --------
    >>> width = np.repeat([6.0, 8.0, 12.0, 20.0, 40.0], 4)
    >>> noise = np.random.default_rng(0).normal(0, 0.05, 20)
    >>> times = xr.DataArray(100 / (width - 4) * np.exp(noise), dims="run", coords={"width": ("run", width)})
    >>> fit = fit_divergence(times, rng=0)
    >>> bool(abs(fit.summary()["value"].sel(coefficient="w_c") - 4) < 0.5)
    True
    """
    if nu is not None and positive_number("nu", nu, _FIXED) == np.inf:
        msg = f"nu={nu!r}: {_FIXED}"
        raise ArgumentError(msg)
    check_sampling(sampler, max_steps)
    check_switches(stuck=stuck, evidence=evidence, progress=progress)
    if groups not in GROUPS:
        raise ArgumentError(unknown_name_message("groups", groups, GROUPS))
    rng = generator(rng)
    if evidence:
        optional_package("dynesty", "the evidence", "trajstats[evidence]")
    held = {} if stuck else {STUCK: "the stuck fraction is fitted with stuck=True only"}
    check_free(prior, held if nu is None else held | dict.fromkeys(("nu", "nu_spread"), f"nu is held at {nu:g}"))
    table = learning_table(times, budget)
    deep = "depth" in table.coords and np.unique(table["depth"].values).size > 1
    several = fit_depths if deep else fit_losses if "loss" in table.dims else None
    if several is not None and evidence:
        msg = "evidence=True is for one loss and one depth: select them, .sel(loss=...) or the runs of one depth"
        raise ArgumentError(msg)
    options: dict[str, Any] = {
        "rng": rng,
        "nu": nu,
        "stuck": stuck,
        "prior": prior,
        "groups": groups,
        "sampler": sampler,
        "max_steps": max_steps,
        "progress": progress,
    }
    return fit_single(table, evidence=evidence, **options) if several is None else several(table, **options)
