"""The compiled sums over splines against SciPy's splines and dense linear algebra."""

import numpy as np
import pytest
from scipy.interpolate import BSpline

from trajstats.inference.aging.curves._spline import FreeCurve, spline_basis
from trajstats.inference.aging.curves._spline_kernels import spline_values

INTERVALS = 10


def scipy_basis(position):
    knots = np.arange(-3, INTERVALS + 4, dtype=float)
    return BSpline(knots, np.eye(INTERVALS + 3), 3, extrapolate=True)(position)


@pytest.fixture(scope="module")
def curve():
    rng = np.random.default_rng(0)
    wait, lag = (a.ravel() for a in np.meshgrid(np.geomspace(1, 100, 6), np.geomspace(0.1, 1000, 7)))
    mixing = rng.standard_normal((wait.size, 2 * wait.size))
    return FreeCurve(rng.standard_normal(wait.size), wait, lag, mixing @ mixing.T / wait.size)


@pytest.mark.parametrize("position", [np.linspace(0, INTERVALS, 101), np.array([-0.4, 10.7])])
def test_basis_is_that_of_scipy(position):
    np.testing.assert_allclose(spline_basis(position), scipy_basis(position), atol=1e-13)


def test_values_are_basis_times_coefficients():
    rng = np.random.default_rng(1)
    position, coefficients = rng.uniform(-0.5, 10.5, (4, 30)), rng.standard_normal((4, INTERVALS + 3))
    expected = np.stack([scipy_basis(p) @ c for p, c in zip(position, coefficients, strict=True)])
    np.testing.assert_allclose(spline_values(position, coefficients), expected, atol=1e-12)


def test_normal_equations_are_those_of_the_dense_problem(curve):
    mu = np.array([-0.2, 0.5, 1.0])
    gram, right, width = curve.normal_equations(mu)
    inverse = np.linalg.inv(curve.covariance)
    for k, x in enumerate(curve.variable(mu)):
        basis = scipy_basis((x - x.min()) / width[k])
        assert width[k] == pytest.approx(np.ptp(x) / INTERVALS)
        np.testing.assert_allclose(gram[k], basis.T @ inverse @ basis, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(right[k], basis.T @ inverse @ curve.log_msd, rtol=1e-10, atol=1e-12)


def test_marginal_is_the_integral_over_coefficients(curve):
    """Against the closed form of a Gaussian integral, by dense determinants; its constant drops out of differences."""
    mu, smooth = np.array([0.3, 0.8, 1.2]), np.array([-4.0, 0.0, 3.0])
    inverse, n, k = np.linalg.inv(curve.covariance), curve.log_msd.size, INTERVALS + 3
    expected = []
    for x, s in zip(curve.variable(mu), smooth, strict=True):
        width = np.ptp(x) / INTERVALS
        basis, strength = scipy_basis((x - x.min()) / width), np.exp(s) / width**3
        matrix = basis.T @ inverse @ basis + strength * curve.penalty
        right = basis.T @ inverse @ curve.log_msd
        misfit = curve.log_msd @ inverse @ curve.log_msd - right @ np.linalg.solve(matrix, right)
        log_det = np.linalg.slogdet(matrix)[1]
        expected.append(
            0.5 * (k - 2) * np.log(strength) - np.log(width) - 0.5 * log_det - 0.5 * (n - 2) * np.log(misfit)
        )
    found = curve.log_marginal(mu, smooth)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    grid = curve.log_marginal(mu, np.broadcast_to(smooth, (3, 3)))
    np.testing.assert_allclose(np.diagonal(grid), expected, atol=1e-9)


def test_beyond_the_data_a_curve_goes_on_with_the_slope_it_has_at_the_end(curve):
    rng = np.random.default_rng(2)
    mu, coefficients = np.array([0.4]), rng.standard_normal((1, INTERVALS + 3))
    low, high = (edge.item() for edge in curve.limits(mu))
    step = 1e-5 * (high - low)

    def at(x):
        # waiting time 1 and the lag that gives this x
        lag = np.expm1(np.log1p(0.6 * np.exp(x)) / 0.6)
        return curve.curve(mu, coefficients, np.array([1.0]), np.array([lag])).item()

    for end, outwards in ((low, -1), (high, 1)):
        inside = (at(end) - at(end - outwards * step)) / step
        outside = (at(end + outwards * 2.0) - at(end)) / 2.0
        assert outside == pytest.approx(inside, rel=1e-3, abs=1e-4)
