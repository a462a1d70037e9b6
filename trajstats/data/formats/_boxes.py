"""Ranges of a flattened array as boxes of it, for sources that are read box by box."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from trajstats.data.formats._tensor import RAW, Tensor

Box = tuple[slice, ...]
_NATIVE = {name: kind.newbyteorder("=") for name, kind in RAW.items()} | {"bfloat16": np.dtype(np.float32)}


def boxes(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    """Cover elements `start` to `stop` of the array flattened in C order by boxes, in order."""
    if stop <= start:
        return
    if not shape:
        yield ()
        return
    width = math.prod(shape[1:])
    first, last = -(-start // width), stop // width
    if first > last:  # within one row
        for box in boxes(shape[1:], start - last * width, stop - last * width):
            yield (slice(last, last + 1), *box)
        return
    for box in boxes(shape[1:], start - (first - 1) * width, width) if start < first * width else ():
        yield (slice(first - 1, first), *box)
    if first < last:
        yield (slice(first, last), *(slice(0, n) for n in shape[1:]))
    for box in boxes(shape[1:], 0, stop - last * width):
        yield (slice(last, last + 1), *box)


def box_tensor(shape: tuple[int, ...], dtype: str, read_box: Callable[[Box], np.ndarray]) -> Tensor:
    """Describe a tensor of which boxes can be read, in the type of the file or in that of this machine."""
    native = _NATIVE[dtype]

    def read(start: int, stop: int) -> np.ndarray:
        out = np.empty(max(0, stop - start), native)
        at = 0
        for box in boxes(shape, start, stop):
            block = np.asarray(read_box(box)).reshape(-1)
            if dtype == "bfloat16":
                block = (block.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
            out[at : at + block.size] = block
            at += block.size
        return out

    return Tensor(shape, dtype, read)


class Chunk(Protocol):
    """A part of a tensor that lies elsewhere as a tensor of its own."""

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where it begins in the whole tensor, along each axis."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Its shape."""

    def open(self, where: str) -> Tensor:
        """Give the tensor that it is; `where` names the whole one."""


def read_chunks(where: str, kind: str, chunks: Sequence[Chunk], box: Box) -> np.ndarray:
    """Put a box of a tensor together from the chunks that it touches."""
    out = np.empty([s.stop - s.start for s in box], np.uint16 if kind == "bfloat16" else RAW[kind])
    for chunk in chunks:
        low = [max(s.start, at) for s, at in zip(box, chunk.offsets, strict=True)]
        high = [min(s.stop, at + n) for s, at, n in zip(box, chunk.offsets, chunk.sizes, strict=True)]
        if any(a >= b for a, b in zip(low, high, strict=True)):
            continue
        tensor = chunk.open(where)
        inner = [(a - at, b - at) for a, b, at in zip(low, high, chunk.offsets, strict=True)]
        strides = [math.prod(chunk.sizes[d + 1 :]) for d in range(len(inner))]
        first = sum(a * s for (a, _), s in zip(inner, strides, strict=True))
        last = sum((b - 1) * s for (_, b), s in zip(inner, strides, strict=True))
        values = tensor.read(first, last + 1)
        if kind == "bfloat16":
            values = (values.view(np.uint32) >> 16).astype(np.uint16)
        shape = [b - a for a, b in inner]
        if values.size != math.prod(shape):
            grid = sum(
                np.arange(n).reshape([-1 if d == k else 1 for d in range(len(shape))]) * s
                for k, (n, s) in enumerate(zip(shape, strides, strict=True))
            )
            values = values[grid]
        out[tuple(slice(a - s.start, b - s.start) for a, b, s in zip(low, high, box, strict=True))] = values.reshape(
            shape
        )
    return out
