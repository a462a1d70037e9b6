"""Fuzz the readers: damage valid inputs at random, read them in children, and report whatever is not a clear error.

    python tests/fuzz/run.py --cases 20000 --seed 1 [--target hdf5]

Reported are deaths, more than 2 s of CPU time or 200 MiB of memory, exceptions that are not a `TrajstatsError`,
messages that name no file or are over 1,000 characters long, anything written outside the folder of the case, and
numbers that changed although there is a checksum. One case can be repeated: `--target torch --case 17 --seed 1`.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import mutations
import targets
import torch_targets  # noqa: F401  adds to the targets

SECONDS = 2.0
MIB = 200.0
PATIENCE = 180.0  # wall clock of one case, on a busy machine
BATCH = 100


def usage(pid: int) -> tuple[float, float]:
    """CPU seconds used by a process so far, and its peak memory in MiB since it was last reset."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        peak = Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0]
    except (OSError, IndexError):
        return 0.0, 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), int(peak) / 1024


def reset(pid: int) -> None:
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def helper() -> int:
    """Process that parses HDF5, if there is one."""
    from trajstats.data.formats.hdf5._read import _child

    return _child._process.pid if _child._process is not None and _child._process.poll() is None else 0


def snapshot(folder: Path) -> list[Any]:
    found = []
    for root, _, files in os.walk(folder):
        for name in files:
            file = os.path.join(root, name)
            state = os.lstat(file)
            found.append((file, state.st_size, state.st_mtime_ns))
        found.append((root, 0, 0))
    return sorted(found)


@dataclass(frozen=True)
class Plan:
    """A target with its valid inputs, and what they hold."""

    target: targets.Target
    seeds: Path
    seed: int
    root: Path
    want: dict[str, str]


def one_case(plan: Plan, case: int, room: Path) -> dict[str, Any]:
    """Damage a seed and read it."""
    target, want = plan.target, plan.want
    rng = random.Random(f"{plan.seed} {target.name} {case}")
    chosen = rng.choice(sorted(plan.seeds.iterdir()))
    place, out, outside = room / "in", room / "out", room / "outside"
    for folder in (place, out, outside):
        folder.mkdir(parents=True)
    (outside / "file").write_bytes(bytes(100))
    path = place / chosen.name
    shutil.copytree(chosen, path, symlinks=True) if chosen.is_dir() else shutil.copy(chosen, path)
    how, resealed = mutations.mutate(rng, path, outside)
    before = snapshot(outside)
    pids = [os.getpid(), helper()]

    for pid in filter(None, pids):
        reset(pid)
    start = [usage(pid) if pid else (0.0, 0.0) for pid in pids]
    began = time.process_time()
    problem, detail, outcome = "", "", "accepted"
    try:
        found = target.read(path, out)
        if target.checksum and not resealed and targets.digest(found) != want[chosen.name]:
            problem, detail = "silent", "other numbers, without an error"
        del found
    except targets.ts.errors.TrajstatsError as error:
        outcome, text = "refused", str(error)
        if len(text) > 1000 or not text:
            problem, detail = "message", f"{len(text)} characters: {text[:200]}"
        elif isinstance(error, OSError | ValueError) and "in/" not in text and chosen.stem not in text:
            problem, detail = "message", f"names no file: {text[:300]}"
    except BaseException as error:
        outcome, problem = "raised", "raw"
        frames = traceback.extract_tb(error.__traceback__)
        mine = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames if "trajstats" in f.filename][-3:]
        detail = f"{type(error).__name__}: {str(error)[:200]} at {' < '.join(reversed(mine))} in {frames[-1].filename}"
    seconds = time.process_time() - began
    if pids[1] or helper():
        now = usage(pids[1] or helper())
        seconds += max(0.0, now[0] - start[1][0])
    used = usage(pids[0])[1] - start[0][1]
    if not problem and seconds > SECONDS:
        problem, detail = "time", f"{seconds:.1f} s of CPU time ({outcome})"
    if not problem and used > MIB:
        problem, detail = "memory", f"{used:.0f} MiB ({outcome})"
    if snapshot(outside) != before:
        problem, detail = "outside", "something was written outside the target"
    return {"case": case, "outcome": outcome, "problem": problem, "detail": detail, "how": how, "file": chosen.name}


def batch(plan: Plan, cases: list[int], pipe: int) -> None:
    """Run cases one after another in this process, and report each."""
    os.nice(5)
    gc.freeze()
    warnings.simplefilter("ignore")
    room = plan.root / f"case{os.getpid()}"
    # Once for nothing, so that imports and helpers are warm.
    with contextlib.suppress(Exception):
        (room / "warm").mkdir(parents=True)
        first = sorted(plan.seeds.iterdir())[0]
        copy = room / "warm" / first.name
        shutil.copytree(first, copy, symlinks=True) if first.is_dir() else shutil.copy(first, copy)
        plan.target.read(copy, room / "warm")
    for case in cases:
        os.write(pipe, json.dumps({"begin": case}).encode() + b"\n")
        shutil.rmtree(room, ignore_errors=True)
        found = one_case(plan, case, room)
        os.write(pipe, json.dumps(found).encode() + b"\n")
    shutil.rmtree(room, ignore_errors=True)


def run_batch(plan: Plan, cases: list[int]) -> list[dict[str, Any]]:
    """Fork a child for some cases; go on with another where one dies or hangs."""
    results: list[dict[str, Any]] = []
    todo = list(cases)
    while todo:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 0
            try:
                os.close(reading)
                devnull = os.open(os.devnull, os.O_WRONLY)
                os.dup2(devnull, 2)
                batch(plan, todo, writing)
                targets_close()
            except BaseException:
                code = 3
            finally:
                os._exit(code)
        os.close(writing)
        done, current, rest, hung = [], None, b"", False
        while True:
            ready, _, _ = select.select([reading], [], [], PATIENCE)
            if not ready:
                hung = True
                os.kill(pid, signal.SIGKILL)
                break
            data = os.read(reading, 2**16)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in map(json.loads, lines):
                if "begin" in line:
                    current = line["begin"]
                else:
                    done.append(line)
                    current = None
        os.close(reading)
        _, status = os.waitpid(pid, 0)
        results += done
        todo = todo[len(done) :]
        if todo:
            what = "hangs" if hung else f"the process ended with {status}"
            number = todo.pop(0) if current is not None or hung or not done else None
            if number is not None:
                dead = {"outcome": "died", "problem": "death", "detail": what, "how": "", "file": ""}
                results.append(dead | {"case": number})
    return results


def prepare(target: targets.Target, seeds: Path, root: Path) -> dict[str, str]:
    """Make the valid inputs, and read them."""
    target.make(seeds)
    want = {}
    for path in sorted(seeds.iterdir()):
        copy = root / "copy" / path.name
        copy.parent.mkdir(exist_ok=True)
        shutil.copytree(path, copy, symlinks=True) if path.is_dir() else shutil.copy(path, copy)
        want[path.name] = targets.digest(target.read(copy, root / "copy"))
        shutil.rmtree(root / "copy")
    targets_close()
    return want


def apart(function: Callable[[], dict[str, str]]) -> dict[str, str]:
    """Call a function in a forked child."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.write(writing, json.dumps(function()).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        text = stream.read()
    if os.waitpid(pid, 0)[1]:
        msg = "a valid input cannot be made or read; its error is above"
        raise RuntimeError(msg)
    found: dict[str, str] = json.loads(text)
    return found


def targets_close() -> None:
    from trajstats.data.formats.hdf5._read import _child

    _child.close()


def warm() -> None:
    """Load what the first case would load otherwise, without starting a thread."""
    import numpy as np

    from trajstats.data._rounding import rounding_floor

    rounding_floor(np.zeros(4, np.float32), np.array([4]), "float32")


def fuzz(
    names: list[str], cases: int, seed: int, *, only: int | None = None, show: bool = False
) -> tuple[Counter[str], list[dict[str, Any]]]:
    """Run this many cases, shared out among targets."""
    counts: Counter[str] = Counter()
    problems = []
    warm()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for k, name in enumerate(names):
            target = targets.TARGETS[name]
            seeds = root / f"seeds{k}"
            seeds.mkdir()
            # In a child: what is forked later must have no threads and no helper of its own.
            want = apart(partial(prepare, target, seeds, root))
            n = cases // len(names) + (k < cases % len(names))
            numbers = [only] if only is not None else list(range(n))
            plan, begin = Plan(target, seeds, seed, root, want), time.time()
            for first in range(0, len(numbers), BATCH):
                for result in run_batch(plan, numbers[first : first + BATCH]):
                    counts[result["outcome"]] += 1
                    if result["problem"]:
                        problems.append(result | {"target": name, "seed": seed})
                        if show:
                            print(json.dumps(problems[-1]), flush=True)
            if show:
                print(f"# {name}: {len(numbers)} cases, {time.time() - begin:.0f} s", flush=True)
    return counts, problems


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", choices=sorted(targets.TARGETS))
    parser.add_argument("--without", action="append", default=[], choices=sorted(targets.TARGETS))
    parser.add_argument("--case", type=int)
    given = parser.parse_args()
    names = [name for name in given.target or targets.TARGETS if name not in given.without]
    counts, problems = fuzz(names, given.cases, given.seed, only=given.case, show=True)
    print(dict(counts), f"{len(problems)} problems:", dict(Counter(p["problem"] for p in problems)))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
