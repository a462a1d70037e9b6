"""The engine of batches: one function on many members, as dask tasks; outcomes come as they finish, whatever breaks."""

from __future__ import annotations

import inspect
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import dask
import numpy as np
import xarray as xr

from trajstats.data._clocks import CLOCK
from trajstats.errors import ArgumentError, TrajstatsError, resumable
from trajstats.inference._options import check_count
from trajstats.inference.results import FitResult
from trajstats.runtime._cluster import (
    client_for,
    cluster_errors,
    in_process,
    is_scheduler_lost,
    local_threads,
    warn_if_oversubscribed,
)
from trajstats.runtime._memory import memory_kept
from trajstats.runtime._threads import ProcessSetting, one_thread

FAILED = "failed"
# Cheap members are put together into tasks of about this long: dask's own share of a task is milliseconds.
TASK_SECONDS = 0.5
# Tasks that each worker gets at least, so that all finish at about the same time.
TASKS_PER_WORKER = 4
# From a warning here up to who called `fit_batch` or `map_sweep`.
STACK = 6
# Lazy data are computed in the thread of their task.
_SYNCHRONOUS = ProcessSetting(lambda: dask.config.set(scheduler="synchronous"))


@dataclass(frozen=True)
class Member:
    """One member of a batch."""

    label: tuple[Any, ...]  # What it is called
    data: Any  # What the function is called with
    seed: list[int] | None  # Entropy of its own stream; None where the function takes no ``rng``


@dataclass(frozen=True)
class Outcome:
    """What became of a member."""

    status: str  # ``"ok"``, the status of the fit, or ``"failed: <kind of error>"``
    reason: str = ""  # Why not ok
    # The result: an estimator's, or the summary of a fit with ``converged``. None where the member failed
    data: xr.Dataset | None = None
    seconds: float = 0.0  # Time it took


class Task:
    """Members that are done one after the other; no dataclass, for dask would look inside and compute lazy data."""

    def __init__(self, function: Callable[..., Any], options: Mapping[str, Any], members: Sequence[Member]) -> None:
        self.function = function
        self.options = dict(options)
        self.members = list(members)

    def run(self) -> list[Outcome]:
        """Do the task in this thread."""
        return [self._one(member) for member in self.members]

    def _one(self, member: Member) -> Outcome:
        start = time.perf_counter()
        stream = {} if member.seed is None else {"rng": np.random.default_rng(member.seed)}
        try:
            with one_thread(), memory_kept(), _SYNCHRONOUS.held():
                found = _outcome(self.function(member.data, **stream, **self.options))
        except TrajstatsError as error:
            found = failure(error, str(error))
        except (Exception, SystemExit) as error:
            found = failure(error)
        return Outcome(found.status, found.reason, found.data, time.perf_counter() - start)


def failure(error: BaseException, reason: str | None = None) -> Outcome:
    """Make the outcome of a member that failed."""
    kind = type(error).__name__
    return Outcome(f"{FAILED}: {kind}", f"{kind}: {error}" if reason is None else reason)


def run_members(
    function: Callable[..., Any],
    options: Mapping[str, Any],
    members: Sequence[Member],
    done: Callable[[int, Outcome], None],
    *,
    scheduler: str | None,
    workers: int | None,
    per_task: int | None,
    resume: str,
) -> None:
    """Call a function on all members as dask tasks, and hand each outcome over as it comes."""
    if per_task is not None:
        check_count("per_task", per_task)
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int | np.integer) or workers < 1):
        msg = f"workers={workers!r}: give the number of threads or processes, at least 1, or nothing to use every core"
        raise ArgumentError(msg)
    with ExitStack() as stack:
        backend = _backend(scheduler, workers, stack)
        stack.enter_context(resumable(resume))
        stack.enter_context(cluster_errors(resume))
        backend.warn_if_oversubscribed()

        def work(which: Sequence[int], size: int) -> None:
            groups = [list(which[k : k + size]) for k in range(0, len(which), size)]
            alone: list[int] = []

            def finished(k: int, outcomes: list[Outcome] | BaseException) -> None:
                if isinstance(outcomes, BaseException):
                    if len(groups[k]) > 1:  # one of them took its worker down: each on its own tells which
                        alone.extend(groups[k])
                        return
                    outcomes = [failure(outcomes)]
                for where, outcome in zip(groups[k], outcomes, strict=True):
                    done(where, outcome)

            backend.run([Task(function, options, [members[i] for i in group]) for group in groups], finished)
            if alone:
                work(alone, 1)

        waiting = list(range(len(members)))
        if per_task is None and len(waiting) > TASKS_PER_WORKER * backend.workers:
            seconds: list[float] = []
            # Two for each worker: the first one it does also loads and compiles.
            report, first = done, waiting[: 2 * backend.workers]

            def timed(where: int, outcome: Outcome) -> None:
                if outcome.data is not None:  # a failure may be quick
                    seconds.append(outcome.seconds)
                report(where, outcome)

            done = timed
            work(first, 1)
            done, waiting = report, waiting[len(first) :]
            most = max(1, len(waiting) // (TASKS_PER_WORKER * backend.workers))
            per_task = int(np.clip(TASK_SECONDS / max(min(seconds, default=TASK_SECONDS), 1e-6), 1, most))
        if waiting:
            work(waiting, per_task or 1)


def check_call(function: Callable[..., Any], options: Mapping[str, Any], *, seeded: bool) -> None:
    """Refuse a function that no member could be given to."""
    name = getattr(function, "__name__", type(function).__name__)
    if not hasattr(function, "__call__"):  # noqa: B004 - a type checker takes what follows `callable` for unreachable
        msg = f"a {name} cannot be called; give a function of the data, such as trajstats.fit_subaging"
        raise ArgumentError(msg)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # written in C: it will tell
    try:
        signature.bind(None, **({"rng": None} if seeded else {}), **options)
    except TypeError as error:
        given = ["the data", *(["rng"] if seeded else []), *map(str, options)]
        msg = f"{name} cannot be called with {', '.join(given)}: {error}"
        raise ArgumentError(msg) from error


Finished = Callable[[int, "list[Outcome] | BaseException"], None]


def _backend(scheduler: str | None, workers: int | None, stack: ExitStack) -> _Local | _Cluster:
    named = {"threads", "processes", "synchronous", "sync", "single-threaded"}
    if scheduler is None or (scheduler not in named and (scheduler == "distributed" or "://" in scheduler)):
        client, made = client_for(scheduler)
        if client is not None:
            if made:
                stack.callback(client.close, timeout=1)
            return _Cluster(client)
    return _Local(in_process(scheduler), workers, stack)


def _killed_by_interrupts() -> Callable[..., None]:
    # Ctrl-C ends the fits that are running in processes made from now on: what is not in the store is done again.
    others = set(multiprocessing.active_children())

    def end(kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()

    return end


class _Local:
    """Tasks on a scheduler of this process."""

    def __init__(self, scheduler: Any, workers: int | None, stack: ExitStack) -> None:
        self.workers = 1 if scheduler == "synchronous" else int(workers or local_threads())
        self._settings: dict[str, Any] = {"scheduler": scheduler}
        if scheduler == "processes":
            from concurrent.futures import ProcessPoolExecutor

            from dask.multiprocessing import get_context, initialize_worker_process

            # One pool for all tasks: a process takes seconds to import everything. Tasks go out one by one.
            pool = ProcessPoolExecutor(self.workers, get_context(), initialize_worker_process)
            stack.callback(pool.shutdown, cancel_futures=True)
            stack.push(_killed_by_interrupts())
            self._settings |= {"pool": pool, "chunksize": 1}
        elif scheduler == "threads":
            self._settings["num_workers"] = self.workers

    def warn_if_oversubscribed(self) -> None:
        """Warn when more tasks run at once than there are cores."""
        warn_if_oversubscribed(workers=self.workers, stacklevel=STACK)

    def run(self, tasks: Sequence[Task], finished: Finished) -> None:
        """Do tasks; `finished` gets number and outcomes of each."""
        from dask.callbacks import Callback

        delayed = [dask.delayed(Task.run, pure=False)(task) for task in tasks]
        numbers = {one.key: k for k, one in enumerate(delayed)}

        def posttask(key: Any, result: Any, *_state: Any) -> None:
            if key in numbers:
                finished(numbers[key], result)

        with Callback(posttask=posttask):
            dask.compute(*delayed, **self._settings)


class _Cluster:
    """Tasks on a cluster, which does again what a dead worker has lost."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.workers = max(1, sum(client.nthreads().values()))

    def warn_if_oversubscribed(self) -> None:
        """Warn when more tasks run at once than there are cores."""
        warn_if_oversubscribed(client=self._client, stacklevel=STACK)

    def run(self, tasks: Sequence[Task], finished: Finished) -> None:
        """Do tasks; `finished` gets number and outcomes of each, or the error of a task that killed its workers."""
        from distributed import as_completed

        delayed = [dask.delayed(Task.run, pure=False)(task) for task in tasks]
        futures = self._client.compute(delayed)
        numbers = {future.key: k for k, future in enumerate(futures)}
        try:
            for future, result in as_completed(futures, with_results=True, raise_errors=False):
                if future.status != "finished":
                    try:
                        # An error, or lost with its worker since it came and being done again: waits for that.
                        result = future.result()
                    except Exception as error:
                        if is_scheduler_lost(error):
                            raise
                        result = error
                finished(numbers[future.key], result)
                future.release()
        finally:
            for future in futures:
                future.release()


def _outcome(result: Any) -> Outcome:
    if isinstance(result, FitResult):
        reason = str(result.diagnostics["reason"].values) if "reason" in result.diagnostics else ""
        flagged = "; ".join(result.flags) if result.status != "ok" else ""
        row = result.summary().assign(converged=result.converged)
        if CLOCK in result.attrs:
            row = row.assign_coords({CLOCK: np.array(str(result.attrs[CLOCK]), dtype=object)})
        return Outcome(result.status, "; ".join(text for text in (reason, flagged) if text), row)
    if isinstance(result, xr.DataArray):
        name = str(result.name or "value")
        result = result.to_dataset(name=name, promote_attrs=True)
    if not isinstance(result, xr.Dataset):
        msg = f"the function returned {type(result).__name__}; it must return a FitResult, a DataArray or a Dataset"
        raise ArgumentError(msg)
    return Outcome("ok", "", result.compute())
