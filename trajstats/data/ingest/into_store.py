"""Other people's checkpoints in, a trajectory store out."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trajstats.data.ingest._discovery import local_path
from trajstats.data.ingest._follow import check_can_grow, follow_series
from trajstats.data.ingest._plan import IngestPlan
from trajstats.data.ingest._sanity import check_contents
from trajstats.data.ingest._series import FATAL, Series, make_series, read_headers
from trajstats.data.ingest._streaming import Streaming
from trajstats.data.safety._credentials import without_credentials
from trajstats.errors import ArgumentError, SchemaError, StoreError, TrajstatsError, resumable

DEFAULT_BUDGET = 2**30
ASSUMED_BYTES_PER_SECOND = 1.5e8


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
    follow: float | None = None,
    progress: bool = False,
) -> IngestPlan:
    """Turn a series of checkpoints into a trajectory store.

    Headers are read first and compared; then the tensors, a range of parameters of a few dozen checkpoints at a time.
    An interrupted ingest goes on where it was when called again with the same arguments. Called again with further
    checkpoints, it adds those that come after the last stored step.

    Parameters
    ----------
    paths : path, glob pattern, folder, list of paths, mapping step -> path or tensors, or pairs (step, tensors)
        The series. Tensors are a mapping name -> array, or a tree of them. Formats: safetensors, torch, npz, npy,
        HDF5, Keras, orbax, flax msgpack, zarr, netCDF.
    out : path, URL or zarr store
        The store to make, or one that an earlier ingest made and that these checkpoints continue.
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
        Of checkpoints that are equal keep the one whose values fit the steps around it, or the first where that is not
        clear, and leave out the others.
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
        Return the plan, from headers and a few numbers of each checkpoint, and write nothing.
    follow : float, optional
        Ingest a series while it grows: look into the folder or glob again and again, add what has stopped changing,
        and end when nothing new came for so many seconds (``math.inf``: with Ctrl-C, which loses nothing).
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
        If a file is damaged, or `out` holds something else than these checkpoints up to its last step.
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

    A store that is there already is continued only by a series that shares a step with it. Of all shared checkpoints
    the first numbers of the largest tensors are compared with the store, and the last one is compared entirely.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> out = tempfile.mkdtemp() + "/run.zarr"
    >>> plan = ingest([(0, {"w": np.zeros((2, 2))}), (10, {"w": np.ones((2, 2))})], out)
    >>> plan.steps, plan.layers
    ([0, 10], {'w': (2, 2)})
    >>> ingest([(10, {"w": np.ones((2, 2))}), (20, {"w": np.full((2, 2), 2.0)})], out).added
    [20]
    """
    if on_finding not in {"warn", "raise"}:
        msg = f"on_finding={on_finding!r}: give 'warn' or 'raise'"
        raise ArgumentError(msg)
    if memory < 2**20 or workers < 1:
        msg = f"memory={memory}, workers={workers}: at least 1 MiB and one worker are needed"
        raise ArgumentError(msg)
    if isinstance(out, str) and out.startswith("~"):
        out = local_path(out)

    def once(only: Callable[[Path], bool] | None = None) -> IngestPlan:
        headers = read_headers(
            paths, step_from=step_from, dims=dims, optimizer=optimizer, workers=workers, part=part, only=only
        )
        series = make_series(headers, include=include, rename=rename)
        if not dry_run:
            _check_whole(series)
        if not any(finding.kind in FATAL for finding in series.findings):
            strict = on_finding == "raise" and not dry_run
            check_contents(series, drop=drop_identical, strict=strict, whole=not dry_run)
        streaming = Streaming(series, _planned(series, out), out, memory, workers, on_finding, progress)
        return _look_ahead(streaming, replica) if dry_run else _run(streaming, replica, attrs or {})

    if follow is None:
        return once()
    check_can_grow(paths, follow)
    if dry_run:
        msg = "dry_run=True and follow= exclude each other: a plan is made once"
        raise ArgumentError(msg)
    with resumable(f"{without_credentials(out)} holds the checkpoints found so far. The same ingest goes on there."):
        plan, added = follow_series(paths, once, follow)
    plan.added = added
    return plan


def _planned(series: Series, out: Any) -> IngestPlan:
    """Write down what is to be done."""
    return IngestPlan(
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
        added=list(series.steps),
        series=sorted({name for row in series.rows for name in row}),
    )


def _look_ahead(streaming: Streaming, replica: int) -> IngestPlan:
    """Complete the plan with what the store holds already and the time expected."""
    plan = streaming.plan
    if not any(finding.kind in FATAL for finding in plan.findings):
        streaming.look_up(replica)
    plan.seconds = plan.n_bytes / len(plan.steps) * len(plan.added) / ASSUMED_BYTES_PER_SECOND
    return plan


def _run(streaming: Streaming, replica: int, attrs: Mapping[str, Any]) -> IngestPlan:
    """Write the rows that the store lacks; what was found is warned about."""
    plan, began = streaming.plan, time.monotonic()
    goes_on = f"{plan.out} holds the checkpoints read so far. The same ingest again goes on there."
    try:
        with resumable(goes_on):
            streaming.run(replica, attrs)
    except TrajstatsError:
        raise
    except OSError as error:  # no space, no permission, a disk that fails
        msg = f"{error.filename or plan.out}: {error.strerror or error}. {goes_on}"
        raise StoreError(msg) from error
    plan.seconds = time.monotonic() - began
    for finding in [found for found in plan.findings if found not in streaming.held.findings]:
        warnings.warn(str(finding), stacklevel=4)
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
