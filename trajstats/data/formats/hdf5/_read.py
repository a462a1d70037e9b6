"""HDF5, Keras and netCDF 4: parsed in a child process, read here from the bytes of the file."""

from __future__ import annotations

import itertools
import math
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trajstats.data.formats._archives import MAX_JSON
from trajstats.data.formats._boxes import Box, box_tensor
from trajstats.data.formats._byte_cache import SHARED
from trajstats.data.formats._tensor import RAW, Checkpoint, Tensor, check_shape
from trajstats.data.formats._zip_files import Verified, open_zip, read_member
from trajstats.data.formats.hdf5._chunks import COMPRESSORS, FILTERS, decode_chunk
from trajstats.data.safety._budget import PROMISED_SIZE, Budget, shorten
from trajstats.data.safety._children import Child
from trajstats.errors import StoreError, UnsafeInputError, UnsupportedError

CHILD_BYTES = 96 * 2**20
MAX_FILTERS = 8
# A compressed chunk is unpacked whole to read any of it.
MAX_CHUNK = 64 * 2**20
_ROW = np.dtype([("number", "<u8"), ("offset", "<u8"), ("stored", "<u4"), ("left_out", "<u4")])

_child = Child(Path(__file__).with_name("_worker.py"), "h5py", "trajstats[hdf5]")


@dataclass(frozen=True, eq=False)
class Source:
    """Where the bytes of an HDF5 file are: a file, a part of one, or a compressed member of an archive."""

    path: Path
    start: int
    length: int
    unpack: Callable[[], bytes] | None = None
    check: Callable[[], object] = bool

    def read(self, offset: int, n: int, where: str) -> bytes:
        """Read bytes, all of them."""
        if offset < 0 or n < 0 or offset + n > self.length:
            msg = f"{where} lies beyond the end of the file; it is truncated or damaged"
            raise StoreError(msg)
        if self.unpack is not None:
            return SHARED.get(self, self.unpack)[offset : offset + n]
        self.check()
        with self.path.open("rb") as stream:
            stream.seek(self.start + offset)
            raw = stream.read(n)
        if len(raw) != n:
            msg = f"{where} ends early; {self.path} is truncated"
            raise StoreError(msg)
        return raw


def read_hdf5(path: Path, budget: Budget) -> Checkpoint:
    """Read the tree of an HDF5 file, Keras ``.weights.h5`` included."""
    return _checkpoint(Source(path, 0, path.stat().st_size), str(path), budget)


def read_keras(path: Path, budget: Budget) -> Checkpoint:
    """Read the weights of a ``.keras`` archive; its configuration, which may hold code, is never built."""
    with open_zip(path, budget) as archive:
        infos = {info.filename: info for info in archive.infolist()}
        if "config.json" in infos:
            text = read_member(archive, path, "config.json", MAX_JSON)
            if b"__lambda__" in text or b'"Lambda"' in text:
                msg = f"{path}: the model has a Lambda layer, that is marshalled code; take model.weights.h5 out of it"
                raise UnsafeInputError(msg)
        info = infos.get("model.weights.h5")
        if info is None:
            msg = f"{path} has no model.weights.h5; it is not a Keras archive"
            raise StoreError(msg)
        if info.compress_type == zipfile.ZIP_STORED:
            verified = Verified(path, info)
            source = Source(path, verified.begin, info.file_size, check=verified.check)
            return _checkpoint(source, str(path), budget)
        if info.file_size > budget.bytes:
            msg = f"{path}: compressed weights of {info.file_size} bytes; unpack the archive and give model.weights.h5"
            raise UnsupportedError(msg)

        def unpack() -> bytes:
            with open_zip(path, Budget.for_size(path.stat().st_size)) as again:
                return read_member(again, path, info.filename, info.file_size)

    return _checkpoint(Source(path, 0, info.file_size, unpack), str(path), budget)


def entries(
    source: Source, where: str, budget: Budget, *, netcdf: bool = False
) -> tuple[list[dict[str, Any]], bytes, int]:
    """Parse a file in the child: what it holds, the tables of chunks, and the offset that all positions count from."""
    content = b"" if source.unpack is None else source.read(0, source.length, where)
    request = {
        "path": os.path.abspath(source.path),
        "start": source.start,
        "length": source.length,
        "netcdf": netcdf,
        "objects": budget.objects,
        "memory": int(CHILD_BYTES * max(1.0, source.length / PROMISED_SIZE)) + 2 * len(content),
    }
    answer, blob = _child.ask(request, content, where, budget.seconds)
    member = f"{where}: {shorten(answer['where'])}" if answer.get("where") else where
    if "refused" in answer:
        msg = f"{member} is not read: {answer['refused']}"
        raise UnsafeInputError(msg)
    if "error" in answer:
        msg = f"{member} cannot be read ({answer['error'][:160]}). It is truncated or damaged"
        raise StoreError(msg)
    found = answer["entries"]
    budget.spend_objects(20 * len(found) + len(blob) // _ROW.itemsize, where)
    for entry in found:
        label = f"{where}: {shorten(entry['name'])}"
        if entry["kind"] not in {"dataset", "group", "again"}:
            msg = f"{label} is a {entry['kind']} that leads elsewhere; links are not followed"
            raise UnsafeInputError(msg)
        if entry.get("elsewhere"):
            msg = f"{label} keeps its data in other files; it is not read"
            raise UnsafeInputError(msg)
    return found, blob, int(answer["block"])


def _checkpoint(source: Source, where: str, budget: Budget) -> Checkpoint:
    found = Checkpoint(where, {})
    listed, blob, block = entries(source, where, budget)
    for entry in listed:
        name = entry["name"]
        if name in found.tensors or name in found.passed_over:
            msg = f"{where}: two datasets are called {shorten(name)}"
            raise UnsafeInputError(msg)
        if entry["kind"] == "group":
            found.containers |= {name}
            continue
        if entry["kind"] == "again":
            found.passed_over[name] = "a second name of something already listed"
        elif "shape" not in entry:
            found.passed_over[name] = f"type {entry['type']:.40}"
        elif number_name(entry["type"]) is None:
            found.passed_over[name] = f"type {np.dtype(entry['type']).name}"
        else:
            array = StoredArray(source, entry, blob, block, f"{where}: {shorten(name)}", budget)
            found.tensors[name] = array.tensor()
    return found


def number_name(dtype: Any) -> str | None:
    """Name of a type of numbers that is read, None for any other."""
    name = np.dtype(dtype).newbyteorder("=").name
    return name if name in RAW else None


class StoredArray:
    """One dataset: checked against the size of the file, read box by box."""

    def __init__(
        self, source: Source, entry: dict[str, Any], blob: bytes, block: int, where: str, budget: Budget
    ) -> None:
        self.source, self.where, self.block = source, where, block
        self.shape = check_shape(where, entry["shape"])
        self.dtype = np.dtype(entry["type"])
        self.fill = np.frombuffer(bytes.fromhex(entry["fill"]), self.dtype)[0]
        self.filters = [int(number) for number, _ in entry["filters"]]
        n_bytes = math.prod(self.shape) * self.dtype.itemsize
        self.data: bytes | None = None
        self.offset: int | None = None
        self.chunk: tuple[int, ...] = ()
        if "compact" in entry:
            at, n = entry["compact"]
            self.data, stored = blob[at : at + n], n_bytes
        elif "chunk" in entry:
            stored = self._check_chunks(entry, blob, budget)
        else:
            self.offset, stored = entry["offset"], n_bytes
            if self.offset is None:
                stored = 0
            elif self.block + self.offset + n_bytes > source.length:
                msg = f"{where} of {n_bytes} bytes ends beyond the file; it is truncated"
                raise StoreError(msg)
        budget.spend_unpacked(n_bytes, stored, where)

    def _check_chunks(self, entry: dict[str, Any], blob: bytes, budget: Budget) -> int:
        self.chunk = check_shape(self.where, entry["chunk"])
        if len(self.chunk) != len(self.shape) or 0 in self.chunk:
            msg = f"{self.where} has chunks {shorten(self.chunk)} for a shape {shorten(self.shape)}"
            raise UnsafeInputError(msg)
        if any(number not in FILTERS for number in self.filters) or len(self.filters) > MAX_FILTERS:
            msg = (
                f"{self.where} uses HDF5 filters {shorten(self.filters)}, which load plugins or are not decoded here; "
                f"only {', '.join(FILTERS.values())} are read"
            )
            raise UnsafeInputError(msg)
        at, n = entry["table"]
        self.table = np.frombuffer(blob[at : at + n], _ROW)
        self.table = self.table[np.argsort(self.table["number"], kind="stable")]
        chunks = math.prod(-(-n // c) for n, c in zip(self.shape, self.chunk, strict=True))
        budget.spend_objects(4 * max(0, chunks - len(self.table)), self.where)  # never written, yet visited
        size = math.prod(self.chunk) * self.dtype.itemsize
        if COMPRESSORS & set(self.filters) and len(self.table):
            most = max(MAX_CHUNK, 2 * self.source.length)
            if size > most:
                msg = (
                    f"{self.where} has compressed chunks of {size} bytes; at most {most} are unpacked. Use smaller ones"
                )
                raise UnsafeInputError(msg)
        elif len(self.table) and not self.filters and bool((self.table["stored"] != size).any()):
            msg = f"{self.where} has a chunk that is not of the {size} bytes that its shape needs; it is damaged"
            raise StoreError(msg)
        ends = self.table["offset"].astype(object) + self.table["stored"].astype(object) + self.block
        if len(self.table) and max(ends) > self.source.length:
            msg = f"{self.where} has a chunk beyond the end of the file; it is truncated or damaged"
            raise StoreError(msg)
        if len(np.unique(self.table["number"])) != len(self.table):
            msg = f"{self.where} lists a chunk twice; it is damaged"
            raise StoreError(msg)
        return min(int(self.table["stored"].sum(dtype=np.uint64)), self.source.length)

    def tensor(self) -> Tensor:
        """Give it as a tensor of a checkpoint."""
        kind = number_name(self.dtype) or ""
        if self.offset is None:
            return box_tensor(self.shape, kind, self.read)
        base, item = self.block + self.offset, self.dtype.itemsize

        def read(start: int, stop: int) -> np.ndarray:
            raw = self.source.read(base + start * item, (stop - start) * item, self.where)
            return np.frombuffer(raw, self.dtype).astype(RAW[kind], copy=False)

        return Tensor(self.shape, kind, read)

    def read(self, box: Box) -> np.ndarray:
        """Read a box, in the byte order of the file."""
        if self.data is not None:
            return np.frombuffer(self.data, self.dtype).reshape(self.shape)[box]
        if self.chunk:
            return self._read_chunks(box)
        if self.offset is None or 0 in self.shape:
            return np.full([part.stop - part.start for part in box], self.fill, self.dtype)
        begin = self.source.start + self.block + self.offset
        return np.asarray(np.memmap(self.source.path, self.dtype, "r", begin, self.shape)[box])

    def _read_chunks(self, box: Box) -> np.ndarray:
        out = np.full([s.stop - s.start for s in box], self.fill, self.dtype)
        counts = [-(-n // c) for n, c in zip(self.shape, self.chunk, strict=True)]
        for index, inside, outside in _overlaps(box, self.chunk):
            number = 0
            for i, count in zip(index, counts, strict=True):
                number = number * count + i
            at = int(np.searchsorted(self.table["number"], number))
            if at == len(self.table) or int(self.table["number"][at]) != number:
                continue  # never written: the fill value
            raw = SHARED.get((self.source, self.where, number), partial(self._decode, at))
            out[outside] = np.frombuffer(raw, self.dtype).reshape(self.chunk)[inside]
        return out

    def _decode(self, at: int) -> bytes:
        _, offset, stored, left_out = (int(n) for n in self.table[at])
        raw = self.source.read(self.block + offset, stored, self.where)
        size = math.prod(self.chunk) * self.dtype.itemsize
        return decode_chunk(raw, self.filters, left_out, size, self.dtype.itemsize, self.where)


def _overlaps(box: Box, chunk: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Box, Box]]:
    """List the chunks that a box meets: index, part of the chunk, part of the box."""
    axes = []
    for part, size in zip(box, chunk, strict=True):
        met = []
        for k in range(part.start // size, -(-part.stop // size)):
            low, high = max(part.start, k * size), min(part.stop, (k + 1) * size)
            met.append((k, slice(low - k * size, high - k * size), slice(low - part.start, high - part.start)))
        axes.append(met)
    for combination in itertools.product(*axes):
        yield (
            tuple(k for k, _, _ in combination),
            tuple(inside for _, inside, _ in combination),
            tuple(outside for _, _, outside in combination),
        )
