"""Checkpoints become the rows of a store: slab by slab of rows, block by block of columns."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from trajstats.data._buffer_tensors import BufferTensor, pack_buffer
from trajstats.data.formats._tensor import Checkpoint
from trajstats.data.ingest._adding import MADE_BY, Held, held_in
from trajstats.data.ingest._continuity import out_of_line, repeated_tensors
from trajstats.data.ingest._plan import IngestPlan
from trajstats.data.ingest._series import Finding, Series, coarsest
from trajstats.data.ingest.names._stages import STAGE
from trajstats.data.schema import WEIGHTS
from trajstats.data.store._guard import check_zarr
from trajstats.data.store._layout import (
    CREATING,
    DIGEST,
    EXPECTED_ROWS,
    FINISHED,
    STATE,
    WRITING,
    Layout,
    array_of,
    create_store,
    plan_layout,
)
from trajstats.data.store._recovery import check_vacant, clean, state_of
from trajstats.data.store._tiles import Rows, Tiles
from trajstats.data.store.files._lock import WriterLock
from trajstats.data.store.files._place import Place
from trajstats.errors import NonFiniteError, SchemaError, StoreError

CLOCKS = ("epoch", "proper_time", STAGE)


class Streaming:
    """One ingest on its way: slab by slab, block of columns by block of columns."""

    def __init__(
        self, series: Series, plan: IngestPlan, out: Any, memory: int, workers: int, on_finding: str, progress: bool
    ) -> None:
        self.series, self.plan = series, plan
        self.place = Place(out, write=True)
        self.memory, self.workers = memory, workers
        self.on_finding, self.progress = on_finding, progress
        self.stops = np.cumsum([math.prod(shape) for shape in series.layers.values()], dtype=np.int64)
        self.buffers = [BufferTensor(name, shape, kind) for name, (shape, kind) in series.buffers.items()]
        self.stopped = False
        self.held = Held()
        self.given = dict(zip(series.steps, series.checkpoints, strict=True))
        self.ahead = 0  # rows of the store before the first checkpoint of the series, less those of the series it holds

    @property
    def _rows(self) -> int:
        """Rows that the layout is planned for."""
        return max(EXPECTED_ROWS, len(self.series.steps))

    def run(self, replica: int, attrs: Mapping[str, Any]) -> None:
        """Write the store, the rest of it, or the rows that it lacks."""
        check_vacant(self.place)
        lock = WriterLock(self.place)
        try:
            clean(self.place)
            new = self.look_up(replica)
            if self.held.finished and not new:
                return
            if not self.held.steps:
                self._create(replica, attrs)
            tiles = Tiles(self.place)
            self.ahead = len(self.held.steps) + len(new) - len(self.series.steps)
            stages = {"stages": json.dumps(self.series.stages)} if self.series.stages else {}
            tiles.mark(**{STATE: WRITING}, **stages, source=self._source(tiles), source_dtype=self._source_dtype(tiles))
            self._write(tiles, len(self.held.steps), len(self.held.steps) + len(new))
            group = self.place.group()
            self._compare_along(group)
            findings = json.dumps([[f.kind, f.checkpoint, f.tensor, f.detail] for f in self.plan.findings])
            tiles.finish(findings=findings, content_findings=None)
        finally:
            lock.release(remove_journal=state_of(self.place) == FINISHED)

    def look_up(self, replica: int) -> list[int]:
        """Note in the plan which steps are new to the store, and give them; nothing is written."""
        if self.place.get("zarr.json") is not None:
            check_zarr(self.place)
        self.held = held_in(self.place, self.series, self.buffers, replica)
        self.plan.added = self.held.new(self.series.steps)
        self.plan.findings[:] = dict.fromkeys([*self.held.findings, *self.plan.findings])
        return self.plan.added

    def _create(self, replica: int, attrs: Mapping[str, Any]) -> None:
        if state_of(self.place) in (None, CREATING):
            more = {MADE_BY: "checkpoints", "source_dtype": self.series.source_dtype}
            create_store(
                self.place,
                self._layout(),
                self.series.layers,
                replica=replica,
                attrs={**attrs, **more},
                extra={},
                buffers=self.buffers,
                expected_rows=self._rows,
            )

    def _layout(self) -> Layout:
        n = int(self.stops[-1])
        return plan_layout(WEIGHTS, (n,), self.series.dtype, expected_rows=self._rows)

    def _source(self, tiles: Tiles) -> str:
        first, last = self.plan.files[0], self.plan.files[-1]
        if self.held.steps:
            first = str(tiles.attrs.get("source", first)).partition(" ... ")[0]
        return first if first == last else f"{first} ... {last}"

    def _source_dtype(self, tiles: Tiles) -> str:
        """Give the coarsest type among the sources of all rows."""
        kinds = {self.series.source_dtype, str(tiles.attrs.get("source_dtype", self.series.source_dtype))}
        return coarsest(kinds)

    def _write(self, tiles: Tiles, done: int, total: int) -> None:
        layout = tiles.layout
        bar = None
        if self.progress:
            from tqdm import tqdm

            size = layout.row_bytes
            bar = tqdm(total=total * size, initial=done * size, unit="B", unit_scale=True, desc="ingest")
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
                    self._fill(block[k, begin - start : cut - start], first + k - self.ahead, begin, cut, bad)

            try:
                list(pool.map(fill, range(stop - first)))
            except BaseException:
                self.stopped = True
                raise
            if bar is not None:
                bar.update(block.nbytes)
            return block

        low, high = first - self.ahead, stop - self.ahead
        scalars = self.series.rows[low:high] or [{} for _ in range(first, stop)]
        rows = Rows(first, self.series.steps[low:high], scalars)
        buffers = (lambda start, end: self._buffers(low, high, start, end)) if self.buffers else None
        tiles.write(rows, source, buffers=buffers, clocks=CLOCKS, finish=lambda: self._report(bad, low, high))

    def _buffers(self, first: int, stop: int, start: int, end: int) -> np.ndarray:
        """Read a range of the bytes of the buffers of some rows."""
        block = np.empty((stop - first, end - start), dtype=np.uint8)
        for k in range(first, stop):
            begin = 0
            for tensor in self.buffers:
                low, high = max(start, begin), min(end, begin + tensor.nbytes)
                if low < high:
                    item = tensor.stored.itemsize
                    one, last = (low - begin) // item, -(-(high - begin) // item)
                    values = self.series.checkpoints[k].buffers[tensor.name].read(one, last)
                    raw = pack_buffer(BufferTensor(tensor.name, (last - one,), tensor.dtype), values)
                    cut = low - begin - one * item
                    block[k - first, low - start : high - start] = raw[cut : cut + high - low]
                begin += tensor.nbytes
        return block

    def _fill(self, out: np.ndarray, k: int, start: int, stop: int, bad: dict[tuple[int, str], int]) -> None:
        checkpoint = self.series.checkpoints[k]
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
                    bad[k, name] = bad.get((k, name), 0) + int(values.size - np.count_nonzero(finite))
            begin = end

    def _report(self, bad: Mapping[tuple[int, str], int], low: int, high: int) -> dict[str, Any]:
        """Refuse rows whose files changed while they were read; note weights that are not finite with the rows."""
        for source in self.series.sources[low:high]:
            if changed := source.changed:
                msg = (
                    f"{changed} changed while it was read, and nothing of it was kept. Ingest again when it is whole, "
                    "or use follow= (--follow), which waits for that"
                )
                raise StoreError(msg)
        found = [
            Finding("not finite", self.series.checkpoints[k].path, name, f"{count} weights are NaN or infinite")
            for (k, name), count in sorted(bad.items())
        ]
        if found and self.on_finding == "raise":
            raise NonFiniteError("\n".join(str(finding) for finding in found))
        self.plan.findings += found
        content = [f for f in self.plan.findings if f.kind == "not finite"]
        return {"content_findings": json.dumps([[f.kind, f.checkpoint, f.tensor, f.detail] for f in content])}

    def _compare_along(self, group: Any) -> None:
        """Report tensors that equal those of another step, by the digests in the store."""
        if DIGEST not in group:
            return
        layers = self.series.layers
        digests = np.asarray(array_of(group, DIGEST)[...]).reshape(-1, len(layers))
        steps = [*self.held.steps, *self.plan.added]
        found = []
        for kind, k, other, names in repeated_tensors(digests, layers):
            shown = f"{', '.join(repr(name)[:120] for name in names[:3])}{', ...' if len(names) > 3 else ''}"
            detail = (
                f"{len(names)} of {len(layers)} tensors ({shown}) equal those of step {steps[other]}"
                f" ({self._path(steps[other])}), and the others do not"
            )
            if kind == "repeated":
                jumps = {i: max(out_of_line(self._around(i, steps), name) for name in names[:3]) for i in (k, other)}
                worst = max(jumps, key=lambda i: jumps[i])
                detail += "; in between they have other values. One of the two files may be of another step"
                if jumps[worst] > 1.5:
                    detail += f": at step {steps[worst]} they are out of line with the steps around it"
            found.append(Finding(kind, self._path(steps[k]), names[0] if len(names) == 1 else "", detail))
        if found and self.on_finding == "raise":
            raise SchemaError("\n".join(str(finding) for finding in found))
        self.plan.findings[:] = dict.fromkeys([*self.plan.findings, *found])

    def _path(self, step: int) -> str:
        return self.given[step].path if step in self.given else f"step {step} in the store"

    def _around(self, k: int, steps: list[int]) -> list[Checkpoint]:
        """List the checkpoint of a row and its neighbours; nothing where one of them was not given."""
        near = steps[k - 1 : k + 2] if k else []
        return [self.given[step] for step in near if step in self.given]
