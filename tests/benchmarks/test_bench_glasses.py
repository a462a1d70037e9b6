"""Cost of the reference glasses.

OMP_NUM_THREADS=1 python -m pytest tests/benchmarks/test_bench_glasses.py --benchmark-only
"""

import numpy as np
import pytest

from trajstats.theory.glasses import cugliandolo_kurchan, pspin_langevin


@pytest.mark.parametrize("t_max", [100.0, 1000.0])
def test_solver_p_3(benchmark, t_max):
    cugliandolo_kurchan(p=3, T=0.3, t_max=2.0)  # compiles
    glass = benchmark.pedantic(lambda: cugliandolo_kurchan(p=3, T=0.3, t_max=t_max), rounds=1, iterations=1)
    benchmark.extra_info["largest_C_error"] = glass.attrs["largest_C_error"]
    assert glass.attrs["largest_C_error"] < 1e-2


@pytest.mark.slow
def test_solver_reaches_1e4(benchmark):
    """The reach asked for: p = 3 to t = 1e4 within five minutes and 2 GiB."""
    import resource

    glass = benchmark.pedantic(lambda: cugliandolo_kurchan(p=3, T=0.3, t_max=1e4), rounds=1, iterations=1)
    benchmark.extra_info["largest_C_error"] = glass.attrs["largest_C_error"]
    benchmark.extra_info["peak_MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert benchmark.extra_info["peak_MiB"] < 2048


def test_sampler_p_3(benchmark):
    steps = np.array([0, 200])
    run = benchmark.pedantic(
        lambda: pspin_langevin(p=3, N=96, T=0.3, steps=steps, rng=0), rounds=2, iterations=1, warmup_rounds=1
    )
    assert run.sizes["parameter"] == 96
