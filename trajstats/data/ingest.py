"""Other people's checkpoints in, a trajectory store out."""

# ruff: noqa: DOC201, DOC501, DOC502  # what the functions called raise is part of what this one promises

from __future__ import annotations

import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trajstats.data.checks import check_same_layers
from trajstats.data.continuity import equal_checkpoints, out_of_line, repeated_tensors
from trajstats.data.layout import (
    COMMITTED,
    CREATING,
    EXPECTED_ROWS,
    Layout,
    array_of,
    create_store,
    plan_layout,
)
from trajstats.data.lock import WriterLock
from trajstats.data.place import Place
from trajstats.data.redaction import without_credentials
from trajstats.data.schema import WEIGHTS
from trajstats.data.series import FATAL, Finding, Series, make_series, read_headers
from trajstats.data.tiles import Rows, Tiles
from trajstats.errors import ArgumentError, NonFiniteError, SchemaError, StoreError, resumable

DEFAULT_BUDGET = 2**30
ASSUMED_BYTES_PER_SECOND = 1.5e8


@dataclass
class IngestPlan:
    """What an ingest will do or has done.

    Parameters
    ----------
    out : str
        The store.
    steps : list of int
        Optimiser steps.
    files : list of str
        Checkpoints, in the order of the steps.
    layers : mapping name -> shape
        Layers, in the order of `parameter`.
    dtype : str
        Stored type.
    rule : str
        How steps were found.
    findings : list of Finding
        What is wrong or noteworthy; see :class:`trajstats.data.series.Finding`.
    passed_over : mapping name -> reason
        Tensors of the first checkpoint that are left out.
    buffers : mapping name -> shape
        State that is not trained: kept beside the layers, never part of a displacement.
    left_out : mapping name -> reason
        Files beside the series.
    seconds : float
        Time taken, or expected in a dry run.
    """

    out: str
    steps: list[int]
    files: list[str]
    layers: dict[str, tuple[int, ...]]
    dtype: str
    rule: str
    findings: list[Finding] = field(default_factory=list)
    passed_over: dict[str, str] = field(default_factory=dict)
    buffers: dict[str, tuple[int, ...]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def n_parameters(self) -> int:
        """Number of weights of one checkpoint."""
        return sum(math.prod(shape) for shape in self.layers.values())

    @property
    def n_bytes(self) -> int:
        """Bytes of all weights as stored, before compression."""
        return self.n_parameters * len(self.steps) * np.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        lines = [
            f"{len(self.files)} checkpoints -> {self.out}",
            f"steps {self.steps[0]} to {self.steps[-1]} (by {self.rule}), {len(self.layers)} layers, "
            f"{self.n_parameters:,} weights, {self.n_bytes / 1e9:.3g} GB as {self.dtype}, about {self.seconds:.0f} s",
        ]
        lines += [
            f"  step {step:>10}  {name}" for step, name in _shortened(list(zip(self.steps, self.files, strict=True)))
        ]
        lines += [f"  layer {name!r:.120} {shape}" for name, shape in _shortened(list(self.layers.items()))]
        if self.buffers:
            lines.append(f"{len(self.buffers)} buffers, which are kept apart from the layers")
            lines += [f"  buffer {name!r:.120} {shape}" for name, shape in _shortened(list(self.buffers.items()))]
        beside = [*self.left_out.items(), *self.passed_over.items()]
        lines += [f"  left out {name!r:.120}: {why}" for name, why in _shortened(beside)]
        lines += [
            f"  ! {finding}"
            for finding in _shortened([(f, None) for f in self.findings], 50)
            for finding in finding[:1]
        ]
        return "\n".join(lines)


def _shortened(items: list[tuple[Any, Any]], most: int = 12) -> list[tuple[Any, Any]]:
    return items if len(items) <= most else [*items[: most // 2], *items[-most // 2 :]]


def ingest(
    paths: Any,
    out: Any,
    /,
    *,
    step_from: str | Callable[[str], int] | Mapping[str, int] | None = None,
    include: str | Callable[[str], bool] | Iterable[str] | None = None,
    rename: Mapping[str, str] | Callable[[str], str] | None = None,
    dims: Mapping[str, str] | None = None,
    optimizer: bool = False,
    part: str | Sequence[str] | None = None,
    drop_identical: bool = False,
    replica: int = 0,
    attrs: Mapping[str, Any] | None = None,
    memory: int = DEFAULT_BUDGET,
    workers: int = 2,
    on_finding: str = "warn",
    dry_run: bool = False,
    progress: bool = False,
) -> IngestPlan:
    """Turn a series of checkpoints into a trajectory store.

    Headers are read first and compared; then the tensors, a range of parameters of a few dozen checkpoints at a time.
    An interrupted ingest goes on where it was when called again with the same arguments.

    Parameters
    ----------
    paths : path, glob pattern, folder, list of paths, mapping step -> path or tensors, or pairs (step, tensors)
        The series. Tensors are a mapping name -> array, or a tree of them. Formats: safetensors, torch, npz, npy,
        HDF5, Keras, orbax, flax msgpack, zarr, netCDF.
    out : path, URL or zarr store
        The store to make.
    step_from : regular expression with one group, callable, or mapping path -> step, optional
        How a path gives its step. Otherwise a number after ``step``, ``iter`` and the like, else after ``epoch``, else
        the one number that changes; numbers that put the checkpoints into different orders are refused with a list.
    include : regular expression, callable or names, optional
        Tensors to keep, by their name after `rename`.
    rename : mapping or callable, optional
        New names of tensors.
    dims : mapping, optional
        For zarr and netCDF, the dimension of time there, as in ``{"step": "time"}``; ``{"epoch": "time"}`` if it holds
        epochs, which become the clock ``epoch`` with 0, 1, 2, ... as steps.
    optimizer : bool
        Keep optimizer state as layers.
    part : str or sequence of str, optional
        Which set of weights to take where a file holds several, such as ``"model_ema"``.
    drop_identical : bool
        Leave out checkpoints that equal an earlier one.
    replica : int
        Label of the run along `replica`.
    attrs : mapping, optional
        What describes the run.
    memory : int
        Bytes of weights held at a time.
    workers : int
        Checkpoints read at the same time.
    on_finding : str
        What to do about NaN, infinity, equal checkpoints and tensors of another step, which show only while reading:
        ``"warn"`` and keep them, or ``"raise"``. They are listed in the attribute ``findings`` of the store.
    dry_run : bool
        Return the plan, from headers alone, and write nothing.
    progress : bool
        Show a bar with bytes and time left.

    Returns
    -------
    IngestPlan
        What was done (or would be); prints as a summary.

    Raises
    ------
    SchemaError
        If tensors are missing, added, renamed or reshaped along the series, or two checkpoints have one step.
    UnsafeInputError
        If a file could run code, leave its folder or exhaust memory.
    StoreError
        If a file is damaged, or `out` holds something else.
    NonFiniteError
        If weights are not finite and ``on_finding="raise"``.
    ArgumentError
        If an argument is not allowed.

    Notes
    -----
    Sources are opened for reading only. Numbers keep their type; bfloat16 becomes the equal float32, and a series of
    several types the smallest that holds all of them. Layers are in natural order of their names, so that the result
    does not depend on the order inside the files. A tensor with two names is stored once. Marks of wrappers, such as
    ``module.`` and ``_orig_mod.``, are taken off the names. Optimizer and trainer state, running statistics and
    checkpoints called best, last, latest or final are not part of the series; the plan lists them.

    Examples
    --------
    >>> import tempfile
    >>> out = tempfile.mkdtemp() + "/run.zarr"
    >>> plan = ingest([(0, {"w": np.zeros((2, 2))}), (10, {"w": np.ones((2, 2))})], out)
    >>> plan.steps, plan.layers
    ([0, 10], {'w': (2, 2)})
    """
    if on_finding not in {"warn", "raise"}:
        msg = f"on_finding={on_finding!r}: give 'warn' or 'raise'"
        raise ArgumentError(msg)
    if memory < 2**20 or workers < 1:
        msg = f"memory={memory}, workers={workers}: at least 1 MiB and one worker are needed"
        raise ArgumentError(msg)
    headers = read_headers(paths, step_from=step_from, dims=dims, optimizer=optimizer, workers=workers, part=part)
    series = make_series(headers, include=include, rename=rename)
    if not dry_run:
        _check_whole(series)
        _find_identical(series, drop=drop_identical, strict=on_finding == "raise")
    plan = IngestPlan(
        out=without_credentials(out),
        steps=series.steps,
        files=[checkpoint.path for checkpoint in series.checkpoints],
        layers=series.layers,
        dtype=series.dtype,
        rule=series.rule,
        findings=list(series.findings),
        passed_over=series.checkpoints[0].passed_over,
        buffers={name: shape for name, (shape, _) in series.buffers.items()},
        left_out=series.left_out,
    )
    plan.seconds = plan.n_bytes / ASSUMED_BYTES_PER_SECOND
    if dry_run:
        return plan
    began = time.monotonic()
    with resumable(f"{plan.out} holds the checkpoints read so far. The same ingest again goes on there."):
        _Ingest(series, plan, out, memory, workers, on_finding, progress).run(replica, attrs or {})
    plan.seconds = time.monotonic() - began
    for finding in plan.findings:
        warnings.warn(str(finding), stacklevel=2)
    return plan


def _check_whole(series: Series) -> None:
    """Refuse a series whose checkpoints do not fit together, with all reasons."""
    if fatal := [finding for finding in series.findings if finding.kind in FATAL]:
        lines = "\n".join(f"  {finding}" for finding in fatal[:20])
        more = f"\n  and {len(fatal) - 20} more" if len(fatal) > 20 else ""
        msg = (
            f"{len(fatal)} things keep these checkpoints from being one trajectory; nothing was written:\n{lines}{more}"
        )
        raise SchemaError(msg)


def _find_identical(series: Series, *, drop: bool, strict: bool) -> None:
    """Report the checkpoints that equal an earlier one, and take them out of the series if wanted."""
    twins = equal_checkpoints(series.checkpoints, series.layers)
    for k, twin, how in twins:
        file, other = series.checkpoints[k].path, series.checkpoints[twin].path
        detail = f"step {series.steps[k]} equals step {series.steps[twin]} {how} ({other})"
        if drop:
            series.left_out[file] = detail
        else:
            do = "; leave it out with drop_identical=True (--drop-identical)"
            series.findings.append(Finding("identical", file, "", detail + do))
    if twins and strict and not drop:
        raise SchemaError("\n".join(str(f) for f in series.findings if f.kind == "identical"))
    if drop:
        kept = sorted(set(range(len(series.steps))) - {k for k, _, _ in twins})
        series.steps = [series.steps[k] for k in kept]
        series.checkpoints = [series.checkpoints[k] for k in kept]
        series.epochs = [series.epochs[k] for k in kept] if series.epochs else []


class _Ingest:
    """One ingest on its way: slab by slab, block of columns by block of columns."""

    def __init__(
        self, series: Series, plan: IngestPlan, out: Any, memory: int, workers: int, on_finding: str, progress: bool
    ) -> None:
        self.series, self.plan = series, plan
        self.place = Place(out, write=True)
        self.memory, self.workers = memory, workers
        self.on_finding, self.progress = on_finding, progress
        self.stops = np.cumsum([math.prod(shape) for shape in series.layers.values()], dtype=np.int64)
        self.stopped = False

    def run(self, replica: int, attrs: Mapping[str, Any]) -> None:
        """Write the store, or the rest of it.

        Parameters
        ----------
        replica : int
            Label of the run.
        attrs : mapping
            What describes it.

        Raises
        ------
        StoreError
            If the place holds a store of other checkpoints.
        """
        from trajstats.data.recovery import check_store, check_vacant, clean, state_of

        check_vacant(self.place)
        lock = WriterLock(self.place)
        finished = False
        try:
            clean(self.place)
            mark = self._identity()
            if state_of(self.place) in (None, CREATING):
                layout = self._layout()
                more = {"ingest": mark, "source_dtype": self.series.source_dtype, "source": self._source()}
                create_store(self.place, layout, self.series.layers, replica=replica, attrs={**attrs, **more}, extra={})
            tiles = Tiles(self.place)
            known = check_store(tiles)
            group = self.place.group()
            assert group is not None
            if known.get("ingest") != mark:
                msg = f"{self.place} exists and was not made from these checkpoints; choose another path or delete it"
                raise StoreError(msg)
            check_same_layers(group, self.series.layers)
            self.plan.findings += [Finding(*entry) for entry in json.loads(str(known.get("content_findings", "[]")))]
            self._write(tiles, int(known[COMMITTED]))
            self._compare_along(group)
            findings = json.dumps([[f.kind, f.checkpoint, f.tensor, f.detail] for f in self.plan.findings])
            tiles.finish(findings=findings, content_findings=None)
            finished = True
        finally:
            lock.release(remove_journal=finished)

    def _layout(self) -> Layout:
        n = int(self.stops[-1])
        rows = max(EXPECTED_ROWS, len(self.series.steps))
        return plan_layout(WEIGHTS, (n,), self.series.dtype, expected_rows=rows)

    def _identity(self) -> str:
        text = json.dumps([self.series.steps, self.plan.files, list(self.series.layers.items()), self.series.dtype])
        return hashlib.sha256(text.encode()).hexdigest()

    def _source(self) -> str:
        first, last = self.plan.files[0], self.plan.files[-1]
        return first if len(self.plan.files) == 1 else f"{first} ... {last}"

    def _write(self, tiles: Tiles, done: int) -> None:
        total = len(self.series.steps)
        layout = tiles.layout
        bar = None
        if self.progress:
            from tqdm import tqdm

            bar = tqdm(
                total=self.plan.n_bytes, initial=done * layout.row_bytes, unit="B", unit_scale=True, desc="ingest"
            )
        with ThreadPoolExecutor(self.workers) as pool:
            while done < total:
                stop = min(total, (done // layout.rows + 1) * layout.rows)
                self._slab(tiles, done, stop, pool, bar)
                done = stop
        if bar is not None:
            bar.close()

    def _slab(self, tiles: Tiles, first: int, stop: int, pool: ThreadPoolExecutor, bar: Any) -> None:
        bad: dict[tuple[int, str], int] = {}

        def source(start: int, end: int) -> np.ndarray:
            block = np.empty((stop - first, end - start), dtype=tiles.layout.dtype)
            # Within a block, ranges small enough that what the workers hold stays in the budget.
            item = tiles.layout.dtype.itemsize
            wide = max(4096, (self.memory // 4) // (self.workers * 2 * max(item, 8)))

            def fill(k: int) -> None:
                for begin in range(start, end, wide):
                    if self.stopped:
                        return
                    cut = min(end, begin + wide)
                    self._fill(block[k, begin - start : cut - start], first + k, begin, cut, bad)

            try:
                list(pool.map(fill, range(stop - first)))
            except BaseException:
                self.stopped = True
                raise
            if bar is not None:
                bar.update(block.nbytes)
            return block

        epochs = [{"epoch": epoch} for epoch in self.series.epochs[first:stop]]
        rows = Rows(first, self.series.steps[first:stop], epochs or [{} for _ in range(first, stop)])
        tiles.write(rows, source, clocks=("epoch",), finish=lambda: self._report(bad))

    def _fill(self, out: np.ndarray, row: int, start: int, stop: int, bad: dict[tuple[int, str], int]) -> None:
        checkpoint = self.series.checkpoints[row]
        begin = 0
        for name, end in zip(self.series.layers, self.stops.tolist(), strict=True):
            low, high = max(start, begin), min(stop, end)
            if low < high:
                values = checkpoint.tensors[name].read(low - begin, high - begin)
                if values.size != high - low:
                    msg = f"{checkpoint.path}: tensor {name!r:.120} gave {values.size} of {high - low} numbers"
                    raise StoreError(msg)
                out[low - start : high - start] = values
                finite = np.isfinite(values)
                if not finite.all():
                    bad[row, name] = bad.get((row, name), 0) + int(values.size - np.count_nonzero(finite))
            begin = end

    def _report(self, bad: Mapping[tuple[int, str], int]) -> dict[str, Any]:
        """Note weights that are not finite; what was found so far is kept with the rows, for when it is resumed."""
        found = [
            Finding("not finite", self.series.checkpoints[row].path, name, f"{count} weights are NaN or infinite")
            for (row, name), count in sorted(bad.items())
        ]
        if found and self.on_finding == "raise":
            raise NonFiniteError("\n".join(str(finding) for finding in found))
        self.plan.findings += found
        content = [f for f in self.plan.findings if f.kind == "not finite"]
        return {"content_findings": json.dumps([[f.kind, f.checkpoint, f.tensor, f.detail] for f in content])}

    def _compare_along(self, group: Any) -> None:
        """Report tensors that equal those of another step, by the digests in the store."""
        if "digest" not in group:
            return
        series = self.series
        digests = np.asarray(array_of(group, "digest")[...]).reshape(-1, len(series.layers))
        found = []
        for kind, k, other, names in repeated_tensors(digests, series.layers):
            shown = f"{', '.join(repr(name)[:120] for name in names[:3])}{', ...' if len(names) > 3 else ''}"
            detail = (
                f"{len(names)} of {len(series.layers)} tensors ({shown}) equal those of step {series.steps[other]}"
                f" ({series.checkpoints[other].path}), and the others do not"
            )
            if kind == "repeated":
                jumps = {i: max(out_of_line(series.checkpoints, name, i) for name in names[:3]) for i in (k, other)}
                worst = max(jumps, key=lambda i: jumps[i])
                detail += "; in between they have other values. One of the two files may be of another step"
                if jumps[worst] > 1.5:
                    detail += f": at step {series.steps[worst]} they are out of line with the steps around it"
            found.append(Finding(kind, series.checkpoints[k].path, names[0] if len(names) == 1 else "", detail))
        if found and self.on_finding == "raise":
            raise SchemaError("\n".join(str(finding) for finding in found))
        self.plan.findings += found
