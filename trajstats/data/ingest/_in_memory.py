"""Checkpoints that are in memory already: pairs or a mapping of steps and trees of arrays."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from trajstats.data._arrays import to_numpy
from trajstats.data.formats._tensor import RAW, Checkpoint, Tensor, outer_mappings
from trajstats.data.ingest._discovery import local_path
from trajstats.data.ingest.names._steps import to_step
from trajstats.errors import ArgumentError

MAX_DEPTH = 64
ACCEPTED = (
    "a folder, a glob, paths, {step: path}, pairs (step, {name: array}) or {step: {name: array}}, such as a torch "
    "state_dict()"
)


def take_apart(given: Any) -> tuple[list[int] | None, list[Any]]:
    """Sort out what a user gives besides a path: steps, if they are there, and paths or trees of arrays."""
    if isinstance(given, Mapping):
        return _from_mapping(given)
    if isinstance(given, PathLike | str) or not isinstance(given, Iterable):
        msg = f"checkpoints of type {type(given).__name__}: give {ACCEPTED}"
        raise ArgumentError(msg)
    copied = isinstance(given, Iterator)  # what an iterator yields may change before the next is requested
    items = [_copy(item) if copied else item for item in given]
    if all(isinstance(item, str | PathLike) for item in items):
        return None, items
    pairs = [item for item in items if isinstance(item, tuple | list) and len(item) == 2 and _is_step(item[0])]
    if len(pairs) != len(items):
        odd = next(item for item in items if not any(item is pair for pair in pairs))
        if isinstance(odd, Mapping) or callable(getattr(odd, "state_dict", None)):
            msg = (
                f"{len(items)} checkpoints without steps: give each its optimiser step, as in "
                "[(0, state_dict), (100, state_dict)]"
            )
        else:
            msg = f"checkpoints of type {type(odd).__name__} in a list: give {ACCEPTED}"
        raise ArgumentError(msg)
    return _with_steps([(pair[0], pair[1]) for pair in pairs])


def _from_mapping(given: Mapping[Any, Any]) -> tuple[list[int], list[Any]]:
    if hasattr(given, "data_vars"):
        msg = (
            "an xarray dataset is not a checkpoint: save it with to_zarr or to_netcdf and give that path with "
            "dims={'step': the name of its dimension of time}, or use trajectory_dataset"
        )
        raise ArgumentError(msg)
    if not all(_is_step(key) for key in given):
        if given and all(isinstance(key, str | PathLike) and _is_step(value) for key, value in given.items()):
            msg = "a mapping of paths to steps: turn it round, {step: path}, or give it as step_from="
        else:
            msg = (
                f"a mapping with a key {next(iter(given), '')!r:.80} is one checkpoint; give {{step: checkpoint}} or "
                "[(step, checkpoint), ...]"
            )
        raise ArgumentError(msg)
    return _with_steps(list(given.items()))


def _with_steps(pairs: list[tuple[Any, Any]]) -> tuple[list[int], list[Any]]:
    if not pairs:
        msg = f"no checkpoints: give {ACCEPTED}"
        raise ArgumentError(msg)
    steps = [to_step(step, f"checkpoint {k}") for k, (step, _) in enumerate(pairs)]
    values = [value for _, value in pairs]
    paths = [isinstance(value, str | PathLike) for value in values]
    if any(paths) and not all(paths):
        msg = "some checkpoints are paths and others are in memory; ingest one kind at a time"
        raise ArgumentError(msg)
    return steps, [local_path(value) for value in values] if all(paths) else values


def _is_step(value: Any) -> bool:
    """Check whether a value stands for a step, right or wrong: a number or a time."""
    if isinstance(value, numbers.Number | np.generic) or type(value).__module__ == "datetime":
        return not isinstance(value, str | bytes)
    return isinstance(value, str) and value.isdigit()


def _copy(tree: Any) -> Any:
    """Copy the arrays of a tree."""
    if isinstance(tree, Mapping):
        return {key: _copy(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_copy(value) for value in tree]
    if hasattr(tree, "detach") and hasattr(tree, "clone"):  # torch, whose bfloat16 NumPy lacks
        return tree.detach().clone()
    return np.array(tree) if isinstance(tree, np.ndarray) else tree


def in_memory(step: int, tree: Any) -> Checkpoint:
    """List the arrays of a tree: nested mappings, lists and tuples; a list of numbers is an array."""
    where = f"step {step} in memory"
    if callable(getattr(tree, "state_dict", None)):
        msg = f"{where} is a {type(tree).__name__}: give its state_dict(), copied if the training goes on"
        raise ArgumentError(msg)
    if not isinstance(tree, Mapping | list | tuple):
        msg = f"{where} is of type {type(tree).__name__}: give a mapping of names to arrays"
        raise ArgumentError(msg)
    found = Checkpoint(where, {}, containers=outer_mappings(tree))
    for name, value in _leaves(tree, "", 0):
        kind = str(getattr(value, "dtype", "")).rpartition(".")[2]
        if not kind and value is not None and not isinstance(value, str | bytes):
            try:
                value = np.asarray(value)
            except ValueError:
                found.passed_over[name] = f"a {type(value).__name__}"
                continue
        if isinstance(value, np.ndarray | np.generic):
            kind = value.dtype.newbyteorder("=").name
        if kind not in RAW:
            found.passed_over[name] = f"type {kind}" if kind and kind != "object" else f"a {type(value).__name__}"
        elif name in found.tensors:
            msg = f"{where}: two arrays are called {name!r:.80}"
            raise ArgumentError(msg)
        else:
            found.tensors[name] = Tensor(tuple(int(n) for n in np.shape(value)), kind, _reader(value))
    return found


def _reader(values: Any) -> Any:
    def read(start: int, stop: int) -> np.ndarray:
        flat = to_numpy(values).reshape(-1)[start:stop]
        return flat.astype(np.float32) if flat.dtype.name == "bfloat16" else flat

    return read


def _leaves(tree: Any, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    if depth > MAX_DEPTH:
        msg = f"a tree that is nested more than {MAX_DEPTH} deep is not a checkpoint"
        raise ArgumentError(msg)
    if hasattr(tree, "_asdict"):
        tree = tree._asdict()
    if isinstance(tree, Mapping):
        items: Iterable[tuple[Any, Any]] = tree.items()
    elif isinstance(tree, list | tuple) and not _is_array(tree):
        items = enumerate(tree)
    else:
        yield prefix, tree
        return
    for key, value in items:
        yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key), depth + 1)


def _is_array(tree: Any, depth: int = 0) -> bool:
    """Check whether nested lists hold nothing but numbers."""
    if isinstance(tree, list | tuple):
        return bool(tree) and depth < MAX_DEPTH and all(_is_array(item, depth + 1) for item in tree)
    return isinstance(tree, numbers.Number)


def is_path(given: Any) -> bool:
    """Check whether the input is one path or pattern."""
    return isinstance(given, str | Path | PathLike)
