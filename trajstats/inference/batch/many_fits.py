"""Any fit over a grid of layers, widths and seeds: one labelled result, failures as labelled data."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import xarray as xr
from tqdm import tqdm

from trajstats.errors import ArgumentError
from trajstats.inference._labels import labelled
from trajstats.inference.batch._collect import collect, column
from trajstats.inference.batch._engine import Member, Outcome, check_call, run_members
from trajstats.inference.batch._member_store import MemberStore, member_key
from trajstats.inference.results import FitResult

Fit = Callable[..., FitResult]
CASE = "case"
_RESERVED = frozenset({"status", "reason", "converged", "value", "stderr", "interval", "coefficient", "level", "bound"})


def fit_batch(
    fit: Fit,
    cases: Mapping[Hashable, Any],
    /,
    *,
    rng: int,
    dims: Sequence[str] = (CASE,),
    scheduler: str | None = None,
    workers: int | None = None,
    per_task: int | None = None,
    store: Any = None,
    progress: bool = False,
    **options: Any,
) -> xr.Dataset:
    """Run one fit on many data sets, as dask tasks.

    No case can stop another: a case that fails is a row with its own status and reason. Every case draws from a stream
    that depends on `rng` and on its label only, so that its numbers do not depend on which others are in the batch,
    nor on their order, the scheduler, the number of workers or of cases per task.

    Parameters
    ----------
    fit : callable
        `fit_subaging`, `fit_divergence`, `fit_decay`, or any function ``(data, *, rng, **options) -> FitResult``.
    cases : mapping label -> data
        Data sets, lazy or not; a label is a value, or a tuple of values in the order of `dims`.
    rng : int
        Seed of the batch.
    dims : sequence of str
        Names of the parts of a label, such as ``("layer", "width", "seed")``.
    scheduler : str, optional
        ``"threads"``, ``"processes"``, ``"synchronous"``, ``"distributed"`` for the current client, or the address of a
        scheduler. If not given: the current client if there is one, else what dask is set to, else threads.
    workers : int, optional
        Number of threads or processes of this machine.
    per_task : int, optional
        Cases in one task. If not given, as many as take half a second, by the time that the first ones took.
    store : path, URL or zarr store, optional
        One zarr store in which each case is kept as soon as it is finished, by this process. A case is found again by
        its label, data, options, seed and the code of `fit`: a batch that was interrupted does only the missing ones
        (failed ones are tried again), and one whose data or options changed does the changed ones.
    progress : bool
        Show a bar with the rate and the failures so far.
    **options
        Passed to `fit`.

    Returns
    -------
    xarray.Dataset
        Dim `case` with the coords `dims`: ``value``, ``stderr`` (case, coefficient), ``interval`` (case, coefficient,
        level, bound), ``converged``, ``status`` (that of the fit, or ``"failed: <kind of error>"``), ``reason``.

    Raises
    ------
    ArgumentError
        If a label does not have as many parts as `dims`, there is no case, or an argument is of another kind.
    ClusterError
        If no scheduler answers, or it is lost; what is finished is in `store`.
    StoreError
        If `store` holds something else.

    Notes
    -----
    Lazy data are computed inside the task, block by block. Of a process that is killed on a cluster the cases are done
    again, to the same bits; a case that kills its worker four times is a failed row.

    Examples
    --------
    >>> from trajstats.inference.decay.fit import fit_decay
    >>> bad = xr.DataArray([1.0, np.nan], dims="step", coords={"step": [1, 2]})
    >>> fit_batch(fit_decay, {"a": bad}, rng=0, scheduler="synchronous").status.item()
    'failed: NonFiniteError'
    """
    if not isinstance(cases, Mapping) or isinstance(dims, str):
        msg = (
            f"fit_batch(..., {type(cases).__name__}, dims={dims!r}): give a mapping from label to data, and dims as a "
            "sequence of names"
        )
        raise ArgumentError(msg)
    if len(set(dims)) < len(dims) or not _RESERVED.isdisjoint(dims):
        msg = f"dims={dims!r}: give each part of a label its own name, none of {sorted(_RESERVED)}"
        raise ArgumentError(msg)
    labels = [label if isinstance(label, tuple) else (label,) for label in cases]
    if not labels or any(len(label) != len(dims) for label in labels):
        msg = f"labels must have {len(dims)} parts ({', '.join(dims)}); got {labels[:2]}"
        raise ArgumentError(msg)
    if len(set(labels)) < len(labels):  # "a" and ("a",)
        msg = f"two cases have one label among {labels[:5]}; give each its own"
        raise ArgumentError(msg)
    members = [Member(label, data, stream_seed(rng, label)) for label, data in zip(labels, cases.values(), strict=True)]
    outcomes = run_batch(
        fit, options, members, scheduler=scheduler, workers=workers, per_task=per_task, store=store, progress=progress
    )
    result = collect(outcomes, CASE)
    if clash := [name for name in dims if name in result.variables or name in set(result.dims) - {CASE}]:
        msg = f"the results have a {clash[0]!r} of their own; call this part of the labels something else in dims"
        raise ArgumentError(msg)
    if "converged" in result:
        result["converged"] = result["converged"].fillna(False).astype(bool)
    else:
        result["converged"] = (CASE, np.zeros(len(outcomes), dtype=bool))
    parts = {name: (CASE, column([label[k] for label in labels])) for k, name in enumerate(dims)}
    return labelled(result.assign_coords(parts), "batch")


def stream_seed(rng: int, label: Iterable[Hashable]) -> list[int]:
    """Seed of one case: from the seed of the batch and the label, on any machine."""
    if isinstance(rng, bool) or not isinstance(rng, int | np.integer) or rng < 0:
        msg = f"rng={rng!r}: the seed of a batch is a whole number that is not negative, from which each case draws"
        raise ArgumentError(msg)
    digest = hashlib.sha256(json.dumps([_plain(part) for part in label]).encode()).digest()
    return [int(rng), *np.frombuffer(digest[:16], dtype=np.uint32).tolist()]


def run_batch(
    function: Callable[..., Any],
    options: Mapping[str, Any],
    members: Sequence[Member],
    *,
    scheduler: str | None,
    workers: int | None,
    per_task: int | None,
    store: Any,
    progress: bool,
) -> list[Outcome]:
    """Do the members that are not in the store yet, and keep each as it is finished."""
    check_call(function, options, seeded=any(member.seed is not None for member in members))
    kept = None if store is None else MemberStore(store)
    keys = ["" if kept is None else member_key(member, function, options) for member in members]
    outcomes = [None if kept is None else kept.read(key) for key in keys]
    missing = [k for k, outcome in enumerate(outcomes) if outcome is None]
    where = "nothing is kept without store=" if store is None else f"what is finished is kept in {store}"
    failed = 0
    with tqdm(total=len(members), initial=len(members) - len(missing), unit="run", disable=not progress) as bar:
        bar.set_postfix(failed=failed)

        def done(position: int, outcome: Outcome) -> None:
            nonlocal failed
            k = missing[position]
            outcomes[k] = outcome
            if kept is not None:
                kept.write(keys[k], members[k], outcome)
            failed += outcome.data is None
            bar.set_postfix(failed=failed, refresh=False)
            bar.update()

        run_members(
            function,
            options,
            [members[k] for k in missing],
            done,
            scheduler=scheduler,
            workers=workers,
            per_task=per_task,
            resume=f"Of {len(members)} runs {where}; the same call again does the missing ones.",
        )
    return cast("list[Outcome]", outcomes)  # each was read or handed over by now


def _plain(part: Hashable) -> Any:
    if isinstance(part, np.generic):
        part = part.item()
    if isinstance(part, datetime.date):
        return part.isoformat()
    if part is not None and not isinstance(part, str | int | float):
        msg = f"{part!r} cannot be part of a label: give numbers, text or dates"
        raise ArgumentError(msg)
    return part
