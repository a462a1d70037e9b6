"""Clocks made of gradient noise, and displacements in units of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from trajstats.data._clocks import carried_clock, default_clock, unit_of
from trajstats.data._inputs import DELTA, NOISE, accepts
from trajstats.data.schema import LAYER, PAIR, REPLICA, STEP, annotate, clock_values
from trajstats.errors import ArgumentError, SchemaError, unknown_name_message

NORMALISATIONS = ("path", "start")


@accepts(NOISE)
def noise_clock(noise: xr.Dataset, /, *, clock: str | None = None) -> xr.DataArray:
    r"""Integrate the noise along the run: the clock in which pure noise diffuses evenly.

    .. math:: \tau_D(t)=\int_{t_0}^tD_2(t')\,dt'

    by the trapezium rule over the checkpoints of `noise`, the first at zero.

    Parameters
    ----------
    noise : xarray.Dataset
        What `gradient_noise` gave.
    clock : str, optional
        The time of the integral: ``"step"`` if not given, or another coordinate along `step`. Required where `noise`
        holds a proper time that is not proportional to the step.

    Returns
    -------
    xarray.DataArray, (replica, step, layer)
        In (loss / weight)^2 times the unit of the clock. One replica and layer of it, assigned to a trajectory as a
        coordinate along `step`, is a clock for `msd`.

    Raises
    ------
    ArgumentError
        If there is no such clock, or it is not given and could be either of two.

    Notes
    -----
    Under a learning rate that changes, one step of pure noise displaces by :math:`\eta^2D_2/M`: neither integral alone
    is even; assign :math:`\sum\eta^2D_2` as a clock of your own.

    Bias: of the trapezium rule; for :math:`D\propto1/t` and checkpoints a factor r apart the integral is too large by
    the factor :math:`(r^2-1)/(2r\ln r)`: 0.9 % at ten per decade.

    References
    ----------
    Paper key *glassy*: Baity-Jesi et al. 2018, arXiv:1803.06969.

    Examples
    --------
    >>> noise = xr.Dataset({"D2": (("replica", "step"), [[2.0, 2.0, 4.0]])}, coords={"step": [0, 10, 20]})
    >>> noise_clock(noise).values.tolist()
    [[0.0, 20.0, 50.0]]
    """
    if clock is None and default_clock(noise) != STEP:
        msg = (
            "the noise could be integrated over optimiser steps or over proper time (sum of learning rates), which is "
            "not proportional to the step here. Give clock='step' or clock='proper_time'."
        )
        raise ArgumentError(msg)
    clock = clock or STEP
    time = clock_values(noise, clock).astype(np.float64)
    strength = _strength(noise).transpose(STEP, ...)
    widths = np.diff(time).reshape(-1, *(1,) * (strength.ndim - 1))
    areas = widths * (strength.values[1:] + strength.values[:-1]) / 2
    total = np.concatenate([np.zeros_like(strength.values[:1]), np.cumsum(areas, axis=0)])
    return annotate(
        strength.copy(data=total).transpose(*noise["D2"].dims),
        name="noise_clock",
        long_name="noise clock",
        units=f"(loss / weight)^2 x {unit_of(clock, noise)}",
        estimator="noise_clock",
        arguments={"clock": clock},
        source=str(noise.attrs.get("source", "")),
    )


@accepts(DELTA, NOISE)
def noise_normalised_msd(
    delta: xr.DataArray, noise: xr.Dataset, /, *, learning_rate: float | Any = None, by: str = "path"
) -> xr.DataArray:
    r"""Express displacements in units of what the gradient noise alone would have made.

    ``by="path"`` (paper key *chorales*), along the saved times :math:`t_0=t_w<t_1<\dots<t_n` of each waiting time:

    .. math:: \Delta_n=\sum_{k\le n}\frac{\Delta(t_w,t_k)-\Delta(t_w,t_{k-1})}{\sigma_k^2},\qquad
       \sigma_k^2=\frac{\eta^2}{M}D_2

    with :math:`D_2` per minibatch, the mean of its values at both ends of the interval. Pure noise gives the number of
    optimiser steps. ``by="start"`` (paper key *glassy*) is :math:`\Delta(t_w,t_w+t)/D_2(t_w)`.

    Parameters
    ----------
    delta : xarray.DataArray
        What `msd` gave, (replica, pair) with or without `layer`, and coordinates ``first``, ``second``, in steps.
    noise : xarray.Dataset
        What `gradient_noise` gave, with the same `per`; between its steps it is interpolated linearly.
    learning_rate : float or array (step,)
        :math:`\eta`, one number or one per step of `noise`; needed for ``by="path"``.
    by : {"path", "start"}
        Which normalisation.

    Returns
    -------
    xarray.DataArray
        Dims of `delta`; in optimiser steps for ``"path"``, in (weight^2 / loss)^2 for ``"start"``.

    Raises
    ------
    ArgumentError
        If `by` is not allowed, the learning rate is missing, or a time lies outside the noise's steps.
    SchemaError
        If `delta` and `noise` do not belong together.

    Notes
    -----
    Errors: those of `delta`, correlated along a path. Cost: none to speak of. The sum starts at the waiting time with
    displacement zero.

    References
    ----------
    Paper key *chorales*: Hertz, Tyrcha 2025, arXiv:2412.10094; *glassy*: arXiv:1803.06969.

    Examples
    --------
    >>> delta = xr.DataArray([[0.1, 0.4]], dims=("replica", "pair"), coords={
    ...     "first": ("pair", [0, 0]), "second": ("pair", [1, 4]), "waiting_time": ("pair", [0, 0])})
    >>> noise = xr.Dataset({"D2": (("replica", "step"), [[10.0, 10.0]])}, {"step": [0, 4], "n_parameters": 1},
    ...     {"of": "minibatch"})
    >>> noise_normalised_msd(delta, noise, learning_rate=0.1).values.round(6).tolist()
    [[1.0, 4.0]]
    """
    if by not in NORMALISATIONS:
        raise ArgumentError(unknown_name_message("normalisation", by, NORMALISATIONS))
    _belong(delta, noise)
    step = noise[STEP].values.astype(np.float64)
    first, second = (delta[name].values.astype(np.float64) for name in ("first", "second"))
    if min(first.min(), second.min()) < step[0] or max(first.max(), second.max()) > step[-1]:
        msg = (
            f"the pairs span steps {first.min():.0f} to {second.max():.0f}, the noise only {step[0]:.0f} to "
            f"{step[-1]:.0f}; measure gradient_noise over the whole span"
        )
        raise ArgumentError(msg)
    strength = _strength(noise).transpose(REPLICA, ..., STEP)
    if by == "start":
        at_start = strength.interp({STEP: xr.DataArray(first, dims=PAIR)}).drop_vars(STEP)
        result, units, long_name = delta / at_start, "(weight^2 / loss)^2", "displacement over noise at its start"
    else:
        if learning_rate is None:
            msg = "learning_rate is missing: by='path' needs the step size eta of the run"
            raise ArgumentError(msg)
        rate = xr.DataArray(np.broadcast_to(np.asarray(learning_rate, dtype=np.float64), step.shape), dims=STEP)
        result = _path(delta, strength * rate**2 / noise["n_parameters"])
        units, long_name = "optimiser steps", "noise-normalised displacement"
    return annotate(
        result.transpose(*delta.dims),
        name="noise_normalised_msd",
        long_name=long_name,
        units=units,
        estimator="noise_normalised_msd",
        arguments={"by": by, "learning_rate": learning_rate},
        source=str(delta.attrs.get("source", "")),
        **carried_clock(delta),
    )


def _path(delta: xr.DataArray, variance: xr.DataArray) -> xr.DataArray:
    order = np.lexsort((delta["second"].values, delta["first"].values))
    moved = delta.transpose(..., PAIR)
    ends = [
        variance.interp({STEP: xr.DataArray(delta[name].values.astype(np.float64), dims=PAIR)}).drop_vars(STEP)
        for name in ("first", "second")
    ]
    at_start, at_end = (end.transpose(*moved.dims).values for end in ends)
    values = moved.values
    out = np.empty_like(values)
    before = None
    for pair in order:
        if before is None or delta["first"].values[pair] != delta["first"].values[before]:
            total, last, sigma = np.zeros(values.shape[:-1]), np.zeros(values.shape[:-1]), at_start[..., pair]
        total = total + 2 * (values[..., pair] - last) / (sigma + at_end[..., pair])
        last, sigma, before = values[..., pair], at_end[..., pair], pair
        out[..., pair] = total
    return moved.copy(data=out)


def _belong(delta: xr.DataArray, noise: xr.Dataset) -> None:
    missing = [name for name in ("first", "second") if name not in delta.coords]
    if missing or PAIR not in delta.dims:
        msg = f"delta lacks {missing or [PAIR]}; give what msd returned for listed pairs"
        raise SchemaError(msg)
    if noise.attrs.get("of") != "minibatch":
        msg = f"noise is per {noise.attrs.get('of')!r}; give gradient_noise(..., of='minibatch', batch_size=...)"
        raise SchemaError(msg)
    if (LAYER in delta.dims) != (LAYER in noise["D2"].dims):
        msg = "delta and noise differ in grouping; give both the same per= ('layer' or 'all')"
        raise SchemaError(msg)
    if LAYER in delta.dims and [*map(str, delta[LAYER].values)] != [*map(str, noise[LAYER].values)]:
        msg = "delta and noise have different layers; they are not of the same run"
        raise SchemaError(msg)


def _strength(noise: xr.Dataset) -> xr.DataArray:
    if "D2" not in noise:
        msg = f"no variable 'D2' among {sorted(map(str, noise.data_vars))}; give what gradient_noise returned"
        raise SchemaError(msg)
    return noise["D2"]
