"""Two-time statistics: observables of the displacement between two saved times, for listed pairs or for all."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import xarray as xr

from trajstats.data._clocks import carried_clock, clock_of, pair_clock, pair_coords
from trajstats.data._inputs import PAIRS, TRAJECTORY, accepts
from trajstats.data.schema import STEP, annotate, check_trajectory
from trajstats.errors import ArgumentError
from trajstats.estimators._checkpoints import saved_rows
from trajstats.estimators.two_time._dask_blocks import Plan
from trajstats.estimators.two_time._groups import Per
from trajstats.estimators.two_time._measurement import prepare
from trajstats.estimators.two_time._observables import VELOCITY
from trajstats.estimators.two_time._sketched import STDERR, is_sketched, sketched_two_time


@accepts(TRAJECTORY, PAIRS)
def msd(
    trajectory: xr.Dataset,
    pairs: xr.Dataset,
    /,
    *,
    per: Per = "layer",
    clock: str | None = None,
    blocks: int | None = None,
    method: str = "direct",
    on_nan: str = "raise",
    rng: int = 0,
    block_bytes: int | None = None,
    memory_limit: int | None = None,
) -> xr.DataArray:
    r"""Mean squared displacement of the weights between listed pairs of saved times.

    .. math:: \Delta(t_w,t_w+t)=\frac1M\sum_{i=1}^M[w_i(t_w+t)-w_i(t_w)]^2

    over the M parameters of each group: divided by M, as paper key *glassy* does. Layers therefore sum to the total
    when weighted with their ``n_parameters``: :math:`M\Delta=\sum_l M_l\Delta_l`.

    Parameters
    ----------
    trajectory : xarray.Dataset
        A trajectory. A sketched one gives estimates, with their standard error as coordinate ``stderr``.
    pairs : xarray.Dataset
        What `time_pairs` returned: ``first`` and ``second``, in optimiser steps, along `pair`.
    per : {"layer", "kind", "all"} or mapping
        Which parameters are averaged: each layer, each kind of layer (weight, bias, norm, other), the whole network, or
        the groups of a mapping name -> layer names or shell patterns.
    clock : str, optional
        Clock of the result's ``waiting_time`` and ``lag``: that of `pairs` if not given, or ``"step"``, ``"epoch"``,
        ``"proper_time"`` or any other coordinate along `step`, such as a noise clock.
    blocks : int, optional
        Keep this many random blocks of parameters apart, along dim `block`.
    method : {"direct", "reference"}
        Float32 differences in register tiles, or plain float64 NumPy (50 times slower).
    on_nan : {"raise", "skip"}
        What a checkpoint with NaN or infinity does: an error that names it, or NaN for its pairs.
    rng : int
        Seed of the assignment to random blocks.
    block_bytes, memory_limit : int, optional
        Budgets in bytes, see `two_time_plan`.

    Returns
    -------
    xarray.DataArray, (replica, pair, layer)
        Lazy, float64, in squared weight units. The last dim is `layer`, `kind` or `group`, and absent for
        ``per="all"``. Coordinates ``waiting_time`` and ``lag`` on `clock`, ``first`` and ``second`` in steps, and
        ``n_parameters``, the M of each group; ``rounding_floor``, what rounding of the stored weights adds to the MSD,
        where the store knows it (distrust values below ten times it). Attribute ``error_bound``: proved relative error
        of each value.

    Notes
    -----
    Errors: `ArgumentError` for a step that was not saved (the nearest is named), an unknown layer, overlapping groups,
    or budgets that cannot hold; `NonFiniteError` when computed, with checkpoint and layer.

    Cost: reads the checkpoints in use once; about 0.4 ns per pair and 10 parameters on one core with AVX-512. Bias:
    none; rounding of the stored weights adds about mean(ulp^2)/6.

    References
    ----------
    Paper key *glassy*: Baity-Jesi et al. 2018, arXiv:1803.06969.

    Examples
    --------
    >>> from trajstats.data.schedules import time_pairs
    >>> from trajstats.data.schema import trajectory_dataset
    >>> run = trajectory_dataset(np.outer([0, 1, 3], np.ones(4)), step=[0, 1, 3])
    >>> msd(run, time_pairs(run), per="all").compute().values.tolist()
    [[1.0, 9.0, 4.0]]
    """
    measured = two_time(
        trajectory,
        pairs,
        per=per,
        clock=clock,
        blocks=blocks,
        method=method,
        on_nan=on_nan,
        rng=rng,
        block_bytes=block_bytes,
        memory_limit=memory_limit,
    )
    result = measured["msd"]
    if STDERR in measured:
        result = result.assign_coords({"stderr": measured[STDERR]})
    arguments = json.loads(result.attrs["arguments"])
    return annotate(
        result,
        name="msd",
        long_name="mean squared displacement",
        units="weight^2",
        estimator="msd",
        arguments={"clock": clock_of(result)} | {k: arguments[k] for k in ("per", "blocks", "method", "on_nan", "rng")},
        source=result.attrs["source"],
        **{name: result.attrs[name] for name in ("error_bound", "error_kind") if name in result.attrs},
        **carried_clock(result),
    )


@accepts(TRAJECTORY, PAIRS)
def two_time(
    trajectory: xr.Dataset,
    pairs: xr.Dataset,
    /,
    *,
    observables: str | Sequence[str] = "msd",
    per: Per = "layer",
    clock: str | None = None,
    blocks: int | None = None,
    wavenumber: Sequence[float] | float | None = None,
    epsilon: float | None = None,
    overlap_k: float = 10.0,
    method: str = "direct",
    on_nan: str = "raise",
    rng: int = 0,
    block_bytes: int | None = None,
    memory_limit: int | None = None,
) -> xr.Dataset:
    r"""Observables of the displacement between listed pairs of saved times, in one pass over the weights.

    With :math:`\delta_i=w_i(t_w+t)-w_i(t_w)` and :math:`\langle\cdot\rangle` the mean over the M parameters of a group:

    ================================  ================================================================================
    ``msd``                           :math:`\Delta=\langle\delta^2\rangle`
    ``fourth_moment``                 :math:`\langle\delta^4\rangle`
    ``kurtosis``                      :math:`\langle\delta^4\rangle/\langle\delta^2\rangle^2`, about zero, not the mean
    ``non_gaussian_parameter``        :math:`\alpha_2=\langle\delta^4\rangle/3\langle\delta^2\rangle^2-1`
    ``participation_ratio``           :math:`\langle\delta^2\rangle^2/\langle\delta^4\rangle`: 1 if all move alike
    ``overlap``                       :math:`Q=\frac1M\#\{|\delta_i|\le\epsilon\}`, with ``overlap_null`` beside it
    ``correlation``                   :math:`\langle w(t_w)w(t_w+t)\rangle`
    ``centred_correlation``           the same less :math:`\langle w(t_w)\rangle\langle w(t_w+t)\rangle`
    ``self_intermediate_scattering``  :math:`\langle\cos(q\,\delta)\rangle` for each `wavenumber` q
    ``sign_flips``                    share of parameters negative at exactly one of the two times
    ================================  ================================================================================

    Parameters
    ----------
    trajectory, pairs, per, clock, blocks, method, on_nan, rng, block_bytes, memory_limit
        As for `msd`.
    observables : str or sequence of str
        Names from the table.
    wavenumber : float or sequence of float, optional
        Inverse weight units; needed by ``self_intermediate_scattering``.
    epsilon : float, optional
        Overlap distance in weight units. If not given it is :math:`\mathrm{std}(w(t_w))/k` of each group, which costs a
        second reading of the weights.
    overlap_k : float
        That k.

    Returns
    -------
    xarray.Dataset
        Each observable (replica, pair, layer), lazy, float64; see `msd` for dims and coordinates.

    Raises
    ------
    ArgumentError
        If an argument is not known, a pair was not saved, or the memory does not suffice.

    Notes
    -----
    ``overlap_null`` is the overlap that Gaussian displacements of the measured MSD would have: only what departs from
    it is news. Attribute ``error_bound`` of each variable is the proved relative (for cosines: absolute) error.

    References
    ----------
    Paper keys *glassy* (arXiv:1803.06969) for MSD and kurtosis, *glass_net* (arXiv:2405.13098) for Q and alpha_2.

    Examples
    --------
    >>> from trajstats.data.schedules import time_pairs
    >>> from trajstats.data.schema import trajectory_dataset
    >>> run = trajectory_dataset(np.outer([0, 1, 3], [1.0, 1, 1, -1]), step=[0, 1, 3])
    >>> result = two_time(run, time_pairs(run), observables=["kurtosis", "sign_flips"], per="all").compute()
    >>> result.kurtosis.values.tolist(), result.sign_flips.values.tolist()
    ([[1.0, 1.0, 1.0]], [[0.25, 0.25, 0.0]])
    """
    if is_sketched(trajectory):
        return sketched_two_time(trajectory, pairs, observables=observables, per=per, clock=clock, blocks=blocks)
    trajectory = check_trajectory(trajectory)
    about = pair_clock(trajectory, pairs, clock)
    first, second = (saved_rows(trajectory, pairs[end].values) for end in ("first", "second"))
    job = prepare(
        trajectory,
        first,
        second,
        observables=observables,
        per=per,
        blocks=blocks,
        wavenumber=wavenumber,
        epsilon=epsilon,
        overlap_k=overlap_k,
        method=method,
        on_nan=on_nan,
        rng=rng,
        block_bytes=block_bytes,
        memory_limit=memory_limit,
    )
    if VELOCITY in job.arguments["observables"]:
        msg = f"{VELOCITY} is a function of all pairs of successive displacements; ask all_pairs for it"
        raise ArgumentError(msg)
    return job.listed(trajectory, pair_coords(trajectory, first, second, about), about)


@accepts(TRAJECTORY)
def all_pairs(
    run: xr.Dataset,
    /,
    *,
    observables: str | Sequence[str] = "msd",
    per: Per = "all",
    blocks: int | None = None,
    wavenumber: Sequence[float] | float | None = None,
    epsilon: float | None = None,
    overlap_k: float = 10.0,
    method: str = "direct",
    on_nan: str = "raise",
    rng: int = 0,
    block_bytes: int | None = None,
    memory_limit: int | None = None,
) -> xr.Dataset:
    r"""Observables of the displacement between all pairs of checkpoints, in one pass over the weights.

    The definitions are those of `two_time`; besides, ``velocity_correlation`` is the cosine between the displacements
    from checkpoint s to the next one and from s' to the next one,
    :math:`d_s\cdot d_{s'}/|d_s||d_{s'}|`, :math:`d_s=w(s^+)-w(s)`.

    Parameters
    ----------
    run : xarray.Dataset
        A trajectory.
    observables, per, blocks, wavenumber, epsilon, overlap_k, method, on_nan, rng, block_bytes, memory_limit
        As for `two_time`.

    Returns
    -------
    xarray.Dataset
        Each observable (replica, step, step_prime), with a last dim `layer`, `kind` or `group` unless ``per="all"``;
        lazy, float64, symmetric (for the overlap, the waiting time is the earlier of the two). The clocks of the
        run are kept as coordinates along `step`.

    Raises
    ------
    ArgumentError
        If there is one checkpoint only, or an argument is not known or cannot fit.

    Notes
    -----
    Cost: T(T-1)/2 pairs; see `two_time_plan`. `extend_pairs` adds checkpoints to a result, `cached_pairs` keeps one on
    disk. The result is what the covariance of MSD points is built from.

    References
    ----------
    Paper key *glassy*: Baity-Jesi et al. 2018, arXiv:1803.06969.

    Examples
    --------
    >>> from trajstats.data.schema import trajectory_dataset
    >>> run = trajectory_dataset(np.outer([0, 1, 3], np.ones(4)), step=[0, 1, 3])
    >>> all_pairs(run).msd.compute().values[0].tolist()
    [[0.0, 1.0, 9.0], [1.0, 0.0, 4.0], [9.0, 4.0, 0.0]]
    """
    trajectory = check_trajectory(run)
    n = trajectory.sizes[STEP]
    if n < 2:
        msg = f"the trajectory has {n} checkpoint(s); a displacement needs two. Record more, or open the whole run."
        raise ArgumentError(msg)
    first, second = np.triu_indices(n, 1)
    job = prepare(
        trajectory,
        first,
        second,
        observables=observables,
        per=per,
        blocks=blocks,
        wavenumber=wavenumber,
        epsilon=epsilon,
        overlap_k=overlap_k,
        method=method,
        on_nan=on_nan,
        rng=rng,
        block_bytes=block_bytes,
        memory_limit=memory_limit,
    )
    return job.matrices(trajectory)


@accepts(TRAJECTORY)
def two_time_plan(
    trajectory: xr.Dataset,
    pairs: xr.Dataset | None = None,
    /,
    *,
    observables: str | Sequence[str] = "msd",
    per: Per = "all",
    blocks: int | None = None,
    wavenumber: Sequence[float] | float | None = None,
    block_bytes: int | None = None,
    memory_limit: int | None = None,
) -> Plan:
    """Plan `all_pairs`, or `two_time` of listed pairs, without reading a weight: print it before a long run.

    Parameters
    ----------
    trajectory : xarray.Dataset
        A trajectory.
    pairs : xarray.Dataset, optional
        Listed pairs; all pairs if not given.
    observables, per, blocks, wavenumber
        As for `two_time`.
    block_bytes : int, optional
        Bytes of weights in memory per task; about 64 MiB if not given.
    memory_limit : int, optional
        Bytes the whole may take; 80 % of the machine's memory if not given.

    Returns
    -------
    Plan
        Blocks, tasks, bytes read, peak memory.

    Examples
    --------
    >>> from trajstats.data.synthetic.processes import brownian
    >>> two_time_plan(brownian(range(64), rng=0)).n_tasks
    1
    """
    trajectory = check_trajectory(trajectory)
    first, second = np.triu_indices(trajectory.sizes[STEP], 1)
    if pairs is not None:
        first, second = (saved_rows(trajectory, pairs[end].values) for end in ("first", "second"))
    job = prepare(
        trajectory,
        first,
        second,
        observables=observables,
        per=per,
        blocks=blocks,
        wavenumber=wavenumber,
        block_bytes=block_bytes,
        memory_limit=memory_limit,
    )
    return job.plan
