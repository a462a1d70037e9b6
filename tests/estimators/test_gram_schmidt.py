"""The fused sweep against plain matrix products."""

import numpy as np
import pytest

from trajstats.estimators import gram_schmidt as kernels


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows", [0, 1, 3, 4, 9])
@pytest.mark.parametrize("n", [1, 7, kernels.BLOCK, 2 * kernels.BLOCK + 5])
def test_sweep_is_correction_and_measure(rows, n, dtype):
    rng = np.random.default_rng(0)
    known = (rng.standard_normal((rows, n)) / np.sqrt(n)).astype(dtype)
    latest, image = rng.standard_normal((2, n)).astype(dtype)
    slip, share = rng.standard_normal((2, rows)).astype(dtype)
    q = latest - slip.astype(float) @ known.astype(float)
    w = image - share.astype(float) @ known.astype(float) - 0.5 * q
    found = np.full(rows + 1, np.nan)

    square = kernels.correct_and_measure(known, latest, image, slip, share, dtype(0.5), found)

    slack = 50 * np.finfo(dtype).eps
    np.testing.assert_allclose(latest, q, rtol=0, atol=slack)
    np.testing.assert_allclose(image, w, rtol=0, atol=slack)
    # Errors of the sums: those of w's entries, and rounding.
    size = slack * (np.linalg.norm(w) + np.sqrt(n))
    np.testing.assert_allclose(found[:rows], known.astype(float) @ w, rtol=0, atol=size)
    np.testing.assert_allclose(found[rows], q @ w, rtol=0, atol=size * np.linalg.norm(q))
    np.testing.assert_allclose(square, w @ w, rtol=0, atol=size * np.linalg.norm(w) + slack**2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_and_norms_are_in_float64(dtype):
    rows, images = np.random.default_rng(0).standard_normal((2, 3, 5_000)).astype(dtype)
    products, norms = kernels.products_and_norms(rows, images)
    wide = images.astype(float)
    np.testing.assert_allclose(products, (rows.astype(float) * wide).sum(axis=1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(norms, np.linalg.norm(wide, axis=1), rtol=1e-13)
    tiny = np.full((1, 4), 1e-30, dtype)
    np.testing.assert_allclose(kernels.products_and_norms(tiny, tiny)[1], 2e-30, rtol=1e-6)
