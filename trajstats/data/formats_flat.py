"""Formats whose tensors lie in one piece: safetensors, npy and npz, flax msgpack."""

from __future__ import annotations

import json
import math
import struct
import threading
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from trajstats.data.formats import RAW, Checkpoint, Tensor, check_shape, check_size, file_tensor, flatten
from trajstats.errors import StoreError, UnsafeInputError

SAFETENSORS_TYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
SAFETENSORS_BYTES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2},
    **{"U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8},
}
MAX_HEADER = 100 * 2**20
MAX_JSON = 64 * 2**20


def read_safetensors(path: Path) -> Checkpoint:
    """Read the header of a safetensors file, and check that its tensors tile the file without gap or overlap."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size + 1
        if length > MAX_HEADER or length + 8 > size:
            msg = f"{path}: a header of {length} bytes in a file of {size}; it is damaged or made to exhaust memory"
            raise UnsafeInputError(msg)
        header = _json_object(stream.read(length), path)
    found = Checkpoint(str(path), {})
    ranges = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        where = f"{path}: tensor {name!r:.80}"
        shape = check_shape(where, entry.get("shape"))
        kind, offsets = entry.get("dtype"), entry.get("data_offsets")
        if kind not in SAFETENSORS_BYTES or not isinstance(offsets, list) or len(offsets) != 2:
            msg = f"{where}: type {kind!r:.20}, offsets {offsets!r:.40}: not safetensors"
            raise UnsafeInputError(msg)
        start, stop = check_shape(where, offsets)
        if stop - start != math.prod(shape) * SAFETENSORS_BYTES[kind] or 8 + length + stop > size:
            msg = f"{where}: shape {shape} of {kind} does not fit bytes {start} to {stop} of {size - 8 - length}"
            raise UnsafeInputError(msg)
        ranges.append((start, stop, name))
        if kind in SAFETENSORS_TYPES:
            found.tensors[name] = file_tensor(path, 8 + length + start, shape, SAFETENSORS_TYPES[kind])
        else:
            found.passed_over[name] = f"type {kind}"
    ranges.sort()
    for (_, stop, name), (start, _, other) in zip(ranges, ranges[1:], strict=False):
        if start < stop:
            msg = f"{path}: tensors {name!r:.80} and {other!r:.80} overlap"
            raise UnsafeInputError(msg)
    return found


def read_index(path: Path) -> Checkpoint:
    """Read the index of a sharded checkpoint, and the headers of its shards."""
    from trajstats.data.formats import open_checkpoint

    if path.stat().st_size > MAX_JSON:
        msg = f"{path}: an index of {path.stat().st_size} bytes is not read"
        raise UnsafeInputError(msg)
    weight_map = _json_object(path.read_bytes(), path).get("weight_map")
    if not isinstance(weight_map, dict):
        msg = f"{path} has no weight_map; it is no index of a sharded checkpoint"
        raise StoreError(msg)
    found = Checkpoint(str(path), {})
    for shard in dict.fromkeys(weight_map.values()):
        if (
            not isinstance(shard, str)
            or PurePosixPath(shard).name != shard
            or "\\" in shard
            or shard in {"", ".", ".."}
        ):
            msg = f"{path}: shard {shard!r:.80} is not a plain file name"
            raise UnsafeInputError(msg)
        file = path.parent / shard
        if file.resolve().parent != path.parent.resolve():
            msg = f"{file} is a link that leads out of its folder; it is not followed"
            raise UnsafeInputError(msg)
        if file.name.endswith(".index.json"):
            msg = f"{path}: shard {shard!r:.80} is an index again"
            raise UnsafeInputError(msg)
        part = open_checkpoint(file, optimizer=True)
        found.tensors.update({n: t for n, t in part.tensors.items() if weight_map.get(n) == shard})
        found.passed_over.update(part.passed_over)
    if lost := [n for n in weight_map if n not in found.tensors and n not in found.passed_over]:
        msg = f"{path}: tensor {lost[0]!r:.80} and {len(lost) - 1} more of the index are in no shard"
        raise StoreError(msg)
    return found


def _json_object(raw: bytes, path: Path) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) != len(pairs):
            msg = f"{path}: a name occurs twice in the header"
            raise UnsafeInputError(msg)
        return out

    try:
        found = json.loads(raw, object_pairs_hook=once)
    except UnsafeInputError:
        raise
    except (ValueError, RecursionError) as error:
        msg = f"{path}: the header is not JSON ({error!s:.100})"
        raise UnsafeInputError(msg) from error
    if not isinstance(found, dict) or not all(isinstance(v, dict) for k, v in found.items() if k == "weight_map"):
        msg = f"{path}: the header is not a JSON object"
        raise UnsafeInputError(msg)
    return found


def _npy_header(stream: Any, where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    version = np.lib.format.read_magic(stream)
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if reader is None:
        msg = f"{where}: npy version {version} is not read"
        raise UnsafeInputError(msg)
    shape, fortran, dtype = reader(stream, max_header_size=10_000)
    if dtype.hasobject:
        msg = f"{where} holds Python objects, that is a pickle, which can run code; it is not read"
        raise UnsafeInputError(msg)
    return check_shape(where, shape), fortran, dtype, stream.tell()


def _numpy_type(dtype: np.dtype[Any]) -> str | None:
    little = dtype.newbyteorder("<")
    return next((name for name, raw in RAW.items() if raw == little and name != "bfloat16"), None)


def read_npy(path: Path) -> Checkpoint:
    """Read the header of one array; a name is made up from the file."""
    with path.open("rb") as stream:
        shape, fortran, dtype, offset = _npy_header(stream, str(path))
    size = path.stat().st_size - offset
    if math.prod(shape) * dtype.itemsize > size:
        msg = f"{path}: shape {shape} of {dtype} takes {math.prod(shape) * dtype.itemsize} bytes; {size} are there"
        raise UnsafeInputError(msg)
    kind = _numpy_type(dtype)
    if kind is None:
        return Checkpoint(str(path), {}, {"array": f"type {dtype}"})
    if fortran or dtype.byteorder == ">":
        values = np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape, order="F" if fortran else "C")

        def read(start: int, stop: int) -> np.ndarray:
            index = np.unravel_index(np.arange(start, stop), shape)
            return values[index].astype(dtype.newbyteorder("<"))

        return Checkpoint(str(path), {"array": Tensor(shape, kind, read)})
    return Checkpoint(str(path), {"array": file_tensor(path, offset, shape, kind)})


def read_npz(path: Path) -> Checkpoint:
    """Read the headers of the members of an npz archive."""
    found = Checkpoint(str(path), {})
    with open_zip(path) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            where = f"{path}: {info.filename!r:.80}"
            with archive.open(info) as stream:
                shape, fortran, dtype, offset = _npy_header(stream, where)
            if math.prod(shape) * dtype.itemsize != info.file_size - offset:
                msg = f"{where}: shape {shape} of {dtype} does not fit its {info.file_size - offset} bytes"
                raise UnsafeInputError(msg)
            kind = _numpy_type(dtype)
            if kind is None:
                found.passed_over[name] = f"type {dtype}"
            else:
                found.tensors[name] = _member_tensor(path, info, offset, shape, kind, fortran, dtype)
    return found


def _member_tensor(
    path: Path,
    info: zipfile.ZipInfo,
    offset: int,
    shape: tuple[int, ...],
    kind: str,
    fortran: bool,
    dtype: np.dtype[Any],
) -> Tensor:
    plain = not fortran and dtype.byteorder != ">"
    if info.compress_type == zipfile.ZIP_STORED and plain:
        return file_tensor(path, member_offset(path, info) + offset, shape, kind)
    stream = _Stream(path, info)

    def read(start: int, stop: int) -> np.ndarray:
        if fortran and len(shape) > 1:
            whole = np.frombuffer(stream.read(offset, info.file_size), dtype=dtype).reshape(shape, order="F")
            return np.ascontiguousarray(whole).reshape(-1)[start:stop].astype(RAW[kind])
        raw = stream.read(offset + start * dtype.itemsize, offset + stop * dtype.itemsize)
        return np.frombuffer(raw, dtype=dtype).astype(RAW[kind], copy=False)

    return Tensor(shape, kind, read)


class _Stream:
    """A compressed member, unpacked from front to back as ranges are asked for."""

    def __init__(self, path: Path, info: zipfile.ZipInfo) -> None:
        self._path, self._info = path, info
        self._stream: Any = None
        self._lock = threading.Lock()

    def read(self, start: int, stop: int) -> bytes:
        """Read bytes of the unpacked member."""
        with self._lock:
            if self._stream is None or self._stream.tell() > start:
                self.close()
                self._archive = zipfile.ZipFile(self._path)
                self._stream = self._archive.open(self._info)
            while self._stream.tell() < start:
                if not self._stream.read(min(2**20, start - self._stream.tell())):
                    break
            raw = self._stream.read(stop - start)
            if stop >= self._info.file_size:
                self.close()
        if len(raw) != stop - start:
            msg = f"{self._path}: {self._info.filename!r:.80} ends early; it is truncated"
            raise StoreError(msg)
        return raw

    def close(self) -> None:
        """Let go of the file."""
        if self._stream is not None:
            self._stream.close()
            self._archive.close()
            self._stream = None


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip archive whose members are plain: no way out of the folder, no overlap, no bomb."""
    size = path.stat().st_size
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        msg = f"{path} is truncated or no zip archive ({error})"
        raise StoreError(msg) from error
    infos = archive.infolist()
    try:
        for info in infos:
            name = info.filename
            if (
                ".." in name.replace("\\", "/").split("/")
                or name.startswith(("/", "\\"))
                or "\0" in name
                or ":" in name[:3]
            ):
                msg = f"{path}: member {name!r:.80} points out of its folder"
                raise UnsafeInputError(msg)
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
                msg = f"{path}: member {name!r:.80} is encrypted or packed in an unusual way"
                raise UnsafeInputError(msg)
            check_size(f"{path}: member {name!r:.80}", info.file_size, info.compress_size)
        if sum(info.compress_size for info in infos) > size or len({i.filename for i in infos}) != len(infos):
            msg = f"{path}: members overlap or share a name; this looks like a bomb and is not read"
            raise UnsafeInputError(msg)
        check_size(str(path), sum(info.file_size for info in infos), size)
    except BaseException:
        archive.close()
        raise
    return archive


def member_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Find where the data of an uncompressed member begin."""
    with path.open("rb") as stream:
        stream.seek(info.header_offset)
        header = stream.read(30)
    if header[:4] != b"PK\x03\x04" or len(header) != 30:
        msg = f"{path}: member {info.filename!r:.80} is damaged"
        raise StoreError(msg)
    name, extra = struct.unpack("<HH", header[26:30])
    start = info.header_offset + 30 + name + extra
    if start + info.file_size > path.stat().st_size:
        msg = f"{path}: member {info.filename!r:.80} ends beyond the file; it is truncated"
        raise StoreError(msg)
    return start


def read_msgpack(path: Path) -> Checkpoint:
    """Walk over a flax msgpack file and note where its arrays lie; nothing but lengths is unpacked."""
    with path.open("rb") as stream:
        walker = _MsgpackWalker(path, stream)
        tree = walker.value(0)
    if walker.position != walker.size:
        msg = f"{path}: {walker.size - walker.position} bytes follow the end of the tree"
        raise StoreError(msg)
    found = Checkpoint(str(path), {})
    for name, leaf in flatten(_unchunk(tree)).items():
        if isinstance(leaf, Tensor):
            found.tensors[name] = leaf
        else:
            found.passed_over[name] = "not a floating array"
    return found


def _unchunk(tree: Any) -> Any:
    # flax splits arrays above 1 GiB.
    if not isinstance(tree, dict):
        return tree
    if "__msgpack_chunked_array__" not in tree:
        return {key: _unchunk(value) for key, value in tree.items()}
    shape = tuple(int(n) for n in tree["shape"].values()) if isinstance(tree["shape"], dict) else tuple(tree["shape"])
    parts = list(tree["chunks"].values()) if isinstance(tree["chunks"], dict) else list(tree["chunks"])
    ends = np.cumsum([part.size for part in parts])
    if not parts or int(ends[-1]) != math.prod(shape):
        msg = "the pieces of a split array do not make up its shape"
        raise StoreError(msg)

    def read(start: int, stop: int) -> np.ndarray:
        pieces = []
        for part, end in zip(parts, ends.tolist(), strict=True):
            first = end - part.size
            if first < stop and end > start:
                pieces.append(part.read(max(start, first) - first, min(stop, end) - first))
        return np.concatenate(pieces)

    return Tensor(check_shape("split array", shape), parts[0].dtype, read)


class _MsgpackWalker:
    """Just enough msgpack to find arrays: maps, lists, text, numbers, and flax's array extension."""

    def __init__(self, path: Path, stream: Any) -> None:
        self.path, self.size, self.position = path, path.stat().st_size, 0
        self._stream = stream
        self._count = 0

    def _take(self, n: int) -> bytes:
        if n > 2**16 or self.position + n > self.size:
            msg = f"{self.path}: {n} bytes at {self.position} of {self.size}; truncated or no flax checkpoint"
            raise StoreError(msg)
        self._stream.seek(self.position)
        self.position += n
        return self._stream.read(n)

    def _uint(self, n: int) -> int:
        return int.from_bytes(self._take(n), "big")

    def value(self, depth: int) -> Any:
        """Read the next value."""
        self._count += 1
        if depth > 64 or self._count > 4_000_000:
            msg = f"{self.path}: nested too deep or too many values"
            raise UnsafeInputError(msg)
        code = self._take(1)[0]
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 256
        if code <= 0x8F or code in (0xDE, 0xDF):
            n = code & 15 if code <= 0x8F else self._uint(2 if code == 0xDE else 4)
            return {str(self.value(depth + 1)): self.value(depth + 1) for _ in range(self._believe(n))}
        if code <= 0x9F or code in (0xDC, 0xDD):
            n = code & 15 if code <= 0x9F else self._uint(2 if code == 0xDC else 4)
            return [self.value(depth + 1) for _ in range(self._believe(n))]
        if code <= 0xBF or code in (0xD9, 0xDA, 0xDB):
            n = code & 31 if code <= 0xBF else self._uint(1 << (code - 0xD9))
            return self._take(n).decode("utf-8", "replace")
        if code in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[code]
        if code in (0xC4, 0xC5, 0xC6):
            return self._skip(self._uint(1 << (code - 0xC4)))
        if code in (0xCA, 0xCB):
            return struct.unpack(">f" if code == 0xCA else ">d", self._take(4 if code == 0xCA else 8))[0]
        if 0xCC <= code <= 0xD3:
            n = 1 << ((code - 0xCC) % 4)
            return int.from_bytes(self._take(n), "big", signed=code >= 0xD0)
        if code in (0xC7, 0xC8, 0xC9) or 0xD4 <= code <= 0xD8:
            n = 1 << (code - 0xD4) if code >= 0xD4 else self._uint(1 << (code - 0xC7))
            return self._extension(self._uint(1), n, depth)
        msg = f"{self.path}: byte {code:#x} is not msgpack"
        raise StoreError(msg)

    def _believe(self, n: int) -> int:
        if n > self.size - self.position:
            msg = f"{self.path}: claims {n} entries in {self.size - self.position} bytes"
            raise UnsafeInputError(msg)
        return n

    def _skip(self, n: int) -> tuple[int, int]:
        if self.position + n > self.size:
            msg = f"{self.path} is truncated: {n} bytes at {self.position} of {self.size}"
            raise StoreError(msg)
        start = self.position
        self.position += n
        return start, n

    def _extension(self, kind: int, n: int, depth: int) -> Any:
        start, n = self._skip(n)
        if kind not in (1, 3):  # 1 array, 3 scalar; both are (shape, type, bytes)
            return None
        end, self.position = self.position, start
        content = self.value(depth + 1)
        if self.position != end or not isinstance(content, list) or len(content) != 3:
            msg = f"{self.path}: an array at {start} does not fill its place"
            raise StoreError(msg)
        shape, dtype, where = content
        if dtype not in RAW:
            return None
        shape = check_shape(f"{self.path}: array at {start}", shape)
        if not isinstance(where, tuple) or math.prod(shape) * RAW[dtype].itemsize != where[1]:
            msg = f"{self.path}: array at {start} of shape {shape} does not fit its bytes"
            raise UnsafeInputError(msg)
        return file_tensor(self.path, where[0], shape, dtype)
