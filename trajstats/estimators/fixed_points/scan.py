"""Censuses of random nets over widths, depths, weight laws and seeds, one dask task per net."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data._inputs import NUMBERS, accepts
from trajstats.data.schema import annotate
from trajstats.errors import ArgumentError
from trajstats.estimators.fixed_points.census import fixed_point_census
from trajstats.estimators.two_time._dask_blocks import as_array, delay, stack
from trajstats.theory.random_matrix.random_nets import Draw, RandomNet, weight_law

_COUNTS = (
    "n_fixed_points",
    "n_stable_fixed_points",
    "n_cycles",
    "missed",
    "unconverged_share",
    "largest_share",
)


@accepts(NUMBERS, NUMBERS)
def census_scan(
    widths: Sequence[int],
    depths: Sequence[int],
    /,
    *,
    laws: Sequence[str | Draw] = ("gaussian", "cauchy"),
    scales: Sequence[float] = (1.0,),
    seeds: int = 10,
    activation: str = "tanh",
    parameter: float = 3.0,
    bias_scale: float = 0.0,
    starts: int = 200,
    start_scale: float = 1.0,
    tolerance: float = 1e-10,
    max_iterations: int = 1_000,
    max_period: int = 64,
    rng: int | np.random.Generator,
) -> xr.Dataset:
    r"""Count fixed points Q(N, L) of random nets :math:`x\mapsto\varphi(W_L\cdots\varphi(W_1x+b_1)+b_L)`.

    :math:`W_l=g\,N^{-1/2}X` with X from a law and g a scale. Each net gets one `fixed_point_census`.

    Parameters
    ----------
    widths, depths : sequence of int
        The N and L.
    laws : sequence of str or callable
        Weight laws: ``"gaussian"``, ``"uniform"``, ``"cauchy"``, ``"student_t"``, ``"alpha_stable"``,
        ``"orthogonal"``, a `CheckpointLaw` (the weights of a trained network), or any (rng, shape, parameter) to an
        array. A callable is labelled by its ``name``, or else ``__name__``.
    scales : sequence of float
        Values of g.
    seeds : int
        Nets per cell.
    activation, parameter, bias_scale
        As in `RandomNet`.
    starts, start_scale, tolerance, max_iterations, max_period
        As in `fixed_point_census`.
    rng : int or numpy.random.Generator
        Seed of all nets and starts.

    Returns
    -------
    xarray.Dataset
        Lazy; along (law, scale, width, depth, seed): ``n_fixed_points``, ``n_stable_fixed_points``, ``n_cycles``,
        ``missed``,
        ``unconverged_share``, ``largest_share``. Over seeds: ``Q`` (law, scale, width, depth), ``Q_stderr``, and
        ``Q_share_multiple``, the share of nets with more than one fixed point.

    Raises
    ------
    ArgumentError
        If a law is not known, two have one label, or there are fewer than 2 seeds.

    Notes
    -----
    Q counts what the starts found: a lower bound where ``unconverged_share`` or ``missed`` is not small. Seeds do not
    depend on the order of the work: the same rng gives the same numbers on any scheduler. A trained network has one
    width and depth of its own: census it with `fixed_point_census` and its weights.

    References
    ----------
    fixedpoints (arXiv:2501.04182).

    Examples
    --------
    >>> scan = census_scan([10], [1, 2], laws=["gaussian"], scales=[0.5], seeds=2, starts=20, rng=0)
    >>> scan.Q.compute().values.ravel().tolist()
    [1.0, 1.0]
    """
    for law in laws:
        weight_law(law)
    labels = [law if isinstance(law, str) else str(getattr(law, "name", None) or law.__name__) for law in laws]
    if len(set(labels)) < len(labels):
        msg = f"two weight laws have one label: {labels}; give each CheckpointLaw a name of its own"
        raise ArgumentError(msg)
    if seeds < 2:
        msg = f"seeds={seeds}: give at least 2, so that Q has an error"
        raise ArgumentError(msg)
    entropy = int(rng.integers(2**63)) if isinstance(rng, np.random.Generator) else int(rng)
    census = {
        "starts": starts,
        "start_scale": start_scale,
        "tolerance": tolerance,
        "max_iterations": max_iterations,
        "max_period": max_period,
    }
    net: dict[str, Any] = {"activation": activation, "parameter": parameter, "bias_scale": bias_scale}
    # All options are checked here, by a census of two starts on the smallest nets, not when the scan computes.
    few: dict[str, Any] = {"starts": min(int(starts), 2), "max_iterations": min(max_iterations, 2)}
    for depth in depths:
        width = int(min(widths))
        small = RandomNet((width,) * (int(depth) + 1), law=laws[0], scale=float(scales[0]), **net, seed=0)
        fixed_point_census(small, width, rng=0, **{**census, **few})
    shape = (len(laws), len(scales), len(widths), len(depths), seeds)
    cells = []
    for index in np.ndindex(*shape):
        a, b, c, d, _ = index
        key = np.random.SeedSequence(entropy, spawn_key=index)
        layout = (int(widths[c]),) * (int(depths[d]) + 1)
        job = delay(_one, {**net, "widths": layout, "law": laws[a], "scale": float(scales[b])}, census, key)
        cells.append(as_array(job, (len(_COUNTS),)))
    table = stack(cells).reshape(*shape, len(_COUNTS))
    dims = ("law", "scale", "width", "depth", "seed")
    data = {name: (dims, table[..., i]) for i, name in enumerate(_COUNTS)}
    coords = {
        "law": np.array(labels, dtype=object),
        "scale": np.asarray(scales, dtype=np.float64),
        "width": np.asarray(widths),
        "depth": np.asarray(depths),
        "seed": np.arange(seeds),
    }
    result = xr.Dataset(data, coords=coords)
    found = result["n_fixed_points"]
    result["Q"] = found.mean("seed")
    result["Q_stderr"] = found.std("seed", ddof=1) / np.sqrt(seeds)
    result["Q_share_multiple"] = (found > 1).astype(np.float64).mean("seed")
    return annotate(
        result,
        name="census_scan",
        long_name="number of fixed points of random nets",
        units="1",
        estimator="census_scan",
        arguments={**census, **net, "seeds": seeds, "rng": entropy},
        source="",
    )


def _one(net: dict, census: dict, key: np.random.SeedSequence) -> np.ndarray:
    seed, start_seed = key.generate_state(2)
    random_net = RandomNet(**net, seed=int(seed))
    found = fixed_point_census(random_net, net["widths"][0], rng=int(start_seed), **census)
    values = [float(found[name]) for name in _COUNTS[:-1]]
    return np.array([*values, float(found["share"].max()) if found.sizes["attractor"] else 0.0])
