"""Memory stays at hand while tasks run, and between them: large arrays are not paged in each time."""

from __future__ import annotations

import ctypes
import functools
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from trajstats.runtime._threads import ProcessSetting

# Of glibc's malloc.h; its own defaults, and the most that memory of a thread can keep.
_TRIM, _MMAP = -1, -3
_MMAP_DEFAULT, _MMAP_MOST = 128 * 2**10, 32 * 2**20
_KEPT = 64 * 2**20
_TRIM_SETTING, _MMAP_SETTING = "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"

_here = threading.local()


@contextmanager
def memory_kept() -> Iterator[None]:
    """Let the allocator keep up to 64 MiB of freed memory a thread while a task runs.

    The nanny of a dask worker sets ``MALLOC_TRIM_THRESHOLD_=65536``, so that a worker gives freed memory back. With it
    glibc no longer adapts to the sizes it sees: every array above 128 KiB is mapped, paged in and unmapped again, and
    a fit takes 1.5 times its CPU time. While a task runs the thresholds are raised; after the last one they are what
    the environment says. Without that setting, or without glibc, this does nothing.
    """
    with _RAISED.held() if _TRIM_SETTING in os.environ else nullcontext():
        yield


@contextmanager
def _raised() -> Iterator[None]:
    mallopt = _mallopt()
    if mallopt is None:
        yield
        return
    mallopt(_TRIM, _KEPT)
    mallopt(_MMAP, _MMAP_MOST)
    try:
        yield
    finally:
        mallopt(_TRIM, _setting(_TRIM_SETTING, _MMAP_DEFAULT))
        mallopt(_MMAP, _setting(_MMAP_SETTING, _MMAP_DEFAULT))


_RAISED = ProcessSetting(_raised)


@contextmanager
def array_kept() -> Iterator[None]:
    """Let the memory of `large_array` serve the tasks of this thread one after the other, until the block ends."""
    if getattr(_here, "kept", None) is not None:
        yield
        return
    _here.kept = np.empty(0, np.uint8)
    try:
        yield
    finally:
        _here.kept = None


def large_array(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Give an array, not filled, within `array_kept` in the memory of the one before if nobody holds that any more."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    # One reference is its name above, one the argument of the call; views hold one each.
    if getattr(_here, "kept", None) is None or sys.getrefcount(_here.kept) > 2:
        return np.empty(shape, dtype)
    if _here.kept.nbytes < size:
        # The old one goes first: they are never there together.
        _here.kept = np.empty(0, np.uint8)
        _here.kept = np.empty(size, np.uint8)
    return _here.kept[:size].view(dtype).reshape(shape)


def _setting(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


@functools.lru_cache(maxsize=1)
def _mallopt() -> Callable[[int, int], int] | None:
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - other C libraries read these numbers in their own way, or have none
        found = library.mallopt
    except (AttributeError, OSError, TypeError):
        return None
    found.argtypes, found.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    return found
