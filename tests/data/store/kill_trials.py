"""Kill a recording run at random moments, twice in a row, and count what is lost: nothing may be.

As a command, the long version: ``python tests/data/store/kill_trials.py 200``.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import trajstats as ts
from trajstats.data._buffers import buffers_at
from trajstats.data._digests import tensor_digest
from trajstats.data.store.maintenance import compact
from trajstats.data.store.verification import verify

LAYERS = {"dense.weight": (150, 130), "dense.bias": (500,)}
N = 20_000


def row(step: int) -> np.ndarray:
    return np.random.default_rng(step).standard_normal(N).astype(np.float32)


def state(step: int) -> dict[str, Any]:
    """Buffers: one that changes at every step, one now and then, one never."""
    return {
        "bn.running_mean": np.random.default_rng(10**6 + step).standard_normal(60).astype(np.float32),
        "bn.num_batches_tracked": np.int64(step),
        "seldom": np.full((3, 4), step // 7, dtype=np.float16),
        "mask": np.tril(np.ones((40, 40), dtype=bool)),
    }


def record(path: str, conn: Any, calls: int | None) -> None:
    """Append rows until killed; `calls` kills at the n-th rename, fsync or write, in the middle of it."""
    if calls is not None:
        _kill_at(calls)
    with contextlib.suppress(Exception):
        writer = ts.TrajectoryWriter(path, LAYERS, buffers=state(0))
        step = len(writer.committed)
        conn.send(("open", writer.committed))
        while True:
            writer.append(step, row(step), buffers=state(step), loss=float(step), epoch=step / 4)
            conn.send(("row", step))
            step += 1
            if step % 150 == 0:  # now and then a close, so that its compaction is killed too
                writer.close()
                writer = ts.TrajectoryWriter(path, LAYERS, buffers=state(0))


def _kill_at(calls: int) -> None:
    left = [calls]

    def counted(function: Any, partial: bool = False) -> Any:
        def call(*args: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                if partial:  # a record of which only a part reaches the file
                    whole = b"".join(bytes(part) for part in args[1])
                    os.write(args[0], whole[: len(whole) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args)

        return call

    os.fsync, os.fdatasync = counted(os.fsync), counted(os.fdatasync)
    os.replace, os.writev = counted(os.replace), counted(os.writev, partial=True)
    os.rename = counted(os.rename)
    Path.replace = counted(Path.replace)  # type: ignore[method-assign]
    Path.unlink = counted(Path.unlink)  # type: ignore[method-assign]


def trial(folder: str, rng: np.random.Generator) -> dict[str, int]:
    """Two kills in a row of one run, then a whole finish; raises AssertionError at the first thing lost."""
    path = f"{folder}/run.zarr"
    shutil.rmtree(path, ignore_errors=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trajstats.data.store.writer", "trajstats.data.store.open", "kill_trials"])
    acknowledged = -1
    for _ in range(2):
        ours, theirs = context.Pipe(duplex=False)
        calls = int(rng.integers(1, 600)) if rng.random() < 0.5 else None
        child = context.Process(target=record, args=(path, theirs, calls), daemon=True)
        child.start()
        theirs.close()
        acknowledged = _listen(ours, child, None if calls is not None else float(rng.uniform(0.0, 1.0)), acknowledged)
        child.kill()
        child.join()
        acknowledged = _drain(ours, acknowledged)
        _check(path, acknowledged)
    return {"rows": _finish(path), "acknowledged": acknowledged + 1}


def _listen(conn: Any, child: Any, seconds: float | None, acknowledged: int) -> int:
    """Listen until the child killed itself, or for so many seconds after it opened the store."""
    limit = time.monotonic() + 30.0
    while child.is_alive() and time.monotonic() < limit:
        if conn.poll(0.01):
            try:
                acknowledged = _take(conn, acknowledged)
            except EOFError:
                break
            if seconds is not None:
                limit, seconds = time.monotonic() + seconds, None
    return acknowledged


def _drain(conn: Any, acknowledged: int) -> int:
    with contextlib.suppress(EOFError, OSError):
        while conn.poll(0):
            acknowledged = _take(conn, acknowledged)
    return acknowledged


def _take(conn: Any, acknowledged: int) -> int:
    kind, what = conn.recv()
    if kind == "open":
        assert what == list(range(len(what))), "resumed with a gap"
        assert len(what) - 1 >= acknowledged, f"resumed at {len(what)} after row {acknowledged} was acknowledged"
        return max(acknowledged, len(what) - 1)
    assert what == acknowledged + 1, f"row {what} acknowledged after row {acknowledged}"
    return what


def _check(path: str, acknowledged: int) -> None:
    try:
        run = ts.open_trajectory(path)
    except ts.StoreError:
        assert acknowledged < 0, "rows were acknowledged and the store does not open"
        return
    shown = run.sizes["step"]
    # One row may be whole on the disk without its caller having heard of it.
    assert acknowledged + 1 <= shown <= acknowledged + 2, f"{shown} rows shown, {acknowledged + 1} acknowledged"
    _check_rows(run, shown)
    _check_buffers(run, shown)


def _check_rows(run: xr.Dataset, shown: int) -> None:
    np.testing.assert_array_equal(run.step.values, np.arange(shown))
    if shown:
        np.testing.assert_array_equal(run.loss.values[0], np.arange(shown, dtype=float))
        np.testing.assert_array_equal(run.epoch.values, np.arange(shown) / 4)
        np.testing.assert_array_equal(run.weights.values[0], np.stack([row(step) for step in range(shown)]))
        ends = np.cumsum([150 * 130])
        digests = [[tensor_digest(part) for part in np.split(row(step), ends)] for step in range(shown)]
        np.testing.assert_array_equal(run.digest.values[0], np.array(digests, dtype=np.uint64))


def _check_buffers(run: xr.Dataset, shown: int) -> None:
    for step in range(shown):
        found = buffers_at(run, 0, step)
        for name, values in state(step).items():
            np.testing.assert_array_equal(found[name], values, err_msg=f"{name} of step {step}")


def _finish(path: str) -> int:
    with contextlib.suppress(ts.StoreError):
        compact(path)
    if not Path(path, "weights").exists():
        return 0
    with ts.TrajectoryWriter(path, LAYERS, buffers=state(0)) as writer:
        rows = len(writer.committed)
    _check_buffers(ts.open_trajectory(path), rows)
    if rows:
        with xr.open_zarr(path, consolidated=False) as plain:
            _check_rows(plain, rows)
    report = verify(path)
    assert report.ok, str(report)
    return rows


def main(n_kills: int) -> None:
    rng = np.random.default_rng()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for k in range(-(-n_kills // 2)):
            rows.append(trial(folder, rng)["rows"])
            print(f"\r{2 * k + 2} kills, {sum(rows)} rows kept", end="", flush=True)
    print(f"\n{2 * len(rows)} kills: every acknowledged row bit-exact, none lost, none made up; {sum(rows)} rows")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
