"""Time of the law's solver, of products and of graded singular values: `pytest --benchmark-only` on this file."""

import numpy as np
import pytest

from trajstats import JacobianLaw, RandomNet
from trajstats.estimators.jacobian._kernels import graded_log_singular_values, jacobian_product


@pytest.mark.parametrize("depth", [1, 10, 30])
def test_500_points_of_the_law(benchmark, depth):
    x = np.geomspace(1e-6, 1.0, 500)

    def solve():
        law = JacobianLaw(depth, activation="tanh", sigma_w2=2.5, sigma_b2=0.1, input_second_moment=3.0)
        return law.density(x)

    solve()
    benchmark(solve)
    benchmark.extra_info["target"] = "at most 3 s"


def test_product_of_ten_factors_of_784(benchmark):
    factors = RandomNet((784,) * 11, seed=0).factors(np.zeros((1, 784)))
    benchmark(jacobian_product, factors, slice(None))


def test_graded_singular_values_of_200(benchmark):
    factors = RandomNet((200,) * 11, seed=0).factors(np.zeros((1, 200)))
    benchmark(graded_log_singular_values, factors, 0)
