"""The program of the child process that parses HDF5: names, shapes, and where the bytes of each dataset lie.

The HDF5 library can crash or loop on a damaged file, so it runs here, in a process with limits of memory and CPU time
that reads no other file and writes none. It decodes no data: the parent reads the bytes itself. This file is run as a
script and imports nothing of trajstats; it answers one request after another until its input ends.

A request is a line of JSON, followed by the content of the file where that is not on disk. An answer is two lengths of
eight bytes, JSON, and the tables of chunks and small data to which the JSON refers by position and length.
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any, BinaryIO

CHUNK = struct.Struct("<QQII")  # number of the chunk in C order, offset in the file, stored bytes, filters left out
SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_ATTRIBUTE = 1000  # numbers
CLASSES = ["integer", "float", "time", "text", "bit field", "opaque", "compound", "reference", "enumeration"]
CLASSES += ["list of variable length", "array", "complex"]


class Refused(Exception):
    """The file asks for more than it may."""


class Window(io.RawIOBase):
    """A part of a file, as a file of its own."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        super().__init__()
        self._file, self._start, self._length, self._at = file, start, length, 0

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def seekable(self) -> bool:
        """Return that any position can be read."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move within the part."""
        self._at = offset + (0, self._at, self._length)[whence]
        return self._at

    def tell(self) -> int:
        """Return the position within the part."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read from the part, and not beyond."""
        n = max(0, min(len(buffer), self._length - self._at))
        self._file.seek(self._start + self._at)
        read = self._file.readinto(memoryview(buffer)[:n])  # type: ignore[attr-defined]
        self._at += read
        return int(read)


class Tree:
    """What is found in one file."""

    def __init__(self, h5py: Any, limit: int) -> None:
        self.h5py, self.limit, self.where = h5py, limit, ""
        self.blob = bytearray()

    def spend(self, n: int) -> None:
        """Count objects."""
        self.limit -= n
        if self.limit < 0:
            msg = "it holds more members and chunks than a file of this size should"
            raise Refused(msg)

    def keep(self, raw: bytes) -> list[int]:
        """Append bytes to the answer."""
        self.spend(len(raw) // 64)
        self.blob += raw
        return [len(self.blob) - len(raw), len(raw)]

    def walk(self, file: Any, netcdf: bool) -> Iterator[dict[str, Any]]:
        """List what the file holds, groups before what is in them; stop at the first link that leads elsewhere."""
        h5py = self.h5py
        links = {h5py.h5l.TYPE_SOFT: "SoftLink", h5py.h5l.TYPE_EXTERNAL: "ExternalLink"}
        todo: deque[tuple[str, Any]] = deque([("", h5py.h5g.open(file.id, b"/"))])
        seen = set()
        while todo:
            prefix, group = todo.popleft()
            for key in group:
                self.spend(20)
                text = key.decode("utf-8", "surrogateescape")
                self.where = name = f"{prefix}.{text}" if prefix else text
                kind = group.links.get_info(key).type
                if kind != h5py.h5l.TYPE_HARD:
                    yield {"name": name, "kind": links.get(kind, "link of another kind")}
                    return
                node = h5py.h5o.open(group, key)
                mark = h5py.h5o.get_info(node).addr
                if mark in seen:
                    yield {"name": name, "kind": "again"}
                    continue
                seen.add(mark)
                if isinstance(node, h5py.h5g.GroupID):
                    yield {"name": name, "kind": "group"}
                    if not netcdf:
                        todo.append((name, node))
                elif isinstance(node, h5py.h5d.DatasetID):
                    found = {"name": name, "kind": "dataset"} | self.dataset(node)
                    yield found | self.netcdf(file, h5py.Dataset(node)) if netcdf else found

    def dataset(self, node: Any) -> dict[str, Any]:
        """Describe one dataset."""
        h5py, plist = self.h5py, node.get_create_plist()
        kind, shape = node.get_type(), node.shape
        if kind.get_class() not in (h5py.h5t.FLOAT, h5py.h5t.INTEGER, h5py.h5t.ENUM) or shape is None:
            return {"type": "nothing" if shape is None else CLASSES[kind.get_class()]}
        try:
            dtype = kind.dtype
        except (TypeError, ValueError):
            return {"type": "number unknown to NumPy"}
        if dtype.kind not in "biuf" or not kind.equal(h5py.h5t.py_create(dtype, logical=True)):
            return {"type": "number unknown to NumPy"}
        layout = plist.get_layout()
        known = (h5py.h5d.COMPACT, h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED)
        if plist.get_external_count() or layout not in known:
            return {"type": dtype.str, "elsewhere": True}
        found: dict[str, Any] = {
            "type": dtype.str,
            "shape": list(shape),
            "filters": [plist.get_filter(k)[:3:2] for k in range(plist.get_nfilters())],
            "fill": self.fill(plist, dtype),
        }
        if layout == h5py.h5d.COMPACT:
            found["compact"] = self.keep(self.compact(node, shape, dtype))
        elif layout == h5py.h5d.CONTIGUOUS:
            found["offset"], found["stored"] = node.get_offset(), int(node.get_storage_size())
        else:
            found["chunk"] = list(plist.get_chunk())
            found["table"] = self.chunks(node, shape, found["chunk"])
        return found

    def compact(self, node: Any, shape: tuple[int, ...], dtype: Any) -> bytes:
        """Read data that lie in the header of a dataset."""
        import numpy as np

        if math.prod(shape) * dtype.itemsize > 2**16:
            msg = "data in a header take more than 64 KiB"
            raise Refused(msg)
        values = np.zeros(shape, dtype)
        node.read(self.h5py.h5s.ALL, self.h5py.h5s.ALL, values)
        return values.tobytes()

    def fill(self, plist: Any, dtype: Any) -> str:
        """Value of what was never written, as hexadecimal bytes."""
        import numpy as np

        value = np.zeros((), dtype)
        if plist.fill_value_defined() != self.h5py.h5d.FILL_VALUE_UNDEFINED:
            plist.get_fill_value(value)
        return value.tobytes().hex()

    def chunks(self, node: Any, shape: tuple[int, ...], chunks: list[int]) -> list[int]:
        """Where each chunk lies."""
        counts = [-(-n // c) for n, c in zip(shape, chunks, strict=True)]
        raw = bytearray()

        def take(info: Any) -> None:
            self.spend(3)
            number = 0
            for at, chunk, count in zip(info.chunk_offset, chunks, counts, strict=True):
                if at // chunk >= count:
                    return
                number = number * count + at // chunk
            raw.extend(CHUNK.pack(number, info.byte_offset, info.size, info.filter_mask))

        if hasattr(node, "chunk_iter"):
            node.chunk_iter(take)
        else:
            for k in range(node.get_num_chunks()):
                take(node.get_chunk_info(k))
        self.spend(len(raw) // CHUNK.size)
        self.blob += raw
        return [len(self.blob) - len(raw), len(raw)]

    def netcdf(self, file: Any, node: Any) -> dict[str, Any]:
        """Dimensions and attributes, as netCDF 4 keeps them."""
        dims: list[str] | None = None
        attributes = {}
        for key in list(node.attrs)[:MAX_ATTRIBUTE]:
            self.spend(4)
            if key == "DIMENSION_LIST":
                scales = node.attrs[key]
                dims = [str(file[scale[0]].name).rpartition("/")[2] for scale in scales]
            elif key not in {"REFERENCE_LIST", "NAME", "CLASS"} and not key.startswith(("_Netcdf4", "_NC", "_nc3")):
                attributes[key] = self.attribute(node, key)
        scale = node.attrs.get("CLASS") == b"DIMENSION_SCALE" and "NAME" in node.attrs
        own = str(node.name).rpartition("/")[2]
        if dims is None and scale and node.ndim == 1:
            dims = [own]
        label = node.attrs.get("NAME", b"") if scale else b""
        nothing = isinstance(label, bytes) and label.startswith(b"This is a netCDF dimension but not a netCDF variable")
        return {"dims": dims, "attributes": {k: v for k, v in attributes.items() if v}, "only_dimension": nothing}

    def attribute(self, node: Any, key: str) -> list[Any] | None:
        """Value of a short attribute of text or numbers."""
        import numpy as np

        ident = node.attrs.get_id(key)
        if ident.get_type().get_class() not in (self.h5py.h5t.FLOAT, self.h5py.h5t.INTEGER, self.h5py.h5t.STRING):
            return None
        if ident.shape is None or int(np.prod(ident.shape, dtype=object)) > MAX_ATTRIBUTE:
            return None
        value = node.attrs[key]
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, str):
            return ["text", value[:MAX_ATTRIBUTE]]
        value = np.atleast_1d(value)
        if value.dtype.kind not in "iuf":
            return None
        return [value.dtype.str, value.tobytes().hex(), value.size]


def limit_request(seconds: float, memory: int) -> None:
    """End this process if it takes more CPU time or memory than one file explains."""
    try:
        import resource
        import signal
    except ImportError:  # on Windows the parent's clock is the only limit
        return
    signal.setitimer(signal.ITIMER_PROF, seconds)  # nothing handles SIGPROF, so it ends the process
    if memory:
        try:
            with open("/proc/self/statm") as file:
                used = int(file.read().split()[0]) * resource.getpagesize()
        except OSError:
            return
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, hard))


def forbid() -> None:
    """Forbid this process to write files, and to leave a picture of its memory behind."""
    try:
        import resource
    except ImportError:
        return
    for what in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(what, (0, 0))


def answer(h5py: Any, request: dict[str, Any], content: bytes) -> tuple[dict[str, Any], bytes]:
    """Parse one file."""
    tree = Tree(h5py, request["objects"])
    try:
        with io.BytesIO(content) if content else open(request["path"], "rb") as stream:
            start, length = (0, len(content)) if content else (request["start"], request["length"])
            block = user_block(stream, start, length)
            with h5py.File(Window(stream, start + block, length - block), "r") as file:
                found = list(tree.walk(file, request["netcdf"]))
    except Refused as error:
        return {"refused": str(error), "where": tree.where}, b""
    except MemoryError:
        return {"refused": "it asks for more memory than a file of this size should", "where": tree.where}, b""
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error)[:300]}", "where": tree.where}, b""
    return {"entries": found, "block": block}, bytes(tree.blob)


def user_block(stream: BinaryIO, start: int, length: int) -> int:
    """Size of what may come before HDF5's own bytes: versions of the library differ in whether they count it."""
    at = 0
    while at + len(SIGNATURE) <= length:
        stream.seek(start + at)
        if stream.read(len(SIGNATURE)) == SIGNATURE:
            return at
        at = 2 * at or 512
    return 0


def main() -> None:
    """Answer requests until the input ends."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the library prints must not mix with the answers
    import h5py

    forbid()
    out.write(b"ready\n")
    out.flush()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        content = sys.stdin.buffer.read(request["content"])
        limit_request(request["seconds"], request["memory"])
        head, blob = answer(h5py, request, content)
        limit_request(0, 0)
        text = json.dumps(head).encode()
        out.write(struct.pack("<QQ", len(text), len(blob)) + text)
        out.write(blob)
        out.flush()


if __name__ == "__main__":
    main()
