"""Chunks that unpack to no more than their array's metadata say: a small file must not fill the memory."""

from __future__ import annotations

import asyncio
import copy
import math
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, VLenUTF8Codec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.registry import register_codec

from trajstats.data.safety._budget import foreign, shorten
from trajstats.errors import StoreError, UnsafeInputError

if TYPE_CHECKING:
    from zarr.core.array_spec import ArraySpec

MAX_TEXT = 2**16  # and 1 KiB for each string
MAX_MEMBERS = 64
# What codecs before may add: checksums, and what cannot be compressed.
_SLACK = 2**16
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_opening = threading.Lock()


class _Bounded:
    """A codec that looks at what a chunk claims before it decodes it; whatever decoding raises is a StoreError."""

    def _check(self, chunk: Buffer, spec: ArraySpec) -> None:
        pass

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Any:
        self._check(chunk_bytes, chunk_spec)
        with foreign(f"a chunk of shape {shorten(tuple(chunk_spec.shape))}"):
            return await super()._decode_single(chunk_bytes, chunk_spec)  # type: ignore[misc]

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Any:
        self._check(chunk_bytes, chunk_spec)
        with foreign(f"a chunk of shape {shorten(tuple(chunk_spec.shape))}"):
            return super()._decode_sync(chunk_bytes, chunk_spec)  # type: ignore[misc]


class BoundedBytes(_Bounded, BytesCodec):
    """Bytes of another number than the shape asks for are damage."""


class BoundedCrc32c(_Bounded, Crc32cCodec):
    """A checksum that does not hold is damage."""


class BoundedText(_Bounded, VLenUTF8Codec):
    """Text begins with the number of its strings, for which room is made before one is read."""

    def _check(self, chunk: Buffer, spec: ArraySpec) -> None:
        count = int.from_bytes(chunk[:4].to_bytes(), "little")
        if len(chunk) < 4 or count != math.prod(spec.shape):
            msg = f"a chunk of text claims {count} strings where its shape is {shorten(tuple(spec.shape))}; not read"
            raise UnsafeInputError(msg)


BoundedText.__name__ = VLenUTF8Codec.__name__  # zarr asks for the codec of text by the name of its class


class BoundedBlosc(_Bounded, BloscCodec):
    """Blosc allocates what the header of a chunk claims, before it looks at the chunk."""

    def _check(self, chunk: Buffer, spec: ArraySpec) -> None:
        head = chunk[:16].to_bytes()
        if len(head) >= 16:
            _refuse(struct.unpack_from("<I", head, 4)[0], spec)


class BoundedZstd(_Bounded, ZstdCodec):
    """A frame of zstd states its size; one that does not could be any, and so could a second one behind it."""

    def _check(self, chunk: Buffer, spec: ArraySpec) -> None:
        raw = memoryview(chunk.to_bytes())
        size, first_block = _zstd_size(raw)
        if size is None or _zstd_end(raw, first_block) != len(raw):
            msg = (
                "a chunk compressed with zstd is not one frame that says how large it is, and is not unpacked; write "
                "the store anew with a writer of such frames, such as zarr-python"
            )
            raise UnsafeInputError(msg)
        _refuse(size, spec)


class BoundedGzip(GzipCodec):
    """What gzip unpacks to is known by unpacking it: until it is too much."""

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        return await asyncio.to_thread(self._decode_sync, chunk_bytes, chunk_spec)

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        limit, out, rest, members = _limit(chunk_spec), bytearray(), chunk_bytes.to_bytes(), 0
        while rest:
            members += 1
            if members > MAX_MEMBERS:
                msg = f"a chunk compressed with gzip has more than {MAX_MEMBERS} members; it is not unpacked"
                raise UnsafeInputError(msg)
            member = zlib.decompressobj(wbits=31)
            with foreign("a chunk compressed with gzip"):
                out += member.decompress(rest, limit - len(out) + 1)
            _refuse(len(out), chunk_spec)
            if not member.eof:
                msg = "a chunk compressed with gzip is cut short"
                raise StoreError(msg)
            rest = member.unused_data.lstrip(b"\0")
        return chunk_spec.prototype.buffer.from_bytes(bytes(out))


_NAMES: dict[str, type] = {
    "blosc": BoundedBlosc,
    "zstd": BoundedZstd,
    "gzip": BoundedGzip,
    "bytes": BoundedBytes,
    "crc32c": BoundedCrc32c,
    "vlen-utf8": BoundedText,
}
_BOUNDED = {codec.__mro__[1] if codec is BoundedGzip else codec.__mro__[2]: codec for codec in _NAMES.values()}
for _name, _codec in _NAMES.items():
    register_codec(_name, _codec)


def bounded(array: zarr.Array) -> zarr.Array:
    """See an array through codecs that refuse a chunk which would unpack to more than the metadata say."""
    metadata = array.metadata
    codecs = getattr(metadata, "codecs", None)
    if codecs is None:  # zarr format 2
        return array
    guarded = copy.copy(metadata)
    object.__setattr__(guarded, "codecs", tuple(map(_bounded, codecs)))
    made: Any = zarr.AsyncArray(metadata=guarded, store_path=array.store_path, config=_config_of(array))
    return zarr.Array(made)


def _config_of(array: zarr.Array) -> Any:
    inner: Any = array._async_array
    return inner.config if hasattr(inner, "config") else inner._config  # before zarr 3.1.6


@contextmanager
def bounded_codecs() -> Iterator[None]:
    """Let arrays that others open in here, such as xarray, be read through the same codecs."""
    chosen = {f"codecs.{name}": f"{__name__}.{codec.__qualname__}" for name, codec in _NAMES.items()}
    with _opening, zarr.config.set(chosen):
        yield


def _bounded(codec: Any) -> Any:
    if isinstance(codec, ShardingCodec):
        return ShardingCodec(
            chunk_shape=codec.chunk_shape,
            codecs=tuple(map(_bounded, codec.codecs)),
            index_codecs=codec.index_codecs,
            index_location=codec.index_location,
        )
    kind = _BOUNDED.get(type(codec))
    if kind is None:
        return codec
    new: Any = object.__new__(kind)
    new.__dict__.update(codec.__dict__)
    return new


def _limit(spec: ArraySpec) -> int:
    kind: Any = spec.dtype  # a dtype of numpy in older versions of zarr
    native = kind.to_native_dtype() if hasattr(kind, "to_native_dtype") else kind
    if native.kind in {"O", "T"}:
        return MAX_TEXT + 2**10 * math.prod(spec.shape)
    size = math.prod(spec.shape) * int(native.itemsize)
    return size + size // 64 + _SLACK


def _refuse(claimed: int, spec: ArraySpec) -> None:
    if claimed > _limit(spec):
        msg = (
            f"a chunk of shape {shorten(tuple(spec.shape))} would unpack to {claimed} bytes or more, beyond the "
            f"{_limit(spec)} that it needs at most; it is not unpacked"
        )
        raise UnsafeInputError(msg)


def _zstd_size(raw: memoryview) -> tuple[int | None, int]:
    # RFC 8878, 3.1.1.1: what a frame unpacks to, and where its first block is.
    if len(raw) < 6 or raw[:4] != _ZSTD_MAGIC:
        return None, 0
    flags = raw[4]
    alone = flags >> 5 & 1
    at = 5 + (not alone) + (0, 1, 2, 4)[flags & 3]
    width = (alone, 2, 4, 8)[flags >> 6]
    if not width or len(raw) < at + width:
        return None, 0
    return int.from_bytes(raw[at : at + width], "little") + (256 if width == 2 else 0), at + width


def _zstd_end(raw: memoryview, at: int) -> int:
    # Three bytes before each block: whether it is the last one, its kind (1: a byte to repeat), its size.
    last = 0
    while not last and at + 3 <= len(raw):
        head = int.from_bytes(raw[at : at + 3], "little")
        last = head & 1
        at += 3 + (1 if head >> 1 & 3 == 1 else head >> 3)
    return at + 4 * (raw[4] >> 2 & 1)
