"""Ranges of a flattened array as boxes of it, for sources that are read box by box."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

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
