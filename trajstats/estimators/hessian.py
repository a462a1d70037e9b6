"""Spectra of the loss curvature at the checkpoints of a trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data.schema import REPLICA, STEP, annotate, check_trajectory, layer_slices
from trajstats.errors import ArgumentError, SchemaError, unknown
from trajstats.estimators.spectral_blocks import Plan, run_spectra
from trajstats.network import CURVATURE_KINDS, CurvatureKind, Network

METHODS = ("auto", "exact", "lanczos")
# Up to this many parameters `auto` diagonalises the dense matrix.
EXACT_BELOW = 1_000
PROBES_PER_CALL = 5


def hessian_spectrum(
    network: Network,
    trajectory: xr.Dataset,
    /,
    *,
    steps: Sequence[int] | None = None,
    kind: CurvatureKind = "hessian",
    method: str = "auto",
    probes: int = 10,
    order: int = 80,
    deflate: bool = True,
    layers: Sequence[str] | None = None,
    rng: int | np.random.Generator,
) -> xr.Dataset:
    """Spectrum of the loss curvature at saved checkpoints.

    Parameters
    ----------
    network : Network
        The network, its loss and its data.
    trajectory : xarray.Dataset
        Its trajectory.
    steps : sequence of int, optional
        Saved steps; all if not given.
    kind : str
        ``"hessian"``, ``"gauss_newton"`` or ``"fisher"``.
    method : str
        ``"exact"``, ``"lanczos"``, or ``"auto"``.
    probes, order : int
        Random probes and Lanczos steps per probe.
    deflate : bool
        Count converged eigenvalues exactly.
    layers : sequence of str, optional
        Restrict to the block of these layers.
    rng : int or numpy.random.Generator
        Seed.

    Returns
    -------
    xarray.Dataset
        ``nodes``, ``weights`` (replica, step, probe, node).

    Raises
    ------
    ArgumentError
        If an argument is not allowed.
    SchemaError
        If network and trajectory do not match.
    """
    trajectory = check_trajectory(trajectory)
    if kind not in CURVATURE_KINDS:
        raise ArgumentError(unknown("kind", kind, CURVATURE_KINDS))
    if method not in METHODS:
        raise ArgumentError(unknown("method", method, METHODS))
    for name, value in (("probes", probes), ("order", order)):
        if value < 1:
            msg = f"{name}={value}: give at least 1"
            raise ArgumentError(msg)
    n = trajectory.sizes["parameter"]
    if network.n_parameters != n:
        msg = f"the network has {network.n_parameters} weights, the trajectory {n}: it is not the network of this run"
        raise SchemaError(msg)
    rows = _rows(trajectory, steps)
    selection = None
    if layers is not None:
        slices = layer_slices(trajectory, layers).values()
        selection = np.concatenate([np.arange(s.start, s.stop) for s in slices])
    size = n if selection is None else len(selection)
    entropy = int(rng.integers(2**63)) if isinstance(rng, np.random.Generator) else int(rng)
    exact = method == "exact" or (method == "auto" and size <= EXACT_BELOW)
    share = order // 8 if deflate else 0
    plan = Plan(kind, exact, order - share, 10 * share, PROBES_PER_CALL, entropy, selection)
    results = run_spectra(network, trajectory, rows, probes, plan)
    return annotate(
        _dataset(results, trajectory, rows, 1 if exact else probes),
        name="hessian_spectrum",
        long_name=f"spectrum of the {kind.replace('_', '-')}",
        units="loss per squared weight",
        estimator="hessian_spectrum",
        arguments={
            "steps": trajectory[STEP].values[rows],
            "kind": kind,
            "method": "exact" if exact else "lanczos",
            "probes": probes,
            "order": order,
            "deflate": deflate,
            "layers": layers,
            "rng": entropy,
        },
        source=trajectory.attrs.get("uid", ""),
        n_parameters=size,
        kind=kind,
    )


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


def _dataset(results: list[Any], trajectory: xr.Dataset, rows: list[int], probes: int) -> xr.Dataset:
    # Shorter node lists are padded by their last node at weight zero: harmless in any sum, maximum or plot.
    dims = {
        "nodes": "node",
        "weights": "node",
        "residual": "node",
        "exact": "node",
        "alpha": "lanczos",
        "beta": "lanczos",
    }
    names = [name for name in dims if name in results[0][0][0]]
    data = {}
    for name in names:
        cells = [[np.concatenate([chunk[name] for chunk in cell])[:probes] for cell in line] for line in results]
        width = max(cell.shape[-1] for line in cells for cell in line)
        full = np.zeros((len(cells), len(rows), probes, width), cells[0][0].dtype)
        for r, line in enumerate(cells):
            for k, cell in enumerate(line):
                full[r, k, :, : cell.shape[-1]] = cell
                if name == "nodes":
                    full[r, k, :, cell.shape[-1] :] = cell[:, -1:]
        data[name] = ((REPLICA, STEP, "probe", dims[name]), full)
    losses = np.array([[cell[0]["loss"] for cell in line] for line in results])
    coords = {REPLICA: trajectory[REPLICA], STEP: trajectory[STEP][rows], "probe": np.arange(probes)}
    return xr.Dataset({**data, "loss": ((REPLICA, STEP), losses)}, coords=coords)
