"""Which workers dask has, and whether they are too many for the cores they share."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask
from dask.base import get_scheduler

from trajstats.estimators.cluster_blocks import client_for, client_in_force
from trajstats.network import Network


def network_threads(network: Network) -> int | None:
    """Say how many threads a network's framework takes.

    Parameters
    ----------
    network : Network
        The network; it may state a number as ``network.threads``.

    Returns
    -------
    int or None
        The number, 1 if it states none; None means that its framework takes all cores.
    """
    found = getattr(network, "threads", 1)
    return None if found is None else int(found)


def warn_if_oversubscribed(
    each: int | None = 1, *, client: Any = None, workers: int | None = None, stacklevel: int = 4
) -> None:
    """Warn when the threads of the tasks that run at once exceed the cores of a machine.

    Every task holds BLAS, OpenMP and torch at one thread (`trajstats.threads`), unless its network asks for more.

    Parameters
    ----------
    each : int or None
        Threads of one task; None means all cores.
    client : distributed.Client, optional
        Of the cluster that will do the tasks.
    workers : int, optional
        Tasks that run at once in this machine. If neither is given: what dask is set to.
    stacklevel : int
        Whose line the warning names.
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
    """Compute on the dask cluster at an address, or in so many threads of this machine; by default as dask is set."""
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
