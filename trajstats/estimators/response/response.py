"""How the outputs answer a training step: the tangent kernel and the response to a step of finite size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data._inputs import NETWORK, TRAJECTORY, accepts
from trajstats.data.schema import LAYER, REPLICA, STEP, annotate, layer_slices
from trajstats.errors import ArgumentError, FitError
from trajstats.estimators._checkpoints import check_choice, check_inputs, select_checkpoints, walk
from trajstats.network import Network

METHODS = ("kernel", "finite_step")
OUTPUTS = ("trace", "each")
BLOCK_BYTES = 64 * 2**20


@accepts(NETWORK, TRAJECTORY)
def training_response(
    network: Network,
    trajectory: xr.Dataset,
    inputs: Any,
    probes: Any,
    /,
    *,
    steps: Sequence[int] | None = None,
    eta: float = 1e-4,
    method: str = "kernel",
    outputs: str = "trace",
    per: str = "all",
    max_nonlinearity: float = 0.1,
    block_bytes: int = BLOCK_BYTES,
) -> xr.Dataset:
    r"""Response of the outputs at the probes to a training step on one input, the loss derivative divided out.

    For a plain gradient step on the example :math:`x'`, :math:`\delta f(x)=-\eta\,\Theta_t(x,x')\,\partial\ell/\partial
    f(x')+O(\eta^2)` with :math:`\Theta_t(x,x')=\nabla_wf(x)\cdot\nabla_wf(x')` at the weights of time t.
    ``"kernel"`` computes :math:`\Theta_t` by products with derivatives. ``"finite_step"`` takes the step on a copy, for
    a unit loss derivative of one output o at :math:`x'`, and divides what it does by :math:`\eta`:
    :math:`[f_o(x;w+\eta\nabla_wf_o(x'))-f_o(x;w)]/\eta`. The paper's own definition is not public; this is the
    operational one of paper key *response*. Both agree as :math:`\eta\to0`.

    Parameters
    ----------
    network : Network
        The run's network, with ``output_jvp`` and ``output_vjp``.
    trajectory : xarray.Dataset
        Its trajectory.
    inputs : array, (input, ...)
        Examples x' that are trained on.
    probes : array, (probe, ...)
        Examples x whose output is watched.
    steps : sequence of int, optional
        Saved steps; all if not given.
    eta : float
        Size of the finite step, > 0 (a learning rate: weights move by eta times the gradient of one output).
    method : {"kernel", "finite_step"}
        See above.
    outputs : {"trace", "each"}
        With several outputs, :math:`\sum_o\Theta_{oo}`, or :math:`\Theta_{oo}` for each along dim `output`.
    per : {"all", "layer"}
        All weights, or the share of each layer's weights along dim `layer` (they sum to the whole for the kernel).
    max_nonlinearity : float
        Largest relative difference allowed between the responses to ``eta`` and ``eta / 2``; ``inf`` only reports it.
    block_bytes : int
        Budget for the gradients held at once; the (samples x outputs) x parameters matrix is never built beyond it.

    Returns
    -------
    xarray.Dataset
        ``response`` (replica, step, input, probe[, output][, layer]), float64, in output^2 / weight^2; for
        ``"finite_step"`` also ``nonlinearity`` (replica, step), the relative difference measured between steps of eta
        and eta / 2: to first order half of the distance to the kernel. ``loss`` is carried along where it was saved.

    Raises
    ------
    ArgumentError
        If an argument is not allowed, a step was not saved, or a block budget cannot hold one gradient.
    SchemaError
        If the layers of network and trajectory differ by name or shape.
    FitError
        If `eta` leaves the linear regime; the message names the figure measured and an `eta` to try.

    Notes
    -----
    Cost: per checkpoint and input, one reverse and one forward derivative per output (and layer). Bias: none for the
    kernel; :math:`O(\eta)` for the finite step, plus rounding of about ``eps |f| / eta``: do not go
    below 1e-5 in float32.

    References
    ----------
    response: arXiv:2405.04074. The kernel: Jacot et al., arXiv:1806.07572.

    Examples
    --------
    A linear model has the kernel x . x', for ever:

    >>> from trajstats.data.schema import trajectory_dataset
    >>> class Linear:
    ...     n_parameters, n_inputs, n_outputs = 2, 2, 1
    ...     def outputs(self, w, x): return (x @ w)[:, None]
    ...     def output_jvp(self, w, x, v): return (v @ x.T)[:, :, None]
    ...     def output_vjp(self, w, x, c): return c * x
    >>> run = trajectory_dataset(np.array([[0.0, 0.0], [3.0, 1.0]]), step=[0, 10])
    >>> x = np.array([[1.0, 2.0]])
    >>> training_response(Linear(), run, x, x).response.values.ravel().tolist()
    [5.0, 5.0]
    """
    check_choice("method", method, METHODS)
    check_choice("outputs", outputs, OUTPUTS)
    check_choice("per", per, ("all", "layer"))
    if not eta > 0:
        msg = f"eta={eta}: the size of a step must be > 0"
        raise ArgumentError(msg)
    network, trajectory = select_checkpoints(network, trajectory, steps)
    inputs, probes = check_inputs(network, inputs, "inputs"), check_inputs(network, probes, "probes")
    groups = layer_slices(trajectory) if per == "layer" else {"all": slice(0, network.n_parameters)}
    block = _gradients_at_once(network, len(groups), block_bytes)
    shape = (len(inputs), len(probes), network.n_outputs, len(groups))
    values = np.empty((trajectory.sizes[REPLICA], trajectory.sizes[STEP], *shape))
    nonlinearity = np.zeros(values.shape[:2])
    for at, net, weights in walk(network, trajectory):
        if method == "kernel":
            values[at] = tangent_kernel(net, weights, inputs, probes, list(groups.values()), block)
        else:
            values[at], nonlinearity[at] = _finite_step(net, weights, inputs, probes, list(groups.values()), block, eta)
    _check_linear(nonlinearity, trajectory, eta, max_nonlinearity)
    dims = [REPLICA, STEP, "input", "probe", "output", LAYER]
    response = xr.DataArray(values, dims=dims, coords={LAYER: list(groups)})
    response = response.sum("output") if outputs == "trace" else response
    response = response.isel({LAYER: 0}, drop=True) if per == "all" else response
    result = xr.Dataset({"response": response}).assign_coords(
        {name: coord for name, coord in trajectory.coords.items() if coord.dims in ((REPLICA,), (STEP,))}
    )
    result.response.attrs = {"long_name": "training response", "units": "output^2 / weight^2"}
    if method == "finite_step":
        result["nonlinearity"] = (
            (REPLICA, STEP),
            nonlinearity,
            {"long_name": "relative change at eta / 2", "units": "1"},
        )
    if "loss" in trajectory:
        result["loss"] = trajectory["loss"].load()
    return annotate(
        result,
        name="training_response",
        long_name="training response",
        units="output^2 / weight^2",
        estimator="training_response",
        arguments={"method": method, "eta": eta, "outputs": outputs, "per": per},
        source=trajectory.attrs.get("uid", ""),
    )


def _gradients_at_once(network: Network, groups: int, block_bytes: int) -> int:
    block = int(block_bytes // (8 * network.n_parameters * (1 + groups)))
    if block < 1:
        msg = f"block_bytes={block_bytes} holds no gradient of {network.n_parameters} float64 weights; raise it"
        raise ArgumentError(msg)
    return block


def _gradients(network: Network, weights: np.ndarray, inputs: np.ndarray, block: int) -> Any:
    # (first input, output, gradients (b, parameter)) in blocks.
    for start in range(0, len(inputs), block):
        part = inputs[start : start + block]
        for o in range(network.n_outputs):
            unit = np.zeros((len(part), network.n_outputs))
            unit[:, o] = 1.0
            yield start, o, np.asarray(network.output_vjp(weights, part, unit), dtype=np.float64)


def _masked(gradients: np.ndarray, part: slice) -> np.ndarray:
    if part == slice(0, gradients.shape[1]):
        return gradients
    out = np.zeros_like(gradients)
    out[:, part] = gradients[:, part]
    return out


def tangent_kernel(
    network: Network,
    weights: np.ndarray,
    inputs: np.ndarray,
    probes: np.ndarray,
    groups: list[slice] | None = None,
    block: int | None = None,
) -> np.ndarray:
    """Compute the kernel at one checkpoint."""
    groups = [slice(0, network.n_parameters)] if groups is None else groups
    block = _gradients_at_once(network, len(groups), BLOCK_BYTES) if block is None else block
    out = np.empty((len(inputs), len(probes), network.n_outputs, len(groups)))
    for start, o, gradients in _gradients(network, weights, inputs, block):
        for g, part in enumerate(groups):
            product = network.output_jvp(weights, probes, _masked(gradients, part))
            out[start : start + len(gradients), :, o, g] = product[:, :, o]
    return out


def _finite_step(
    network: Network,
    weights: np.ndarray,
    inputs: np.ndarray,
    probes: np.ndarray,
    groups: list[slice],
    block: int,
    eta: float,
) -> tuple[np.ndarray, float]:
    out = np.empty((2, len(inputs), len(probes), network.n_outputs, len(groups)))
    before = np.asarray(network.outputs(weights, probes), dtype=np.float64)
    for start, o, gradients in _gradients(network, weights, inputs, block):
        for g, part in enumerate(groups):
            for row, gradient in enumerate(_masked(gradients, part), start):
                for h, size in enumerate((eta, eta / 2)):
                    after = np.asarray(network.outputs(weights + size * gradient, probes), dtype=np.float64)
                    out[h, row, :, o, g] = (after - before)[:, o] / size
    scale = np.linalg.norm(out[1])
    return out[0], float(np.linalg.norm(out[0] - out[1]) / scale) if scale > 0 else 0.0


def _check_linear(nonlinearity: np.ndarray, trajectory: xr.Dataset, eta: float, allowed: float) -> None:
    worst = float(nonlinearity.max())
    if worst <= allowed:
        return
    r, s = np.unravel_index(nonlinearity.argmax(), nonlinearity.shape)
    msg = (
        f"eta={eta:g} leaves the linear regime: at replica {trajectory[REPLICA].values[r]}, step "
        f"{trajectory[STEP].values[s]} the response changes by {worst:.2g} of itself at eta / 2, above "
        f"max_nonlinearity={allowed:g}; try eta={eta * allowed / (2 * worst):.1g}, or only report it with "
        "max_nonlinearity=inf"
    )
    raise FitError(msg)
