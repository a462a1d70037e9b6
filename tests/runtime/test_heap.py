"""Freed memory is reused while a task runs where dask's setting would map every array again."""

import os
import platform
import subprocess
import sys

import numpy as np
import pytest

COUNT = """
import resource
import numpy as np
from trajstats.runtime._memory import memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        np.ones(200_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
with memory_kept():
    faults()
    with memory_kept():
        print(faults())
    print(faults())
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_pages_are_reused_within_and_given_back_after():
    told = os.environ | {"MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", COUNT], env=told, capture_output=True, text=True, check=True)
    before, nested, within, after = map(int, done.stdout.split())
    each_time = 50 * 200_000 * 8 // (4 * 2**10)
    assert before > 0.9 * each_time
    assert after > 0.9 * each_time
    assert nested < 0.1 * each_time
    assert within < 0.1 * each_time


def test_without_the_setting_nothing_is_touched(monkeypatch):
    from trajstats.runtime import _memory as heap

    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    monkeypatch.setattr(heap, "_mallopt", lambda: pytest.fail("the allocator was touched"))
    with heap.memory_kept():
        pass


def test_an_array_serves_again_only_where_nobody_holds_it_and_not_after_the_block():
    from trajstats.runtime._memory import array_kept, large_array

    with array_kept():
        first = large_array((10, 10), np.float32)
        first[:] = 1
        held = first[3]
        del first
        other = large_array((5,), np.float64)
        other[:] = 2
        assert (held == 1).all()
        place = held.base.ctypes.data
        del held
        with array_kept():
            assert large_array((50,), np.float64).ctypes.data == place
        assert large_array((4,), np.int8).ctypes.data == place
        # none is there at the same time as a larger one that takes its place
        assert large_array((1_000,), np.float64).nbytes == 8_000
        last = large_array((1_000,), np.float64)
    assert large_array((1_000,), np.float64).ctypes.data != last.ctypes.data
