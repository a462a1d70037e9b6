"""Weight trajectories with known answers: diffusion, relaxation, aging, traps, heavy tails, noisy SGD.

Every function returns an ordinary trajectory, so that whatever is measured on a network can be measured on a process
whose two-time MSD is known exactly; `exact_msd` gives it. (Over 400 lines: one short function per process, most of it
docstrings.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data._inputs import NUMBERS, PAIRS, TRAJECTORY, accepts
from trajstats.data.schema import LAG, WAITING_TIME, check_trajectory
from trajstats.data.synthetic._common import (
    Layers,
    Rng,
    Steps,
    _age,
    _clock,
    _relax,
    as_steps,
    as_trajectory,
    n_and_layers,
)
from trajstats.errors import ArgumentError, unknown_name_message


@accepts(NUMBERS)
def brownian(
    step: Steps,
    /,
    *,
    rng: Rng,
    diffusion: float = 0.5,
    n_parameters: int = 1000,
    replicas: int = 1,
    layers: Layers = None,
    start: float = 0.0,
    dtype: str = "float32",
) -> xr.Dataset:
    r"""Free diffusion, :math:`\Delta=2D\,t`: no aging, local exponent 1.

    Parameters
    ----------
    step : sequence of int, (step,)
        Recorded steps, strictly increasing.
    rng : int or numpy.random.Generator
        Seed or generator.
    diffusion : float
        D in squared weight units per step.
    n_parameters, replicas : int
        Sizes.
    layers : mapping name -> shape, optional
        Layers; one called ``"all"`` if not given. Fixes `n_parameters`.
    start : float
        Scale of the Gaussian initial weights.
    dtype : str
        Stored type.

    Returns
    -------
    xarray.Dataset
        A trajectory.

    Examples
    --------
    >>> dict(brownian([0, 1, 2], rng=0, n_parameters=5).sizes)
    {'replica': 1, 'step': 3, 'parameter': 5, 'layer': 1}
    """
    return scaled_brownian(
        step,
        rng=rng,
        exponent=1.0,
        diffusion=diffusion,
        n_parameters=n_parameters,
        replicas=replicas,
        layers=layers,
        start=start,
        dtype=dtype,
    )


@accepts(NUMBERS)
def scaled_brownian(
    step: Steps,
    /,
    *,
    rng: Rng,
    exponent: float,
    diffusion: float = 0.5,
    n_parameters: int = 1000,
    replicas: int = 1,
    layers: Layers = None,
    start: float = 0.0,
    dtype: str = "float32",
) -> xr.Dataset:
    r"""Diffusion whose rate falls with age, :math:`\Delta=2D_0[(t_w+t)^a-t_w^a]`.

    With a = 0 the rate is :math:`D_0/t` and :math:`\Delta=2D_0\ln(1+t/t_w)`: simple aging, mu = 1 (step 0 then stands
    for step 1).

    Parameters
    ----------
    step, rng, n_parameters, replicas, layers, start, dtype
        As for `brownian`.
    exponent : float
        a, in [0, 2].
    diffusion : float
        :math:`D_0`.

    Returns
    -------
    xarray.Dataset
        A trajectory.

    Examples
    --------
    >>> float(scaled_brownian([1, 10], rng=0, exponent=0).step[-1])
    10.0
    """
    step = as_steps(step)
    age = _age(step, exponent)
    rng = np.random.default_rng(rng)
    n, layers = n_and_layers(n_parameters, layers)
    width = np.sqrt(2 * diffusion * np.diff(age))
    path = np.empty((replicas, step.size, n))
    path[:, 0] = start * rng.standard_normal((replicas, n))
    for k, w in enumerate(width):
        path[:, k + 1] = path[:, k] + w * rng.standard_normal((replicas, n))
    return as_trajectory(path, step, layers, dtype, "scaled_brownian", exponent=exponent, diffusion=diffusion)


@accepts(NUMBERS)
def ornstein_uhlenbeck(
    step: Steps,
    /,
    *,
    rng: Rng,
    time: float = 100.0,
    variance: float = 1.0,
    n_parameters: int = 1000,
    replicas: int = 1,
    layers: Layers = None,
    dtype: str = "float32",
) -> xr.Dataset:
    r"""Stationary relaxation, :math:`\Delta=2v(1-e^{-t/\tau})`: a plateau and no aging, mu = 0.

    Parameters
    ----------
    step, rng, n_parameters, replicas, layers, dtype
        As for `brownian`.
    time : float
        :math:`\tau` in steps.
    variance : float
        v of one weight.

    Returns
    -------
    xarray.Dataset
        A trajectory.

    Examples
    --------
    >>> run = ornstein_uhlenbeck([0, 10_000], rng=0, n_parameters=20_000)
    >>> bool(abs(((run.weights[0, 1] - run.weights[0, 0]) ** 2).mean() - 2) < 0.1)
    True
    """
    clock = as_steps(step) / time
    path = _relax(clock, rng, variance, n_and_layers(n_parameters, layers)[0], replicas)
    return as_trajectory(path, step, layers, dtype, "ornstein_uhlenbeck", time=time, variance=variance)


@accepts(NUMBERS)
def time_changed_ou(
    step: Steps,
    /,
    *,
    rng: Rng,
    mu: float,
    scale: float = 1.0,
    variance: float = 1.0,
    n_parameters: int = 1000,
    replicas: int = 1,
    layers: Layers = None,
    dtype: str = "float32",
) -> xr.Dataset:
    r"""Relaxation on a slowing clock: the reference for subaging with exponent mu.

    :math:`\Delta=2v(1-e^{-[h(t_w+t)-h(t_w)]/s})` with :math:`h(t)=t^{1-\mu}/(1-\mu)` (ln t at mu = 1, where step 0
    stands for step 1).

    Parameters
    ----------
    step, rng, n_parameters, replicas, layers, dtype
        As for `brownian`.
    mu : float
        Aging exponent, in [0, 1].
    scale : float
        s, the relaxation time on the clock h.
    variance : float
        v of one weight.

    Returns
    -------
    xarray.Dataset
        A trajectory.

    Examples
    --------
    >>> run = time_changed_ou([0, 10, 100], rng=0, mu=0.6)
    >>> run.attrs["process"]
    'time_changed_ou'
    """
    path = _relax(_clock(as_steps(step), mu) / scale, rng, variance, n_and_layers(n_parameters, layers)[0], replicas)
    return as_trajectory(path, step, layers, dtype, "time_changed_ou", mu=mu, scale=scale, variance=variance)


@accepts(NUMBERS)
def ballistic(
    step: Steps,
    /,
    *,
    rng: Rng,
    speed: float = 1e-3,
    n_parameters: int = 1000,
    replicas: int = 1,
    layers: Layers = None,
    start: float = 1.0,
    dtype: str = "float32",
) -> xr.Dataset:
    r"""Straight motion, each weight at a constant Gaussian speed: :math:`\Delta\approx s^2t^2`, local exponent 2.

    Parameters
    ----------
    step, rng, n_parameters, replicas, layers, start, dtype
        As for `brownian`.
    speed : float
        Root mean square speed s of a weight, per step.

    Returns
    -------
    xarray.Dataset
        A trajectory.

    Examples
    --------
    >>> int(ballistic([0, 5], rng=0).step[1])
    5
    """
    step = as_steps(step)
    rng = np.random.default_rng(rng)
    n, layers = n_and_layers(n_parameters, layers)
    origin = start * rng.standard_normal((replicas, 1, n))
    path = origin + speed * step[:, None] * rng.standard_normal((replicas, 1, n))
    return as_trajectory(path, step, layers, dtype, "ballistic", speed=speed)


@accepts(NUMBERS)
def sgd_noise(
    step: Steps,
    /,
    *,
    rng: Rng,
    learning_rate: float = 0.1,
    momentum: float = 0.0,
    noise: float = 1.0,
    n_parameters: int = 1000,
    replicas: int = 1,
    layers: Layers = None,
    dtype: str = "float32",
) -> xr.Dataset:
    r"""SGD on a flat landscape, gradient noise alone: :math:`\Delta\to\eta^2tD_2/[M(1-b)^2]`.

    :math:`v\leftarrow bv+g`, :math:`w\leftarrow w-\eta v`, g Gaussian with variance :math:`s^2=D_2/M` per weight; the
    velocity starts stationary, so that :math:`\Delta` depends on the lag alone.

    Parameters
    ----------
    step, rng, n_parameters, replicas, layers, dtype
        As for `brownian`; every step up to the last is simulated.
    learning_rate, momentum : float
        :math:`\eta` and b in [0, 1).
    noise : float
        s.

    Returns
    -------
    xarray.Dataset
        A trajectory with clock ``proper_time``.

    Examples
    --------
    >>> float(sgd_noise([0, 10], rng=0).proper_time[1])
    1.0
    """
    step = as_steps(step)
    rng = np.random.default_rng(rng)
    n, layers = n_and_layers(n_parameters, layers)
    w = np.zeros((replicas, n))
    v = noise / np.sqrt(1 - momentum**2) * rng.standard_normal((replicas, n))
    path = np.empty((replicas, step.size, n))
    row = 0
    for now in range(int(step[0]), int(step[-1]) + 1):
        if now == step[row]:
            path[:, row] = w
            row += 1
        w = w - learning_rate * v
        v = momentum * v + noise * rng.standard_normal((replicas, n))
    clocks = {"proper_time": learning_rate * step}
    about = {"learning_rate": learning_rate, "momentum": momentum, "noise": noise}
    return as_trajectory(path, step, layers, dtype, "sgd_noise", clocks=clocks, **about)


@accepts(TRAJECTORY, PAIRS)
def exact_msd(trajectory: xr.Dataset, pairs: xr.Dataset, /) -> xr.DataArray:
    r"""Give the exact ensemble MSD of a synthetic trajectory at its pairs.

    Parameters
    ----------
    trajectory : xarray.Dataset
        What one of the functions here returned.
    pairs : xarray.Dataset
        What `time_pairs` returned, on any clock.

    Returns
    -------
    xarray.DataArray, (pair,)
        In squared weight units.

    Raises
    ------
    ArgumentError
        If the trajectory is not synthetic, or its MSD has no closed form.

    Examples
    --------
    >>> from trajstats.data.schedules import time_pairs
    >>> run = brownian([0, 1, 10], rng=0, diffusion=0.5)
    >>> exact_msd(run, time_pairs(run)).values.tolist()
    [1.0, 10.0, 9.0]
    """
    trajectory = check_trajectory(trajectory)
    process = trajectory.attrs.get("process")
    if process not in _EXACT:
        raise ArgumentError(unknown_name_message("process", process, _EXACT, do="Only these have a closed form."))
    known = json.loads(trajectory.attrs["process_arguments"])
    first, second = pairs["first"].values.astype(float), pairs["second"].values.astype(float)
    values = _EXACT[process](first, second, known)
    coords = {k: pairs[k] for k in (WAITING_TIME, LAG)}
    about = {"long_name": "exact mean squared displacement", "units": "weight^2"}
    return xr.DataArray(values, dims=("pair",), coords=coords, name="msd", attrs=about)


def _exact_noise(first: np.ndarray, second: np.ndarray, a: Mapping[str, Any]) -> np.ndarray:
    t, b = second - first, a["momentum"]
    correlated = b / (1 - b) * (t - (1 - b**t) / (1 - b))
    return a["learning_rate"] ** 2 * a["noise"] ** 2 / (1 - b**2) * (t + 2 * correlated)


def _exact_ou(first: np.ndarray, second: np.ndarray, a: Mapping[str, Any]) -> np.ndarray:
    return -2 * a["variance"] * np.expm1(-(second - first) / a["time"])


def _exact_time_changed(first: np.ndarray, second: np.ndarray, a: Mapping[str, Any]) -> np.ndarray:
    return -2 * a["variance"] * np.expm1(-(_clock(second, a["mu"]) - _clock(first, a["mu"])) / a["scale"])


_EXACT: dict[str, Callable[[np.ndarray, np.ndarray, Mapping[str, Any]], np.ndarray]] = {
    "scaled_brownian": lambda s, t, a: 2 * a["diffusion"] * (_age(t, a["exponent"]) - _age(s, a["exponent"])),
    "ornstein_uhlenbeck": _exact_ou,
    "time_changed_ou": _exact_time_changed,
    "ballistic": lambda s, t, a: (a["speed"] * (t - s)) ** 2,
    "sgd_noise": _exact_noise,
}
