"""The fused sweep against plain matrix products."""

import numpy as np
import pytest

from trajstats.estimators.linalg import _gram_schmidt as kernels


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("rows", "n"), [(0, 1), (3, 7), (1, 20), (8, kernels.BLOCK), (9, kernels.BLOCK + 1), (17, 2 * kernels.BLOCK + 5)]
)
def test_sweep_is_correction_and_measure(rows, n, dtype):
    rng = np.random.default_rng(0)
    orthonormal = np.linalg.qr(rng.standard_normal((n, rows + 1)))[0].T
    known, slip, share = orthonormal[:rows].astype(dtype), *rng.standard_normal((2, rows)).astype(dtype)
    latest = (orthonormal[rows] + slip @ known).astype(dtype)
    image = rng.standard_normal(n).astype(dtype)
    given = image.astype(float)
    q = latest - slip.astype(float) @ known.astype(float)
    w = image - share.astype(float) @ known.astype(float) - 0.5 * q
    found = np.full(rows + 1, np.nan)

    before, after = kernels.correct_and_measure(known, latest, image, slip, share, dtype(0.5), found)

    slack = 50 * np.finfo(dtype).eps
    np.testing.assert_allclose(latest, q, rtol=0, atol=slack)
    np.testing.assert_allclose(image, w, rtol=0, atol=slack)
    # Errors of the sums: those of the entries, and rounding, in proportion to what was there before.
    size = slack * np.linalg.norm(given)
    np.testing.assert_allclose(before, given @ given, rtol=slack)
    np.testing.assert_allclose(found[:rows], known.astype(float) @ w, rtol=0, atol=size)
    np.testing.assert_allclose(found[rows], q @ w, rtol=0, atol=size)
    np.testing.assert_allclose(after, w @ w, rtol=slack)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_three_terms_are_taken_out_of_each_run(dtype):
    rng = np.random.default_rng(0)
    bases = rng.standard_normal((2, 3, 50)).astype(dtype)
    images = rng.standard_normal((2, 50)).astype(dtype)
    along, before = rng.standard_normal((2, 2)).astype(dtype)
    for j in range(3):
        out = np.full_like(images, np.nan)
        kernels.three_terms(bases, j, images, along, before, out)
        expected = images - along[:, None] * bases[:, j] - (before[:, None] * bases[:, j - 1] if j else 0)
        np.testing.assert_allclose(out, expected, atol=20 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_and_norms_are_in_float64(dtype):
    rng = np.random.default_rng(0)
    bases, images = (rng.standard_normal(shape).astype(dtype) for shape in ((3, 2, 5_000), (3, 5_000)))
    products, norms = kernels.products_and_norms(bases, 1, images)
    wide = images.astype(float)
    np.testing.assert_allclose(products, (bases[:, 1].astype(float) * wide).sum(axis=1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(norms, np.linalg.norm(wide, axis=1), rtol=1e-13)
    tiny = np.full((1, 4), 1e-30, dtype)
    np.testing.assert_allclose(kernels.products_and_norms(tiny[None], 0, tiny)[1], 2e-30, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("rows", "k", "n"), [(1, 1, 3), (7, 2, 50), (8, 5, kernels.SHARED_BLOCK), (18, 3, 2 * kernels.SHARED_BLOCK + 5)]
)
def test_several_vectors_are_projected_on_the_complement(rows, k, n, dtype):
    rng = np.random.default_rng(0)
    known = np.linalg.qr(rng.standard_normal((n, rows)))[0].T.astype(dtype)
    known = np.ascontiguousarray(known)
    known.flags.writeable = False
    images = rng.standard_normal((k, n)).astype(dtype)
    wide, rows_wide = images.astype(float), known.astype(float)
    expected = wide - (wide @ rows_wide.T) @ rows_wide
    kernels.take_out(known, images)
    slack = 20 * np.finfo(dtype).eps
    np.testing.assert_allclose(images, expected, rtol=0, atol=slack * np.abs(wide).max())
    assert np.abs(images.astype(float) @ rows_wide.T).max() < slack * np.linalg.norm(wide)
