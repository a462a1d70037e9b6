"""The Cugliandolo-Kurchan solver: exact solutions, a plain independent solver, limits, and what is refused."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from trajstats.errors import ArgumentError
from trajstats.theory.glasses import (
    cugliandolo_kurchan,
    dynamic_temperature,
    fluctuation_dissipation,
    pspin_statics,
    spherical_two_spin,
)


@functools.cache
def solved(p, T, t_max, **options):
    return cugliandolo_kurchan(p=p, T=T, t_max=t_max, **options)


def euler(p, T, t_max, dt):
    # The equations written down as they are, first order on an even grid; nothing shared with the solver.
    n = round(t_max / dt)
    C, R = np.eye(n + 1), np.zeros((n + 1, n + 1))
    mu = np.zeros(n + 1)
    for i in range(n):
        f1, f2 = p * C[i, :i] ** (p - 1) / 2, p * (p - 1) / 2 * C[i, :i] ** (p - 2)
        mu[i] = T + p * dt * (f1 @ R[i, :i])
        for j in range(i + 1):
            s = slice(j, i)
            left = dt * (f2 * R[i, :i]) @ np.where(np.arange(i) >= j, C[:i, j], C[j, :i])
            right = dt * f1[:j] @ R[j, :j]
            C[i + 1, j] = C[i, j] + dt * (-mu[i] * C[i, j] + left + right)
            r = 1.0 if i == j else R[i, j]
            R[i + 1, j] = r + dt * (-mu[i] * r + dt * (f2[s] * R[i, s]) @ R[s, j])
        C[i + 1, i + 1] = 1.0
        C[: i + 1, i + 1] = C[i + 1, : i + 1]
    return C, R, mu


def test_p_2_is_the_exact_bessel_solution():
    glass = solved(2, 0.0, 300.0)
    exact = spherical_two_spin(glass.time.values)
    assert float(np.abs(glass.C - exact.C).max()) < 1e-4
    lower = np.tri(glass.sizes["time"], dtype=bool)
    assert float(np.abs(glass.R - exact.R).where(lower).max()) < 1e-4
    assert float(np.abs(glass.energy - exact.energy).max()) < 1e-4


def test_the_estimated_error_bounds_the_true_one():
    glass = solved(2, 0.0, 300.0)
    exact = spherical_two_spin(glass.time.values)
    late = glass.time >= 1
    ratio = np.abs(glass.energy - exact.energy) / glass.energy_error
    assert float(ratio.where(late).max()) < 1.5
    assert float(np.abs(glass.C - exact.C).max()) < 3 * glass.attrs["largest_C_error"]


@pytest.mark.parametrize(("p", "T"), [(3, 0.0), (3, 0.5), (4, 0.2)])
def test_a_plain_euler_solver_extrapolated_in_its_step_agrees(p, T):
    glass = solved(p, T, 5.0, dt=0.025)
    coarse, fine = (euler(p, T, 3.0, dt) for dt in (0.02, 0.01))
    for t, s in ((3.0, 1.0), (2.0, 1.0), (3.0, 2.0)):
        aging = glass.C_aging.sel(waiting_time=s, method="nearest").dropna("lag")
        found = float(aging.interp(lag=t - aging.waiting_time, method="cubic"))
        plain = [
            np.interp(float(aging.waiting_time) / dt, np.arange(len(table)), table[round(t / dt)])
            for dt, (table, _, _) in ((0.02, coarse), (0.01, fine))
        ]
        # Extrapolation leaves the second order, a small share of the first; 1e-3 is for interpolating on lags.
        assert found == pytest.approx(2 * plain[1] - plain[0], abs=0.15 * abs(plain[1] - plain[0]) + 1e-3)
    mu = 2 * fine[2][np.arange(50, 290, 10)] - coarse[2][np.arange(50, 290, 10) // 2]
    times = np.arange(50, 290, 10) * 0.01
    np.testing.assert_allclose(glass.mu.interp(time=times, method="cubic"), mu, atol=3e-3)


def test_fluctuation_dissipation_holds_above_T_d():
    warm = solved(3, 1.0, 100.0)
    aging = warm.sel(waiting_time=20.0, method="nearest")
    inside = aging.lag <= 10
    np.testing.assert_allclose(aging.chi_aging[inside], (1 - aging.C_aging[inside]) / 1.0, atol=1e-4)
    ratio = fluctuation_dissipation(warm).X.isel(time=-1)
    assert float(np.abs(ratio.isel(time_prime=slice(-4, -1)) - 1).max()) < 1e-2
    assert float(warm.energy[-1]) == pytest.approx(-0.5, abs=1e-4)


def test_correlation_never_exceeds_one_and_shrinks_with_the_lag():
    for T in (0.0, 0.3):
        glass = solved(3, T, 300.0)
        assert float(glass.C.max()) == 1.0
        assert float(glass.C_aging.max()) == 1.0
        assert (glass.C_aging.diff("lag").fillna(-1) <= 1e-6).all()
        assert float(glass.C_aging.min()) > 0


def test_the_glass_ages_below_T_d_and_not_above():
    cold, warm = solved(3, 0.3, 300.0), solved(3, 1.0, 100.0)
    at = cold.C_aging.sel(lag=20, method="nearest").sel(waiting_time=[2, 20], method="nearest")
    assert float(at[1] - at[0]) > 0.2
    at = warm.C_aging.sel(lag=5, method="nearest").sel(waiting_time=[20, 50], method="nearest")
    assert abs(float(at[1] - at[0])) < 1e-3


def test_dynamic_temperature():
    assert dynamic_temperature(3) == pytest.approx(np.sqrt(3 / 8))
    assert dynamic_temperature(4) == pytest.approx(np.sqrt(4 * 4 / (2 * 27)))
    assert dynamic_temperature(2) == 1.0


def test_limits_at_p_3_and_T_0_3():
    limit = pspin_statics(p=3, T=0.3)
    for name, value in (("plateau", 0.80722), ("X", 0.23882), ("energy", -0.99939)):
        assert limit[name].item() == pytest.approx(value, abs=5e-6)


def test_limits_join_at_their_ends():
    T_d = dynamic_temperature(3)
    assert pspin_statics(3, 1e-7).energy.item() == pytest.approx(pspin_statics(3, 0.0).energy.item(), abs=1e-6)
    assert pspin_statics(3, 1e-7).effective_temperature.item() == pytest.approx(np.sqrt(3.0), rel=1e-5)
    below = pspin_statics(3, T_d * (1 - 1e-9))
    assert below.plateau.item() == pytest.approx(0.5, abs=1e-3)
    assert below.X.item() == pytest.approx(1.0, abs=1e-3)
    assert pspin_statics(3, T_d * (1 + 1e-9)).energy.item() == pytest.approx(-1 / (2 * T_d), rel=1e-6)


@pytest.mark.slow
def test_energy_approaches_the_threshold_as_a_power_of_time():
    glass = solved(3, 0.0, 300.0)
    late = glass.time.values > 20
    gap = glass.energy.values[late] - pspin_statics(3, 0.0).energy.item()
    slope = np.polyfit(np.log(glass.time.values[late]), np.log(gap), 1)[0]
    assert slope == pytest.approx(-2 / 3, abs=0.03)  # "about t^(-2/3)"; the exponent itself is numerical
    assert gap[-1] < 0.02


@pytest.mark.slow
def test_plateau_ratio_and_energy_are_approached_at_T_0_3():
    limit = pspin_statics(3, 0.3)
    glass = solved(3, 0.3, 600.0)
    # Energy: linear in t^(-2/3) at late times; the intercept is the limit.
    late = glass.time.values > 50
    intercept = np.polyfit(glass.time.values[late] ** (-2 / 3), glass.energy.values[late], 1)[1]
    assert intercept == pytest.approx(limit.energy.item(), abs=2e-3)
    # X: the slope at late times in the aging part, where C < q.
    ratio = fluctuation_dissipation(glass).isel(time=-1)
    aging = (ratio.C > 0.45) & (ratio.C < 0.75)
    assert float(ratio.X.where(aging).mean()) == pytest.approx(limit.X.item(), abs=0.04)
    # Plateau: where the aging line of chi against C meets that of equilibrium.
    last = glass.isel(time=-1)
    line = (last.C > 0.45) & (last.C < 0.75)
    slope, height = np.polyfit(last.C.values[line], last.chi.values[line], 1)
    q = (1 / 0.3 - height) / (1 / 0.3 + slope)
    assert q == pytest.approx(limit.plateau.item(), abs=0.02)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"p": 1, "T": 0.0}, "p=1"),
        ({"p": 2.5, "T": 0.0}, "p=2.5"),
        ({"p": 3, "T": -0.1}, "T=-0.1"),
        ({"p": 3, "T": float("nan")}, "T=nan"),
        ({"p": 3, "T": 0.0, "t_max": 0.0}, "t_max=0"),
        ({"p": 3, "T": 0.0, "dt": 1.0}, "dt=1 is unstable.*give 0 < dt <= 0.1"),
        ({"p": 3, "T": 0.0, "dt": -0.1}, "dt=-0.1"),
        ({"p": 3, "T": 0.0, "resolution": 0.9}, "resolution=0.9"),
        ({"p": 3, "T": 0.0, "times_per_decade": 1}, "times_per_decade=1"),
    ],
)
def test_bad_arguments_are_named(options, match):
    with pytest.raises(ArgumentError, match=match):
        cugliandolo_kurchan(**{"t_max": 10.0, **options})


def test_a_step_that_does_not_resolve_the_dynamics_is_detected(monkeypatch):
    # Let a step through that the check at the door would stop.
    import importlib

    module = importlib.import_module("trajstats.theory.glasses.dynamical_equations")
    monkeypatch.setattr(module, "_check", lambda *_: 2)
    with pytest.raises(ArgumentError, match="halve dt"):
        cugliandolo_kurchan(p=6, T=3.0, t_max=50.0)


@pytest.mark.parametrize(("p", "T"), [(1, 0.1), (3, -1.0)])
def test_statics_refuse_the_same(p, T):
    with pytest.raises(ArgumentError):
        pspin_statics(p, T)


def test_results_are_labelled():
    glass = solved(3, 0.3, 300.0)
    assert glass.C.dims == glass.R.dims == glass.chi.dims == ("time", "time_prime")
    assert glass.energy.dims == ("time",)
    assert all(v.dtype == np.float64 for v in glass.variables.values())
    assert float(glass.R.where(glass.time < glass.time_prime).max()) == 0
    np.testing.assert_array_equal(glass.C, glass.C.values.T)
    assert {"p", "T", "estimator", "arguments", "largest_C_error"} <= set(glass.attrs)
