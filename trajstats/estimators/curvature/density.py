"""What follows from the nodes and weights of a spectrum without another product: densities, traces, fractions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.stats
import xarray as xr

from trajstats.data._inputs import SPECTRUM, accepts
from trajstats.data.schema import annotate
from trajstats.errors import ArgumentError, SchemaError, unknown_name_message
from trajstats.estimators.linalg._lanczos import radau_bounds
from trajstats.runtime._threads import one_thread

SCALES = ("symlog", "linear")
QUANTITIES = ("trace", "frobenius", "largest", "smallest", "negative_fraction", "flat_fraction")
# Nodes resolve the spectrum this finely at best where a checkpoint was diagonalised exactly.
EXACT_RESOLUTION = 300
# Kernel width on the symlog axis: 20 % of an eigenvalue, and one node spacing near zero.
SYMLOG_WIDTH = 0.2


@accepts(SPECTRUM)
def spectral_density(
    spectrum: xr.Dataset,
    /,
    *,
    grid: Any = None,
    scale: str = "symlog",
    width: float | None = None,
    linear_below: float | None = None,
    points: int = 300,
    level: float = 0.95,
) -> xr.Dataset:
    r"""Smooth a spectrum into a density with a confidence band.

    .. math:: \rho(x)=\frac{du}{dx}\,\frac1P\sum_i\mathcal N\bigl(u(x)-u(\lambda_i);\,0,\sigma^2\bigr)

    with :math:`u(x)=x` on the linear scale and :math:`u(x)=\operatorname{asinh}(x/s)` on the symlog one, so that the
    kernel is as wide as :math:`\sigma s` near zero and as :math:`\sigma|x|` far from it.

    Parameters
    ----------
    spectrum : xarray.Dataset
        What `hessian_spectrum` gave: nodes and weights (replica, step, probe, node).
    grid : array, (eigenvalue,), optional
        Where to evaluate; spans all nodes if not given.
    scale : str
        ``"symlog"`` or ``"linear"``: axis on which grid and kernel are uniform.
    width : float, optional
        Kernel width :math:`\sigma` on that axis. By default what the nodes resolve: on the linear scale the range of
        the Lanczos part over its order, on the symlog scale 0.2.
    linear_below : float, optional
        The scale :math:`s` of the symlog axis, by default the resolution over 0.2.
    points : int
        Points of the default grid.
    level : float
        Level of the band.

    Returns
    -------
    xarray.Dataset
        ``density``, ``low``, ``high`` (replica, step, eigenvalue), per unit of eigenvalue.

    Raises
    ------
    ArgumentError
        If `scale` or `level` is not allowed.

    Notes
    -----
    The band covers the randomness of the probes. For probes uniform on the sphere the variance of
    :math:`q^Tf(A)q` is exactly :math:`\frac2{n+2}[\overline{f^2}-\overline f^2]` over the eigenvalues not counted
    exactly, and the nodes give both means; the band is the chi-squared (Satterthwaite) interval with that variance,
    which stays positive and serves a single probe too. It does not cover a kernel narrower than the node spacing.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> spectrum = xr.Dataset(
    ...     {"nodes": (("probe", "node"), [[0.0, 1.0]]), "weights": (("probe", "node"), [[0.5, 0.5]]),
    ...      "exact": (("probe", "node"), [[True, True]])}, attrs={"n_parameters": 2})
    >>> rho = spectral_density(spectrum, grid=[0.0, 1.0], scale="linear", width=0.1)
    >>> rho.density.values.round(3).tolist()
    [1.995, 1.995]
    """
    _check(spectrum, level)
    if scale not in SCALES:
        raise ArgumentError(unknown_name_message("scale", scale, SCALES))
    axis, slope, inverse, width, s = _axis(spectrum, scale, width, linear_below)
    if grid is None:
        u = axis(spectrum["nodes"].values)
        grid = inverse(np.linspace(u.min() - 4 * width, u.max() + 4 * width, points))
    grid = xr.DataArray(np.asarray(grid, dtype=np.float64), dims="eigenvalue")

    def kernel(nodes: np.ndarray, x: np.ndarray) -> np.ndarray:
        z = (axis(x) - axis(nodes)) / width
        return np.exp(-(z**2) / 2) * slope(x) / (width * np.sqrt(2 * np.pi))

    bands = xr.apply_ufunc(
        _band,
        spectrum["nodes"],
        spectrum["weights"],
        spectrum["exact"],
        grid,
        input_core_dims=[["probe", "node"]] * 3 + [["eigenvalue"]],
        output_core_dims=[["eigenvalue"]] * 3,
        vectorize=True,
        dask="parallelized",
        output_dtypes=[float] * 3,
        kwargs={"f": kernel, "n": int(spectrum.attrs["n_parameters"]), "level": level, "positive": True},
    )
    result = xr.Dataset(dict(zip(("density", "low", "high"), bands, strict=True)))
    result = result.assign_coords(eigenvalue=grid.values)
    return annotate(
        result,
        name="spectral_density",
        long_name="spectral density",
        units="1 / eigenvalue",
        estimator="spectral_density",
        arguments={"scale": scale, "width": width, "linear_below": s, "level": level},
        source=spectrum.attrs.get("source", ""),
        kind=spectrum.attrs.get("kind", "hessian"),
        scale=scale,
        width=width,
        linear_below=s,
    )


@accepts(SPECTRUM)
def spectral_summary(
    spectrum: xr.Dataset, /, *, eps: float = 1e-3, relative: bool = True, level: float = 0.95
) -> xr.Dataset:
    r"""Summarise a spectrum: trace, Frobenius norm, extremes, fractions of negative and of flat directions.

    .. math:: \operatorname{tr}A,\quad\lVert A\rVert_F,\quad\lambda_{\max},\ \lambda_{\min},\quad
       \frac{\#\{\lambda<-\epsilon\}}P,\quad\frac{\#\{|\lambda|<\epsilon\}}P

    Parameters
    ----------
    spectrum : xarray.Dataset
        What `hessian_spectrum` gave.
    eps : float
        Directions with :math:`|\lambda|<\epsilon` are flat.
    relative : bool
        Whether `eps` is in units of the checkpoint's largest :math:`|\lambda|`, or absolute. An absolute one compares
        checkpoints on one footing.
    level : float
        Level of the intervals.

    Returns
    -------
    xarray.Dataset
        ``trace``, ``frobenius``, ``largest``, ``smallest``, ``negative_fraction``, ``flat_fraction`` (replica, step),
        each with ``..._low`` and ``..._high``; ``eps`` (replica, step), absolute.

    Raises
    ------
    ArgumentError
        If `eps` is not positive or `level` not a probability.

    Notes
    -----
    Intervals of trace, norm and fractions cover the probes, with the exact variance of sphere-uniform probes (see
    `spectral_density`). What a probe's quadrature says of a count below a threshold is bounded rigorously by the
    Gauss-Radau rule with a node there (Chebyshev, Markov, Stieltjes): these bounds are in the interval, and the
    estimate is their middle. The extremes: a Ritz value lies inside the spectrum, so ``largest_low`` and
    ``smallest_high`` are sure; the other end adds the residual.

    References
    ----------
    glassy, arXiv:1803.06969 (flat directions); Golub, Meurant, Matrices, Moments and Quadrature, chapter 2 (bounds).

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> whole = {"nodes": [[-1.0, 0.0, 3.0]], "weights": [[1 / 3] * 3], "exact": [[True] * 3], "residual": [[0.0] * 3]}
    >>> spectrum = xr.Dataset({k: (("probe", "node"), v) for k, v in whole.items()}, attrs={"n_parameters": 3})
    >>> summary = spectral_summary(spectrum, eps=0.1, relative=False)
    >>> float(summary.trace), float(summary.flat_fraction.round(3)), float(summary.negative_fraction.round(3))
    (2.0, 0.333, 0.333)
    """
    _check(spectrum, level)
    if not eps > 0:
        msg = f"eps={eps}: give a positive threshold"
        raise ArgumentError(msg)
    inputs = [spectrum[name] for name in ("nodes", "weights", "exact", "residual")]
    rows = xr.apply_ufunc(
        _summary,
        *inputs,
        input_core_dims=[["probe", "node"]] * 4,
        output_core_dims=[["quantity"]],
        vectorize=True,
        dask="parallelized",
        output_dtypes=[float],
        dask_gufunc_kwargs={"output_sizes": {"quantity": len(QUANTITIES) * 3 + 1}},
        kwargs={"n": int(spectrum.attrs["n_parameters"]), "eps": eps, "relative": relative, "level": level},
    )
    names = [f"{name}{end}" for name in QUANTITIES for end in ("", "_low", "_high")]
    result = xr.Dataset({name: rows.isel(quantity=k) for k, name in enumerate([*names, "eps"])})
    units = spectrum.attrs.get("units", "1")
    for name in result:
        result[name].attrs["units"] = "1" if "fraction" in str(name) else units
    return annotate(
        result,
        name="spectral_summary",
        long_name=f"summary of the {spectrum.attrs.get('long_name', 'spectrum')}",
        units=units,
        estimator="spectral_summary",
        arguments={"eps": eps, "relative": relative, "level": level},
        source=spectrum.attrs.get("source", ""),
        kind=spectrum.attrs.get("kind", "hessian"),
    )


def _summary(
    nodes: np.ndarray,
    weights: np.ndarray,
    exact: np.ndarray,
    residual: np.ndarray,
    *,
    n: int,
    eps: float,
    relative: bool,
    level: float,
) -> np.ndarray:
    def band(f: Callable[[np.ndarray], np.ndarray], positive: bool) -> np.ndarray:
        found = _band(nodes, weights, exact, np.zeros(1), f=lambda a, _: f(a), n=n, level=level, positive=positive)
        return np.array(found)[:, 0]

    used = weights > 0
    top, bottom = np.where(used, nodes, -np.inf), np.where(used, nodes, np.inf)
    high, low = np.unravel_index(top.argmax(), top.shape), np.unravel_index(bottom.argmin(), bottom.shape)
    largest, smallest = nodes[high], nodes[low]
    if relative:
        # Of an operator that is zero, every direction is flat.
        eps = max(eps * max(abs(largest), abs(smallest)), float(np.finfo(float).tiny))
    trace = n * band(lambda a: a, False)
    frobenius = np.sqrt(n * band(np.square, True))
    extremes = [largest, largest, largest + residual[high], smallest, smallest - residual[low], smallest]
    rule = (nodes, weights, exact, residual)
    # Matrices of the size of `order`: more threads than one only wait for each other.
    with one_thread():
        below, inside = [_count(*rule, ends, n, level) for ends in ((-np.inf, -eps), (-eps, eps))]
    return np.array([*trace, *frobenius, *extremes, *below, *inside, eps])


def _count(
    nodes: np.ndarray,
    weights: np.ndarray,
    exact: np.ndarray,
    residual: np.ndarray,
    ends: tuple[float, float],
    n: int,
    level: float,
) -> tuple[float, float, float]:
    # The share of eigenvalues between two thresholds, with the bounds of quadrature and of chance.
    inside = (nodes > ends[0]) & (nodes < ends[1]) & exact
    atoms = float(np.where(inside, weights, 0.0).sum() / len(nodes))
    share = float(np.where(exact, 0.0, weights).sum() / len(nodes))
    if share * n < 0.5:
        return atoms, atoms, atoms
    bounds = []
    for node, weight, rest, own in zip(nodes, weights, residual, exact, strict=True):
        kept = (weight > 0) & ~own
        rule = (node[kept], weight[kept] / weight[kept].sum(), rest[kept])
        left, right = (radau_bounds(*rule, end) for end in ends)
        bounds.append((max(right[0] - left[1], 0.0), right[1] - left[0]))
    sure, possible = np.mean(bounds, axis=0)

    def end(value: float, tail: float) -> float:
        # Variance of the mean of an indicator over sphere-uniform probes, as in _band.
        variance = 2 / (share * n + 2) * value * (1 - value) / len(nodes)
        if not variance > 0:
            return value
        freedom = max(2 * value**2 / variance, len(nodes))
        return min(value * freedom / float(scipy.stats.chi2.isf(tail, freedom)), 1.0)

    tail = (1 - level) / 2
    low, high = end(float(sure), tail), end(float(possible), 1 - tail)
    return atoms + share * (sure + possible) / 2, atoms + share * low, atoms + share * high


def _band(
    nodes: np.ndarray,
    weights: np.ndarray,
    exact: np.ndarray,
    x: np.ndarray,
    *,
    f: Callable[[np.ndarray, np.ndarray], np.ndarray],
    n: int,
    level: float,
    positive: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # The mean of f over the spectrum at each x, with the interval of the sphere's law.
    probes = len(nodes)
    values = f(nodes[..., None], x)
    inexact = np.where(exact, 0.0, weights)
    share = inexact.sum() / probes
    atoms = np.einsum("pn,pnx->x", np.where(exact, weights, 0.0), values) / probes
    if share * n < 0.5:
        return atoms, atoms, atoms
    mean = np.einsum("pn,pnx->x", inexact, values) / (probes * share)
    square = np.einsum("pn,pnx->x", inexact, values**2) / (probes * share)
    variance = share**2 * 2 / (share * n + 2) * np.maximum(square - mean**2, 0) / probes
    estimate = share * mean
    tail = (1 - level) / 2
    if not positive:
        half = scipy.stats.norm.isf(tail) * np.sqrt(variance)
        return atoms + estimate, atoms + estimate - half, atoms + estimate + half
    with np.errstate(divide="ignore", invalid="ignore", under="ignore"):
        # At least one eigenvalue contributes, and each adds one degree per probe.
        freedom = np.maximum(2 * estimate**2 / variance, probes)
        low = estimate * freedom / scipy.stats.chi2.isf(tail, freedom)
        high = estimate * freedom / scipy.stats.chi2.ppf(tail, freedom)
    sure = ~np.isfinite(freedom) | (freedom > 1e9)
    low, high = np.where(sure, estimate, low), np.where(sure, estimate, high)
    return atoms + estimate, atoms + low, atoms + high


def _axis(spectrum: xr.Dataset, scale: str, width: float | None, linear_below: float | None) -> tuple[Any, ...]:
    resolution = _resolution(spectrum)
    if scale == "linear":
        width = resolution if width is None else float(width)
        return (lambda x: x), np.ones_like, (lambda u: u), width, 0.0
    width = SYMLOG_WIDTH if width is None else float(width)
    s = resolution / SYMLOG_WIDTH if linear_below is None else float(linear_below)

    def axis(x: np.ndarray) -> np.ndarray:
        return np.arcsinh(x / s)

    return axis, (lambda x: 1 / np.hypot(x, s)), (lambda u: s * np.sinh(u)), width, s


def _resolution(spectrum: xr.Dataset) -> float:
    # The widest mean node spacing over checkpoints, of the part that is not exact.
    nodes, exact = spectrum["nodes"].values, spectrum["exact"].values
    flat = nodes.reshape(-1, *nodes.shape[-2:])
    inside = ~exact.reshape(flat.shape)
    if not inside.any():
        inside, order = ~inside, EXACT_RESOLUTION
    else:
        order = int(spectrum.sizes.get("lanczos", EXACT_RESOLUTION))
    high = np.where(inside, flat, -np.inf).max(axis=(1, 2))
    low = np.where(inside, flat, np.inf).min(axis=(1, 2))
    spread = float((high - low).max())
    # All nodes in one place: any width shows it; take one relative to where it is.
    return spread / order if spread > 0 else max(float(np.abs(nodes).max()), 1.0) / EXACT_RESOLUTION


def _check(spectrum: xr.Dataset, level: float) -> None:
    missing = [name for name in ("nodes", "weights", "exact") if name not in spectrum]
    if missing or "n_parameters" not in spectrum.attrs:
        msg = f"not a spectrum: {missing or ['attribute n_parameters']} missing; give what hessian_spectrum returned"
        raise SchemaError(msg)
    if not 0 < level < 1:
        msg = f"level={level}: give a probability between 0 and 1, such as 0.95"
        raise ArgumentError(msg)
