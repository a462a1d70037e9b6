r"""Spectra of the input-output Jacobian :math:`J=\partial f/\partial x` at saved checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data._inputs import NETWORK, TRAJECTORY, accepts
from trajstats.data.schema import REPLICA, STEP, WEIGHTS, annotate, layer_slices
from trajstats.errors import ArgumentError, NonFiniteError, UnsupportedError, unknown_name_message
from trajstats.estimators._checkpoint_buffers import with_buffers_at
from trajstats.estimators._checkpoints import match_network
from trajstats.estimators.jacobian._kernels import (
    Factor,
    factor_operator,
    graded_log_singular_values,
    jacobian_product,
    plain_log_singular_values,
)
from trajstats.estimators.linalg._lanczos import gauss_rule, lanczos, unit_probes
from trajstats.estimators.tails._kernels import hill_index
from trajstats.network import Network

METHODS = ("auto", "product", "graded", "autodiff", "lanczos")
# Above this many entries of J `auto` turns to Lanczos quadrature.
_LARGEST = 3e7
_BYTES = 256 * 2**20
_SMALLEST = -690.0


@accepts(NETWORK, TRAJECTORY)
def jacobian_esd(
    network: Network,
    trajectory: xr.Dataset,
    inputs: np.ndarray,
    /,
    steps: Sequence[int] | None = None,
    *,
    method: str = "auto",
    layers: tuple[int, int] | None = None,
    eigenvalues: bool = False,
    level: float = 0.9,
    bins: int = 60,
    probes: int = 4,
    order: int = 80,
    memory: int = _BYTES,
    rng: int | np.random.Generator,
) -> xr.Dataset:
    r"""Singular values of the input-output Jacobian and their mean density, along training.

    For :math:`x^l=\varphi(W_lx^{l-1}+b_l)`, :math:`J=\prod_lD_lW_l` with :math:`D_l=\mathrm{diag}\,\varphi'`; the
    density
    is that of the :math:`\min(N_0,N_L)` squared singular values :math:`x=s^2`, averaged over inputs and replicas.

    Parameters
    ----------
    network : Network
        Any network with the protocol. With ``jacobian_factors`` the product is formed in float64 (or its values are
        taken factor by factor); otherwise ``input_jacobian`` is called on chunks of inputs.
    trajectory : xarray.Dataset
        Its trajectory.
    inputs : array, (input, n_inputs)
        Points at which to linearise, shaped as the network takes them.
    steps : sequence of int, optional
        Saved steps; all if not given.
    method : str
        ``"product"`` (factors, then SVD), ``"graded"`` (factors, every singular value to its own precision),
        ``"autodiff"``, ``"lanczos"`` (J never formed: quadrature of :math:`JJ^T` from random probes), or ``"auto"``:
        product or autodiff, graded where some value is lost to rounding, Lanczos when J has more than 3e7 entries.
    layers : (int, int), optional
        Jacobian of factor `b` - 1's output with respect to factor `a`'s input, counted from 0 (needs factors).
    eigenvalues : bool
        Also give the eigenvalues (square J that is formed).
    level : float
        Share of spectra between ``density_low`` and ``density_high``.
    bins : int
        Bins of the density, uniform in log x over the resolved values.
    probes, order : int
        Probes and steps of the Lanczos quadrature.
    memory : int
        Bytes that a chunk of inputs may take.
    rng : int or numpy.random.Generator
        Seed of the probes.

    Returns
    -------
    xarray.Dataset
        ``log_singular_values`` (replica, step, input, value), natural, descending, with ``resolved``: where it is False
        the number is the resolution below which the value lies. ``density``, ``density_low``, ``density_high`` (step,
        squared_singular_value) per unit of x; ``spectral_norm`` (replica, step, input) and, for square J,
        ``spectral_radius``, ``eigenvalue_real``, ``eigenvalue_imag``; ``weight_tail_index`` and
        ``weight_tail_stderr`` (replica, step, layer), Hill's
        index of each weight matrix. With Lanczos ``nodes`` and ``weights`` (replica, step, input, probe, node) of x
        instead of the singular values.

    Raises
    ------
    ArgumentError
        If a method, step or layer range is not known, or the inputs do not fit the network.
    NonFiniteError
        If inputs, or the Jacobian, hold NaN or infinity.
    SchemaError
        If the layers of network and trajectory differ by name or shape.

    Notes
    -----
    Cost per (replica, step, input): L matrix products and one SVD, O(L N^3); graded five to ten times that. An SVD of a
    formed product loses values below eps N s_max; the graded accumulation does not.

    References
    ----------
    fixedpoints (arXiv:2501.04182); Stewart 1997, doi:10.1137/S0895479895289079 (graded products).

    Examples
    --------
    >>> import numpy as np
    >>> from trajstats.data.schema import trajectory_dataset
    >>> class Linear:
    ...     n_parameters, n_inputs, n_outputs = 4, 2, 2
    ...     def jacobian_factors(self, weights, inputs):
    ...         return [(np.ones((len(inputs), 2)), weights.reshape(2, 2))]
    >>> run = trajectory_dataset(np.array([[3.0, 0.0, 0.0, 4.0]]), step=[0], layers={"0.weight": (2, 2)})
    >>> esd = jacobian_esd(Linear(), run, np.zeros((1, 2)), rng=0)
    >>> np.exp(esd.log_singular_values).values.round(12).ravel().tolist()
    [4.0, 3.0]
    """
    network, trajectory = match_network(network, trajectory)
    inputs = _check(network, inputs, method, level, bins)
    rows = _rows(trajectory, steps)
    entropy = int(rng.integers(2**63)) if isinstance(rng, np.random.Generator) else int(rng)
    cells = []
    for r in range(trajectory.sizes[REPLICA]):
        for row in rows:
            weights = np.asarray(trajectory[WEIGHTS][r, row].values)
            source = _Source(with_buffers_at(network, trajectory, r, row), weights, inputs, method, layers, memory)
            cells.append(
                source._quadrature(probes, order, (entropy, r, row)) if source.large else source._dense(eigenvalues)
            )
            cells[-1]["weight_tail_index"], cells[-1]["weight_tail_stderr"] = _tail_indices(trajectory, weights)
    result = _dataset(cells, trajectory, rows)
    result = result.merge(_density(result, level, bins))
    return annotate(
        result,
        name="jacobian_esd",
        long_name="squared singular values of the input-output Jacobian",
        units="1",
        estimator="jacobian_esd",
        arguments={
            "steps": trajectory[STEP].values[rows],
            "method": method,
            "layers": layers,
            "level": level,
            "bins": bins,
            "probes": probes,
            "order": order,
            "rng": entropy,
        },
        source=trajectory.attrs.get("uid", ""),
        widths=source.widths,
        method=source.method,
    )


class _Source:
    """Where the Jacobians at one checkpoint come from: factors where the network has them, else differentiation."""

    def __init__(
        self,
        network: Network,
        weights: np.ndarray,
        inputs: np.ndarray,
        method: str,
        layers: tuple[int, int] | None,
        memory: int,
    ) -> None:
        self.network, self.weights, self.inputs, self.memory = network, weights, inputs, memory
        self.factors = self._factors(method, layers)
        if self.factors is None:
            self.widths = [int(network.n_inputs), int(network.n_outputs)]
        else:
            self.widths = [self.factors[0][1].shape[1], *(w.shape[0] for _, w in self.factors)]
        self.large = method == "lanczos" or (method == "auto" and self.widths[0] * self.widths[-1] > _LARGEST)
        self.method = "lanczos" if self.large else method
        if method == "auto" and not self.large:
            self.method = "product" if self.factors is not None else "autodiff"
        self.may_grade = method in ("auto", "graded")

    def _factors(self, method: str, layers: tuple[int, int] | None) -> list[Factor] | None:
        if method == "autodiff" and layers is None:
            return None
        try:
            factors = list(self.network.jacobian_factors(self.weights, self.inputs))
        except (UnsupportedError, AttributeError):
            if method in ("product", "graded") or layers is not None:
                msg = "this network gives no jacobian_factors; use method='autodiff' and no layers"
                raise UnsupportedError(msg) from None
            return None
        if layers is not None:
            first, last = layers
            if not 0 <= first < last <= len(factors):
                msg = f"layers={layers}: give 0 <= a < b <= {len(factors)}, the number of factors"
                raise ArgumentError(msg)
            factors = factors[first:last]
        if not all(np.isfinite(d).all() and np.isfinite(w).all() for d, w in factors):
            msg = (
                "the Jacobian's factors hold NaN or infinity; leave this step out with steps=..., or check the weights"
            )
            raise NonFiniteError(msg)
        return factors

    def _dense(self, eigenvalues: bool) -> dict[str, np.ndarray]:
        # Singular values (and eigenvalues) of every input's Jacobian.
        logs, resolved, radius, eigen = [], [], [], []
        square = self.widths[0] == self.widths[-1]
        for rows, matrices, eps in self._matrices():
            if self.method == "graded":
                pairs = [graded_log_singular_values(self.factors or [], i) for i in range(rows.start, rows.stop)]
            else:
                values, good = plain_log_singular_values(matrices, eps)
                pairs = list(zip(values, good, strict=True))
                if self.factors is not None and self.may_grade and len(self.factors) > 1:
                    for i in np.flatnonzero(~good.all(axis=1)):
                        pairs[i] = graded_log_singular_values(self.factors, rows.start + int(i))
            logs += [p[0] for p in pairs]
            resolved += [p[1] for p in pairs]
            if square and eigenvalues:
                eigen += list(np.linalg.eigvals(matrices))
        cell = {"log_singular_values": np.array(logs), "resolved": np.array(resolved)}
        cell["spectral_norm"] = np.exp(cell["log_singular_values"][:, 0])
        if eigen:
            values = np.array(eigen)
            order = np.argsort(-np.abs(values), axis=1, kind="stable")
            values = np.take_along_axis(values, order, axis=1)
            cell["eigenvalue_real"], cell["eigenvalue_imag"] = values.real.copy(), values.imag.copy()
            radius = list(np.abs(values[:, 0]))
            cell["spectral_radius"] = np.array(radius)
        return cell

    def _matrices(self) -> Iterator[tuple[slice, np.ndarray, float]]:
        # Two copies of J and the SVD's workspace, in float64.
        chunk = max(1, int(self.memory // (8 * 4 * max(self.widths) ** 2)))
        n = len(self.inputs)
        for start in range(0, n, chunk):
            rows = slice(start, min(n, start + chunk))
            if self.factors is not None:
                matrices, eps = jacobian_product(self.factors, rows), float(np.finfo(np.float64).eps)
            else:
                given = np.asarray(self.network.input_jacobian(self.weights, self.inputs[rows]))
                matrices, eps = given.astype(np.float64), float(np.finfo(given.dtype).eps)
            if not np.isfinite(matrices).all():
                msg = "the Jacobian holds NaN or infinity; leave this step out with steps=..., or check the weights"
                raise NonFiniteError(msg)
            yield rows, matrices, eps

    def _quadrature(self, probes: int, order: int, key: tuple[int, int, int]) -> dict[str, np.ndarray]:
        # Quadrature of the smaller Gram matrix from random probes, one input at a time.
        transpose = self.widths[-1] > self.widths[0]
        size = min(self.widths[0], self.widths[-1])
        length = min(order, size)
        nodes = np.zeros((len(self.inputs), probes, length))
        weights = np.zeros_like(nodes)
        for i in range(len(self.inputs)):
            if self.factors is not None:
                operator = factor_operator(self.factors, i)
            elif hasattr(self.network, "jacobian_operator"):
                operator = self.network.jacobian_operator(self.weights, self.inputs[i])
            else:
                msg = "Lanczos needs jacobian_factors or jacobian_operator(weights, x); this network has neither"
                raise UnsupportedError(msg)
            if transpose:
                operator = operator.H

            def gram(block: np.ndarray, operator: Any = operator) -> np.ndarray:
                return np.asarray(operator.matmat(operator.rmatmat(block.T)), dtype=np.float64).T

            keys = [np.random.SeedSequence(key[0], spawn_key=(*key[1:], i, p)) for p in range(probes)]
            run = lanczos(gram, unit_probes(keys, size, np.dtype(np.float64)), length)
            for p in range(probes):
                node, weight, _ = gauss_rule(run, p)
                # shorter rules (Krylov space exhausted) are padded with their largest node at weight zero
                nodes[i, p], nodes[i, p, : len(node)] = node[-1], np.maximum(node, 0.0)
                weights[i, p, : len(node)] = weight
        return {"nodes": nodes, "weights": weights, "spectral_norm": np.sqrt(nodes.max(axis=(1, 2)))}


def _check(network: Network, inputs: np.ndarray, method: str, level: float, bins: int) -> np.ndarray:
    if method not in METHODS:
        raise ArgumentError(unknown_name_message("method", method, METHODS))
    if not 0 < level < 1 or bins < 2:
        msg = f"level={level} must lie between 0 and 1 and bins={bins} be at least 2"
        raise ArgumentError(msg)
    inputs = np.asarray(inputs)
    if inputs.ndim < 2 or not len(inputs) or math.prod(inputs.shape[1:]) != network.n_inputs:
        msg = f"inputs have shape {inputs.shape}; give (input, {network.n_inputs}), at least one input"
        raise ArgumentError(msg)
    if not np.isfinite(inputs).all():
        msg = "inputs hold NaN or infinity"
        raise NonFiniteError(msg)
    return inputs


def _rows(trajectory: xr.Dataset, steps: Sequence[int] | None) -> list[int]:
    saved = trajectory[STEP].values
    if steps is None:
        return list(range(len(saved)))
    rows = []
    for step in np.atleast_1d(np.asarray(steps)).tolist():
        if step not in saved:
            near = int(saved[np.abs(saved - step).argmin()])
            msg = f"no checkpoint at step {step}; the nearest saved one is {near}. Saved steps are in trajectory.step."
            raise ArgumentError(msg)
        rows.append(int(np.searchsorted(saved, step)))
    return rows


def _tail_indices(trajectory: xr.Dataset, weights: np.ndarray) -> np.ndarray:
    # NaN for biases and for layers too small to tell.
    kinds = list(trajectory["layer_kind"].values) if "layer_kind" in trajectory.coords else []
    spans = layer_slices(trajectory).values()
    found = np.full((2, len(spans)), np.nan)
    for i, (kind, span) in enumerate(zip(kinds, spans, strict=False)):
        if kind == "weight" and span.stop - span.start >= 500:
            values = np.abs(weights[span].astype(np.float64))
            found[:, i] = hill_index(values, max(25, round(0.01 * values.size)))
    return found


def _dataset(cells: list[dict[str, np.ndarray]], trajectory: xr.Dataset, rows: list[int]) -> xr.Dataset:
    dims = {
        "log_singular_values": ("input", "value"),
        "resolved": ("input", "value"),
        "spectral_norm": ("input",),
        "spectral_radius": ("input",),
        "eigenvalue_real": ("input", "value"),
        "eigenvalue_imag": ("input", "value"),
        "nodes": ("input", "probe", "node"),
        "weights": ("input", "probe", "node"),
        "weight_tail_index": ("layer",),
        "weight_tail_stderr": ("layer",),
    }
    shape = (trajectory.sizes[REPLICA], len(rows))
    data = {}
    for name in cells[0]:
        stacked = np.stack([cell[name] for cell in cells])
        data[name] = ((REPLICA, STEP, *dims[name]), stacked.reshape(*shape, *stacked.shape[1:]))
    coords = {REPLICA: trajectory[REPLICA], STEP: trajectory[STEP][rows], "layer": trajectory["layer"].values}
    return xr.Dataset(data, coords=coords)


def _density(result: xr.Dataset, level: float, bins: int) -> xr.Dataset:
    # Histogram of log x per spectrum, as a density in x; mean and band over (replica, input).
    if "nodes" in result:
        x = result["nodes"].values.transpose(1, 0, 2, 3, 4)
        share = result["weights"].values.transpose(1, 0, 2, 3, 4) / result.sizes["probe"]
        good = (share > 0) & (x > 1e-14 * x.max())
        log_x = np.log(np.where(good, x, 1.0))
    else:
        log_x = 2 * result["log_singular_values"].values.transpose(1, 0, 2, 3)
        good = result["resolved"].values.transpose(1, 0, 2, 3)
        share = np.full(log_x.shape, 1.0 / log_x.shape[-1])
    log_x = log_x.reshape(len(log_x), -1, math.prod(log_x.shape[3:]))
    good, share = good.reshape(log_x.shape), share.reshape(log_x.shape)
    # squares below the smallest number have no place on the axis, nor has a Jacobian that is zero everywhere
    good &= log_x > _SMALLEST
    low, high = (log_x[good].min(), log_x[good].max()) if good.any() else (-1.0, 0.0)
    pad = max(1e-3, 1e-3 * (high - low))
    edges = np.linspace(low - pad, high + pad, bins + 1)
    width = np.diff(np.exp(edges))
    counts = np.array(
        [
            [np.histogram(v[g], edges, weights=s[g])[0] / width for v, g, s in zip(vs, gs, ss, strict=True)]
            for vs, gs, ss in zip(log_x, good, share, strict=True)
        ]
    )
    tail = (1 - level) / 2
    dims = (STEP, "squared_singular_value")
    return xr.Dataset(
        {
            "density": (dims, counts.mean(axis=1)),
            "density_low": (dims, np.quantile(counts, tail, axis=1)),
            "density_high": (dims, np.quantile(counts, 1 - tail, axis=1)),
        },
        coords={
            "squared_singular_value": np.exp((edges[:-1] + edges[1:]) / 2),
            "bin_low": ("squared_singular_value", np.exp(edges[:-1])),
            "bin_high": ("squared_singular_value", np.exp(edges[1:])),
        },
    )
