"""All-pairs results that grow with their run: add checkpoints at the cost of the new pairs, keep them on disk."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data._inputs import MATRICES, TRAJECTORY, accepts
from trajstats.data.safety._budget import shorten
from trajstats.data.schema import REPLICA, STEP, STEP_PRIME, check_trajectory
from trajstats.data.store._results import open_kept, save_kept
from trajstats.errors import ArgumentError, StoreError, StoreNotFoundError, resumable
from trajstats.estimators.two_time._measurement import DISTANCE, prepare
from trajstats.estimators.two_time._observables import VELOCITY
from trajstats.estimators.two_time.measures import all_pairs
from trajstats.runtime._cluster import cluster_errors


@accepts(MATRICES, TRAJECTORY)
def extend_pairs(previous: xr.Dataset, run: xr.Dataset, /) -> xr.Dataset:
    """Extend an all-pairs result to checkpoints that were added to the run since.

    Only pairs with a new checkpoint are computed; for these the old checkpoints are read once more. The result is the
    same to the bit as `all_pairs` of the longer run.

    Parameters
    ----------
    previous : xarray.Dataset
        What `all_pairs` returned for the first checkpoints of `run`.
    run : xarray.Dataset
        The longer trajectory.

    Returns
    -------
    xarray.Dataset
        As `all_pairs`, with the arguments of `previous`. Lazy where `previous` is lazy.

    Raises
    ------
    ArgumentError
        If `previous` is not of this run, or its steps or replicas are not the first ones of `run`.

    Notes
    -----
    That the old checkpoints have not changed since is taken on trust, by the uid of the run.

    References
    ----------
    Definitions: see `all_pairs`.

    Examples
    --------
    >>> from trajstats.data.synthetic.processes import brownian
    >>> run = brownian(range(8), rng=0)
    >>> grown = extend_pairs(all_pairs(run.isel(step=slice(0, 6))), run)
    >>> bool((grown.msd == all_pairs(run).msd).all())
    True
    """
    trajectory = check_trajectory(run)
    arguments = json.loads(previous.attrs.get("arguments", "{}"))
    old, steps = previous[STEP].values, trajectory[STEP].values
    if previous.attrs.get("estimator") != "all_pairs" or previous.attrs.get("source") != str(trajectory.attrs["uid"]):
        msg = (
            f"previous is of estimator {previous.attrs.get('estimator')!r} and run "
            f"{previous.attrs.get('source')!r}; it "
            f"must be all_pairs of this run, {trajectory.attrs['uid']!r}. Compute it anew with all_pairs(run)."
        )
        raise ArgumentError(msg)
    same_replicas = np.array_equal(previous[REPLICA].values, trajectory[REPLICA].values)
    if old.size > steps.size or (old != steps[: old.size]).any() or not same_replicas:
        msg = (
            "the steps and replicas of previous must be the first ones of the run; compute it anew with all_pairs(run)"
        )
        raise ArgumentError(msg)
    if old.size == steps.size:
        return previous
    first, second = np.triu_indices(steps.size, 1)
    new = second >= old.size
    options = _options(arguments)
    job = prepare(trajectory, first[new], second[new], velocity_from=old.size - 1, **options)
    added = job.matrices(trajectory)
    kept = previous.reindex({STEP: steps, STEP_PRIME: steps})
    out = added.copy()
    for name in added.data_vars:
        if name == DISTANCE:
            continue
        # The last old checkpoint had no successor, so that its velocity is new.
        known = np.arange(steps.size) < old.size - (name == VELOCITY)
        mask = xr.DataArray(known, dims=STEP) & xr.DataArray(known, dims=STEP_PRIME)
        attrs = added[name].attrs
        out[name] = xr.where(mask, kept[name], added[name]).transpose(*added[name].dims)
        out[name].attrs = attrs
    return out


@accepts(TRAJECTORY)
def cached_pairs(run: xr.Dataset, /, path: str | os.PathLike[str], **options: Any) -> xr.Dataset:
    """All pairs, kept in a zarr store: computed once, extended when the run has grown.

    Parameters
    ----------
    run : xarray.Dataset
        A trajectory.
    path : path
        Where the result is kept, for example ``"runs/a.pairs.zarr"`` beside ``"runs/a.zarr"``. A result with other
        arguments, or of another run, is an error, never overwritten.
    **options
        As for `all_pairs`.

    Returns
    -------
    xarray.Dataset
        As `all_pairs`, read from the store (lazily). Computes here what is missing.

    Raises
    ------
    ArgumentError
        If the store holds a result with other arguments.
    StoreError
        If the path holds something else, or a result that changed since it was saved.
    UnsafeInputError
        If there is a link in what it holds.

    Notes
    -----
    The new store is written beside the old one and takes its place in one rename: an interruption leaves the old one.

    References
    ----------
    Definitions: see `all_pairs`.

    Examples
    --------
    >>> import tempfile
    >>> from trajstats.data.synthetic.processes import brownian
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cached_pairs(brownian(range(4), rng=0), folder + "/pairs.zarr").msd.shape
    (1, 4, 4)
    """
    path = Path(path)
    wanted = all_pairs(run, **options)
    if path.exists():
        try:
            previous = open_kept(path)
        except StoreNotFoundError as error:
            msg = f"{path} exists and is no result of cached_pairs; give another path or remove it"
            raise StoreError(msg) from error
        _check_pairs(previous, wanted, path)
        if previous.attrs.get("arguments") != wanted.attrs["arguments"]:
            msg = (
                f"{path} holds a result with arguments {shorten(previous.attrs.get('arguments'), 300)}, asked for are "
                f"{wanted.attrs['arguments']}; give another path or remove it"
            )
            raise ArgumentError(msg)
        wanted = extend_pairs(previous, run)
        if wanted is previous:
            return previous
    kept = "is as it was" if path.exists() else "is not made"
    how = f"{path} {kept}. The same call again computes the missing pairs."
    with resumable(how), cluster_errors(how):
        save_kept(path, wanted.compute().drop_encoding())
    return open_kept(path)


def _check_pairs(previous: xr.Dataset, wanted: xr.Dataset, path: Path) -> None:
    """Check that what is in a store was written by `cached_pairs`, whatever its values."""
    if previous.attrs.get("estimator") != "all_pairs":
        msg = f"{path} exists and is no result of cached_pairs; give another path or remove it"
        raise StoreError(msg)
    names = [*wanted.data_vars, STEP, STEP_PRIME, REPLICA]
    bad = [n for n in names if n not in previous or _kind(previous[n]) != _kind(wanted[n])]
    if bad and previous.attrs.get("arguments") == wanted.attrs["arguments"]:
        msg = f"{path}: {shorten(bad)} are missing or not what cached_pairs writes; remove it to compute it again"
        raise StoreError(msg)


def _kind(array: xr.DataArray) -> tuple[tuple[Any, ...], str]:
    return array.dims, array.dtype.kind


def _options(arguments: dict[str, Any]) -> dict[str, Any]:
    waves = arguments.pop("wavenumber")
    return {**arguments, "wavenumber": waves or None}
