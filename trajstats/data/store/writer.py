"""Record a run: one checksummed, fsynced journal record per row; a background thread compacts them into tiles."""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from trajstats.data._arrays import ordered_arrays
from trajstats.data._buffer_tensors import check_buffers
from trajstats.data._digests import layer_digests
from trajstats.data._rounding import rounding_floor, source_type
from trajstats.data.schema import CLOCKS, PARAMETER, STORED_DTYPES, WEIGHTS
from trajstats.data.store._buffer_rows import BufferPacker, check_stored_buffers
from trajstats.data.store._guard import check_zarr
from trajstats.data.store._layout import (
    COMMITTED,
    CREATING,
    EXPECTED_ROWS,
    INITIAL,
    STATE,
    WRITING,
    create_store,
    plan_layout,
    put_array,
)
from trajstats.data.store._names import check_layers, check_same_layers
from trajstats.data.store._recovery import (
    check_next_steps,
    check_store,
    check_sync,
    check_vacant,
    clean,
    compact_records,
    layer_floors,
    put_journal_node,
    recover,
    refuse_changed,
    refuse_missing,
    state_of,
    stored_reference,
    stored_steps,
    to_scalars,
)
from trajstats.data.store._tiles import Tiles
from trajstats.data.store.files._lock import WriterLock
from trajstats.data.store.files._place import Place
from trajstats.data.store.journal._files import open_journal
from trajstats.data.store.journal._records import Record, check_records
from trajstats.errors import ArgumentError, StoreError, unknown_name_message


class TrajectoryWriter:
    """Record the weights of one run; opening an existing store continues it.

    A row counts from the moment :meth:`append` returns: it is in the journal with a checksum and, with the default
    ``sync="row"``, on the disk. Rows are gathered into tiles by a background thread and at the end; a run killed
    at any moment is continued by opening its path again.

    Parameters
    ----------
    path : path, URL, zarr store or repository
        Where to store the run: a local folder (the fast and durable case), a URL such as ``memory://run``, a zarr store
        object, or an icechunk repository, whose transactions are then the commits.
    layers : mapping name -> shape
        The weight tensors, in the order of the flat vector.
    replica : int
        Label of this run along `replica`.
    buffers : mapping name -> array, or name -> (shape, dtype), optional
        State that is not trained and is saved with every row in its own types: running statistics, counters, masks.
        Give it again to continue the run.
    attrs : mapping, optional
        What describes the run (task, optimiser settings); anything but text and numbers is saved as JSON.
    clocks : sequence of str
        Which of the scalars given to :meth:`append` are clocks, that is coordinates along `step`.
    dtype : str
        Stored type: ``"float32"``, ``"float64"`` or ``"float16"``. A bfloat16 source is stored exactly as float32.
    source_dtype : str, optional
        Type the weights were rounded to before they came here, if it is coarser than their own type; else taken from
        the first row. It sets the rounding floor saved with every row.
    sync : "row" or float
        Flush every row to the disk, or at most every so many seconds. Rows not flushed survive a killed process, not a
        power cut, and are not yet in :attr:`committed`.
    sketch : trajstats.data.sketch.Sketch, optional
        Keep random projections of w(t) - w(0) instead of the weights.
    expected_rows : int
        Rows the run may reach; decides only whether tiles are put in shards so that files stay below 1e5.
    take_over : bool
        Open although a writer on another host left its lock behind.

    Raises
    ------
    ArgumentError
        If an argument is not allowed, or the store at `path` holds other layers or buffers.
    SchemaError
        If the store at `path` has another schema version.
    StoreError
        If another writer has it open, its journal is damaged, or `path` holds something else.

    Notes
    -----
    An append costs one sequential write and one fsync of the row; memory is bounded by one column block (about 32 MiB),
    whatever the number of rows and weights. A buffer that is the same as in the row before is not written again. See
    the page *Store format* for the files.

    Examples
    --------
    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/run.zarr"
    >>> with TrajectoryWriter(path, {"w": (2, 2), "b": (2,)}, attrs={"optimiser": {"lr": 0.1}}) as run:
    ...     run.append(0, {"w": np.zeros((2, 2)), "b": np.ones(2)}, loss=2.3, epoch=0.0)
    ...     run.append(10, np.arange(6.0), loss=1.9, epoch=0.5)
    >>> with TrajectoryWriter(path, {"w": (2, 2), "b": (2,)}) as run:
    ...     run.committed
    [0, 10]
    """

    def __init__(
        self,
        path: Any,
        layers: Mapping[str, Sequence[int]],
        *,
        replica: int = 0,
        buffers: Mapping[str, Any] | None = None,
        attrs: Mapping[str, Any] | None = None,
        clocks: Sequence[str] = CLOCKS[1:],
        dtype: str = "float32",
        source_dtype: str | None = None,
        sync: str | float = "row",
        sketch: Any = None,
        expected_rows: int = EXPECTED_ROWS,
        take_over: bool = False,
    ) -> None:
        self.layers = check_layers(layers)
        self.path = path
        self._tensors = check_buffers(buffers, self.layers)
        self._sync = check_sync(sync)
        if np.dtype(dtype).name not in STORED_DTYPES:
            raise ArgumentError(
                unknown_name_message("stored type", dtype, STORED_DTYPES, do="bfloat16 is stored as float32.")
            )
        self._clocks = tuple(clocks)
        self._sketch = sketch
        self._stops = np.cumsum([math.prod(shape) for shape in self.layers.values()], dtype=np.int64)
        self.n_parameters = int(self._stops[-1])
        self._source_dtype = source_dtype
        self._closed = False
        self._stopped = threading.Event()
        place = Place(path, write=True)
        check_vacant(place)
        self._lock = WriterLock(place, take_over=take_over)
        try:
            self._open(place, replica, attrs or {}, dtype, expected_rows)
        except BaseException:
            self._lock.release()
            raise

    def _open(self, place: Place, replica: int, attrs: Mapping[str, Any], dtype: str, expected_rows: int) -> None:
        clean(place)
        if place.get("zarr.json") is not None:
            check_zarr(place)
        if state_of(place) in (None, CREATING):
            extra = {} if self._sketch is None else self._sketch.coordinates(self.layers)
            row = (self.n_parameters,) if self._sketch is None else self._sketch.shape(self.layers)
            kind = dtype if self._sketch is None else "float64"
            variable = WEIGHTS if self._sketch is None else "sketch"
            layout = plan_layout(variable, row, kind, expected_rows=expected_rows)
            more = {} if self._sketch is None else self._sketch.attrs()
            place.delete_under(variable) if state_of(place) == CREATING else None
            state: dict[str, Any] = {"buffers": self._tensors, "expected_rows": expected_rows}
            create_store(place, layout, self.layers, replica=replica, attrs={**attrs, **more}, extra=extra, **state)
        self._tiles = Tiles(place)
        self._place = place
        self._layout = self._tiles.layout
        known = check_store(self._tiles)
        refuse_changed(self._tiles)
        refuse_missing(self._tiles, int(known[COMMITTED]))
        group = place.group()
        assert group is not None
        check_same_layers(group, self.layers)
        check_stored_buffers(self._tiles, self._tensors)
        self._packer = BufferPacker(self._tensors, self._layout.rows)
        if (self._tiles.variable == "sketch") != (self._sketch is not None):
            msg = (
                f"{place} holds {self._tiles.variable}; open it {'with' if self._sketch is None else 'without'} sketch="
            )
            raise ArgumentError(msg)
        if self._sketch is not None:
            self._sketch.check_same(known)
            self._reference = stored_reference(place)
        self._source_dtype = known.get("source_dtype", self._source_dtype)
        self._tiled = int(known[COMMITTED])
        put_journal_node(place)
        self._journal = open_journal(place, self._layout.row_bytes, self._layout.rows, self._tiles.buffer_bytes)
        records = recover(self._journal, self._tiled, place)
        self._records: list[Record] = records
        self._pending = len(records)  # rows from here on wait for a flush: none yet
        self._journal.continue_after(records)
        self._tiles.mark(**{STATE: WRITING})
        check_records(records, len(self.layers), str(place))
        self._steps = [*stored_steps(self._tiles, self._tiled), *(record.step for record in records)]
        check_next_steps(self._steps, place)
        self._durable = len(self._steps)
        self._flushed_at = time.monotonic()
        self._worker: ThreadPoolExecutor | None = None
        self._jobs: list[Future[None]] = []
        self._queued = self._tiled
        rounding_floor(
            np.zeros(1, self._layout.dtype), np.array([1]), "float32"
        )  # compiled here, not in the first step
        self._compact_full_slabs()

    @property
    def committed(self) -> list[int]:
        """Optimiser steps of the rows that are safe on the disk."""
        return self._steps[: self._durable]

    @property
    def last_step(self) -> int | None:
        """The last step appended, or None: where to resume."""
        return self._steps[-1] if self._steps else None

    def append(self, step: int, weights: Any, *, buffers: Mapping[str, Any] | None = None, **series: float) -> None:
        """Add one row.

        Parameters
        ----------
        step : int
            Optimiser step, larger than the last one.
        weights : mapping name -> array, or array (parameter,)
            All layers by name with their shapes, or the flat vector. NumPy arrays, or anything `numpy.asarray` takes.
        buffers : mapping name -> array, optional
            All buffers that the run was opened with, and no other.
        **series : float
            Scalars of this step such as ``loss``; those named in `clocks` (``epoch``, ``proper_time``) become clocks.

        Raises
        ------
        ArgumentError
            If the step does not increase, a layer or buffer is missing, has another shape or cannot be stored exactly,
            or a scalar is not a number.
        StoreError
            If the row could not be written (nothing of it remains), or the writer is closed.
        """
        if self._closed:
            msg = f"this writer of {self._place} is closed; open the path again to continue"
            raise StoreError(msg)
        if not hasattr(step, "__index__"):
            msg = f"step={step!r:.60}: an optimiser step is an integer; other clocks are scalars such as epoch=0.5"
            raise ArgumentError(msg)
        if self._steps and step <= self._steps[-1]:
            msg = f"step {step} after step {self._steps[-1]}: steps must increase. Skip the steps in writer.committed."
            raise ArgumentError(msg)
        scalars = to_scalars(series)
        arrays = ordered_arrays(weights, self.layers)
        row = len(self._steps)
        state, held, marks = self._packer.pack(row, buffers)
        if self._source_dtype is None:
            given = list(weights.values()) if isinstance(weights, Mapping) else [weights]
            self._source_dtype = source_type([*given, np.empty(0, self._layout.dtype)])
            self._tiles.mark(source_dtype=self._source_dtype)
        metadata: dict[str, Any] = {"series": scalars, **held}
        if self._sketch is not None:
            payload = [self._sketch_row(arrays)]
            metadata["digest"] = layer_digests(arrays, self._stops)
        else:
            payload = [np.ascontiguousarray(a, dtype=self._layout.dtype) for a in arrays]
            metadata["floor"] = layer_floors(payload, self._stops, str(self._source_dtype)).tolist()
            metadata["digest"] = layer_digests(payload, self._stops)
        record = self._journal.append(row, int(step), metadata, [*payload, *state])
        self._packer.accept(marks)
        self._records.append(record)
        self._steps.append(int(step))
        if self._sync == 0 or time.monotonic() - self._flushed_at >= self._sync:
            self.flush()
        self._compact_full_slabs()

    def flush(self) -> None:
        """Make every row appended so far survive a power cut."""
        self._journal.make_durable()
        self._durable = len(self._steps)
        self._flushed_at = time.monotonic()

    def close(self) -> None:
        """Gather the remaining rows into tiles and finish the store: from here on it is plain zarr.

        Raises
        ------
        StoreError
            If the tiles could not be written; every row is then still safe in the journal.
        KeyboardInterrupt
            If Ctrl-C came; every row is safe in the journal too.
        """
        if self._closed:
            return
        finished = False
        try:
            self.flush()
            self._wait()
            rows = len(self._steps)
            if self._queued < rows:
                self._compact(self._queued, rows)
            self._journal.close()
            self._tiles.finish()
            finished = True
        except OSError as error:
            msg = (
                f"the rows of {self._place} were not gathered into tiles: {error}. All {self._durable} rows are safe"
                " in the journal: free some space and run trajstats.compact(path)."
            )
            raise StoreError(msg) from error
        except KeyboardInterrupt as stop:
            self._stop(stop)
            raise
        finally:
            self._closed = True
            self._journal.close()
            if self._worker is not None:
                self._worker.shutdown(wait=True)
            self._lock.release(remove_journal=finished)
        self._place.make_durable((), "finished")

    def __enter__(self) -> TrajectoryWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, Exception):
            self.close()
            return
        # Ctrl-C or an exit: leave at once. The rows stay in the journal, where they are safe.
        self._stop(error)
        try:
            self.flush()
        finally:
            self._closed = True
            if self._worker is not None:
                self._worker.shutdown(wait=True, cancel_futures=True)
            self._journal.close()
            self._lock.release()

    def _stop(self, error: BaseException) -> None:
        self._stopped.set()
        error.add_note(
            f"{len(self._steps)} rows are safe in {self._place}. To continue the run, open the path again and skip "
            "writer.committed; to finish it as it is, trajstats.compact(path)."
        )

    def _sketch_row(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        flat = np.concatenate([a.reshape(-1) for a in arrays])
        if self._reference is None:
            put_array(self._place, INITIAL, flat, (PARAMETER,), chunk=2**20)
            self._place.make_durable([f"{INITIAL}/zarr.json"], "initial weights")
            self._reference = flat
        return self._sketch.project(flat, self.layers, reference=self._reference).reshape(-1)

    def _compact_full_slabs(self) -> None:
        rows = len(self._steps) // self._layout.rows * self._layout.rows
        if self._queued >= rows or self._failed() is not None:
            return
        if self._durable < rows:
            self.flush()
        if self._place.local is None:  # no background writes beside those of the loop within one transaction
            self._compact(self._queued, rows)
        else:
            self._worker = self._worker or ThreadPoolExecutor(1, thread_name_prefix="trajstats-compact")
            self._jobs.append(self._worker.submit(self._compact, self._queued, rows))
        self._queued = rows

    def _failed(self) -> BaseException | None:
        done = [job for job in self._jobs if job.done()]
        error = next((job.exception() for job in done if job.exception() is not None), None)
        if error is not None and not getattr(self, "_told", False):
            self._told = True
            warnings.warn(
                f"{self._place}: rows could not be gathered into tiles ({error}); they are safe in the journal, and "
                "this is tried again when the writer is closed",
                stacklevel=4,
            )
        return error

    def _wait(self) -> None:
        if any(job.exception() is not None for job in self._jobs):  # waits for each
            self._queued = self._tiled
        self._jobs.clear()

    def _compact(self, first: int, stop: int) -> None:
        if first != self._tiled:  # an earlier slab failed: tiles are committed in order or not at all
            msg = f"rows {first} to {stop} wait for rows {self._tiled} to {first}"
            raise StoreError(msg)
        records = [record for record in self._records if first <= record.row < stop]
        compact_records(self._tiles, self._journal, records, self._clocks, self._stopped)
        self._tiled = stop
        self._records = [record for record in self._records if record.row >= stop]
        self._journal.drop(stop)
