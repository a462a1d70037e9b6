"""Gradient noise at the checkpoints of a trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from trajstats.data._inputs import NETWORK, TRAJECTORY, accepts
from trajstats.data.schema import (
    LAYER,
    PARAMETER,
    REPLICA,
    STEP,
    annotate,
)
from trajstats.errors import ArgumentError, NonFiniteError, unknown_name_message
from trajstats.estimators._checkpoints import at_least_one, chosen_rows, match_network
from trajstats.estimators.curvature._dask_tasks import ANEW, at_workers, checkpoints, run_checkpoints
from trajstats.estimators.curvature._tasks import Checkpoint
from trajstats.estimators.noise._ratio import RatioMoments, ratio_moments
from trajstats.network import Network
from trajstats.runtime._cluster import cluster_errors

KINDS = ("minibatch", "sample")
GROUPS = ("layer", "all")
MEMORY = 2**28


@accepts(NETWORK, TRAJECTORY)
def gradient_noise(
    network: Network,
    trajectory: xr.Dataset,
    /,
    *,
    steps: Sequence[int] | None = None,
    of: str = "minibatch",
    batch_size: int | None = None,
    batches: Sequence[np.ndarray] | None = None,
    replacement: bool = False,
    examples: int | None = None,
    per: str = "layer",
    memory: int = MEMORY,
    rng: int = 0,
) -> xr.Dataset:
    r"""Measure the strength of gradient noise at saved checkpoints.

    .. math:: D_1=\lVert\overline g\rVert^2,\qquad D_2=\overline{\lVert g\rVert^2}-\lVert\overline g\rVert^2

    summed over the parameters of a group (not divided by their number M), g being the gradient of one *minibatch* (or,
    with ``of="sample"``, of one example) at fixed weights; the mean is over all minibatches that could be drawn. The
    *D* of paper key *glassy* is :math:`D_2` per minibatch.

    Parameters
    ----------
    network : Network
        The network, its loss and its data.
    trajectory : xarray.Dataset
        Its trajectory, weights (replica, step, parameter).
    steps : sequence of int, optional
        Saved steps; all if not given.
    of : {"minibatch", "sample"}
        Whose gradient g is.
    batch_size : int, optional
        Examples B of a minibatch. D2 then follows exactly from the example gradients:
        :math:`D_2=\frac1B\frac{n-B}{n-1}D_2^{\rm sample}`, without the fraction if drawn with `replacement`.
    batches : sequence of index arrays, optional
        In place of `batch_size`: the minibatches themselves, where they are fixed.
    replacement : bool
        Whether the examples of one minibatch are drawn with replacement.
    examples : int, optional
        Estimate from this many random examples instead of all; unbiased.
    per : {"layer", "all"}
        Sum over each layer or over the network.
    memory : int
        Budget in bytes for one chunk of example gradients.
    rng : int
        Seed of the choice of `examples`.

    Returns
    -------
    xarray.Dataset
        ``D1``, ``D2`` (replica, step, layer), in (loss / weight)^2, with coordinate ``n_parameters`` (layer);
        attributes ``of`` and ``batch_size`` say whose noise it is.

    Raises
    ------
    ArgumentError
        If an argument is not allowed or a step is not saved.
    SchemaError
        If the layers of network and trajectory differ by name or shape.
    NonFiniteError
        If a gradient is not finite.

    Notes
    -----
    An L2 term is part of :math:`\overline g`, not of the noise. Where the examples count differently in the loss (a
    mean over tokens that are not padding, class weights: ``network.example_weights``), a minibatch divides by what its
    own examples count. D1 and D2 are then the exact averages over such minibatches, and D1 depends on `batch_size`.
    Cost: one gradient per example and checkpoint, in chunks; with `batches`, one gradient per minibatch. Bias: none.

    References
    ----------
    Paper key *glassy*: Baity-Jesi et al. 2018, arXiv:1803.06969.

    Examples
    --------
    >>> from trajstats.data.schema import trajectory_dataset
    >>> class Mean:  # loss of example a: (w - x_a)^2 / 2, so its gradient is w - x_a
    ...     n_parameters, n_examples, x = 1, 3, np.array([0.0, 1.0, 5.0])
    ...     def gradient(self, weights, indices=None): return weights - self.x.mean()
    ...     def example_gradients(self, weights, indices): return weights - self.x[indices, None]
    >>> noise = gradient_noise(Mean(), trajectory_dataset(np.zeros((1, 1)), step=[0]), of="sample", per="all")
    >>> noise.D1.values.round(3).tolist(), noise.D2.values.round(3).tolist()
    ([[4.0]], [[4.667]])
    """
    network, trajectory = match_network(network, trajectory)
    for name, value, allowed in (("of", of, KINDS), ("per", per, GROUPS)):
        if value not in allowed:
            raise ArgumentError(unknown_name_message(name, value, allowed))
    size = _batch_size(network, of, batch_size, batches)
    n = network.n_examples
    if examples is not None:
        at_least_one(examples=examples)
        if not 2 <= examples <= n:
            msg = f"examples={examples}: give between 2 and the network's {n}"
            raise ArgumentError(msg)
    rows = chosen_rows(trajectory, steps)
    stops = trajectory["layer_stop"].values if per == "layer" else np.array([trajectory.sizes[PARAMETER]])
    chosen = np.arange(n) if examples is None else np.sort(np.random.default_rng(rng).permutation(n)[:examples])
    cells = checkpoints(trajectory, rows)
    with cluster_errors(ANEW):
        shared = at_workers(network)
        if batches is not None:
            results = run_checkpoints(_fixed, shared, trajectory, cells, [np.asarray(b) for b in batches], stops)
        else:
            spread = 1.0 if replacement or n == 1 else (n - size) / (n - 1)
            counts = getattr(network, "example_weights", None)
            if counts is None:
                results = run_checkpoints(_drawn, shared, trajectory, cells, chosen, size, spread, stops, memory)
            else:
                moments = _counted(counts, chosen, size, replacement)
                results = run_checkpoints(_drawn_by_count, shared, trajectory, cells, moments, stops, memory)

    dims = (REPLICA, STEP, LAYER)
    found = np.array(results, dtype=np.float64)
    noise = xr.Dataset(
        {"D1": (dims, found[:, :, 0]), "D2": (dims, found[:, :, 1])},
        coords={
            REPLICA: trajectory[REPLICA],
            **{str(k): (STEP, c.values[rows], c.attrs) for k, c in trajectory.coords.items() if c.dims == (STEP,)},
            LAYER: trajectory[LAYER].values if per == "layer" else ["all"],
            "n_parameters": (LAYER, np.diff(stops, prepend=0)),
        },
    )
    if per == "all":
        noise = noise.isel({LAYER: 0}).drop_vars(LAYER)
    for name, what in (("D1", "squared mean gradient"), ("D2", "variance of the gradient")):
        noise[name].attrs = {"long_name": f"{what} per {of}", "units": "(loss / weight)^2"}
    return annotate(
        noise,
        name="gradient_noise",
        long_name=f"gradient noise per {of}",
        units="(loss / weight)^2",
        estimator="gradient_noise",
        arguments={
            "steps": trajectory[STEP].values[rows],
            "of": of,
            "batch_size": size,
            "batches": None if batches is None else len(batches),
            "replacement": replacement,
            "examples": examples,
            "per": per,
            "rng": rng,
        },
        source=str(trajectory.attrs.get("uid", "")),
        of=of,
        batch_size=size,
    )


def _batch_size(network: Network, of: str, batch_size: int | None, batches: Sequence[np.ndarray] | None) -> int:
    if of == "sample":
        if batch_size is not None or batches is not None:
            msg = "of='sample' takes neither batch_size nor batches; give of='minibatch'"
            raise ArgumentError(msg)
        return 1
    if (batch_size is None) == (batches is None):
        msg = "of='minibatch' needs exactly one of batch_size (examples drawn at random) and batches (fixed indices)"
        raise ArgumentError(msg)
    if batches is not None:
        sizes = {len(batch) for batch in batches}
        if not sizes or 0 in sizes:
            msg = "batches is empty or holds an empty minibatch; give arrays of example indices"
            raise ArgumentError(msg)
        return max(sizes)
    at_least_one(batch_size=batch_size or 0)
    if int(batch_size or 0) > network.n_examples:
        msg = f"batch_size={batch_size} exceeds the network's {network.n_examples} examples"
        raise ArgumentError(msg)
    return int(batch_size or 0)


def _drawn(
    network: Network,
    weights: np.ndarray,
    where: Checkpoint,
    chosen: np.ndarray,
    size: int,
    spread: float,
    stops: np.ndarray,
    memory: int,
) -> np.ndarray:
    # Sums about the first chunk's mean: the noise of a trained net is small beside no gradient, but not the reverse.
    starts = np.append(0, stops[:-1])
    full = np.asarray(network.gradient(weights), dtype=np.float64)
    chunk = max(1, memory // (16 * len(full)))
    centre = None
    first, second = np.zeros(len(full)), np.zeros(len(stops))
    for k in range(0, len(chosen), chunk):
        gradients = np.asarray(network.example_gradients(weights, chosen[k : k + chunk]), dtype=np.float64)
        centre = gradients.mean(axis=0) if centre is None else centre
        gradients = gradients - centre  # not in place: an adapter may hand out read-only memory
        first += gradients.sum(axis=0)
        second += np.add.reduceat(np.einsum("ap,ap->p", gradients, gradients), starts)
    count = len(chosen)
    spread_sum = second - np.add.reduceat(first**2, starts) / count
    # All examples: the variance of the data set itself. Some: unbiased for it.
    n = network.n_examples
    variance = spread_sum / count if count == n else spread_sum / (count - 1) * (n - 1) / n
    if getattr(network, "reduction", "mean") == "sum":
        # A step then sees the sum over B examples beside the whole L2 term.
        assert centre is not None
        mean = centre + first / count
        full = full - n * mean + size * mean
        variance = variance * size**2
    strength = variance / size * spread
    return _checked_finite(np.array([np.add.reduceat(full**2, starts), strength]), where)


@dataclass(frozen=True)
class _Counted:
    """Examples, what they count, and how often one and two of them stand for all."""

    chosen: np.ndarray
    counts: np.ndarray
    moments: RatioMoments
    single: float
    double: float
    replacement: bool


def _counted(counts: np.ndarray, chosen: np.ndarray, size: int, replacement: bool) -> _Counted:
    # Minibatches are drawn from the examples that count at all: a minibatch of others has no loss.
    there = np.flatnonzero(counts)
    n = len(there)
    if size > n:
        msg = (
            f"batch_size={size} exceeds the {n} examples that count in the loss (the targets of the others are ignored)"
        )
        raise ArgumentError(msg)
    moments = ratio_moments(counts[there], size, replacement=replacement)
    chosen = chosen[counts[chosen] > 0]
    m = len(chosen)
    if m < min(n, 2):
        msg = f"only {m} of the chosen examples count in the loss; give a larger examples="
        raise ArgumentError(msg)
    rows = np.searchsorted(there, chosen)
    picked = RatioMoments(moments.mean[rows], moments.square[rows], moments.factors[rows], moments.signs)
    double = 1.0 if m == n else n * (n - 1) / (m * (m - 1))
    return _Counted(chosen, counts[chosen], picked, n / m, double, replacement)


def _drawn_by_count(
    network: Network, weights: np.ndarray, where: Checkpoint, drawn: _Counted, stops: np.ndarray, memory: int
) -> np.ndarray:
    # A minibatch's gradient is sum e_a / sum c_a, with the examples' shares e_a: about the data's gradient g it is
    # sum u_a / sum c_a with u_a = e_a - c_a g.
    starts = np.append(0, stops[:-1])
    full = np.asarray(network.gradient(weights), dtype=np.float64)
    centre = full - 2 * getattr(network, "l2", 0.0) * np.asarray(weights, dtype=np.float64)
    moments = drawn.moments
    own = np.einsum("ak,ak,k->a", moments.factors, moments.factors, moments.signs)
    first = np.zeros(len(full))
    mixed = np.zeros((moments.factors.shape[1], len(full)))
    # Squares of one example each: with the coefficients of its square, of its own pair, and of the square of the mean.
    alone = np.zeros((3, len(stops)))
    chunk = max(1, memory // (16 * len(full)))
    for k in range(0, len(drawn.chosen), chunk):
        part = slice(k, k + chunk)
        gradients = np.asarray(network.example_gradients(weights, drawn.chosen[part]), dtype=np.float64)
        gradients = gradients - drawn.counts[part, None] * centre
        first += moments.mean[part] @ gradients
        mixed += moments.factors[part].T @ gradients
        for row, weight in enumerate((moments.square[part], own[part], moments.mean[part] ** 2)):
            alone[row] += np.add.reduceat(np.einsum("a,ap,ap->p", weight, gradients, gradients), starts)
    square, pairs, mean_square = alone
    # Pairs of different examples of a choice stand for those of all with their own factor.
    shift = drawn.single * first
    of_mean = drawn.double * (np.add.reduceat(first**2, starts) - mean_square) + drawn.single * mean_square
    both = np.add.reduceat(np.einsum("k,kp,kp->p", moments.signs, mixed, mixed), starts)
    of_square = drawn.single * square + drawn.double * (both - pairs)
    if drawn.replacement:
        of_square += drawn.single * pairs
    strength = np.add.reduceat(full**2 + 2 * full * shift, starts) + of_mean
    return _checked_finite(np.array([strength, of_square - of_mean]), where)


def _fixed(
    network: Network, weights: np.ndarray, where: Checkpoint, batches: list[np.ndarray], stops: np.ndarray
) -> np.ndarray:
    starts = np.append(0, stops[:-1])
    gradients = [np.asarray(network.gradient(weights, batch), dtype=np.float64) for batch in batches]
    mean = np.mean(gradients, axis=0)
    second = np.mean([(gradient - mean) ** 2 for gradient in gradients], axis=0)
    return _checked_finite(np.array([np.add.reduceat(mean**2, starts), np.add.reduceat(second, starts)]), where)


def _checked_finite(found: np.ndarray, where: Checkpoint) -> np.ndarray:
    if not np.isfinite(found).all():
        msg = (
            f"a gradient is not finite at replica {where.replica}, step {where.step}. "
            "Leave this step out with steps=..., or check the weights and the data."
        )
        raise NonFiniteError(msg)
    return found
