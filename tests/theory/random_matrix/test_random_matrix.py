import numpy as np
import pytest
from scipy import integrate

from trajstats.errors import ArgumentError
from trajstats.theory.random_matrix._activations import ACTIVATIONS, Activation, stationary_second_moment, variance_map
from trajstats.theory.random_matrix.closed_forms import FussCatalan, MarchenkoPastur
from trajstats.theory.random_matrix.jacobian_law import JacobianLaw


def integrated(law, order):
    """Moments by the midpoint rule, from scratch; log x is quadratic in the variable where a square-root edge is."""
    low, high = law.edges
    mid = (np.arange(800) + 0.5) / 800
    if low > 0:
        width = np.log(high / low)
        t, rate = np.log(low) + width * np.sin(np.pi * mid / 2) ** 2, width * np.pi / 2 * np.sin(np.pi * mid)
    else:
        # below 1e-12 of the edge there is nothing that moments of order one could see
        width = np.log(1e12)
        t, rate = np.log(high) - width * mid**2, 2 * width * mid
    return np.mean(law.density(np.exp(t)) * np.exp((order + 1) * t) * rate)


def fuss_catalan_moment(s, k):
    from math import comb

    return comb((s + 1) * k, k) / (s * k + 1)


@pytest.mark.parametrize("order", [1, 2, 5, 10, 30])
def test_solver_is_fuss_catalan_for_a_linear_net(order):
    exact, law = FussCatalan(order), JacobianLaw(order, activation="linear")
    assert law.edges[1] == pytest.approx((order + 1) ** (order + 1) / order**order, rel=1e-10)
    x = np.concatenate([np.linspace(0.002, 0.999, 250) * exact.edges[1], np.geomspace(1e-6 ** (order + 1), 1.0, 250)])
    np.testing.assert_allclose(law.density(x), exact.density(x), rtol=1e-8)
    assert abs(law.mass - 1) < 1e-6
    np.testing.assert_allclose(law.moments(4), [fuss_catalan_moment(order, k) for k in range(1, 5)], rtol=1e-10)
    np.testing.assert_allclose([integrated(law, k) for k in (1, 2)], exact.moments(2), rtol=1e-4)


def test_fuss_catalan_edges_and_order_one_is_marchenko_pastur():
    assert [round(FussCatalan(s).edges[1], 3) for s in (1, 2, 5, 10)] == [4.0, 6.75, 14.930, 28.531]
    x = np.linspace(0.01, 3.99, 50)
    np.testing.assert_allclose(FussCatalan(1).density(x), MarchenkoPastur(1.0).density(x), rtol=1e-10)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0, 2.0, 10.0])
def test_marchenko_pastur_mass_moments_and_law_of_a_sample(ratio):
    law = MarchenkoPastur(ratio, variance=1.7)
    assert law.mass == pytest.approx(1.0, abs=1e-6)
    low, high = law.edges
    for k in (1, 2):
        value, _ = integrate.quad(lambda x, k=k: x**k * float(law.density(x)), low, high, limit=400)
        assert value == pytest.approx(law.moments(2)[k - 1], rel=1e-5)
    assert law.atom == pytest.approx(max(0.0, 1 - 1 / ratio))
    columns = 300
    rows = int(ratio * columns) if ratio <= 2 else 300
    columns = int(rows / ratio)
    w = np.random.default_rng(0).standard_normal((rows, columns)) * np.sqrt(1.7 / columns)
    eigenvalues = np.linalg.svd(w, compute_uv=False) ** 2
    own = np.arange(1, eigenvalues.size + 1) / eigenvalues.size
    inside = (law.cdf(np.sort(eigenvalues)) - law.atom) / (1 - law.atom)
    assert np.abs(inside - own).max() < 8 / min(rows, columns)


@pytest.mark.parametrize("widths", [(1.0, 0.5), (1.0, 2.0), (2.0, 1.0)])
def test_one_linear_layer_of_any_shape_is_marchenko_pastur(widths):
    law = JacobianLaw(widths=widths, activation="linear", sigma_w2=1.3)
    # the smaller Gram matrix: rows over columns below one, variance in its units
    small, big = min(widths), max(widths)
    exact = MarchenkoPastur(small / big, variance=1.3 * big / widths[0])
    np.testing.assert_allclose(law.edges, exact.edges, rtol=1e-9)
    x = np.linspace(*exact.edges, 52)[1:-1]
    np.testing.assert_allclose(law.density(x), exact.density(x), rtol=1e-7)


def test_known_stieltjes_value():
    law = JacobianLaw(1, activation="tanh", sigma_w2=1.5, sigma_b2=0.1)
    assert float(law.stieltjes(-1.0).real) == pytest.approx(0.75213, abs=5e-6)


def test_stieltjes_against_the_density():
    law = JacobianLaw(2, activation="tanh", sigma_w2=1.5, sigma_b2=0.1)
    z = 0.7 + 0.4j
    t = np.linspace(np.log(1e-24), np.log(law.edges[1]), 40_001)[1:-1]
    x = np.exp(t)
    assert abs(np.trapezoid(law.density(x) * x / (x - z), t) - complex(law.stieltjes(z))) < 1e-5
    assert complex(law.stieltjes(np.conj(z))) == pytest.approx(np.conj(complex(law.stieltjes(z))))


CASES = [
    {"depth": 1, "activation": "tanh", "sigma_w2": 1.5, "sigma_b2": 0.1},
    {"depth": 10, "activation": "tanh", "sigma_w2": 1.5, "sigma_b2": 0.1},
    {"depth": 5, "activation": "relu", "sigma_w2": 2.0},
    {"depth": 4, "activation": "hard_tanh", "sigma_w2": 1.1, "sigma_b2": 0.05},
    {"depth": 4, "activation": "hard_tanh", "sigma_w2": 1.1, "sigma_b2": 0.05, "weights": "orthogonal"},
    {"depth": 5, "activation": "gelu", "sigma_w2": 1.8, "sigma_b2": 0.1},
    {"depth": 3, "activation": "erf", "sigma_w2": [4.0, 1.0, 2.0], "sigma_b2": [0.0, 0.1, 2.0]},
    {"depth": 5, "activation": "tanh", "sigma_w2": 1.2, "weights": "orthogonal"},
    {"depth": 2, "activation": "relu", "sigma_w2": 2.0, "weights": "orthogonal"},
    {"widths": (1, 2, 0.5, 0.7), "activation": "tanh", "sigma_w2": [1.2, 2.0, 0.8], "sigma_b2": 0.01},
    {"widths": (0.4, 0.7, 0.9, 0.8), "activation": "linear", "sigma_w2": [1.2, 2.0, 0.8]},
    {"widths": (1, 2, 0.5, 0.7), "activation": "tanh", "sigma_w2": 1.2, "weights": "orthogonal"},
    {"depth": 30, "activation": "tanh", "sigma_w2": 2.5, "sigma_b2": 0.1, "input_second_moment": 3.0},
]


@pytest.mark.parametrize("case", CASES)
def test_mass_and_two_moments(case):
    # the moments come from a power series, the density from path tracking: neither knows of the other
    law = JacobianLaw(**case)
    assert abs(law.mass - 1) < 5e-3
    spike = law.spike or (0.0, 0.0)
    for k in (1, 2):
        found = integrated(law, k) + spike[1] * spike[0] ** k
        assert found == pytest.approx(law.moments(2)[k - 1], rel=5e-3)


@pytest.mark.parametrize("case", [c for c in CASES if "widths" not in c and c.get("weights") != "orthogonal"])
def test_published_moments_of_gaussian_nets(case):
    law = JacobianLaw(**case)
    slopes = [[law.activation.slope_moment(v, k) for k in (1, 2)] for v in law.variances]
    first = np.prod([s * mu[0] for s, mu in zip(law.sigma_w2, slopes, strict=True)])
    second = first**2 * (1 + sum(mu[1] / mu[0] ** 2 for mu in slopes))
    np.testing.assert_allclose(law.moments(2), [first, second], rtol=1e-9)


def test_orthogonal_linear_net_has_one_singular_value():
    law = JacobianLaw(7, activation="linear", weights="orthogonal", sigma_w2=1.1)
    assert law.edges[0] == law.edges[1] == pytest.approx(1.1**7)
    assert law.spike[1] == pytest.approx(1.0)
    np.testing.assert_allclose(law.cdf([1.9, 2.0]), [0, 1])
    np.testing.assert_allclose(law.quantile([0.1, 0.9]), 1.1**7)


def test_quantile_inverts_the_distribution_function():
    law = JacobianLaw(5, activation="tanh", sigma_w2=1.5, sigma_b2=0.1)
    p = np.array([0.01, 0.2, 0.5, 0.9, 0.999])
    np.testing.assert_allclose(law.cdf(law.quantile(p)), p, atol=1e-9)
    half = JacobianLaw(3, activation="relu", sigma_w2=2.0)
    assert half.atom == pytest.approx(0.5)
    assert half.quantile(0.4) == 0.0
    assert half.quantile(0.6) > 0.0


def test_layers_given_one_by_one_equal_the_common_value():
    one = JacobianLaw(4, activation="linear", sigma_w2=2.0)
    many = JacobianLaw(4, activation="linear", sigma_w2=[4.0, 1.0, 8.0, 0.5])
    x = np.geomspace(1e-6, 0.9 * one.edges[1], 40)
    np.testing.assert_allclose(one.density(x), many.density(x), rtol=1e-9)


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_slopes_are_derivatives(name):
    kind = ACTIVATIONS[name]
    h = np.array([-3.3, -1.7, -0.4, 0.3, 0.9, 2.2])
    difference = (kind.function(h + 1e-6) - kind.function(h - 1e-6)) / 2e-6
    np.testing.assert_allclose(kind.derivative(h), difference, rtol=1e-6, atol=1e-9)


def test_own_activation_and_gaussian_averages_against_quad():
    kind = Activation("cube", lambda h: h**3, lambda h: 3 * h**2)
    assert kind.second_moment(1.0) == pytest.approx(15.0)
    assert kind.slope_moment(1.0) == pytest.approx(27.0)
    value, _ = integrate.quad(lambda g: np.tanh(1.3 * g) ** 2 * np.exp(-(g**2) / 2) / np.sqrt(2 * np.pi), -10, 10)
    assert ACTIVATIONS["tanh"].second_moment(1.69) == pytest.approx(value, rel=1e-10)


def test_variance_map_keeps_its_stationary_value():
    q = stationary_second_moment(ACTIVATIONS["tanh"], 1.5, 0.1)
    v, after, chi = variance_map(3, activation="tanh", sigma_w2=1.5, sigma_b2=0.1, input_second_moment=q)
    np.testing.assert_allclose(after, q, rtol=1e-12)
    np.testing.assert_allclose(v, 1.5 * q + 0.1, rtol=1e-12)
    assert np.ptp(chi) < 1e-12


@pytest.mark.parametrize(
    "wrong",
    [
        {"depth": 0},
        {},
        {"depth": 2, "widths": (1, 1)},
        {"depth": 2, "sigma_w2": [1.0, 2.0, 3.0]},
        {"depth": 2, "sigma_w2": 0.0},
        {"depth": 2, "activation": "tahn"},
        {"depth": 2, "weights": "unitary"},
        {"widths": (1, -1)},
        {"depth": 1, "weights": "orthogonal"},
    ],
)
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(ArgumentError):
        JacobianLaw(**wrong)


def test_wrong_arguments_of_the_closed_laws():
    with pytest.raises(ArgumentError):
        MarchenkoPastur(-1.0)
    with pytest.raises(ArgumentError):
        FussCatalan(0)
    with pytest.raises(ArgumentError, match="probabilities"):
        FussCatalan(2).quantile(1.5)
