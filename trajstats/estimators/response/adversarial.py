"""How easily a small change of the input flips the output."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data._inputs import NETWORK, TRAJECTORY, accepts
from trajstats.data.schema import REPLICA, STEP, annotate
from trajstats.errors import ArgumentError
from trajstats.estimators._checkpoints import check_choice, check_inputs, select_checkpoints, walk
from trajstats.network import Network

NORMS = ("linf", "l2")


@accepts(NETWORK, TRAJECTORY)
def fragility(
    network: Network,
    trajectory: xr.Dataset,
    inputs: Any,
    /,
    *,
    steps: Sequence[int] | None = None,
    norm: str = "linf",
    max_epsilon: float = 1.0,
    pgd_steps: int = 20,
    sizes: int = 24,
) -> xr.Dataset:
    r"""Smallest FGSM and PGD perturbation that flips the output, and the norm of the input gradient.

    The output is the class of largest output (its sign with a single output), and the target of the attack the margin
    :math:`m(x)=f_c(x)-\max_{j\ne c}f_j(x)` of the class the net gives to the clean input: no labels are used. FGSM
    goes straight along :math:`-\mathrm{sign}\nabla m` (for ``"l2"`` along :math:`-\nabla m/|\nabla m|`). PGD takes
    `pgd_steps` such steps within the ball of radius epsilon, each 2.5 epsilon / pgd_steps long. The smallest epsilon
    that flips is found on a log grid of `sizes` values from max_epsilon / 1e3, then by ten bisections.

    Parameters
    ----------
    network : Network
        The run's network.
    trajectory : xarray.Dataset
        Its trajectory.
    inputs : array, (input, ...)
        Clean examples.
    steps : sequence of int, optional
        Saved steps; all if not given.
    norm : {"linf", "l2"}
        Norm of the perturbation.
    max_epsilon : float
        Largest perturbation tried, in units of the inputs, > 0.
    pgd_steps, sizes : int
        See above; >= 1 and >= 2.

    Returns
    -------
    xarray.Dataset
        ``fgsm``, ``pgd`` (replica, step, input): smallest flipping perturbation, NaN where none up to `max_epsilon`
        flips (right-censored: ``fgsm_flipped``, ``pgd_flipped`` say so); ``gradient_norm``: :math:`\|\partial f/
        \partial x\|` (Frobenius over outputs, Euclidean). Float64.

    Raises
    ------
    ArgumentError
        If an argument is out of range.
    SchemaError
        If the layers of network and trajectory differ by name or shape.

    Notes
    -----
    Cost: (sizes + 10) x (pgd_steps + 1) input Jacobians of all inputs per checkpoint. Bias: both are upper bounds of
    the smallest perturbation there is; a median over inputs must count the censored ones as above `max_epsilon`.

    References
    ----------
    response: arXiv:2405.04074 (fragility; operational definition ours). FGSM: arXiv:1412.6572; PGD: arXiv:1706.06083.

    Examples
    --------
    A linear net flips where the perturbation reaches ``|w . x| / |w|_1``:

    >>> from trajstats.data.schema import trajectory_dataset
    >>> class Linear:
    ...     n_parameters, n_inputs, n_outputs = 2, 2, 1
    ...     def outputs(self, w, x): return (x @ w)[:, None]
    ...     def input_jacobian(self, w, x): return np.broadcast_to(w, (len(x), 1, 2))
    >>> run = trajectory_dataset(np.array([[1.0, -3.0]]), step=[0])
    >>> found = fragility(Linear(), run, np.array([[1.0, 0.0]]))
    >>> round(found.fgsm.item(), 3), round(found.pgd.item(), 3)
    (0.25, 0.25)
    """
    check_choice("norm", norm, NORMS)
    if not max_epsilon > 0 or pgd_steps < 1 or sizes < 2:
        msg = f"max_epsilon={max_epsilon}, pgd_steps={pgd_steps}, sizes={sizes}: they must be > 0, >= 1 and >= 2"
        raise ArgumentError(msg)
    network, trajectory = select_checkpoints(network, trajectory, steps)
    inputs = check_inputs(network, inputs, "inputs").astype(np.float64)
    shape = (trajectory.sizes[REPLICA], trajectory.sizes[STEP], len(inputs))
    values = {name: np.empty(shape) for name in ("fgsm", "pgd", "gradient_norm")}
    for at, here, weights in walk(network, trajectory):
        net = _Margin(here, weights, inputs, norm)
        jacobian = np.asarray(here.input_jacobian(weights, inputs), dtype=np.float64)
        values["gradient_norm"][at] = np.sqrt((jacobian**2).sum(axis=(1, 2)))
        straight = functools.partial(net.straight, direction=net.direction(inputs))
        descent = functools.partial(net.descend, n_steps=pgd_steps)
        values["fgsm"][at] = _smallest(straight, len(inputs), max_epsilon, sizes)
        values["pgd"][at] = _smallest(descent, len(inputs), max_epsilon, sizes)
        # A single full step is the first thing PGD could do: it is never beaten by FGSM.
        values["pgd"][at] = np.fmin(values["pgd"][at], values["fgsm"][at])
    dims = (REPLICA, STEP, "input")
    coords = {n: c for n, c in trajectory.coords.items() if c.dims in ((REPLICA,), (STEP,))}
    result = xr.Dataset(coords=coords)
    for name, units in (("fgsm", "input"), ("pgd", "input"), ("gradient_norm", "output / input")):
        result[name] = (dims, values[name], {"long_name": name.replace("_", " "), "units": units})
        if name != "gradient_norm":
            result[f"{name}_flipped"] = (dims, np.isfinite(values[name]))
    return annotate(
        result,
        name="fragility",
        long_name="smallest perturbation that flips the output",
        units="input",
        estimator="fragility",
        arguments={"norm": norm, "max_epsilon": max_epsilon, "pgd_steps": pgd_steps, "sizes": sizes},
        source=trajectory.attrs.get("uid", ""),
    )


class _Margin:
    """The margin of the clean class at one checkpoint, its direction of fall, and attacks on it."""

    def __init__(self, network: Network, weights: np.ndarray, inputs: np.ndarray, norm: str) -> None:
        self.network, self.weights, self.inputs, self.norm = network, weights, inputs, norm
        clean = np.asarray(network.outputs(weights, inputs), dtype=np.float64)
        self.single = clean.shape[1] == 1
        self.label = np.where(clean[:, 0] >= 0, 1.0, -1.0) if self.single else clean.argmax(axis=1)

    def flips(self, inputs: np.ndarray) -> np.ndarray:
        out = np.asarray(self.network.outputs(self.weights, inputs), dtype=np.float64)
        return out[:, 0] * self.label <= 0 if self.single else out.argmax(axis=1) != self.label

    def direction(self, inputs: np.ndarray) -> np.ndarray:
        jacobian = np.asarray(self.network.input_jacobian(self.weights, inputs), dtype=np.float64)
        rows = np.arange(len(inputs))
        if self.single:
            gradient = self.label[:, None] * jacobian[:, 0]
        else:
            out = np.array(self.network.outputs(self.weights, inputs), dtype=np.float64)
            out[rows, self.label] = -np.inf
            gradient = jacobian[rows, self.label] - jacobian[rows, out.argmax(axis=1)]
        if self.norm == "linf":
            step = np.sign(gradient)
        else:
            length = np.linalg.norm(gradient, axis=1, keepdims=True)
            step = np.divide(gradient, length, out=np.zeros_like(gradient), where=length > 0)
        return step.reshape(inputs.shape)

    def straight(self, epsilon: np.ndarray, direction: np.ndarray) -> np.ndarray:
        return self.flips(self.inputs - self._column(epsilon) * direction)

    def _column(self, epsilon: np.ndarray) -> np.ndarray:
        return epsilon.reshape(-1, *(1,) * (self.inputs.ndim - 1))

    def descend(self, epsilon: np.ndarray, n_steps: int) -> np.ndarray:
        epsilon = self._column(epsilon)
        flipped = np.zeros(len(self.inputs), dtype=bool)
        moved = np.zeros_like(self.inputs)
        for _ in range(n_steps):
            moved = moved - 2.5 * epsilon / n_steps * self.direction(self.inputs + moved)
            if self.norm == "linf":
                moved = np.clip(moved, -epsilon, epsilon)
            else:
                length = np.linalg.norm(moved.reshape(len(moved), -1), axis=1).reshape(epsilon.shape)
                moved = moved * np.minimum(1.0, epsilon / np.maximum(length, 1e-300))
            flipped |= self.flips(self.inputs + moved)
        return flipped


def _smallest(flips: Callable[[np.ndarray], np.ndarray], n: int, largest: float, sizes: int) -> np.ndarray:
    # Smallest epsilon of each input: first flip on a log grid, then bisection between it and the one before.
    grid = np.geomspace(largest / 1e3, largest, sizes)
    low, high = np.zeros(n), np.full(n, np.nan)

    for epsilon in grid:
        hit = flips(np.full(n, epsilon)) & np.isnan(high)
        high[hit] = epsilon
        low[np.isnan(high)] = epsilon
    found = np.isfinite(high)
    for _ in range(10):
        middle = np.where(found, 0.5 * (low + high), largest)
        hit = flips(middle)
        high = np.where(found & hit, middle, high)
        low = np.where(found & ~hit, middle, low)
    return high
