"""Plan sums over blocks of parameters and run them as dask tasks."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize

from trajstats.data.schema import PARAMETER, REPLICA, WEIGHTS
from trajstats.data.store._rows import stored_rows
from trajstats.errors import ArgumentError
from trajstats.estimators.two_time._sums import UNIT, Request, Sums, contribute, merge
from trajstats.runtime._cluster import host
from trajstats.runtime._threads import on_one_thread

BLOCK_BYTES = 64 * 2**20
LARGEST_BLOCK_BYTES = 130 * 2**20
# A tile of the store is this wide: narrower blocks would decompress each tile more than once.
STORE_WIDTH = 16384
MAX_TASKS = 10_000
FAN_IN = 4


@dataclass(frozen=True)
class Plan:
    """How a reduction over parameters will run: print it before a long one."""

    n_replicas: int  # What is read
    n_rows: int  # What is read
    n_parameters: int  # What is read
    width: int  # Parameters of one block
    block_bytes: int  # Weights of one block, sums of one block, and the whole result
    partial_bytes: int  # Weights of one block, sums of one block, and the whole result
    result_bytes: int  # Weights of one block, sums of one block, and the whole result
    n_pairs: int  # What is summed
    n_groups: int  # What is summed
    workers: int  # Blocks in memory at a time
    per_task: int = 1  # Blocks that one task reads and sums, one after the other

    @property
    def n_blocks(self) -> int:
        """Blocks over all replicas."""
        return self.n_replicas * math.ceil(self.n_parameters / self.width)

    @property
    def n_tasks(self) -> int:
        """Tasks of the reduction: a block each, and the additions."""
        n, total = math.ceil(self.n_parameters / (self.width * self.per_task)), 0
        while True:
            total += n
            if n == 1:
                return self.n_replicas * total
            n = math.ceil(n / FAN_IN)

    @property
    def memory_bytes(self) -> int:
        """Estimate of the peak: blocks at work (read, copied), partial sums waiting in the tree, result."""
        depth = math.ceil(math.log(max(self.n_blocks, 2), FAN_IN))
        waiting = self.partial_bytes * (FAN_IN * depth + 2 * self.workers)
        return self.workers * 2 * self.block_bytes + waiting + 2 * self.result_bytes

    def __str__(self) -> str:
        width = min(self.width, self.n_parameters)
        read = self.n_replicas * self.n_parameters * self.block_bytes / width
        return (
            f"{self.n_pairs} pairs of {self.n_rows} checkpoints x {self.n_parameters} parameters, "
            f"{self.n_replicas} replica(s), {self.n_groups} group(s)\n"
            f"reads {read / 2**30:.3g} GiB in {self.n_blocks} blocks of {width} parameters "
            f"({self.block_bytes / 2**20:.3g} MiB), {self.n_tasks} tasks\n"
            f"peak memory about {self.memory_bytes / 2**30:.3g} GiB with {self.workers} worker thread(s), "
            f"result {self.result_bytes / 2**20:.3g} MiB"
        )


def plan_blocks(
    trajectory: xr.Dataset,
    request: Request,
    n_groups: int,
    *,
    block_bytes: int | None = None,
    memory_limit: int | None = None,
) -> Plan:
    """Choose the block width; reject a request that does not fit in memory."""
    weights = trajectory[WEIGHTS]
    n, n_replicas = weights.sizes[PARAMETER], weights.sizes[REPLICA]
    column = request.n_rows * max(4, weights.dtype.itemsize)
    budget = BLOCK_BYTES if block_bytes is None else int(block_bytes)
    if budget < UNIT * column:
        if block_bytes is not None:
            msg = (
                f"block_bytes={budget} is too small: the smallest block, {request.n_rows} checkpoints x {UNIT} "
                f"parameters, takes {UNIT * column} bytes. Give at least that, or select fewer checkpoints."
            )
            raise ArgumentError(msg)
        budget = UNIT * column
    width = UNIT * 2 ** int(math.log2(budget // (UNIT * column)))
    if block_bytes is None:
        while width < STORE_WIDTH and 2 * width * column <= LARGEST_BLOCK_BYTES:
            width *= 2
        while n_replicas * math.ceil(n / width) * 1.4 > MAX_TASKS and 2 * width * column <= LARGEST_BLOCK_BYTES:
            width *= 2
    worker = host()
    per_pair = {"square": 1, "moments": 2, "overlap": 3}[request.mode] + ("flips" in request.terms)
    per_pair += len(request.wavenumber) + ("velocity" in request.terms)
    sums = 8 * per_pair * max(1, request.first.size) * n_groups
    plan = Plan(
        n_replicas=n_replicas,
        n_rows=request.n_rows,
        n_parameters=n,
        width=width,
        block_bytes=min(width, n) * column,
        partial_bytes=int(sums * _touched(n, width, n_groups)),
        result_bytes=3 * n_replicas * sums,
        n_pairs=request.first.size,
        n_groups=n_groups,
        workers=worker.threads,
    )
    limit = worker.memory if memory_limit is None else memory_limit
    while block_bytes is None and plan.memory_bytes > limit and plan.width > UNIT:
        plan = _narrower(plan, column)
    if stored_rows(weights.variable) is not None or weights.chunks is None:  # read within the task, as much as it likes
        while plan.n_tasks > MAX_TASKS and plan.width * plan.per_task < n:
            plan = replace(plan, per_task=2 * plan.per_task)
    if plan.n_tasks > MAX_TASKS:
        msg = (
            f"{plan.n_tasks} tasks would be needed, more than {MAX_TASKS}:\n{plan}\nSelect fewer checkpoints or "
            "replicas (.isel), or give a larger block_bytes."
        )
        raise ArgumentError(msg)
    if plan.memory_bytes > limit:
        msg = (
            f"this needs about {plan.memory_bytes / 2**30:.3g} GiB, more than the {limit / 2**30:.3g} GiB allowed:\n"
            f"{plan}\nSelect fewer checkpoints, take listed pairs (two_time) in place of all pairs, fewer groups "
            "(per='kind' or 'all'), fewer observables, a smaller block_bytes, or raise memory_limit (on a cluster: "
            "that of the workers)."
        )
        raise ArgumentError(msg)
    return plan


def _narrower(plan: Plan, column: int) -> Plan:
    width = plan.width // 2
    share = _touched(plan.n_parameters, width, plan.n_groups) / _touched(plan.n_parameters, plan.width, plan.n_groups)
    block = min(width, plan.n_parameters) * column
    return replace(plan, width=width, block_bytes=block, partial_bytes=int(plan.partial_bytes * share))


def _touched(n: int, width: int, n_groups: int) -> float:
    # Share of all groups that one block has sums of.
    return min(1.0, 1 / max(1, math.ceil(n / width)) + 1 / max(1, n_groups))


def block_sums(
    trajectory: xr.Dataset,
    rows: np.ndarray,
    request: Any,
    plan: Plan,
    limits: list[Any] | None = None,
    *,
    function: Callable[..., Sums] = contribute,
) -> list[Any]:
    """Sum over blocks of parameters in a fixed order, lazily."""
    # One key for the request: it holds the tiles of all pairs and must not travel with every task.
    shared = dask.delayed(request, pure=False, traverse=False)
    token = _token(trajectory, rows, request, plan, function)
    out = []
    for r in range(plan.n_replicas):
        limit = None if limits is None else limits[r]
        name = partial(tokenize, token, r, limit)
        parts = [
            dask.delayed(on_one_thread, pure=False)(
                task, function, shared, *piece, start, limit, dask_key_name=f"sums-{name(start)}"
            )
            for start, task, piece in _pieces(trajectory, r, rows, plan)
        ]
        level = 0
        while len(parts) > 1:
            level += 1
            parts = [
                dask.delayed(_merge, pure=False)(parts[k : k + FAN_IN], dask_key_name=f"merge-{name(level, k, 0)}")
                for k in range(0, len(parts), FAN_IN)
            ]
        out.append(parts[0])
    return out


def delay(function: Callable[..., Any], *args: Any) -> Any:
    """Return the call of a function as a lazy dask value."""
    return dask.delayed(function, pure=True, traverse=False)(*args)


def as_array(value: Any, shape: tuple[int, ...]) -> da.Array:
    """Return a lazy value as a dask array of known shape."""
    return da.from_delayed(value, shape, dtype=np.float64)


def stack(arrays: list[da.Array]) -> da.Array:
    """Stack the arrays of the replicas along a new first axis."""
    return da.stack(arrays)


def _token(trajectory: xr.Dataset, rows: np.ndarray, request: Any, plan: Plan, function: Callable[..., Sums]) -> str:
    # Lazy results are named by what they are made from: asked for again, on a cluster or by a store, they are known.
    variable = trajectory[WEIGHTS].variable
    made_from = variable.data.name if variable.chunks is not None else uuid.uuid4().hex
    return tokenize(made_from, rows, request, plan.width, function)


def _pieces(
    trajectory: xr.Dataset, replica: int, rows: np.ndarray, plan: Plan
) -> list[tuple[int, Callable[..., Sums], tuple[Any, ...]]]:
    # Start of each block, the task that sums it, and from what. One task reads and sums, so that a block never waits in
    # the memory of a worker; only what dask itself makes (a chunked array of the user's) comes from tasks before.
    variable = trajectory[WEIGHTS].variable
    n, wide = variable.shape[2], plan.width * plan.per_task
    cuts = [slice(a, min(a + wide, n)) for a in range(0, n, wide)]
    if (stored := stored_rows(variable)) is not None:
        source = dask.delayed(stored, pure=False, traverse=False)
        return [(cut.start, _sum_stored, (source, rows, cut, plan.width)) for cut in cuts]
    whole = rows.size == rows[-1] - rows[0] + 1
    index = slice(int(rows[0]), int(rows[-1]) + 1) if whole else rows
    if variable.chunks is not None:
        return [(cut.start, _sum_block, (variable.data[replica, index, cut],)) for cut in cuts]
    return [(cut.start, _sum_lazy, (Unseen(variable[replica, index, cut]), plan.width)) for cut in cuts]


class Unseen:
    """A variable that dask does not look into, so that the task reads it."""

    def __init__(self, variable: xr.Variable) -> None:
        self.variable = variable


def _sum_stored(
    function: Callable[..., Sums],
    request: Any,
    stored: Any,
    rows: np.ndarray,
    cut: slice,
    width: int,
    start: int,
    limit: Any,
) -> Sums:
    def block(a: int, b: int) -> Sums:
        read = stored[0, int(rows[0]) : int(rows[-1]) + 1, start + a : start + b]
        return function(request, read if len(read) == rows.size else read[rows - rows[0]], start + a, limit)

    return _in_turns(block, cut.stop - start, width)


def _sum_lazy(function: Callable[..., Sums], request: Any, source: Unseen, width: int, start: int, limit: Any) -> Sums:
    def block(a: int, b: int) -> Sums:
        return function(request, np.asarray(source.variable[:, a:b].values), start + a, limit)

    return _in_turns(block, source.variable.shape[1], width)


def _in_turns(block: Callable[[int, int], Sums], n: int, width: int) -> Sums:
    # Added in the binary tree of `_merge`, keeping one sum for each of its levels.
    waiting: list[tuple[int, Sums]] = []
    for a in range(0, n, width):
        size, sums = 1, block(a, min(a + width, n))
        while waiting and waiting[-1][0] == size:
            sums, size = merge(waiting.pop()[1], sums), 2 * size
        waiting.append((size, sums))
    total = waiting.pop()[1]
    while waiting:
        total = merge(waiting.pop()[1], total)
    return total


def _sum_block(function: Callable[..., Sums], request: Any, block: np.ndarray, start: int, limit: Any) -> Sums:
    return function(request, block, start, limit)


def _merge(parts: list[Sums]) -> Sums:
    while len(parts) > 1:
        pairs = [parts[k : k + 2] for k in range(0, len(parts), 2)]
        parts = [merge(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return parts[0]
