"""Cost of the training response: blocks of products against the whole matrix of gradients.

OMP_NUM_THREADS=1 python -m pytest tests/benchmarks/test_bench_response.py --benchmark-only
"""

import numpy as np
import pytest

from tests.reference.response_networks import TanhNet
from trajstats import training_response
from trajstats.data.schema import trajectory_dataset

NET = TanhNet(64, 128, 10)
RNG = np.random.default_rng(0)
RUN = trajectory_dataset(RNG.normal(size=(1, NET.n_parameters)) / 8, step=[0], layers=NET.layers)
X = RNG.normal(size=(40, 64))


@pytest.mark.parametrize("block_bytes", [2**20, 2**26])
def test_kernel_in_blocks(benchmark, block_bytes):
    found = benchmark.pedantic(
        lambda: training_response(NET, RUN, X, X, block_bytes=block_bytes), rounds=3, iterations=1
    )
    assert found.response.shape == (1, 1, 40, 40)


def test_whole_matrix_of_gradients(benchmark):
    weights = RUN.weights.values[0, 0]

    def whole():
        rows = [NET.output_vjp(weights, X, np.tile(unit, (40, 1))) for unit in np.eye(10)]
        return sum(r @ r.T for r in rows)

    expected = benchmark.pedantic(whole, rounds=3, iterations=1)
    np.testing.assert_allclose(training_response(NET, RUN, X, X).response.values[0, 0], expected, rtol=1e-9)
