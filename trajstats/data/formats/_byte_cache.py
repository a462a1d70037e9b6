"""Cache unpacked bytes: data that can only be unpacked as a whole are read in ranges."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

MOST_BYTES = 64 * 2**20


class ByteCache:
    """The chunk or member unpacked last; its ranges are usually read one after another."""

    def __init__(self, most: int) -> None:
        self._most, self._bytes = most, 0
        self._kept: OrderedDict[Any, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any, make: Callable[[], bytes]) -> bytes:
        """Return the cached bytes, or unpack and cache them."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()
        with self._lock:
            if key not in self._kept and len(made) <= self._most:
                self._kept[key] = made
                self._bytes += len(made)
                while self._bytes > self._most:
                    self._bytes -= len(self._kept.popitem(last=False)[1])
        return made


SHARED = ByteCache(MOST_BYTES)
