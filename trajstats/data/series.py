"""A series of checkpoints: which files, which steps, which tensors, and what is wrong with them, before any is read."""

# ruff: noqa: DOC502  # what the functions called raise is part of what this one promises

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trajstats.data.discovery import find_checkpoints
from trajstats.data.formats import RAW, Checkpoint, Tensor, open_checkpoint
from trajstats.data.formats_tree import read_series
from trajstats.data.naming import natural_key, steps_of
from trajstats.errors import ArgumentError, UnsupportedError

# Kinds that leave no way to put the checkpoints into one array.
FATAL = ("missing", "extra", "reshaped", "duplicate step", "renamed")


@dataclass(frozen=True)
class Finding:
    """Something worth knowing about a series.

    Parameters
    ----------
    kind : str
        ``missing``, ``extra``, ``renamed``, ``reshaped``, ``dtype``, ``duplicate step``, ``out of order``,
        ``not finite`` or ``identical``.
    checkpoint : str
        Path of the checkpoint.
    tensor : str
        Name of the tensor, where there is one.
    detail : str
        What was found, and what to do.
    """

    kind: str
    checkpoint: str
    tensor: str
    detail: str

    def __str__(self) -> str:
        tensor = f", tensor {self.tensor!r:.120}" if self.tensor else ""
        return f"{self.kind}: {self.checkpoint}{tensor}: {self.detail}"


@dataclass
class Series:
    """Checkpoints in the order of their steps, with the layers they share.

    Parameters
    ----------
    steps : list of int
        Strictly increasing.
    checkpoints : list of Checkpoint
        One for each step.
    layers : mapping name -> shape
        In an order that does not depend on the files.
    dtype : str
        Stored type that holds every source exactly.
    source_dtype : str
        Coarsest type among the sources.
    rule : str
        How steps were found.
    findings : list of Finding
        What is known from headers alone.
    """

    steps: list[int]
    checkpoints: list[Checkpoint]
    layers: dict[str, tuple[int, ...]]
    dtype: str
    source_dtype: str
    rule: str
    findings: list[Finding] = field(default_factory=list)


def read_headers(
    paths: Any,
    *,
    step_from: str | Callable[[str], int] | Mapping[str, int] | None,
    dims: Mapping[str, str] | None,
    optimizer: bool,
    workers: int,
) -> tuple[list[int], list[Checkpoint], str, list[Finding]]:
    """Find the checkpoints, their steps and their tensors.

    Parameters
    ----------
    paths : path, glob pattern, sequence of paths, or iterable of (step, mapping)
        The series.
    step_from : regular expression, callable or mapping, optional
        How a path gives its step; the built-in rule if not given.
    dims : mapping, optional
        For zarr and netCDF: which dimension is time.
    optimizer : bool
        Keep optimizer state.
    workers : int
        Headers read at the same time.

    Returns
    -------
    steps : list of int
        As found, in the order of the checkpoints.
    checkpoints : list of Checkpoint
        Their headers.
    rule : str
        How steps were found.
    findings : list of Finding
        Order of steps.

    Raises
    ------
    ArgumentError
        If a step cannot be found.
    """
    if dims is not None:
        pairs = read_series(Path(str(paths)), dims)
        return [step for step, _ in pairs], [found for _, found in pairs], f"dimension {dims.get('step')}", []
    if not isinstance(paths, str | Path):
        paths = list(paths)
        if paths and isinstance(paths[0], tuple | list) and len(paths[0]) == 2 and isinstance(paths[0][1], Mapping):
            pairs = [(int(step), _in_memory(int(step), weights)) for step, weights in paths]
            return [step for step, _ in pairs], [found for _, found in pairs], "given", []
    files, root = find_checkpoints(paths)
    names = [_below(file, root, files) for file in files]
    steps, rule = _steps(files, names, step_from)
    findings = []
    for before, after, k in zip(steps, steps[1:], range(1, len(steps)), strict=False):
        if after < before and step_from is None and not isinstance(paths, str | Path):
            detail = f"step {after} is listed after step {before}; checkpoints are put in the order of their steps"
            findings.append(Finding("out of order", str(files[k]), "", detail))
    with ThreadPoolExecutor(workers) as pool:
        checkpoints = list(pool.map(lambda file: open_checkpoint(file, optimizer=optimizer), files))
    return steps, checkpoints, rule, findings


def _below(file: Path, root: Path | None, files: Sequence[Path]) -> str:
    if root is not None:
        return file.relative_to(root).as_posix()
    parts = [f.parts for f in files]
    shared = 0
    while len(files) > 1 and all(len(p) > shared + 1 for p in parts) and len({p[shared] for p in parts}) == 1:
        shared += 1
    return "/".join(file.parts[shared if len(files) > 1 else -2 :])


def _steps(
    files: Sequence[Path], names: list[str], step_from: str | Callable[[str], int] | Mapping[str, int] | None
) -> tuple[list[int], str]:
    if step_from is None:
        return steps_of(names)
    if isinstance(step_from, str):
        pattern = re.compile(step_from)
        if pattern.groups != 1:
            msg = f"step_from={step_from!r} has {pattern.groups} groups; it needs one, around the number"
            raise ArgumentError(msg)
        steps = []
        for file in files:
            found = pattern.search(file.as_posix())
            if found is None or not found[1].isdigit():
                msg = f"step_from={step_from!r} finds no number in {file}"
                raise ArgumentError(msg)
            steps.append(int(found[1]))
        return steps, step_from
    give = step_from.__getitem__ if isinstance(step_from, Mapping) else step_from
    try:
        return [int(give(str(file))) for file in files], "given"
    except (KeyError, TypeError, ValueError) as error:
        msg = f"step_from gives no step for one of the checkpoints: {error!r}"
        raise ArgumentError(msg) from error


def _in_memory(step: int, weights: Mapping[str, Any]) -> Checkpoint:
    found = Checkpoint(f"step {step} in memory", {})
    for name, values in weights.items():
        kind = str(getattr(values, "dtype", "float64")).rpartition(".")[2]
        if kind not in RAW:
            found.passed_over[str(name)] = f"type {kind}"
            continue

        def read(start: int, stop: int, values: Any = values) -> np.ndarray:
            from trajstats.data.arrays import to_numpy

            flat = to_numpy(values).reshape(-1)[start:stop]
            return flat.astype(np.float32) if flat.dtype.name == "bfloat16" else flat

        found.tensors[str(name)] = Tensor(tuple(int(n) for n in np.shape(values)), kind, read)
    return found


def make_series(
    steps: Sequence[int],
    checkpoints: Sequence[Checkpoint],
    rule: str,
    findings: Sequence[Finding],
    *,
    include: str | Callable[[str], bool] | Iterable[str] | None,
    rename: Mapping[str, str] | Callable[[str], str] | None,
) -> Series:
    """Put checkpoints in order and compare their tensors with those of the first.

    Parameters
    ----------
    steps : sequence of int
        Step of each checkpoint.
    checkpoints : sequence of Checkpoint
        Their headers.
    rule : str
        How steps were found.
    findings : sequence of Finding
        What is known already.
    include : regular expression, callable or names, optional
        Tensors to keep, by name after renaming.
    rename : mapping or callable, optional
        New names of tensors.

    Returns
    -------
    Series
        The series, with everything that is wrong with it.

    Raises
    ------
    UnsupportedError
        If the first checkpoint has no floating tensor to keep.
    """
    found = list(findings)
    order = sorted(range(len(steps)), key=lambda k: (steps[k], natural_key(checkpoints[k].path)))
    sorted_checkpoints = [_chosen(checkpoints[k], include, rename) for k in order]
    sorted_steps = [steps[k] for k in order]
    for k in range(1, len(order)):
        if sorted_steps[k] == sorted_steps[k - 1]:
            other = sorted_checkpoints[k - 1].path
            detail = f"step {sorted_steps[k]} belongs to {other} already; use step_from or fewer files"
            found.append(Finding("duplicate step", sorted_checkpoints[k].path, "", detail))
    first = sorted_checkpoints[0]
    if not first.tensors:
        msg = f"{first.path} holds no floating tensor to keep; passed over: {dict(list(first.passed_over.items())[:5])}"
        raise UnsupportedError(msg)
    # Natural order of names: the order inside a file means nothing and differs between writers.
    layers = {name: first.tensors[name].shape for name in sorted(first.tensors, key=natural_key)}
    kinds = {name: tensor.dtype for name, tensor in first.tensors.items()}
    for checkpoint in sorted_checkpoints[1:]:
        found += _compare(checkpoint, layers, kinds, first.path)
    every = {tensor.dtype for checkpoint in sorted_checkpoints for tensor in checkpoint.tensors.values()}
    return Series(sorted_steps, sorted_checkpoints, layers, _common(every), _coarsest(every), rule, found)


def _compare(
    checkpoint: Checkpoint, layers: Mapping[str, tuple[int, ...]], kinds: dict[str, str], first: str
) -> list[Finding]:
    found = []
    missing = [name for name in layers if name not in checkpoint.tensors]
    extra = [name for name in checkpoint.tensors if name not in layers]
    for name in missing:
        same = [other for other in extra if checkpoint.tensors[other].shape == layers[name]]
        reason = checkpoint.passed_over.get(name)
        if same and reason is None:
            new = f"{same[0]!r:.120}"
            detail = f"has {new} of the same shape {layers[name]} instead; use rename={{{new}: {name!r:.120}}}"
            found.append(Finding("renamed", checkpoint.path, name, detail))
            extra.remove(same[0])
        else:
            detail = f"is in {first} with shape {layers[name]} and not here" + (f" ({reason})" if reason else "")
            found.append(Finding("missing", checkpoint.path, name, detail))
    for name in extra:
        detail = f"of shape {checkpoint.tensors[name].shape} is not in {first}; leave it out with include="
        found.append(Finding("extra", checkpoint.path, name, detail))
    for name in layers:
        tensor = checkpoint.tensors.get(name)
        if tensor is None:
            continue
        if tensor.shape != layers[name]:
            detail = f"has shape {tensor.shape}; {first} has {layers[name]}"
            found.append(Finding("reshaped", checkpoint.path, name, detail))
        if tensor.dtype != kinds[name]:
            detail = f"is {tensor.dtype} from here on; it was {kinds[name]} before. All values are kept exactly"
            found.append(Finding("dtype", checkpoint.path, name, detail))
            kinds[name] = tensor.dtype
    return found


def _chosen(
    checkpoint: Checkpoint,
    include: str | Callable[[str], bool] | Iterable[str] | None,
    rename: Mapping[str, str] | Callable[[str], str] | None,
) -> Checkpoint:
    give = rename if callable(rename) else (lambda name: rename.get(name, name)) if rename else (lambda name: name)
    if include is None:
        keep: Callable[[str], bool] = lambda _: True  # noqa: E731
    elif isinstance(include, str):
        pattern = re.compile(include)
        keep = lambda name: pattern.search(name) is not None  # noqa: E731
    elif callable(include):
        keep = include
    else:
        names = set(include)
        keep = lambda name: name in names  # noqa: E731
    tensors: dict[str, Tensor] = {}
    for name, tensor in checkpoint.tensors.items():
        new = give(name)
        if not keep(new):
            continue
        if new in tensors:
            msg = f"{checkpoint.path}: two tensors would be called {new!r:.120}; change rename"
            raise ArgumentError(msg)
        tensors[new] = tensor
    return Checkpoint(checkpoint.path, tensors, {give(n): why for n, why in checkpoint.passed_over.items()})


def _common(kinds: set[str]) -> str:
    # float16 and bfloat16 both fit into float32; nothing smaller holds both.
    if "float64" in kinds:
        return "float64"
    return "float16" if kinds == {"float16"} else "float32"


def _coarsest(kinds: set[str]) -> str:
    return next(kind for kind in ("bfloat16", "float16", "float32", "float64") if kind in kinds)


def same_weights(one: Checkpoint, other: Checkpoint, layers: Mapping[str, tuple[int, ...]]) -> bool:
    """Say whether two checkpoints hold the same bits: a checksum of 32 bits may agree by chance.

    Parameters
    ----------
    one, other : Checkpoint
        Which.
    layers : mapping name -> shape
        Tensors to compare.

    Returns
    -------
    bool
    """
    for name, shape in layers.items():
        size = math.prod(shape)
        a, b = one.tensors[name], other.tensors[name]
        for start in range(0, size, 2**20):
            stop = min(size, start + 2**20)
            if a.read(start, stop).tobytes() != b.read(start, stop).tobytes():
                return False
    return True
