"""One thread for each task: the pools of BLAS, OpenMP and torch are held at one while a task runs, and given back."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
_here = threading.local()


class _Shared:
    """What all threads of the process share: pools that have one size for all, and how many tasks hold them."""

    tasks = 0
    blas: list[tuple[Any, int]] = []
    torch_threads = 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold the pools of numerical libraries at one thread while a task runs, and give them back as they were.

    BLAS pools belong to the process: the first task that enters sets them, the last that leaves restores them, so that
    tasks side by side in threads do not restore each other's limit. OpenMP and torch sizes belong to the calling
    thread. Torch is looked up among the loaded modules and never imported here; XLA reads its setting once, when it
    starts, which is the adapter's business. Within itself this does nothing.
    """
    if getattr(_here, "inside", False):
        yield
        return
    pools = _controller(len(sys.modules)).lib_controllers
    with _lock:
        torch_before = _torch_threads()
        own = [(pool, pool.get_num_threads()) for pool in pools if pool.user_api == "openmp"]
        if not _Shared.tasks:
            _Shared.blas = [(pool, pool.get_num_threads()) for pool in pools if pool.user_api == "blas"]
            _Shared.torch_threads = torch_before
            _set([(pool, 1) for pool, _ in _Shared.blas])
        _Shared.tasks += 1
        _set([(pool, 1) for pool, _ in own])
        _set_torch(1)
    _here.inside = True
    try:
        yield
    finally:
        _here.inside = False
        with _lock:
            _Shared.tasks -= 1
            if not _Shared.tasks:
                _set(_Shared.blas)
            # A thread that first met torch beside another task took over that task's 1: it gets what torch had before.
            _set_torch(max(torch_before, _Shared.torch_threads))
            _set(own)


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let torch, where it is loaded, compute with so many threads, and give it back as it was."""
    before = _torch_threads()
    if count is not None and count != before:
        _set_torch(count)
    try:
        yield
    finally:
        if _torch_threads() != before:
            _set_torch(before)


class ProcessSetting:
    """A setting of the process, held by tasks side by side: the first makes it, the last takes it back."""

    def __init__(self, make: Callable[[], AbstractContextManager[Any]]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._tasks = 0
        self._made: AbstractContextManager[Any] | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the setting while a task runs."""
        with self._lock:
            if self._made is None:
                made = self._make()
                made.__enter__()
                self._made = made
            self._tasks += 1
        try:
            yield
        finally:
            with self._lock:
                self._tasks -= 1
                if not self._tasks and self._made is not None:
                    made, self._made = self._made, None
                    made.__exit__(None, None, None)


def on_one_thread(function: Callable[..., Any], /, *arguments: Any) -> Any:
    """Call a function while the pools are held at one thread: what a dask task does."""
    with one_thread():
        return function(*arguments)


@functools.lru_cache(maxsize=1)
def _controller(n_modules: int) -> ThreadpoolController:
    # Looking through the loaded libraries takes milliseconds; it is done again only when modules were loaded since.
    return ThreadpoolController()


def _set(sizes: list[tuple[Any, int]]) -> None:
    for pool, count in sizes:
        # Later versions let only the thread that set a BLAS pool first set it again; counting tasks stands for that.
        free = getattr(pool, "clear_controlling_thread", None)
        if free is not None:
            free(force=True)
        pool.set_num_threads(count)
        if free is not None:
            free(force=True)


def _torch_threads() -> int:
    found = getattr(sys.modules.get("torch"), "get_num_threads", None)
    return 1 if found is None else int(found())


def _set_torch(count: int) -> None:
    found = getattr(sys.modules.get("torch"), "set_num_threads", None)
    if found is not None:
        found(count)
