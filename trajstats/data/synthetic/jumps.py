"""Weight trajectories that jump: heavy-tailed displacements and trap models."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr

from trajstats.data._inputs import NUMBERS, accepts
from trajstats.data.synthetic._common import Layers, Rng, Steps, as_steps, as_trajectory, n_and_layers
from trajstats.errors import ArgumentError, unknown_name_message


@accepts(NUMBERS)
def displacement_noise(
    step: Steps,
    /,
    *,
    rng: Rng,
    law: str = "laplace",
    scale: float = 1.0,
    degrees: float = 5.0,
    n_parameters: int = 1000,
    replicas: int = 1,
    layers: Layers = None,
    dtype: str = "float32",
) -> xr.Dataset:
    r"""Independent steps of a given law and variance: the references for the non-Gaussian parameter.

    Each recorded interval adds one displacement of variance :math:`s^2` (whatever its length in steps). Over one
    interval :math:`\alpha_2` is 1 for ``"laplace"``, :math:`2/(\nu-4)` for ``"student"``, 0 for ``"gaussian"``, and
    for ``"two_populations"`` (half the weights, the same ones always, with 1.9 and half with 0.1 of the variance)
    :math:`(1.9^2+0.1^2)/2-1=0.81`, which does not fade with the lag.

    Parameters
    ----------
    step, rng, n_parameters, replicas, layers, dtype
        As for `brownian`.
    law : {"laplace", "student", "gaussian", "two_populations"}
        Law of one displacement.
    scale : float
        Its standard deviation s.
    degrees : float
        Degrees of freedom of the Student law, above 2.

    Returns
    -------
    xarray.Dataset
        A trajectory.

    Raises
    ------
    ArgumentError
        If `law` is not known.

    Examples
    --------
    >>> displacement_noise([0, 1], rng=0, law="student").sizes["step"]
    2
    """
    step = as_steps(step)
    rng = np.random.default_rng(rng)
    n, layers = n_and_layers(n_parameters, layers)
    shape = (replicas, step.size - 1, n)
    draw: dict[str, Callable[[], np.ndarray]] = {
        "laplace": lambda: rng.laplace(scale=np.sqrt(0.5), size=shape),
        "student": lambda: rng.standard_t(degrees, size=shape) * np.sqrt((degrees - 2) / degrees),
        "gaussian": lambda: rng.standard_normal(shape),
        "two_populations": lambda: (
            np.sqrt(np.where(np.arange(n) % 2, 1.9, 0.1))[rng.permutation(n)] * rng.standard_normal(shape)
        ),
    }
    if law not in draw:
        raise ArgumentError(unknown_name_message("law", law, draw))
    path = np.zeros((replicas, step.size, n))
    np.cumsum(scale * draw[law](), axis=1, out=path[:, 1:])
    return as_trajectory(path, step, layers, dtype, "displacement_noise", law=law, scale=scale, degrees=degrees)


@accepts(NUMBERS)
def trap_model(
    step: Steps,
    /,
    *,
    rng: Rng,
    x: float = 0.5,
    lattice: str = "mean_field",
    sites: int = 256,
    n_parameters: int = 1000,
    replicas: int = 1,
    layers: Layers = None,
    dtype: str = "float32",
) -> xr.Dataset:
    r"""Trap model: each weight keeps its value for a broadly distributed time, then takes a new one.

    Escape from a trap takes an exponential time of mean :math:`\tau`, :math:`P(\tau>u)=u^{-x}`, u >= 1. Every visit
    has an independent standard Gaussian weight, so that :math:`\Delta=2[1-\Pi(t_w,t_w+t)]` with :math:`\Pi` the
    probability of no jump. On ``"mean_field"`` the next trap is any: :math:`\Pi` scales with :math:`t/t_w` (mu = 1).
    On ``"line"`` the traps are quenched along a ring, the walker moves to a neighbour, and :math:`\Pi` scales with
    :math:`t/t_w^\gamma`, :math:`\gamma=1/(1+x)`.

    Parameters
    ----------
    step, rng, n_parameters, replicas, layers, dtype
        As for `brownian`; the step is the time.
    x : float
        Temperature over glass temperature, in (0, 1).
    lattice : {"mean_field", "line"}
        Where the traps are.
    sites : int
        Length of the ring of each weight. A walker that goes round leaves the asymptotic law.

    Returns
    -------
    xarray.Dataset
        A trajectory.

    Raises
    ------
    ArgumentError
        If `lattice` is not known or `x` is out of range.

    Examples
    --------
    >>> trap_model([0, 10, 100], rng=0, n_parameters=50).attrs["process"]
    'trap_model'
    """
    if lattice not in {"mean_field", "line"}:
        raise ArgumentError(unknown_name_message("lattice", lattice, ["mean_field", "line"]))
    if not 0 < x < 1:
        msg = f"x={x}: a trap model ages for 0 < x < 1"
        raise ArgumentError(msg)
    step = as_steps(step)
    rng = np.random.default_rng(rng)
    n, layers = n_and_layers(n_parameters, layers)
    walkers = replicas * n
    depth = rng.random((walkers, sites)) ** (-1 / x) if lattice == "line" else None
    site = np.zeros(walkers, dtype=np.int64)
    path = np.empty((walkers, step.size))
    alive = np.arange(walkers)
    now = np.zeros(walkers)
    while alive.size:
        mean = rng.random(alive.size) ** (-1 / x) if depth is None else depth[alive, site[alive]]
        then = now[alive] + mean * rng.standard_exponential(alive.size)
        low, high = np.searchsorted(step, now[alive]), np.searchsorted(step, then)
        seen = np.flatnonzero(high > low)
        if seen.size:
            counts = high[seen] - low[seen]
            column = (
                np.repeat(low[seen], counts) + np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            )
            path[np.repeat(alive[seen], counts), column] = np.repeat(rng.standard_normal(seen.size), counts)
        now[alive] = then
        site[alive] = (site[alive] + rng.choice([-1, 1], alive.size)) % sites
        alive = alive[then <= step[-1]]
    rows = path.reshape(replicas, n, step.size).transpose(0, 2, 1)
    return as_trajectory(rows, step, layers, dtype, "trap_model", x=x, lattice=lattice)
