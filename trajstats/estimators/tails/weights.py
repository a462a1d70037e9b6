"""Tails of the weights of each layer, and of the spectra of weight matrices, along training."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data._inputs import TRAJECTORY, accepts
from trajstats.data.schema import LAYER, REPLICA, STEP, WEIGHTS, annotate, check_trajectory, layer_shapes, layer_slices
from trajstats.errors import ArgumentError, FitError, NonFiniteError, unknown_name_message
from trajstats.estimators.tails._discrete import find_grid
from trajstats.estimators.tails._kernels import hill_index
from trajstats.estimators.tails.samples import FEWEST, hill_plot, tail_fit
from trajstats.theory.random_matrix.closed_forms import MarchenkoPastur


@accepts(TRAJECTORY)
def weight_tails(
    trajectory: xr.Dataset,
    /,
    *,
    layers: Sequence[str] | None = None,
    steps: Sequence[int] | None = None,
    hill_share: float = 0.01,
    bootstrap: int = 0,
    compare: bool = True,
    rng: int | np.random.Generator,
) -> xr.Dataset:
    r"""Tail of the weights of each layer, along training.

    Parameters
    ----------
    trajectory : xarray.Dataset
        A trajectory.
    layers : sequence of str, optional
        Layers to take; by default every weight matrix with at least 500 entries.
    steps : sequence of int, optional
        Saved steps; all if not given.
    hill_share : float
        Share of the largest moduli that enter Hill's index (at least 25 of them).
    bootstrap, compare, rng
        As in `tail_fit`.

    Returns
    -------
    xarray.Dataset
        What `tail_fit` gives, with dims (replica, step, layer) in front, and ``hill_index``, ``hill_stderr`` and
        ``excess_kurtosis``. Where a layer cannot be fitted (all zero, too few levels, NaN) its numbers are NaN and
        ``reason`` says why; ``reason`` is empty elsewhere.

    Raises
    ------
    ArgumentError
        If a step or layer is not there, or no layer is large enough.
    FitError
        If no layer can be fitted at any checkpoint.

    Notes
    -----
    Weights of one layer are not independent; standard errors and p-values take them as such and are a lower bound of
    the uncertainty. Replicas tell.

    References
    ----------
    fixedpoints (arXiv:2501.04182); Clauset, Shalizi, Newman 2009 (arXiv:0706.1062).

    Examples
    --------
    >>> import numpy as np
    >>> from trajstats.data.schema import trajectory_dataset
    >>> weights = np.random.default_rng(0).standard_cauchy((1, 5000))
    >>> run = trajectory_dataset(weights, step=[0], layers={"0.weight": (50, 100)})
    >>> fit = weight_tails(run, rng=0, compare=False)
    >>> 1.7 < float(fit.alpha.squeeze()) < 2.3
    True
    """
    trajectory = check_trajectory(trajectory)
    chosen = _weight_layers(trajectory, layers, 500)
    if not 0 < hill_share < 1:
        msg = f"hill_share={hill_share}: give a share between 0 and 1"
        raise ArgumentError(msg)

    def one(name: str, values: np.ndarray, seed: int) -> xr.Dataset:
        fit = tail_fit(values, bootstrap=bootstrap, compare=compare, rng=seed)
        moduli = np.abs(values[values != 0])
        index, stderr = _hill(moduli, min(max(25, round(hill_share * moduli.size)), moduli.size - 1))
        centred = values - values.mean()
        kurtosis = float(np.mean(centred**4) / np.mean(centred**2) ** 2 - 3)
        return fit.assign(hill_index=index, hill_stderr=stderr, excess_kurtosis=kurtosis)

    result = _along_training(trajectory, chosen, steps, one, rng)
    return annotate(
        result,
        name="weight_tails",
        long_name="power law of the weights' tail",
        units="1",
        estimator="weight_tails",
        arguments={"layers": list(chosen), "hill_share": hill_share, "bootstrap": bootstrap, "rng": str(rng)},
        source=trajectory.attrs.get("uid", ""),
    )


@accepts(TRAJECTORY)
def spectral_tails(
    trajectory: xr.Dataset,
    /,
    *,
    layers: Sequence[str] | None = None,
    steps: Sequence[int] | None = None,
    bootstrap: int = 0,
    rng: int | np.random.Generator,
) -> xr.Dataset:
    r"""Tail of the eigenvalues of :math:`W^TW/N` of each weight matrix, along training, with its Marchenko-Pastur bulk.

    N is the larger side, n the smaller. The bulk's variance is the one whose Marchenko-Pastur law of ratio n/N has the
    median of the n eigenvalues; spikes are eigenvalues more than :math:`4n^{-2/3}` relative above its upper edge (the
    Tracy-Widom scale).

    Parameters
    ----------
    trajectory : xarray.Dataset
        A trajectory.
    layers : sequence of str, optional
        Layers to take; by default every weight matrix whose smaller side is at least 50.
    steps : sequence of int, optional
        Saved steps; all if not given.
    bootstrap, rng
        As in `tail_fit`.

    Returns
    -------
    xarray.Dataset
        With dims (replica, step, layer): what `tail_fit` gives for the eigenvalues (``alpha`` is what WeightWatcher
        calls alpha), ``bulk_variance``, ``bulk_edge``, ``n_spikes`` and ``largest``. Where a matrix cannot be fitted
        its numbers are NaN and ``reason`` says why.

    Raises
    ------
    ArgumentError
        If a step or layer is not there, or no layer is large enough.
    FitError
        If no matrix can be fitted at any checkpoint.

    References
    ----------
    Martin, Mahoney 2021 (arXiv:1810.01075); fixedpoints (arXiv:2501.04182).

    Examples
    --------
    >>> import numpy as np
    >>> from trajstats.data.schema import trajectory_dataset
    >>> w = np.random.default_rng(0).standard_normal((100, 200)) / 10
    >>> run = trajectory_dataset(w.reshape(1, -1), step=[0], layers={"0.weight": (100, 200)})
    >>> int(spectral_tails(run, rng=0).n_spikes.squeeze())
    0
    """
    trajectory = check_trajectory(trajectory)
    shapes = layer_shapes(trajectory)
    sides = {name: (shape[0], math.prod(shape[1:])) for name, shape in shapes.items() if len(shape) >= 2}
    chosen = _weight_layers(trajectory, layers, 0)
    if layers is None:
        chosen = [name for name in chosen if name in sides and min(sides[name]) >= FEWEST]
    wrong = [name for name in chosen if name not in sides or min(sides[name]) < FEWEST]
    if wrong or not chosen:
        msg = f"no matrix with a smaller side of at least {FEWEST} in {wrong or list(shapes)}; name larger layers"
        raise ArgumentError(msg)

    def one(name: str, values: np.ndarray, seed: int) -> xr.Dataset:
        rows, columns = sides[name]
        n, big = min(rows, columns), max(rows, columns)
        if not np.isfinite(values).all():
            msg = f"{int((~np.isfinite(values)).sum())} weights are NaN or infinite"
            raise NonFiniteError(msg)
        if not values.any():
            msg = "all weights are zero: there is no spectrum to fit"
            raise FitError(msg)
        eigenvalues = np.linalg.svd(values.reshape(rows, columns), compute_uv=False) ** 2 / big
        variance = float(np.median(eigenvalues)) / _median(n / big)
        edge = MarchenkoPastur(n / big, variance=variance).edges[1]
        spikes = float((eigenvalues > edge * (1 + 4 * n ** (-2 / 3))).sum())
        positive = eigenvalues[eigenvalues > 1e-12 * eigenvalues[0]]
        fit = tail_fit(positive, bootstrap=bootstrap, compare=False, rng=seed)
        return fit.assign(bulk_variance=variance, bulk_edge=edge, n_spikes=spikes, largest=float(eigenvalues[0]))

    result = _along_training(trajectory, chosen, steps, one, rng)
    return annotate(
        result,
        name="spectral_tails",
        long_name="power law of the weight matrices' spectra",
        units="1",
        estimator="spectral_tails",
        arguments={"layers": list(chosen), "bootstrap": bootstrap, "rng": str(rng)},
        source=trajectory.attrs.get("uid", ""),
    )


@functools.lru_cache(maxsize=64)
def _median(ratio: float) -> float:
    return float(MarchenkoPastur(ratio).quantile(0.5))


def _weight_layers(trajectory: xr.Dataset, layers: Sequence[str] | None, fewest: int) -> list[str]:
    if layers is not None:
        return list(layer_slices(trajectory, layers))
    kinds = list(trajectory["layer_kind"].values) if "layer_kind" in trajectory.coords else []
    spans = layer_slices(trajectory)
    found = [
        name
        for (name, span), kind in zip(spans.items(), kinds, strict=False)
        if kind == "weight" and span.stop - span.start >= fewest
    ]
    if not found:
        msg = f"no weight matrix with at least {fewest} entries among {list(spans)}; name layers"
        raise ArgumentError(msg)
    return found


def _along_training(
    trajectory: xr.Dataset, layers: list[str], steps: Sequence[int] | None, one: Any, rng: Any
) -> xr.Dataset:
    # One fit per (replica, step, layer), each with a seed of its own.
    saved = trajectory[STEP].values
    wanted = saved if steps is None else np.atleast_1d(np.asarray(steps))
    missing = [step for step in wanted.tolist() if step not in saved]
    if missing:
        raise ArgumentError(unknown_name_message("step", missing[0], saved.tolist()))
    spans = layer_slices(trajectory, layers)
    generator = np.random.default_rng(rng)
    cells: list[list[list[xr.Dataset | str]]] = []
    failures: list[FitError | NonFiniteError] = []
    for r in range(trajectory.sizes[REPLICA]):
        cells.append([])
        for step in wanted:
            weights = np.asarray(trajectory[WEIGHTS][r, int(np.searchsorted(saved, step))].values, dtype=np.float64)
            fits: list[xr.Dataset | str] = []
            for name, span in spans.items():
                seed = int(generator.integers(2**63))
                try:
                    fits.append(one(name, weights[span], seed))
                except (FitError, NonFiniteError) as error:
                    failures.append(type(error)(f"layer {name!r}, replica {r}, step {step}: {error}"))
                    fits.append(str(error))
            cells[-1].append(fits)
    fitted = next((fit for rows in cells for row in rows for fit in row if not isinstance(fit, str)), None)
    if fitted is None:
        raise failures[0]
    none = _without_numbers(fitted)
    replicas = []
    for rows in cells:
        filled = [[none.assign(reason=f) if isinstance(f, str) else f.assign(reason="") for f in row] for row in rows]
        along = [xr.concat(row, LAYER, coords="minimal", compat="override") for row in filled]
        replicas.append(xr.concat(along, STEP, coords="minimal", compat="override"))
    result = xr.concat(replicas, REPLICA, coords="minimal", compat="override")
    coords = {REPLICA: trajectory[REPLICA].values, STEP: wanted, LAYER: np.array(list(spans), dtype=object)}
    return result.assign_coords(coords).drop_attrs()


def _without_numbers(fit: xr.Dataset) -> xr.Dataset:
    """Return a fit's layout with NaN for every number and empty texts."""
    return fit.map(lambda a: xr.full_like(a, np.nan) if a.dtype.kind == "f" else xr.full_like(a, ""))


def _hill(moduli: np.ndarray, k: int) -> tuple[float, float]:
    """Estimate Hill's index as `hill_plot` does on a grid; NaN where all of the k largest are equal."""
    plot = hill_plot(moduli, points=moduli.size) if find_grid(np.sort(moduli)).kind != "continuous" else None
    if plot is None:
        return hill_index(moduli, k)
    at = plot.sel(k=k, method="nearest")
    return float(at["index"]), float(at["stderr"])
