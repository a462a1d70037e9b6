"""The spectral kernels against exact spectra."""

import numpy as np
import pytest

from trajstats.estimators.linalg import _lanczos as kernels


def rotated(eigenvalues, seed=0, dtype=np.float64):
    """A symmetric matrix with the given eigenvalues, and its eigenvectors as columns."""
    n = len(eigenvalues)
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    return ((q * eigenvalues) @ q.T).astype(dtype), q


def probes(k, n, dtype=np.float64, seed=1):
    return kernels.unit_probes(np.random.SeedSequence(seed).spawn(k), n, np.dtype(dtype))


def run(matrix, order, k=3, **options):
    return kernels.lanczos(lambda rows: rows @ matrix, probes(k, len(matrix), matrix.dtype), order, **options)


@pytest.mark.parametrize("m", [1, 2, 5, 12])
def test_gauss_rule_is_exact_for_moments_up_to_2m_minus_1(m):
    eigenvalues = np.random.default_rng(2).uniform(-1, 1, 60)
    matrix, q = rotated(eigenvalues)
    found = run(matrix, m)
    for i, probe in enumerate(probes(3, 60)):
        nodes, weights, _ = kernels.gauss_rule(found, i)
        measure = (q.T @ probe) ** 2
        for degree in range(2 * m):
            np.testing.assert_allclose(weights @ nodes**degree, measure @ eigenvalues**degree, atol=1e-13)
        # The next moment is not reproduced: the test can fail.
        assert abs(weights @ nodes ** (2 * m) - measure @ eigenvalues ** (2 * m)) > 1e-9 * 2.0 ** (-4 * m)


@pytest.mark.parametrize("distinct", [1, 2, 3, 7])
def test_terminates_on_few_distinct_eigenvalues(distinct):
    values = np.linspace(-1, 2, distinct)
    matrix, q = rotated(np.repeat(values, 12))
    found = run(matrix, 40)
    if distinct <= 3:
        assert (found.length == distinct).all()
    # Beyond a few levels rounding, amplified by 1 / beta at each step, lets a run go on within the same eigenspaces:
    # nodes may repeat, the weight of each level may not change.
    for i, probe in enumerate(probes(3, len(matrix))):
        nodes, weights, _ = kernels.gauss_rule(found, i)
        measure = ((q.T @ probe) ** 2).reshape(distinct, 12).sum(axis=1)
        near = np.abs(nodes[:, None] - values) < 1e-10
        np.testing.assert_allclose(weights @ near, measure, atol=1e-12)


OPERATORS = {
    "zero": np.zeros(200),
    "identity": np.ones(200),
    "rank 5": np.append(np.zeros(195), [1.0, 2.0, 3.0, 4.0, 5.0]),
    "two levels": np.repeat([-1.0, 3.0], 100),
    "scaled": 1e-14 * np.linspace(-1, 2, 200),
    "indefinite": np.linspace(-3, 2, 200),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPERATORS)
def test_hard_operators_give_finite_nodes_mass_one_and_no_ghosts(name, dtype):
    eigenvalues = OPERATORS[name]
    matrix, q = rotated(eigenvalues, dtype=dtype)
    found = run(matrix, 40)
    norm = np.abs(eigenvalues).max()
    slack = 200 * np.finfo(dtype).eps * norm
    for i, probe in enumerate(probes(3, 200)):
        nodes, weights, residuals = kernels.gauss_rule(found, i)
        assert np.isfinite(nodes).all()
        assert np.isfinite(residuals).all()
        np.testing.assert_allclose(weights.sum(), 1, atol=1e-12)
        assert nodes.min() >= eigenvalues.min() - slack
        assert nodes.max() <= eigenvalues.max() + slack
        levels = np.unique(eigenvalues)
        if len(levels) < 10:
            # Weight at each level is the probe's own; a ghost would take part of it elsewhere.
            measure = (q.T @ probe) ** 2
            for level in levels:
                here = weights[np.abs(nodes - level) <= slack].sum()
                np.testing.assert_allclose(here, measure[eigenvalues == level].sum(), atol=2e3 * np.finfo(dtype).eps)


SPREAD = {
    # Outliers converge within a few steps; without reorthogonalisation copies of them come back.
    "outliers": np.append(np.linspace(-1, 1, 595), [10.0, 20.0, 30.0, 40.0, 50.0]),
    # The norm of the recurrence falls to a thousandth of the operator's: what rounding leaves grows as much per step.
    "far outliers": np.append(1e-3 * np.random.default_rng(4).standard_normal(590), np.geomspace(0.1, 10, 10)),
    "power law": 10 / np.arange(1.0, 601.0) ** 2,
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", SPREAD)
def test_basis_stays_orthonormal_past_convergence(name, dtype):
    matrix, _ = rotated(SPREAD[name], dtype=dtype)
    found = run(matrix, 120, k=2)
    eps = np.finfo(dtype).eps
    for i, basis in enumerate(found.basis):
        m = found.length[i]
        basis = basis[:m].astype(float)
        np.testing.assert_allclose(basis @ basis.T, np.eye(m), atol=20 * eps)
        # The recurrence is that of the operator: its coefficients are the operator in the basis.
        tridiagonal = np.diag(found.alpha[i, :m]) + sum(np.diag(found.beta[i, : m - 1], k) for k in (-1, 1))
        image = basis @ matrix.astype(float) @ basis.T
        np.testing.assert_allclose(image, tridiagonal, atol=20 * eps * np.abs(SPREAD[name]).max())


@pytest.mark.parametrize(("scale", "shift"), [(1e-6, 0.0), (1e6, 0.0), (1.0, 7.5), (-2.0, 1.0)])
def test_nodes_follow_scaling_and_shift(scale, shift):
    matrix, _ = rotated(np.linspace(-1, 2, 80))
    plain, moved = run(matrix, 15), run(scale * matrix + shift * np.eye(80), 15)
    nodes, weights, residuals = kernels.gauss_rule(plain, 0)
    expected = scale * nodes + shift
    rank = np.argsort(expected)
    found = kernels.gauss_rule(moved, 0)
    np.testing.assert_allclose(found[0], expected[rank], rtol=1e-9, atol=1e-9 * abs(scale))
    np.testing.assert_allclose(found[1], weights[rank], atol=1e-8)
    np.testing.assert_allclose(found[2], abs(scale) * residuals[rank], rtol=1e-6, atol=1e-9 * abs(scale))


def test_runs_do_not_depend_on_their_neighbours():
    matrix, _ = rotated(np.linspace(-1, 2, 80))
    together = run(matrix, 20, k=4)
    start = np.zeros((4, 80))
    start[2] = probes(4, 80)[2]
    alone = kernels.lanczos(lambda rows: rows @ matrix, start, 20)
    np.testing.assert_array_equal(alone.alpha[2], together.alpha[2])
    np.testing.assert_array_equal(alone.beta[2], together.beta[2])
    assert alone.length.tolist() == [0, 0, 20, 0]


def test_atoms_are_eigenpairs_and_the_complement_has_the_rest():
    eigenvalues = np.append(np.linspace(-1, 1, 195), [10.0, 20.0, 30.0, 40.0, 50.0])
    matrix, q = rotated(eigenvalues)
    atoms = kernels.converged_atoms(lambda rows: rows @ matrix, probes(1, 200)[0], 30)
    assert {10.0, 20.0, 30.0, 40.0, 50.0} <= set(atoms.values.round(6))
    image = atoms.vectors @ matrix
    np.testing.assert_allclose(
        np.linalg.norm(image - atoms.values[:, None] * atoms.vectors, axis=1), atoms.residuals, atol=1e-10
    )
    start = kernels.project_out(probes(2, 200), atoms.vectors)
    found = kernels.lanczos(lambda rows: rows @ matrix, start, 40, within=atoms.vectors)
    assert np.abs(found.basis[0] @ atoms.vectors.T).max() < 1e-12
    assert kernels.gauss_rule(found, 0)[0].max() < 1.5


@pytest.mark.parametrize("order", [4, 10, 40])
@pytest.mark.parametrize("threshold", [-9.0, -0.5, -1e-3, 1e-3, 0.5, 9.0])
def test_radau_bounds_hold_the_probe_s_own_count(order, threshold):
    eigenvalues = np.append(np.zeros(100), np.random.default_rng(3).standard_normal(100))
    matrix, q = rotated(eigenvalues)
    found = run(matrix, order, k=5)
    for i, probe in enumerate(probes(5, 200)):
        rule = kernels.gauss_rule(found, i)
        low, high = kernels.radau_bounds(*rule, threshold)
        truth = ((q.T @ probe) ** 2)[eigenvalues < threshold].sum()
        assert low - 1e-12 <= truth <= high + 1e-12
        # No sharper bounds exist, and no worse than the two weights beside the threshold.
        k = np.searchsorted(rule[0], threshold)
        assert high - low <= rule[1][max(k - 1, 0) : k + 1].sum() + 1e-12


def test_radau_bounds_close_where_the_recurrence_ended():
    matrix, _ = rotated(np.repeat([0.0, 1.0, 2.0], 20))
    rule = kernels.gauss_rule(run(matrix, 10), 0)
    for threshold, share in ((0.5, rule[1][0]), (1.5, rule[1][:2].sum()), (-1.0, 0.0), (3.0, 1.0)):
        np.testing.assert_allclose(kernels.radau_bounds(*rule, threshold), share, atol=1e-10)


def test_dense_matrix_is_the_operator():
    matrix, _ = rotated(np.linspace(-1, 2, 37))
    np.testing.assert_allclose(
        kernels.dense_matrix(lambda rows: rows @ matrix, 37, np.dtype(float), 8), matrix, atol=1e-15
    )


def test_probes_are_keyed_and_uniform_on_the_sphere():
    keys = np.random.SeedSequence(5).spawn(4000)
    rows = kernels.unit_probes(keys, 12, np.dtype(float))
    np.testing.assert_array_equal(kernels.unit_probes(keys[7:8], 12, np.dtype(float))[0], rows[7])
    np.testing.assert_allclose((rows**2).sum(axis=1), 1, atol=1e-14)
    # Mean 1/n and fourth moment 3/(n(n+2)) of a coordinate; five standard errors of 48,000 draws.
    assert abs((rows**2).mean() - 1 / 12) < 1e-12
    assert abs((rows**4).mean() * 12 * 14 / 3 - 1) < 5 * np.sqrt(10 / 48_000)


def test_products_in_column_order_give_the_same_recurrence():
    matrix = rotated(np.arange(1.0, 21.0))[0]
    start = probes(3, 20)
    rows = kernels.lanczos(lambda v: v @ matrix, start, 10)
    columns = kernels.lanczos(lambda v: np.asfortranarray(v @ matrix), start, 10)
    np.testing.assert_allclose(columns.alpha, rows.alpha, rtol=1e-12)
    np.testing.assert_allclose(columns.beta, rows.beta, rtol=1e-10)
