"""Join runs along `replica`: labels, and refusal of one run given twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data._labels import label
from trajstats.data._replicas import joined_attrs
from trajstats.data.schema import (
    LAYER,
    REPLICA,
    SKETCH,
    STEP,
    check_trajectory,
)
from trajstats.data.store._buffer_rows import check_same_buffers
from trajstats.data.store._layout import (
    COMMITTED,
    DIGEST,
    FINISHED,
    STATE,
)
from trajstats.data.store.files._place import Place
from trajstats.errors import SchemaError


def _labelled(runs: list[xr.Dataset]) -> list[xr.Dataset]:
    # by their own labels where these differ, or else by seed, or else by number
    labels = [int(run[REPLICA].values[0]) for run in runs]
    seeds: list[Any] = [run.attrs.get("seed") for run in runs]
    if len(set(labels)) == len(labels):
        return runs
    if all(isinstance(seed, int | np.integer) for seed in seeds) and len(set(seeds)) == len(seeds):
        return [run.assign_coords({REPLICA: [int(seed)]}) for run, seed in zip(runs, seeds, strict=True)]
    return [run.assign_coords({REPLICA: [k]}) for k, run in enumerate(runs)]


def _check_distinct(runs: list[xr.Dataset], paths: Sequence[Any]) -> None:
    for later in range(1, len(runs)):
        for first in range(later):
            uids = [run.attrs.get("uid") for run in (runs[first], runs[later])]
            if (uids[0] is not None and uids[0] == uids[1]) or _same_digests(runs[first], runs[later]):
                msg = (
                    f"{Place(paths[later])} is a copy of {Place(paths[first])}: copies are no independent runs, and "
                    "errors over them would be 0. Keep one of each."
                )
                raise SchemaError(msg)


def _same_digests(one: xr.Dataset, other: xr.Dataset) -> bool:
    # Runs of different seeds may begin with the same weights, and weights that never move say nothing.
    if DIGEST not in one or DIGEST not in other:
        return False
    mine, theirs = one[DIGEST].transpose(STEP, ...).values, other[DIGEST].transpose(STEP, ...).values
    return bool((mine != mine[:1]).any() and np.array_equal(mine, theirs))


def _join(runs: list[xr.Dataset], paths: Sequence[Any]) -> xr.Dataset:
    first = runs[0]
    for run, path in zip(runs[1:], paths[1:], strict=True):
        same = [
            list(map(str, run[LAYER].values)) == list(map(str, first[LAYER].values)),
            list(map(str, run["layer_shape"].values)) == list(map(str, first["layer_shape"].values)),
            (SKETCH in run) == (SKETCH in first),
        ]
        if not all(same):
            msg = (
                f"{Place(path)} and {Place(paths[0])} have different layers ({run.sizes[LAYER]} and "
                f"{first.sizes[LAYER]} layers); only runs of one architecture are joined along replica. "
                "Open them one by one."
            )
            raise SchemaError(msg)
    check_same_buffers(runs, paths)
    if len(runs) == 1:
        return runs[0]
    runs = _labelled(runs)
    common = sorted(set.intersection(*(set(run[STEP].values.tolist()) for run in runs)))
    if not common:
        msg = "the runs have no step in common; open them one by one"
        raise SchemaError(msg)
    runs = [run if run.sizes[STEP] == len(common) else run.sel({STEP: common}) for run in runs]
    _check_distinct(runs, paths)
    # A clock that is not the same in all runs cannot stay a coordinate along step.
    known = dict.fromkeys(str(n) for run in runs for n, c in run.coords.items() if c.dims == (STEP,) and n != STEP)
    for name in known:
        lacking = np.full(len(common), np.nan)
        values = [run[name].values if name in run.coords else lacking for run in runs]
        if not all(np.array_equal(own, values[0], equal_nan=True) for own in values):
            rows = [((REPLICA, STEP), own[None]) for own in values]
            runs = [
                run.drop_vars(name, errors="ignore").assign({name: row}) for run, row in zip(runs, rows, strict=True)
            ]
    shared = set.intersection(*(set(run.data_vars) for run in runs))
    runs = [run[sorted(shared, key=str)] for run in runs]
    joined = xr.concat(
        runs,
        dim=REPLICA,
        data_vars="all",
        coords="minimal",
        compat="override",
        join="override",
        combine_attrs="drop_conflicts",  # of variables: what they are; those of the run follow
    )
    joined.attrs = joined_attrs([{k: v for k, v in run.attrs.items() if k != COMMITTED} for run in runs])
    joined.attrs["uid"] = "+".join(str(run.attrs.get("uid")) for run in runs)
    joined.attrs["source"] = "; ".join(str(run.attrs.get("source")) for run in runs)
    joined.attrs[STATE] = FINISHED if all(run.attrs.get(STATE) == FINISHED for run in runs) else "writing"
    return label(check_trajectory(joined, sketched=True))
