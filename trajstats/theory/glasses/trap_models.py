"""Trap models: known aging laws of the probability not to have moved."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from scipy.special import betainc

from trajstats.errors import ArgumentError, unknown_name_message

LATTICES = ("mean_field", "line")


def trap_exponent(x: float, /, *, lattice: str = "mean_field") -> float:
    r"""Aging exponent of a trap model: the no-jump probability depends on :math:`t/t_w^\gamma`.

    :math:`\gamma=1` in mean field for every x; :math:`\gamma=1/(1+x)` on a line, where the walker returns to old traps.

    Parameters
    ----------
    x : float
        Temperature over glass temperature, in (0, 1): trapping times have :math:`P(\tau>u)=u^{-x}`.
    lattice : {"mean_field", "line"}
        Where the traps are, as in `trajstats.trap_model`.

    Returns
    -------
    float

    Raises
    ------
    ArgumentError
        If x is out of range or the lattice is not known.

    References
    ----------
    subaging: arXiv:2209.02517. Bouchaud, J. Phys. I 2, 1705 (1992); Bertin & Bouchaud, arXiv:cond-mat/0210521.

    Examples
    --------
    >>> trap_exponent(0.5, lattice="line")
    0.6666666666666666
    """
    if lattice not in LATTICES:
        raise ArgumentError(unknown_name_message("lattice", lattice, LATTICES))
    if not 0 < x < 1:
        msg = f"x={x}: a trap model ages for 0 < x < 1"
        raise ArgumentError(msg)
    return 1.0 if lattice == "mean_field" else 1 / (1 + x)


def trap_no_jump(waiting_time: Any, lag: Any, /, *, x: float) -> xr.DataArray:
    r"""Probability of no jump between :math:`t_w` and :math:`t_w+t` in the mean-field trap model, at late times.

    .. math:: \Pi=\frac{\sin\pi x}\pi\int_{t/(t_w+t)}^1u^{-x}(1-u)^{x-1}du

    The MSD of `trajstats.trap_model` is :math:`2(1-\Pi)`. Holds for :math:`t_w,t\gg1`, the shortest trapping time.

    Parameters
    ----------
    waiting_time, lag : array or float
        Times >= 0, not both 0; broadcast as (waiting_time, lag).
    x : float
        Temperature over glass temperature, in (0, 1).

    Returns
    -------
    xarray.DataArray, (waiting_time, lag)
        Probability, 1.

    Raises
    ------
    ArgumentError
        If x or a time is out of range.

    References
    ----------
    subaging: arXiv:2209.02517. Bouchaud & Dean, J. Phys. I 5, 265 (1995), arXiv:cond-mat/9410022.

    Examples
    --------
    At x = 1/2 this is Levy's arcsine law:

    >>> round(trap_no_jump(1.0, 1.0, x=0.5).item(), 3)
    0.5
    """
    trap_exponent(x)
    waiting, lags = (np.atleast_1d(np.asarray(v, dtype=np.float64)) for v in (waiting_time, lag))
    total = waiting[:, None] + lags
    if min(waiting.min(initial=0), lags.min(initial=0)) < 0 or not (total > 0).all():
        msg = "waiting times and lags must be >= 0, and not both 0"
        raise ArgumentError(msg)
    values = 1 - betainc(1 - x, x, lags / total)
    return xr.DataArray(
        values,
        dims=("waiting_time", "lag"),
        coords={"waiting_time": waiting, "lag": lags},
        name="no_jump",
        attrs={"long_name": "probability of no jump", "units": "1", "x": x},
    )
