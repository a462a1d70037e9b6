"""Checkpoints become the rows of a store: slab by slab of rows, block by block of columns."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from trajstats.data._buffer_tensors import BufferTensor, pack_buffer
from trajstats.data.ingest._continuity import out_of_line, repeated_tensors
from trajstats.data.ingest._plan import IngestPlan
from trajstats.data.ingest._series import Finding, Series
from trajstats.data.safety._budget import read_attribute
from trajstats.data.schema import WEIGHTS
from trajstats.data.store._layout import (
    COMMITTED,
    CREATING,
    DIGEST,
    EXPECTED_ROWS,
    Layout,
    array_of,
    create_store,
    plan_layout,
)
from trajstats.data.store._names import check_same_layers
from trajstats.data.store._tiles import Rows, Tiles
from trajstats.data.store.files._lock import WriterLock
from trajstats.data.store.files._place import Place
from trajstats.errors import NonFiniteError, SchemaError, StoreError


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

    @property
    def _rows(self) -> int:
        """Rows that the layout is planned for."""
        return max(EXPECTED_ROWS, len(self.series.steps))

    def run(self, replica: int, attrs: Mapping[str, Any]) -> None:
        """Write the store, or the rest of it."""
        from trajstats.data.store._recovery import check_store, check_vacant, clean, state_of

        check_vacant(self.place)
        lock = WriterLock(self.place)
        finished = False
        try:
            clean(self.place)
            mark = self._identity()
            if state_of(self.place) in (None, CREATING):
                layout = self._layout()
                more = {"ingest": mark, "source_dtype": self.series.source_dtype, "source": self._source()}
                create_store(
                    self.place,
                    layout,
                    self.series.layers,
                    replica=replica,
                    attrs={**attrs, **more},
                    extra={},
                    buffers=self.buffers,
                    expected_rows=self._rows,
                )
            tiles = Tiles(self.place)
            known = check_store(tiles)
            group = self.place.group()
            assert group is not None
            if known.get("ingest") != mark:
                msg = f"{self.place} exists and was not made from these checkpoints; choose another path or delete it"
                raise StoreError(msg)
            check_same_layers(group, self.series.layers)
            if "content_findings" in known:
                self.plan.findings += read_attribute(self.place, known, "content_findings", _findings_from_json)
            self._write(tiles, int(known[COMMITTED]))
            self._compare_along(group)
            findings = json.dumps([[f.kind, f.checkpoint, f.tensor, f.detail] for f in self.plan.findings])
            tiles.finish(findings=findings, content_findings=None)
            finished = True
        finally:
            lock.release(remove_journal=finished)

    def _layout(self) -> Layout:
        n = int(self.stops[-1])
        return plan_layout(WEIGHTS, (n,), self.series.dtype, expected_rows=self._rows)

    def _identity(self) -> str:
        what = [self.series.steps, self.plan.files, list(self.series.layers.items()), self.series.dtype]
        text = json.dumps([*what, list(self.series.buffers.items())] if self.series.buffers else what)
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
        buffers = (lambda start, end: self._buffers(first, stop, start, end)) if self.buffers else None
        tiles.write(rows, source, buffers=buffers, clocks=("epoch",), finish=lambda: self._report(bad))

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
        """Note weights that are not finite; the findings are saved with the rows for a resumed ingest."""
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
        if DIGEST not in group:
            return
        series = self.series
        digests = np.asarray(array_of(group, DIGEST)[...]).reshape(-1, len(series.layers))
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


def _findings_from_json(text: Any) -> list[Finding]:
    """Read findings that a store keeps, each a list of four texts; anything else is a ValueError."""
    entries = json.loads(text)
    if not isinstance(entries, list) or not all(
        isinstance(entry, list) and len(entry) == 4 and all(isinstance(part, str) for part in entry)
        for entry in entries
    ):
        msg = "findings are lists of four texts"
        raise ValueError(msg)
    return [Finding(*entry) for entry in entries]
