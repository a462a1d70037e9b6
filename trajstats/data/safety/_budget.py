"""What reading one file or folder of unknown origin may cost: memory, objects and time, spent as the reader proceeds.

Bytes that are really in the file are free. Bounded is what a file makes out of few bytes: text and numbers of its
header, objects that point to each other, members that unpack.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from trajstats.errors import StoreError, TrajstatsError, UnsafeInputError

# What is promised for inputs of up to this size; larger ones may ask for proportionally more.
PROMISED_SIZE = 20 * 2**20
SECONDS = 1.5
OBJECTS = 1_000_000
BYTES = 32 * 2**20
# Members that are compressed may unpack to this many times their size; weights compress by less than 5.
UNPACK_RATIO = 20
T = TypeVar("T")


class Budget:
    """What one input may still cost; every reader spends from it before it makes something."""

    def __init__(self, *, bytes: int, objects: int, seconds: float) -> None:
        self.bytes, self.objects, self.seconds = bytes, objects, seconds
        self._bytes = self._objects = self._next_look = 0
        self._thread, self._start = threading.get_ident(), time.thread_time()

    @classmethod
    def for_size(cls, size: int) -> Budget:
        """Give an input of `size` bytes what it may cost: fixed up to 20 MiB, in proportion beyond."""
        scale = max(1.0, size / PROMISED_SIZE)
        # No honest object takes less than a few bytes, so small files cannot need many.
        objects = min(20_000 + size, int(OBJECTS * scale))
        return cls(bytes=int(BYTES * scale), objects=objects, seconds=SECONDS * scale)

    def spend_bytes(self, n: int, where: str) -> None:
        """Take `n` bytes of memory; `where` names file and member."""
        self._bytes += n
        if self._bytes > self.bytes:
            msg = (
                f"{where} asks for {self._bytes} bytes of memory in all; at most {self.bytes} are given to an input of "
                "this size. It is damaged or made to exhaust memory, and is not read"
            )
            raise UnsafeInputError(msg)

    def spend_objects(self, n: int, where: str) -> None:
        """Take `n` objects, and look at the clock now and then."""
        self._objects += n
        if self._objects > self.objects:
            msg = (
                f"{where} holds more than {self.objects} values, names or members, more than an input of this size "
                "should. It is damaged or made to exhaust memory, and is not read"
            )
            raise UnsafeInputError(msg)
        if self._objects >= self._next_look:
            self._next_look = self._objects + 1000
            self.check_time(where)

    def spend_unpacked(self, unpacked: int, stored: int, where: str) -> None:
        """Take what a compressed member gives beyond `UNPACK_RATIO` times the bytes stored for it."""
        self.spend_bytes(max(0, unpacked - UNPACK_RATIO * stored), where)

    def check_time(self, where: str) -> None:
        """Refuse an input that takes more CPU time than its size explains."""
        used = time.thread_time() - self._start if threading.get_ident() == self._thread else 0.0
        if used > self.seconds:
            msg = (
                f"{where} took {used:.1f} s to understand; at most {self.seconds:.1f} s are given to an input of this "
                "size. It is damaged or made to take time, and is not read"
            )
            raise UnsafeInputError(msg)


def shorten(value: object, length: int = 80) -> str:
    """Show a value from a file in a message, cut to a readable length."""
    if isinstance(value, list | tuple) and len(value) > 8:
        kept = ", ".join(shorten(item, 20) for item in value[:8])
        text = f"{'[' if isinstance(value, list) else '('}{kept}, ... {len(value)} in all"
    elif isinstance(value, str | bytes):
        text = repr(value[: length + 1])
    elif isinstance(value, int | float | bool | None):
        text = f"an integer of {value.bit_length()} bits" if type(value) is int and abs(value) >> 128 else repr(value)
    elif isinstance(value, list | tuple):
        text = f"{'[' if isinstance(value, list) else '('}{', '.join(shorten(item, 20) for item in value)}"
        text += "]" if isinstance(value, list) else ",)" if len(value) == 1 else ")"
    else:
        text = f"a {type(value).__name__}"
    return text if len(text) <= length else text[: length - 3] + "..."


@contextmanager
def foreign(where: str, do: str = "It is truncated or damaged") -> Iterator[None]:
    """Report what another library raises about a file as an error of that file.

    Only calls into such a library belong inside: errors in this package's own logic must stay visible as they are.
    """
    try:
        yield
    except TrajstatsError as error:
        if where.partition(": ")[0] in str(error):
            raise
        msg = f"{where}: {error}"  # from a codec, which does not know the file
        raise type(error)(msg) from error
    except (MemoryError, RecursionError) as error:
        msg = f"{where} asks for more memory or nesting than there is ({type(error).__name__}); it is not read"
        raise UnsafeInputError(msg) from error
    except Exception as error:
        # Arguments only: the text of an error may show a nest that takes exponential time to write.
        text = " ".join(", ".join(shorten(part, 160).strip("'\"") for part in error.args).split())
        msg = f"{where} cannot be read ({type(error).__name__}: {text:.160}). {do}"
        raise StoreError(msg) from error


def read_attribute(place: object, attrs: Mapping[str, Any], name: str, parse: Callable[[Any], T]) -> T:
    """Read one attribute of a store that somebody else may have written; what is wrong with it is a StoreError."""
    where = f"{place}/zarr.json: the attribute {name!r}, which is {shorten(attrs.get(name))},"
    with foreign(where, "Restore zarr.json from a copy"):
        return parse(attrs[name])


def json_object(raw: bytes, where: str, budget: Budget) -> dict[str, Any]:
    """Parse a JSON object in which no name occurs twice; its values are counted before any is made."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) != len(pairs):
            msg = f"{where}: a name occurs twice in this JSON"
            raise UnsafeInputError(msg)
        return out

    budget.spend_objects(sum(map(raw.count, (b",", b"[", b"{"))), where)
    with foreign(where, "It is not JSON; a copy may be whole"):
        found = json.loads(raw, object_pairs_hook=once)
    if not isinstance(found, dict):
        msg = f"{where}: this JSON is not an object"
        raise UnsafeInputError(msg)
    return found
