import warnings

import numpy as np
import pytest
from reference.numpy_mlp import NumpyMLP, draw

from trajstats import compare_to_theory, jacobian_esd, trajectory_dataset
from trajstats.errors import ArgumentError, NonFiniteError, SchemaError, UnsupportedError
from trajstats.estimators.jacobian._kernels import (
    factor_operator,
    graded_log_singular_values,
    jacobian_product,
    plain_log_singular_values,
)
from trajstats.theory.random_matrix.closed_forms import FussCatalan
from trajstats.theory.random_matrix.jacobian_law import JacobianLaw


def orthogonal(n, rng):
    return np.linalg.qr(rng.standard_normal((n, n)))[0]


def run_of(net, weights, step=(0,)):
    weights = np.asarray(weights)
    return trajectory_dataset(weights if weights.ndim > 1 else weights[None], step=list(step), layers=net.layers)


@pytest.mark.parametrize("depth", [1, 3, 20, 60])
def test_graded_values_of_a_product_with_known_ones(depth):
    # W_l = U_l S U_(l-1)^T: the product's singular values are S^depth exactly, down to 1e-180
    rng = np.random.default_rng(0)
    s = np.logspace(0, -3, 40)
    bases = [orthogonal(40, rng) for _ in range(depth + 1)]
    factors = [(np.ones((1, 40)), bases[i + 1] @ np.diag(s) @ bases[i].T) for i in range(depth)]
    logs, resolved = graded_log_singular_values(factors, 0)
    assert resolved.all()
    np.testing.assert_allclose(logs, depth * np.log(s), atol=1e-11 * depth)


def test_graded_agrees_with_plain_where_plain_can_see():
    rng = np.random.default_rng(1)
    factors = [(rng.random((1, 30)), rng.standard_normal((30, 30))) for _ in range(12)]
    graded, good = graded_log_singular_values(factors, 0)
    plain, seen = plain_log_singular_values(jacobian_product(factors, slice(None)), 2e-16)
    assert good.all()
    assert 5 < seen.sum() < 30
    far = plain[0] > plain[0, 0] - 18
    np.testing.assert_allclose(graded[far], plain[0, far], atol=1e-5)
    assert (graded[~seen[0]] < plain[0][~seen[0]]).all()


def test_dead_units_are_unresolved_and_counted_exactly():
    rng = np.random.default_rng(2)
    slopes = [(rng.random((1, 50)) > 0.4).astype(float) for _ in range(4)]
    factors = [(d, rng.standard_normal((50, 50))) for d in slopes]
    logs, resolved = graded_log_singular_values(factors, 0)
    assert resolved.sum() == min(d.sum() for d in slopes)
    assert np.isfinite(logs).all()
    values = np.linalg.svd(jacobian_product(factors, slice(None))[0], compute_uv=False)
    np.testing.assert_allclose(logs[resolved], np.log(values[: resolved.sum()]), atol=1e-9)
    # the bound of those below is one: nothing above it was lost
    assert (values[resolved.sum() :] < np.exp(logs[~resolved].max())).all()


def test_a_zero_jacobian_is_bounded_not_minus_infinity():
    logs, resolved = plain_log_singular_values(np.zeros((1, 3, 3)), 2e-16)
    assert np.isfinite(logs).all()
    assert not resolved.any()


@pytest.mark.parametrize("sizes", [(6, 6), (8, 5, 7), (4, 9, 9, 4)])
def test_factors_autodiff_and_a_naive_product_agree(sizes):
    net, x = NumpyMLP(sizes), np.random.default_rng(0).standard_normal((3, sizes[0]))
    weights = draw(sizes, scale=1.2, bias=0.3)
    run = run_of(net, weights)
    naive = []
    for point in x:
        jacobian, h = np.eye(sizes[0]), point
        for matrix, bias in net.pairs(weights):
            field = matrix @ h + bias
            jacobian, h = np.diag(1 - np.tanh(field) ** 2) @ matrix @ jacobian, np.tanh(field)
        naive.append(np.linalg.svd(jacobian, compute_uv=False))
    for method, tolerance in (("product", 1e-9), ("graded", 1e-9), ("auto", 1e-9), ("autodiff", 1e-5)):
        esd = jacobian_esd(net, run, x, rng=0, method=method)
        # a bottleneck leaves as many values as it is wide
        rank = min(sizes)
        np.testing.assert_allclose(
            esd.log_singular_values.values[0, 0][:, :rank], np.log(np.array(naive)[:, :rank]), atol=tolerance
        )
        assert (esd.resolved.values.sum(axis=-1) == rank).all() or method == "autodiff"
        assert esd.density.dtype == np.float64


def test_eigenvalues_and_spectral_radius_of_square_jacobians():
    net = NumpyMLP((5, 5), "linear")
    weights = draw((5, 5), scale=1.0)
    esd = jacobian_esd(net, run_of(net, weights), np.zeros((2, 5)), rng=0, eigenvalues=True)
    expected = np.linalg.eigvals(weights[:25].reshape(5, 5))
    assert esd.spectral_radius.values[0, 0, 0] == pytest.approx(np.abs(expected).max())
    found = esd.eigenvalue_real.values[0, 0, 0] + 1j * esd.eigenvalue_imag.values[0, 0, 0]
    np.testing.assert_allclose(np.sort_complex(found), np.sort_complex(expected), atol=1e-12)


def test_layer_to_layer_jacobian():
    net, sizes = NumpyMLP((6, 8, 5, 4)), (6, 8, 5, 4)
    weights = draw(sizes)
    x = np.random.default_rng(0).standard_normal((1, 6))
    esd = jacobian_esd(net, run_of(net, weights), x, rng=0, layers=(1, 3))
    (d1, w1), (d2, w2) = net.jacobian_factors(weights, x)[1:]
    expected = np.linalg.svd(np.diag(d2[0]) @ w2 @ np.diag(d1[0]) @ w1, compute_uv=False)
    np.testing.assert_allclose(np.exp(esd.log_singular_values.values[0, 0, 0]), expected)
    with pytest.raises(ArgumentError, match="0 <= a < b"):
        jacobian_esd(net, run_of(net, weights), x, rng=0, layers=(2, 2))


def test_density_has_the_resolved_mass_and_the_band_holds_the_mean():
    net = NumpyMLP((20, 20, 20))
    weights = np.stack([[draw((20, 20, 20), seed=s)] for s in range(3)])
    esd = jacobian_esd(net, run_of(net, weights), np.random.default_rng(0).standard_normal((5, 20)), rng=0)
    width = esd.bin_high - esd.bin_low
    assert float((esd.density * width).sum()) == pytest.approx(1.0)
    assert float((esd.density_high * width).sum()) > 1 > float((esd.density_low * width).sum())
    assert esd.log_singular_values.dims == ("replica", "step", "input", "value")


def test_chunks_do_not_change_numbers():
    net = NumpyMLP((12, 12, 12))
    run, x = run_of(net, draw((12, 12, 12))), np.random.default_rng(0).standard_normal((7, 12))
    whole = jacobian_esd(net, run, x, rng=0)
    pieces = jacobian_esd(net, run, x, rng=0, memory=1)
    np.testing.assert_array_equal(whole.log_singular_values, pieces.log_singular_values)


def test_lanczos_is_the_exact_quadrature_at_full_order_and_sums_to_the_moments():
    net = NumpyMLP((15, 12, 10))
    weights = draw((15, 12, 10))
    run, x = run_of(net, weights), np.random.default_rng(0).standard_normal((2, 15))
    dense = jacobian_esd(net, run, x, rng=0)
    esd = jacobian_esd(net, run, x, rng=0, method="lanczos", order=10, probes=3)
    # a full Krylov space has every eigenvalue as a node, whatever the probe
    exact = np.exp(2 * dense.log_singular_values.values[0, 0, 0])[::-1]
    np.testing.assert_allclose(esd.nodes.values[0, 0, 0, 0], exact, rtol=1e-6, atol=1e-10)
    np.testing.assert_allclose(esd.weights.values.sum(axis=-1), 1.0)
    again = jacobian_esd(net, run, x, rng=0, method="lanczos", order=10, probes=3)
    np.testing.assert_array_equal(esd.nodes, again.nodes)


def test_operator_is_its_own_transpose():
    rng = np.random.default_rng(0)
    factors = [(rng.random((1, 5)), rng.standard_normal((5, 4))), (rng.random((1, 3)), rng.standard_normal((3, 5)))]
    operator, matrix = factor_operator(factors, 0), jacobian_product(factors, slice(None))[0]
    np.testing.assert_allclose(operator @ np.eye(4), matrix)
    np.testing.assert_allclose(operator.H @ np.eye(3), matrix.T)
    np.testing.assert_allclose(operator.matvec(np.arange(4.0)), matrix @ np.arange(4.0))


def test_bad_input_is_named():
    net = NumpyMLP((4, 4))
    run = run_of(net, draw((4, 4)))
    x = np.zeros((1, 4))
    with pytest.raises(ArgumentError, match="inputs have shape"):
        jacobian_esd(net, run, np.zeros((1, 3)), rng=0)
    with pytest.raises(NonFiniteError, match="inputs"):
        jacobian_esd(net, run, np.full((1, 4), np.nan), rng=0)
    with pytest.raises(ArgumentError, match="unknown method"):
        jacobian_esd(net, run, x, rng=0, method="svd")
    with pytest.raises(ArgumentError, match="nearest"):
        jacobian_esd(net, run, x, steps=[5], rng=0)
    with pytest.raises(SchemaError, match="weights"):
        jacobian_esd(NumpyMLP((4, 5)), run, x, rng=0)
    with pytest.raises(NonFiniteError, match="NaN"):
        jacobian_esd(net, run_of(net, np.full(20, np.nan)), x, rng=0)


def test_comparison_passes_its_own_ensemble_and_rejects_another():
    sizes = (150,) * 4
    net = NumpyMLP(sizes)
    x = np.random.default_rng(5).standard_normal((2, 150))
    x *= np.sqrt(150) / np.linalg.norm(x, axis=1, keepdims=True)
    esd = jacobian_esd(net, run_of(net, draw(sizes, scale=np.sqrt(1.5), bias=np.sqrt(0.1), seed=3)), x, rng=0)
    law = JacobianLaw(3, activation="tanh", sigma_w2=1.5, sigma_b2=0.1)
    right = compare_to_theory(esd, law, simulations=19, rng=0)
    assert (right.ks < 0.05).all()
    assert (right.ks_p_value > 0.05).any()
    assert np.abs(right.moment_ratio.sel(order=1) - 1).max() < 0.2
    assert right.attrs["applies"] == 1
    wrong = compare_to_theory(esd, JacobianLaw(3, activation="tanh", sigma_w2=2.5), simulations=19, rng=0)
    assert (wrong.ks_p_value == 1 / 20).all()
    with pytest.raises(ArgumentError, match="depth"):
        compare_to_theory(esd, FussCatalan(2), rng=0)


def test_theory_is_refused_for_weights_without_fourth_moment():
    sizes = (60, 60, 60)
    net = NumpyMLP(sizes)
    esd = jacobian_esd(net, run_of(net, draw(sizes, law="cauchy")), np.ones((1, 60)), rng=0)
    law = JacobianLaw(2, activation="tanh")
    with pytest.raises(UnsupportedError, match="fourth moment"):
        compare_to_theory(esd, law, rng=0)
    forced = compare_to_theory(esd, law, rng=0, force=True, simulations=2)
    assert forced.attrs["applies"] == 0
    assert "tail index" in forced.attrs["reason"]


def test_large_saturated_fields_raise_no_warning():
    net = NumpyMLP((30, 30))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        esd = jacobian_esd(net, run_of(net, 1e4 * draw((30, 30))), np.ones((1, 30)), rng=0)
    assert np.isfinite(esd.log_singular_values).all()
