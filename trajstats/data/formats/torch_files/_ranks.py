"""Files of the ranks of one checkpoint whose distributed tensors follow each other along one axis: joined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from trajstats.data.formats._boxes import box_tensor, read_chunks
from trajstats.data.formats._tensor import Checkpoint, Tensor, input_size
from trajstats.data.formats.torch_files._read import Pieces, read_torch
from trajstats.data.safety._budget import Budget, shorten
from trajstats.errors import StoreError, UnsupportedError

COMPARED = 2**20


@dataclass(frozen=True)
class _Piece:
    """What one rank holds of a tensor."""

    offsets: tuple[int, ...]
    tensor: Tensor

    @property
    def sizes(self) -> tuple[int, ...]:
        """Its shape."""
        return self.tensor.shape

    def open(self, where: str) -> Tensor:
        """Give the tensor of this rank."""
        return self.tensor


def join_ranks(files: list[Path]) -> Checkpoint:
    """Join the files of all ranks; a tensor that is not a piece of a distributed one must be equal in all of them."""
    pieces: list[Pieces] = [{} for _ in files]
    budget = Budget.for_size(sum(input_size(file) for file in files))
    ranks = [read_torch(file, budget, noted) for file, noted in zip(files, pieces, strict=True)]
    first = ranks[0]
    joined = Checkpoint(first.path, {}, first.passed_over, containers=first.containers)
    for file, rank in zip(files, ranks, strict=True):
        if odd := sorted(rank.tensors.keys() ^ first.tensors.keys()):
            msg = f"{file} and {files[0].name} do not hold the same tensors ({shorten(odd[0])}); not of one checkpoint"
            raise StoreError(msg)
    for name in first.tensors:
        parts = [rank.tensors[name] for rank in ranks]
        if noted := {k: p[name] for k, p in enumerate(pieces) if name in p}:
            joined.tensors[name] = _joined(f"{files[0]}: tensor {shorten(name)}", noted, parts)
        elif _equal(parts):
            joined.tensors[name] = parts[0]
        else:
            msg = (
                f"{files[0]}: tensor {shorten(name)} is another one in the files of the other {len(files) - 1} ranks, "
                "and how it was split is not known. Gather it where it was made: get_model_state_dict(model, "
                "options=StateDictOptions(full_state_dict=True))"
            )
            raise UnsupportedError(msg)
    return joined


def _joined(where: str, noted: Mapping[int, tuple[tuple[int, ...], int, int]], parts: list[Tensor]) -> Tensor:
    """Put the pieces of a tensor one after another; their sizes must be those that torch gives to so many ranks."""
    shape, axis, _ = next(iter(noted.values()))
    n = shape[axis]
    length = -(-n // len(parts))
    found, at = [], 0
    for rank, part in enumerate(parts):
        size = max(0, min(length, n - rank * length))
        want = (*shape[:axis], size, *shape[axis + 1 :])
        placed = noted.get(rank, (shape, axis, rank)) == (shape, axis, rank)
        if not placed or part.shape != want or part.dtype != parts[0].dtype:
            msg = (
                f"{where}: rank {rank} of {len(parts)} holds {part.dtype} of shape {shorten(part.shape)} where "
                f"{parts[0].dtype} of shape {shorten(want)} is expected, as piece {rank}. The files are not the ranks "
                "of one checkpoint, or their order is another; torch.distributed.checkpoint saves both"
            )
            raise StoreError(msg)
        if size:
            found.append(_Piece(tuple(at if d == axis else 0 for d in range(len(shape))), part))
        at += size
    return box_tensor(shape, parts[0].dtype, partial(read_chunks, where, parts[0].dtype, found))


def _equal(parts: list[Tensor]) -> bool:
    """Check that all ranks hold the same numbers, bit by bit."""
    first = parts[0]
    if any((part.shape, part.dtype) != (first.shape, first.dtype) for part in parts):
        return False
    for start in range(0, first.size, COMPARED):
        stop = min(first.size, start + COMPARED)
        block = first.read(start, stop).tobytes()
        if any(np.asarray(part.read(start, stop)).tobytes() != block for part in parts[1:]):
            return False
    return True
