"""Which workers dask has, and whether they are too many for the cores they share."""

from __future__ import annotations

import os
import warnings
from collections import Counter

import dask
from dask.base import get_scheduler

from trajstats.estimators.cluster_blocks import client_in_force
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


def warn_if_oversubscribed(each: int | None = 1, *, stacklevel: int = 4) -> None:
    """Warn when the threads of the tasks that run at once exceed the cores of a machine.

    Every task holds BLAS, OpenMP and torch at one thread (`trajstats.threads`), unless its network asks for more.

    Parameters
    ----------
    each : int or None
        Threads of one task; None means all cores.
    stacklevel : int
        Whose line the warning names.
    """
    for host, (workers, cores) in _workers().items():
        threads = (cores if each is None else each) * workers
        if threads > cores:
            advice = "Give fewer workers." if each == 1 else "Give fewer workers, or network.threads = 1."
            msg = (
                f"{workers} dask workers x {threads // workers} threads exceed the {cores} cores of {host}: "
                f"4 to 18 times slower than one thread per core. {advice}"
            )
            warnings.warn(msg, RuntimeWarning, stacklevel=stacklevel)


def _workers() -> dict[str, tuple[int, int]]:
    # Host -> (tasks that run at once, cores).
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    client = client_in_force()
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
