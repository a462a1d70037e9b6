"""Curvature tasks on dask: one per checkpoint for its atoms, one per chunk of probes, kept on disk as they finish."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import dask
import numpy as np
import xarray as xr
from dask.base import get_scheduler, is_dask_collection
from dask.delayed import Delayed

from trajstats.data._buffer_tensors import tensors_from_json
from trajstats.data._buffers import BUFFERS, TENSORS
from trajstats.data.schema import REPLICA, STEP, WEIGHTS
from trajstats.estimators._checkpoint_buffers import with_buffer_row
from trajstats.estimators.curvature._task_store import TaskStore
from trajstats.estimators.curvature._tasks import Checkpoint, Plan, atoms_task, exact_task, loss_task, probes_task
from trajstats.network import Network
from trajstats.runtime._cluster import client_in_force, network_threads, warn_if_oversubscribed
from trajstats.runtime._memory import array_kept
from trajstats.runtime._threads import one_thread

# Weights in memory up to this size are sent with each task; larger ones once to each worker.
SENT_BYTES = 2**19
# The run for atoms starts anew at every so-many-th checkpoint: chains of them, each waiting for the one before, then go
# side by side. A start near the atoms of the checkpoint before finds one atom more of forty.
CHAIN = 4
ANEW = "Nothing is kept; the same call again starts anew."


def checkpoints(trajectory: xr.Dataset, rows: Sequence[int]) -> list[list[Checkpoint]]:
    """List the checkpoints of some rows of every replica."""
    steps = trajectory[STEP].values
    return [
        [Checkpoint(int(replica), int(steps[row]), (r, row)) for row in rows]
        for r, replica in enumerate(trajectory[REPLICA].values)
    ]


def at_workers(network: Network) -> Delayed:
    """Put a network where tasks will need it."""
    warn_if_oversubscribed(network_threads(network))
    shared = dask.delayed(network, pure=False, traverse=False)
    client = client_in_force()
    if client is None:
        return shared
    wait = sys.modules["distributed"].wait
    there = client.persist(shared)
    (sent,) = client.futures_of(there)
    wait(sent)
    if sent.status != "finished":
        # The tasks will say why.
        return shared
    # A worker that dies meanwhile leaves its turn to another.
    options = {"allow_other_workers": True, "pure": False}
    wait([client.submit(_arrived, sent, workers=[worker], **options) for worker in client.nthreads()])
    return there


def run_losses(shared: Delayed, trajectory: xr.Dataset, cells: list[list[Checkpoint]]) -> np.ndarray:
    """Evaluate the loss at every checkpoint."""
    out = [[dask.delayed(_done)(loss_task, shared, *_state(trajectory, where)) for where in line] for line in cells]
    return np.array(_compute(out), dtype=np.float64)


def run_spectra(
    shared: Delayed,
    trajectory: xr.Dataset,
    cells: list[list[Checkpoint]],
    probes: int,
    plan: Plan,
    store: TaskStore | None,
) -> list[list[list[dict[str, np.ndarray]]]]:
    """Compute the spectra of some checkpoints, or read them where they are in the store."""
    firsts = [0] if plan.exact else list(range(0, probes, plan.chunk))

    def task(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        if store is not None and store.has(name):
            return dask.delayed(store.read)(name, pure=False)
        # Named by what they do, since dask learns from the name how long a task takes.
        key = f"{function.__name__}-{uuid.uuid4()}"
        return dask.delayed(_kept)(store, name, function, *arguments, dask_key_name=key)

    out = []
    for line in cells:
        spectra = []
        previous = None
        for i, where in enumerate(line):
            name = f"replica{where.replica}-step{where.step}"
            common = (shared, *_state(trajectory, where), plan)
            if plan.exact:
                spectra.append([task(f"{name}-exact", exact_task, *common, where)])
                continue
            if plan.atom_steps:
                previous = task(f"{name}-atoms", atoms_task, *common, where, previous if i % CHAIN else None)
            spectra.append(
                [task(f"{name}-probe{first}", probes_task, *common, where, first, previous) for first in firsts]
            )
        out.append(spectra)
    with array_kept():
        return _compute(out)


def run_checkpoints(
    function: Callable[..., Any],
    shared: Delayed,
    trajectory: xr.Dataset,
    cells: list[list[Checkpoint]],
    *arguments: Any,
) -> list[list[Any]]:
    """Call ``function(network, weights, checkpoint, *arguments)`` at every checkpoint."""
    tasks = [
        [dask.delayed(_done)(function, shared, *_state(trajectory, where), where, *arguments) for where in line]
        for line in cells
    ]
    return _compute(tasks)


def _arrived(network: Network) -> None:
    # What it needs is there when it runs.
    del network


class _Saved:
    """A row of one checkpoint that a task reads itself; no dataclass, for dask would look inside and read it.

    A task that needs nothing but the network goes to whichever worker is free next. One that needs an array in some
    worker's memory goes there, and two workers end up with unequal shares.
    """

    def __init__(self, row: Any) -> None:
        self._row = row

    def read(self) -> np.ndarray:
        (row,) = dask.compute(self._row, scheduler="synchronous")
        return np.asarray(row)


def _state(trajectory: xr.Dataset, where: Checkpoint) -> tuple[Any, Any, str]:
    # The weights and the buffers of one checkpoint, and which tensors the latter are; none without buffers.
    weights = _row(trajectory[WEIGHTS].data[where.row])
    if BUFFERS not in trajectory.variables:
        return weights, None, ""
    buffers = trajectory[BUFFERS]
    return weights, _row(buffers.data[where.row]), str(buffers.attrs[TENSORS])


def _row(row: Any) -> Any:
    if is_dask_collection(row):
        if not _in_workers(row):
            # Slices go into the reading: a task reads its own row of a tile of many.
            return _Saved(dask.optimize(row)[0])
    elif row.nbytes <= SENT_BYTES:
        return _Saved(row)
    return dask.delayed(np.asarray)(row)


def _in_workers(row: Any) -> bool:
    # Data that a cluster holds already cannot be read inside a task.
    distributed = sys.modules.get("distributed")
    return distributed is not None and bool(distributed.client.futures_of(row))


def _done(
    function: Callable[..., Any], network: Network, weights: Any, buffers: Any, tensors: str, *arguments: Any
) -> Any:
    weights, buffers = (row.read() if isinstance(row, _Saved) else row for row in (weights, buffers))
    with one_thread():
        if buffers is not None:
            network = with_buffer_row(network, buffers, tensors_from_json(tensors))
        return function(network, weights, *arguments)


def _kept(store: TaskStore | None, name: str, function: Callable[..., Any], *arguments: Any) -> dict[str, np.ndarray]:
    result = _done(function, *arguments)
    if store is not None:
        store.write(name, result)
    return result


def _compute(tasks: Any) -> Any:
    # Threads gain nothing here (the framework holds them up); processes or a cluster are the user's choice.
    chosen = {} if get_scheduler() is not None else {"scheduler": "synchronous"}
    return dask.compute(tasks, **chosen)[0]
