"""Query a dask cluster and report its failures as ClusterError."""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dask
from dask.base import get_scheduler
from dask.system import CPU_COUNT

from trajstats.errors import ArgumentError, ClusterError, optional_package
from trajstats.network import Network

CONNECT_SECONDS = 5
# Of a machine without a stated limit, and of a worker, whose process dask pauses at 0.8 and kills at 0.95 of its limit.
MACHINE_SHARE, WORKER_SHARE, WORKER_FILL = 0.8, 0.5, 0.75
# What a worker with this library and its compiled kernels loaded takes before it works.
PROCESS_BYTES = 250 * 2**20
_LOST = {"CommClosedError", "FutureCancelledError", "CancelledError", "FuturesCancelledError", "ClosedClientError"}


@dataclass(frozen=True)
class Host:
    """One process that works: what a plan must fit into."""

    threads: int  # Tasks at a time
    memory: int  # Bytes they may use together


def host() -> Host:
    """Describe the process in which tasks will run: a worker of the cluster in force, or this one."""
    worker = _worker()
    if worker is not None:
        # Inside a task, whose own dask runs in its thread; the other threads have their share.
        threads = max(1, worker.state.nthreads)
        return Host(1, _share(worker.memory_manager.memory_limit, threads) // threads)
    client = client_in_force()
    if client is None:
        return Host(local_threads(), int(MACHINE_SHARE * _physical_memory()))
    known = client.scheduler_info()["workers"].values()
    hosts = [Host(max(1, w["nthreads"]), _share(w["memory_limit"], max(1, w["nthreads"]))) for w in known]
    return min(
        hosts, key=lambda one: one.memory / one.threads, default=Host(1, int(MACHINE_SHARE * _physical_memory()))
    )


def local_threads() -> int:
    """Count the tasks that dask runs at a time in this process."""
    if dask.config.get("scheduler", None) in {"synchronous", "sync", "single-threaded"}:
        return 1
    return int(dask.config.get("num_workers", None) or CPU_COUNT)


def client_in_force() -> Any:
    """Find the client that dask would compute with."""
    distributed = sys.modules.get("distributed")
    chosen = dask.config.get("scheduler", None)
    if distributed is None or _worker() is not None or chosen not in (None, "distributed", "dask.distributed"):
        return None
    try:
        return distributed.get_client()
    except ValueError:
        return None


def client_for(scheduler: Any) -> tuple[Any, bool]:
    """Find the client of a cluster, or make one."""
    if scheduler is None:
        return client_in_force(), False
    distributed = optional_package("distributed", f"scheduler={scheduler!r}", "trajstats[distributed]")
    if scheduler == "distributed":
        try:
            return distributed.get_client(), False
        except ValueError as error:
            msg = (
                "scheduler='distributed' needs a client: make one with distributed.Client(address), or give the address"
            )
            raise ClusterError(msg) from error
    try:
        return distributed.Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False), True
    except (OSError, ValueError, TypeError) as error:
        msg = (
            f"no dask scheduler answers at {scheduler!r} within {CONNECT_SECONDS} s. Start one with 'dask scheduler' "
            "and give the address it prints, such as tcp://10.0.0.1:8786, or compute in this process"
        )
        raise ClusterError(msg) from error


@contextmanager
def cluster_errors(resume: str) -> Iterator[None]:
    """Raise the errors of a broken cluster as ClusterError, which says how to resume."""
    try:
        yield
    except Exception as error:
        kind = type(error).__name__
        if kind in {"KilledWorker", "BrokenProcessPool"}:
            msg = (
                f"workers died during a task, most likely because memory ran out: {error}. Give them more memory. "
                f"{resume}"
            )
            raise ClusterError(msg) from error
        if is_scheduler_lost(error):
            why = " ".join(str(error).split())
            msg = (
                f"the dask scheduler was lost ({kind}: {why:.160}). Start it again, connect with "
                f"distributed.Client(address), and call again. {resume}"
            )
            raise ClusterError(msg) from error
        raise


def is_scheduler_lost(error: BaseException) -> bool:
    """Return whether an error means that the connection to the scheduler is lost."""
    if isinstance(error, OSError) and "trying to connect" in str(error):  # what a call to the scheduler itself raises
        return True
    kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(error).__mro__}
    return any(module in {"distributed", "concurrent", "asyncio"} and name in _LOST for module, name in kinds)


def in_process(scheduler: Any) -> Any:
    """Check the name of a scheduler of this process, or find the one in force."""
    chosen = dask.config.get("scheduler", None) or "threads" if scheduler is None else scheduler
    if callable(chosen):
        return chosen
    names = {
        "sync": "synchronous",
        "single-threaded": "synchronous",
        "threading": "threads",
        "multiprocessing": "processes",
    }
    chosen = names.get(str(chosen), str(chosen))
    if chosen not in {"threads", "processes", "synchronous"}:
        msg = (
            f"unknown scheduler {chosen!r}; allowed: 'threads', 'processes', 'synchronous', 'distributed', or the "
            "address of a scheduler, such as 'tcp://10.0.0.1:8786'"
        )
        raise ArgumentError(msg)
    return chosen


def _worker() -> Any:
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        return distributed.get_worker()
    except ValueError:
        return None


def _share(limit: int | None, threads: int) -> int:
    if not limit:  # a worker without a limit
        return int(MACHINE_SHARE * _physical_memory() / max(1, (os.cpu_count() or 1) // threads))
    return max(1, min(int(WORKER_SHARE * limit), int(WORKER_FILL * limit) - PROCESS_BYTES))


def _physical_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def network_threads(network: Network) -> int | None:
    """Return how many threads the framework of a network uses."""
    found = getattr(network, "threads", 1)
    return None if found is None else int(found)


def warn_if_oversubscribed(
    each: int | None = 1, *, client: Any = None, workers: int | None = None, stacklevel: int = 4
) -> None:
    """Warn when the threads of the tasks that run at once exceed the cores of a machine.

    Every task holds BLAS, OpenMP and torch at one thread, unless its network asks for more.
    """
    for host, (at_once, cores) in _workers(client, workers).items():
        threads = (cores if each is None else each) * at_once
        if threads > cores:
            advice = "Give fewer workers." if each == 1 else "Give fewer workers, or network.threads = 1."
            msg = (
                f"{at_once} dask workers x {threads // at_once} threads exceed the {cores} cores of {host}: "
                f"4 to 18 times slower than one thread per core. {advice}"
            )
            warnings.warn(msg, RuntimeWarning, stacklevel=stacklevel)


def _workers(client: Any, workers: int | None) -> dict[str, tuple[int, int]]:
    # Host -> (tasks that run at once, cores).
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers is not None:
        return {"this machine": (workers, here)}
    client = client_in_force() if client is None else client
    if client is not None:
        cores = client.run(os.cpu_count)
        tasks: Counter[str] = Counter()
        most: dict[str, int] = {}
        for address, threads in client.nthreads().items():
            host = address.rsplit(":", 1)[0]
            tasks[host] += threads
            most[host] = max(most.get(host, 1), cores.get(address) or 1)
        return {host: (tasks[host], most[host]) for host in tasks}
    if get_scheduler() is None or dask.config.get("scheduler", None) in ("sync", "synchronous", "single-threaded"):
        return {"this machine": (1, here)}
    return {"this machine": (int(dask.config.get("num_workers", None) or here), here)}


@contextmanager
def computing(scheduler: str | None = None, workers: int | None = None) -> Iterator[None]:
    """Compute on the dask cluster at an address, or in so many threads here; by default as dask is configured."""
    if workers is not None:
        with dask.config.set(scheduler="synchronous" if workers == 1 else "threads", num_workers=workers):
            warn_if_oversubscribed()
            yield
    elif scheduler is not None:
        client, made = client_for(scheduler)
        try:
            with client.as_current():
                yield
        finally:
            if made:
                client.close(timeout=1)
    else:
        yield
