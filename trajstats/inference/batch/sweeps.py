"""Any estimator or fit on every run of a sweep: one result, labelled with the runs' settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data.schema import REPLICA
from trajstats.data.sweep.sweep import RUN, setting_name, sweep_runs, sweep_table
from trajstats.errors import ArgumentError
from trajstats.inference.batch._collect import collect, column
from trajstats.inference.batch._engine import Member, Outcome
from trajstats.inference.batch.many_fits import run_batch, stream_seed

MISSING = "missing"


def map_sweep(
    function: Callable[..., Any],
    sweep: xr.DataTree | Mapping[str, xr.Dataset],
    /,
    *,
    dims: Sequence[str] | None = None,
    rng: int | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    per_task: int | None = None,
    store: Any = None,
    progress: bool = False,
    **options: Any,
) -> xr.Dataset:
    """Call an estimator or a fit on every run of a sweep, as dask tasks, and label the results with the runs' settings.

    No run can stop another: one that fails has its own status and reason.

    Parameters
    ----------
    function : callable
        ``function(run, **options)``, for example ``ts.path_statistics``, or a function of your own that chooses pairs
        and fits. It returns a DataArray, a Dataset or a `FitResult`, whose summary is taken.
    sweep : DataTree or mapping name -> Dataset
        What `open_sweep` or `select_runs` gave.
    dims : sequence of str, optional
        Settings that become dims of the result, such as ``("width", "depth", "seed")``; together they must tell the
        runs apart. If not given, the result has the dim `run`, and settings that differ between runs as coordinates.
    rng : int, optional
        If given, the function gets ``rng=``, a `numpy.random.Generator` whose stream depends on `rng` and on the run's
        labels alone (its values of `dims`, or else its name).
    scheduler, workers, per_task, store, progress
        As for `fit_batch`: where the tasks run, how many runs one task takes, where finished runs are kept.
    **options
        Passed to `function`.

    Returns
    -------
    xarray.Dataset
        In memory: the variables of the results with the new dims first (`replica` is left out where every run has one
        replica), ``status`` (``"ok"``, that of a fit,
        ``"failed: <kind of error>"``, or ``"missing"`` where no run has these settings), ``reason``, and as coordinates
        ``run``, and ``state`` (``"writing"``: what was committed was taken). Where results differ in size or labels,
        NaN fills up.

    Raises
    ------
    ArgumentError
        If a setting is not known, or two runs have the same labels (both are named).
    ClusterError
        If no scheduler answers, or it is lost; what is finished is in `store`.

    Notes
    -----
    One task does one run, block by block in one thread: memory does not grow with the run. For a few runs that are
    large, call the estimator itself, which is parallel over blocks.

    Examples
    --------
    >>> from trajstats.data.synthetic.processes import brownian
    >>> from trajstats.estimators.two_time.measures import all_pairs
    >>> runs = {f"s{s}": brownian([0, 1, 4], rng=s).assign_attrs(seed=s) for s in (1, 2)}
    >>> result = map_sweep(all_pairs, runs, dims=("seed",), scheduler="synchronous")
    >>> dict(result["msd"].sizes)
    {'seed': 2, 'step': 3, 'step_prime': 3}
    """
    runs, table = sweep_runs(sweep), sweep_table(sweep)
    names = list(runs)
    if dims is None:
        labels: list[tuple[Any, ...]] = [(name,) for name in names]
    else:
        columns = [table[setting_name(table, name)].values.tolist() for name in dims]
        labels = list(zip(*columns, strict=True))
        _check_distinct(labels, names, dims)
    members = [
        Member(label, run, None if rng is None else stream_seed(rng, label))
        for label, run in zip(labels, runs.values(), strict=True)
    ]
    outcomes = run_batch(
        function,
        options,
        members,
        scheduler=scheduler,
        workers=workers,
        per_task=per_task,
        store=store,
        progress=progress,
    )
    alone = all(run.sizes[REPLICA] == 1 for run in runs.values())
    result = collect([_without_replica(outcome) if alone else outcome for outcome in outcomes], RUN)
    if dims is not None and (clash := [name for name in dims if name in result.dims]):
        msg = f"the results have a dim {clash[0]!r} of their own; rename it there, or take another setting"
        raise ArgumentError(msg)
    if "converged" in result:
        result["converged"] = result["converged"].fillna(0).astype(bool)
    told = {
        name: (RUN, table[name].values) for name in ("state", *([REPLICA] if alone else [])) if name not in (dims or ())
    }
    result = result.assign_coords({RUN: column(names), **told})
    called = getattr(function, "__name__", type(function).__name__)
    result.attrs |= {"mapped": called, "options": json.dumps(options, default=str, sort_keys=True)}
    if dims is None:
        return result.assign_coords(_varying(table, result))
    return _unstacked(result, labels, dims)


def _check_distinct(labels: Sequence[tuple[Any, ...]], names: Sequence[str], dims: Sequence[str]) -> None:
    if not dims:
        msg = "dims=() names no setting; leave dims out for a result along 'run'"
        raise ArgumentError(msg)
    first: dict[tuple[Any, ...], str] = {}
    for label, name in zip(labels, names, strict=True):
        if label in first:
            shown = ", ".join(f"{d}={v!r}" for d, v in zip(dims, label, strict=True))
            msg = (
                f"runs {first[label]!r} and {name!r} both have {shown}; add a setting to dims that tells them apart, "
                "leave one out with select_runs, or leave out dims"
            )
            raise ArgumentError(msg)
        if any(part != part for part in label):
            lacking = [d for d, v in zip(dims, label, strict=True) if v != v]
            msg = f"run {name!r} has no setting {lacking[0]!r}; leave it out with select_runs, or leave out dims"
            raise ArgumentError(msg)
        first[label] = name


def _without_replica(outcome: Outcome) -> Outcome:
    # Runs of one replica each carry labels of their own; side by side these would be a diagonal of results in NaN.
    if outcome.data is None or REPLICA not in outcome.data.dims:
        return outcome
    return replace(outcome, data=outcome.data.isel({REPLICA: 0}, drop=True))


def _varying(table: xr.Dataset, result: xr.Dataset) -> dict[str, Any]:
    coords = {}
    for name, values in table.data_vars.items():
        if len(set(values.values.tolist())) > 1 and name not in result.variables and name not in result.dims:
            coords[str(name)] = (RUN, values.values)
    return coords


def _unstacked(result: xr.Dataset, labels: Sequence[tuple[Any, ...]], dims: Sequence[str]) -> xr.Dataset:
    # By hand: pandas' unstack would turn whole numbers and flags of a full grid into floats and objects.
    values = [sorted(set(parts)) for parts in zip(*labels, strict=True)]
    shape = tuple(map(len, values))
    where = tuple(
        np.array([value.index(part) for part in parts])
        for value, parts in zip(values, zip(*labels, strict=True), strict=True)
    )
    full = len(labels) == int(np.prod(shape))
    # A result may have a dim of the same name, such as the replica label: the setting is what was asked for.
    out = xr.Dataset(coords={d: column(v) for d, v in zip(dims, values, strict=True)}, attrs=result.attrs)
    for name, variable in result.variables.items():
        if RUN not in variable.dims:
            out = out.assign_coords({name: variable}) if name in result.coords else out.assign({name: variable})
            continue
        flat = variable.transpose(RUN, ...)
        spread = _holes((*shape, *flat.shape[1:]), flat.dtype, full, str(name))
        spread[where] = flat.values
        placed = xr.Variable((*dims, *flat.dims[1:]), spread, variable.attrs)
        out = out.assign_coords({name: placed}) if name in result.coords else out.assign({name: placed})
    return out


def _holes(shape: tuple[int, ...], dtype: np.dtype[Any], full: bool, name: str) -> np.ndarray:
    if dtype.kind == "O":
        return np.full(shape, MISSING if name == "status" else "", dtype=object)
    if full or dtype.kind == "b":
        return np.zeros(shape, dtype=dtype)
    return np.full(shape, np.nan, dtype=dtype if dtype.kind in "fc" else np.float64)
