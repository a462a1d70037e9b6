"""How many directions a net uses: size of the space of hidden activations and of tangent features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import t as student

from trajstats.data._inputs import NETWORK, TRAJECTORY, accepts
from trajstats.data.schema import LAYER, REPLICA, STEP, annotate
from trajstats.errors import ArgumentError
from trajstats.estimators._checkpoints import check_inputs, select_checkpoints, walk
from trajstats.estimators.response.response import tangent_kernel
from trajstats.network import Network

TANGENT = "tangent kernel"
MEASURES = ("participation_ratio", "stable_rank", "effective_dimension")
_GROUPS = 20  # jackknife groups of inputs


@accepts(NETWORK, TRAJECTORY)
def feature_space(
    network: Network,
    trajectory: xr.Dataset,
    inputs: Any,
    /,
    *,
    layers: Sequence[str] = (),
    steps: Sequence[int] | None = None,
    kernel: bool = True,
    level: float = 0.95,
) -> xr.Dataset:
    r"""Size of the feature space: participation ratio, stable rank and effective dimension of feature covariances.

    With :math:`\lambda` the eigenvalues of the covariance (centred) of a layer's activations over the inputs:
    participation ratio :math:`(\sum\lambda)^2/\sum\lambda^2`, stable rank :math:`\sum\lambda/\lambda_{\max}`, effective
    dimension :math:`\exp(-\sum p\ln p)`, :math:`p=\lambda/\sum\lambda`. For the tangent kernel the eigenvalues are
    those of :math:`\Theta_t(x,x')/n` (trace over outputs; the second moment, not centred, of the tangent features).

    Parameters
    ----------
    network : Network
        The run's network.
    trajectory : xarray.Dataset
        Its trajectory.
    inputs : array, (n, ...)
        Examples, n >= 8, taken as independent draws.
    layers : sequence of str
        Layers whose activations are measured, as ``network.features`` names them.
    steps : sequence of int, optional
        Saved steps; all if not given.
    kernel : bool
        Measure the tangent kernel as well (one reverse and one forward derivative per input and output).
    level : float
        Probability of the intervals.

    Returns
    -------
    xarray.Dataset
        ``participation_ratio``, ``stable_rank``, ``effective_dimension`` (replica, step, layer), float64, corrected for
        the number of inputs; each with ``_uncorrected``, ``_stderr`` and ``_interval`` (..., bound: lower, upper). The
        tangent kernel is the layer called ``"tangent kernel"``. NaN where the features do not vary at all.

    Raises
    ------
    ArgumentError
        If there are fewer than 8 inputs or nothing to measure.
    SchemaError
        If the layers of network and trajectory differ by name or shape.

    Notes
    -----
    n inputs bound every measure by n (n - 1 when centred). The participation ratio is corrected exactly in its two
    parts: unbiased U-statistics of :math:`(\mathrm{tr}\,C)^2` and :math:`\mathrm{tr}\,C^2` (Gram matrix without its
    diagonal); without it, m Gaussian directions of equal strength look like mn/(m + n). The other two get the jackknife
    over 20 groups of inputs, which removes the 1/n part only: compare with ``_uncorrected``; where they differ by more
    than half, use more inputs. Errors are the jackknife's, with Student t intervals: they speak of the draw of inputs,
    not of the run; those of the run come from replicas.

    References
    ----------
    response: arXiv:2405.04074 (feature-space reduction; the measures are ours). U-statistics: Chen, Zhang & Zhong,
    JASA 105, 810 (2010).

    Examples
    --------
    >>> from trajstats.data.schema import trajectory_dataset
    >>> class Identity:
    ...     n_parameters, n_inputs, n_outputs = 1, 3, 3
    ...     def features(self, w, x, layer): return x
    >>> x = np.random.default_rng(0).normal(size=(400, 3))
    >>> run = trajectory_dataset(np.zeros((1, 1)), step=[0])
    >>> size = feature_space(Identity(), run, x, layers=["x"], kernel=False)
    >>> bool(abs(size.participation_ratio.item() - 3) < 0.1)
    True
    """
    network, trajectory = select_checkpoints(network, trajectory, steps)
    inputs = check_inputs(network, inputs, "inputs")
    names = [*layers, *([TANGENT] if kernel else [])]
    if len(inputs) < 8:
        msg = f"{len(inputs)} inputs: the size of a feature space needs at least 8"
        raise ArgumentError(msg)
    if not names:
        msg = "nothing to measure: name layers=[...] or leave kernel=True"
        raise ArgumentError(msg)
    estimates = np.empty((trajectory.sizes[REPLICA], trajectory.sizes[STEP], len(names), len(MEASURES), 3))
    for (r, s), net, weights in walk(network, trajectory):
        for k, name in enumerate(layers):
            features = np.asarray(net.features(weights, inputs, name), dtype=np.float64)
            estimates[r, s, k] = dimensions(features @ features.T, centred=True)
        if kernel:
            theta = tangent_kernel(net, weights, inputs, inputs)[..., 0].sum(axis=-1)
            estimates[r, s, -1] = dimensions(0.5 * (theta + theta.T), centred=False)
    half = student.ppf(0.5 + level / 2, min(_GROUPS, len(inputs)) - 1) * estimates[..., 2]
    dims = (REPLICA, STEP, LAYER)
    coords = {n: c for n, c in trajectory.coords.items() if c.dims in ((REPLICA,), (STEP,))}
    result = xr.Dataset(coords={**coords, LAYER: names, "bound": ["lower", "upper"]})
    for m, name in enumerate(MEASURES):
        label = {"long_name": name.replace("_", " "), "units": "1"}
        value = estimates[..., m, 0]
        result[name] = (dims, value, label)
        result[f"{name}_uncorrected"] = (dims, estimates[..., m, 1], label)
        result[f"{name}_stderr"] = (dims, estimates[..., m, 2], label)
        bounds = np.stack([value - half[..., m], value + half[..., m]], axis=-1)
        result[f"{name}_interval"] = ((*dims, "bound"), bounds, label)
    return annotate(
        result,
        name="feature_space",
        long_name="size of the feature space",
        units="1",
        estimator="feature_space",
        arguments={"layers": list(layers), "n_inputs": len(inputs), "level": level},
        source=trajectory.attrs.get("uid", ""),
    )


def dimensions(gram: np.ndarray, *, centred: bool) -> np.ndarray:
    """Measure the dimension of features from their Gram matrix."""
    whole = _measures(gram, centred)
    uncorrected = _plain(gram, centred)
    if not np.isfinite(whole).all():
        return np.full((3, 3), np.nan)
    n = len(gram)
    groups = np.array_split(np.arange(n), min(_GROUPS, n))
    kept = [np.setdiff1d(np.arange(n), group) for group in groups]
    left = np.array([_measures(gram[np.ix_(keep, keep)], centred) for keep in kept])
    g = len(groups)
    corrected = g * whole - (g - 1) * left.mean(axis=0)
    corrected[0] = whole[0]
    spread = np.sqrt((g - 1) / g * ((left - left.mean(axis=0)) ** 2).sum(axis=0))
    return np.stack([corrected, uncorrected, spread], axis=1)


def _plain(gram: np.ndarray, centred: bool) -> np.ndarray:
    values = np.clip(np.linalg.eigvalsh(_centre(gram) if centred else gram), 0.0, None)
    total = values.sum()
    if not total > 1e-14 * max(1.0, np.trace(gram)):
        return np.full(3, np.nan)
    p = values / total
    return np.array([1 / (p**2).sum(), 1 / p.max(), np.exp(-(p[p > 0] * np.log(p[p > 0])).sum())])


def _measures(gram: np.ndarray, centred: bool) -> np.ndarray:
    plain = _plain(gram, centred)
    moments: Callable[[np.ndarray], tuple[float, float]] = _centred_moments if centred else _raw_moments
    first, second = moments(gram)
    return np.array([first / second if second > 0 else np.nan, *plain[1:]])


def _centre(gram: np.ndarray) -> np.ndarray:
    return gram - gram.mean(axis=0) - gram.mean(axis=1)[:, None] + gram.mean()


def _raw_moments(gram: np.ndarray) -> tuple[float, float]:
    # Unbiased (tr M)^2 and tr M^2 of a second moment: averages over pairs of different inputs.
    n = len(gram)
    diagonal = np.diagonal(gram)
    pairs = n * (n - 1)
    return (diagonal.sum() ** 2 - (diagonal**2).sum()) / pairs, ((gram**2).sum() - (diagonal**2).sum()) / pairs


def _centred_moments(gram: np.ndarray) -> tuple[float, float]:
    # The same of a covariance: averages over four different inputs of (x_i - x_j).(x_k - x_l) products, in closed form.
    n = len(gram)
    # Removing any mean leaves the U-statistics unchanged, and avoids cancellation.
    gram = _centre(gram)
    diagonal = np.diagonal(gram)
    off = gram - np.diag(diagonal)
    row = off.sum(axis=1)
    total = row.sum()
    squares = (off**2).sum()
    two, three, four = n * (n - 1), n * (n - 1) * (n - 2), n * (n - 1) * (n - 2) * (n - 3)
    chains = (row**2).sum() - squares  # i-j-k, all different
    apart = total**2 - 4 * (row**2).sum() + 2 * squares  # i-j, k-l, all different
    second = squares / two - 2 * chains / three + apart / four
    # (tr C)^2 in the same way: products of |x_i - mean|^2 and |x_j - mean|^2 with the means taken from others.
    pure = diagonal.sum() ** 2 - (diagonal**2).sum()
    mixed = diagonal.sum() * total - 2 * (diagonal * row).sum()
    first = pure / two - 2 * mixed / three + apart / four
    return first, second
