"""A child process that does what may crash: it answers requests under limits; its death is an error of the file."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from trajstats.errors import StoreError, UnsafeInputError, UnsupportedError

# Clock of the wall, for what neither uses CPU time nor ends: far more than a busy machine needs.
PATIENCE = 60.0


class Child:
    """A Python program in a process of its own, started when it is first needed and again after it died."""

    def __init__(self, script: Path, needs: str, pip: str) -> None:
        self._script, self._needs, self._pip = script, needs, pip
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def ask(self, request: dict[str, Any], content: bytes, where: str, seconds: float) -> tuple[dict[str, Any], bytes]:
        """Send a request and wait for the answer; `where` names the file it is about."""
        if importlib.util.find_spec(self._needs) is None:
            msg = f"reading {where} needs {self._needs}, which is not installed: pip install '{self._pip}'"
            raise UnsupportedError(msg)
        with self._lock:
            process = self._running()
            timer = threading.Timer(PATIENCE + 20 * seconds, process.kill)
            timer.daemon = True
            timer.start()
            try:
                answer = self._exchange(process, request | {"content": len(content), "seconds": seconds}, content)
            except BaseException:  # interrupted: its next answer would be that to an old request
                process.kill()
                self._end(process)
                raise
            finally:
                timer.cancel()
            if answer is None:
                raise UnsafeInputError(_obituary(self._end(process), where, self._needs, seconds))
            return answer

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        if self._process is not None:
            self._end(self._process)
        # The same packages as here; no plugins of HDF5; one arena of memory, so that its size can be limited.
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
            "HDF5_PLUGIN_PRELOAD": "::",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", str(self._script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
            start_new_session=True,  # an interrupt from the keyboard is handled here
        )
        self._process = process
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            self._end(process)
            msg = (
                f"the process that runs {self._needs} did not start; see what `{sys.executable} -c 'import "
                f"{self._needs}'` reports"
            )
            raise StoreError(msg)
        return process

    @staticmethod
    def _exchange(
        process: subprocess.Popen[bytes], request: dict[str, Any], content: bytes
    ) -> tuple[dict[str, Any], bytes] | None:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n" + content)
            process.stdin.flush()
        except OSError:
            return None
        lengths = process.stdout.read(16)
        if len(lengths) < 16:
            return None
        n_text, n_blob = struct.unpack("<QQ", lengths)
        text, blob = process.stdout.read(n_text), process.stdout.read(n_blob)
        return (json.loads(text), blob) if len(text) == n_text and len(blob) == n_blob else None

    def _end(self, process: subprocess.Popen[bytes]) -> int:
        self._process = None
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()  # it ends when its input does
        try:
            return process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def close(self) -> None:
        """End the process; the next request starts another."""
        with self._lock:
            if self._process is not None:
                self._end(self._process)

    def _forget(self) -> None:
        # After a fork the process belongs to the parent, and the lock may be held by a thread that is not here.
        self._lock = threading.Lock()
        process, self._process = self._process, None
        if process is not None:
            process.returncode = 0  # so that nothing here waits for it
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        os.close(pipe.fileno())


def _obituary(code: int, where: str, library: str, seconds: float) -> str:
    name = signal.Signals(-code).name if code < 0 and -code in set(signal.Signals) else f"exit code {code}"
    if name == "SIGPROF":
        return (
            f"{where} takes {library} more than {seconds:.1f} s of CPU time to open, more than a file of this size "
            "should. It is damaged or made to take time, and is not read"
        )
    return f"{where} ends the process in which {library} opens it ({name}). It is damaged or made to do harm"
