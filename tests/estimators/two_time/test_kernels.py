"""Pair kernels against plain NumPy, the proof of their bound, and the machine code they become."""

from __future__ import annotations

import re

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trajstats.estimators.two_time import _pair_kernels as kernels
from trajstats.estimators.two_time._pair_kernels import (
    BOUNDS,
    STRIP,
    cos_sin,
    pair_sums,
    plan_pairs,
    reference_sums,
    sign_flips,
)
from trajstats.estimators.two_time._register_tiles import LANES, MODES, RUN, TERMS


def walk(t, n, dtype, seed=0):
    return (1 + 1e-3 * np.random.default_rng(seed).standard_normal((t, n)).cumsum(axis=0)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("which", ["all", "few"])
def test_sums_of_every_mode_and_tile_shape(dtype, mode, which):
    x = walk(37, 3 * STRIP + 101, dtype)
    first, second = np.triu_indices(37, 1) if which == "all" else np.array([[0, 0, 0, 3, 3, 20], [1, 5, 36, 4, 30, 21]])
    plan = plan_pairs(first, second, mode)
    limits = np.linspace(1e-7, 1e-5, 37)
    got, want = np.zeros((2, TERMS[mode], first.size))
    pair_sums(x, 5, x.shape[1] - 3, plan, mode, got, limits)
    reference_sums(x, 5, x.shape[1] - 3, plan, mode, want, limits)
    bound = BOUNDS["double"] if dtype == "float64" else BOUNDS["fourth"]
    np.testing.assert_allclose(got[:2], want[:2], rtol=bound)
    if mode == "overlap":
        # A weight may be within rounding of the limit.
        assert np.abs(got[2] - want[2]).sum() <= 1 + 1e-5 * want[2].sum()


@settings(max_examples=60, deadline=None)
@given(st.sets(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=200), st.sampled_from(MODES))
def test_a_plan_covers_each_pair_once(pairs, mode):
    first, second = np.array(sorted(pairs)).T
    plan = plan_pairs(first, second, mode)
    found = {}
    for rows, cols, target in zip(plan.row_index, plan.col_index, plan.target, strict=True):
        for r, c in np.argwhere(target >= 0):
            assert target[r, c] not in found
            found[int(target[r, c])] = (rows[r], cols[c])
    assert [found[k] for k in range(first.size)] == list(zip(first, second, strict=True))
    assert plan.row_index.max() <= max(first.max(), second.max())


def test_the_bound_holds_where_rounding_is_worst():
    # One large term first, then terms that lose the most when added to it one by one: 15 u is proved, 8 u is met.
    n = LANES * RUN
    worst = 0.0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        d = np.exp(3 * rng.standard_normal(n)).astype(np.float32)
        d[:LANES] = 60
        x = np.stack([np.zeros(n, np.float32), d])
        got = np.zeros((1, 1))
        pair_sums(x, 0, n, plan_pairs(np.array([0]), np.array([1]), "square"), "square", got)
        worst = max(worst, abs(float(got[0, 0] / (d.astype(np.longdouble) ** 2).sum()) - 1))
    assert 2.0**-25 < worst <= BOUNDS["square"] <= 1e-6


def test_rows_with_nan_or_infinity_are_named_and_spoil_no_other():
    x = walk(6, 2000, "float32")
    x[2, 1500], x[4, 3] = np.nan, -np.inf
    first, second = np.triu_indices(6, 1)
    plan = plan_pairs(first, second, "moments")
    got, want = np.zeros((2, 2, first.size))
    assert (pair_sums(x, 0, 2000, plan, "moments", got) > 0).tolist() == [False, False, True, False, True, False]
    assert (reference_sums(x, 0, 2000, plan, "moments", want) > 0).tolist() == [False, False, True, False, True, False]
    fine = ~np.isin(first, [2, 4]) & ~np.isin(second, [2, 4])
    np.testing.assert_allclose(got[:, fine], want[:, fine], rtol=2e-6)
    assert not np.isfinite(got[0, ~fine]).any()


def test_sign_flips_are_counted():
    x = np.random.default_rng(0).standard_normal((5, 1000)).astype(np.float32)
    x[0, :10] = 0.0
    x[1, :10] = -0.0
    plan = plan_pairs(*np.triu_indices(5, 1), "square")
    got = np.zeros(10)
    sign_flips(x, 0, 997, plan, got)
    want = [((x[i, :997] < 0) != (x[j, :997] < 0)).sum() for i, j in zip(plan.first, plan.second, strict=True)]
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("wavenumber", [1e-3, 1.0, 1e4])
def test_cosines_and_sines(wavenumber):
    x = walk(4, 500, "float32")
    out = np.empty((4, 1000), dtype=np.float32)
    cos_sin(x, 0, 500, 1, wavenumber, out)
    phase = wavenumber * (x.astype(np.float64) - x[1])
    np.testing.assert_allclose(out, np.hstack([np.cos(phase), np.sin(phase)]), atol=1.2 * 2.0**-24)


def test_the_inner_loop_is_vector_code(monkeypatch):
    x = walk(8, 800, "float32")
    plan = plan_pairs(*np.triu_indices(8, 1), "square")
    # Compiled afresh: code from numba's cache cannot be read.
    fresh = numba.njit(nogil=True)(kernels._pair_sums.py_func)
    monkeypatch.setattr(kernels, "_pair_sums", fresh)
    pair_sums(x, 0, 800, plan, "square", np.zeros((1, 28)))
    (code,) = fresh.inspect_asm().values()
    register = next((r for r in ("zmm", "ymm") if re.search(rf"vfmadd231ps\s.*%{r}", code)), None)
    if register is None:
        pytest.skip("this machine has no fused multiply-add")
    blocks = re.split(r"\n\.LBB\w+:", code)
    inner = max(blocks, key=lambda b: len(re.findall(r"vfmadd231ps", b)))
    # A 4 x 4 tile: 16 differences and 16 fused multiply-adds; in full-width registers none of them goes to the stack.
    assert len(re.findall(r"vfmadd231ps", inner)) >= 16
    if register == "zmm":
        assert not re.search(r"%rsp", inner)
