"""The exact 2-spin, trap laws and the Langevin sampler against each other and against the solver."""

from __future__ import annotations

import numpy as np
import pytest

import trajstats as ts
from trajstats import trap_model
from trajstats.errors import ArgumentError
from trajstats.theory.glasses import (
    cugliandolo_kurchan,
    pspin_langevin,
    spherical_two_spin,
    trap_exponent,
    trap_no_jump,
)


def test_two_spin_is_on_the_sphere_and_ages_simply():
    glass = spherical_two_spin([0.0, 1.0, 100.0, 1000.0, 2000.0, 20_000.0])
    np.testing.assert_allclose(np.diagonal(glass.C), 1)
    pair = lambda t, s: float(glass.C.sel(time=t, time_prime=s))  # noqa: E731
    # C depends on t / t_w alone at late times: (4 x)^(3/4) / (1 + x)^(3/2), x = t' / t.
    for t, s in ((2000.0, 1000.0), (20_000.0, 2000.0)):
        x = s / t
        assert pair(t, s) == pytest.approx((4 * x) ** 0.75 / (1 + x) ** 1.5, rel=2e-3)


def test_two_spin_energy_tends_to_the_edge_of_the_semicircle():
    glass = spherical_two_spin([100.0, 1000.0])
    # mu = 2 - 3/(4t): the expansion of I_2 / I_1 at large argument.
    np.testing.assert_allclose(glass.mu, 2 - 3 / (4 * glass.time), rtol=1e-4)


def test_a_large_finite_two_spin_is_the_infinite_one_until_n_to_the_two_thirds():
    times = np.array([1.0, 2.0, 4.0, 200.0, 2000.0])
    exact = spherical_two_spin(times)
    finite = [spherical_two_spin(times, N=400, rng=seed) for seed in range(12)]
    C = np.array([one.C.values for one in finite])
    error = C.std(axis=0, ddof=1) / np.sqrt(12)
    early = np.ix_([0, 1, 2], [0, 1, 2])
    gap = np.abs(C.mean(axis=0) - exact.C.values)
    assert (gap[early] <= 4 * error[early] + 2 / 400).all()
    # Far beyond N^(2/3) = 54 the top eigenvector has won: the finite system stops, the infinite one ages.
    assert C.mean(axis=0)[4, 3] > 0.9
    assert float(exact.C[4, 3]) < 0.65


def test_finite_size_lowers_the_apparent_aging_exponent():
    times = np.geomspace(1, 3000, 80)

    def crossing(glass, t_w):
        row = glass.C.sel(time_prime=t_w, method="nearest")
        later = row.time > float(row.time_prime)
        return np.interp(-0.7, -row.values[later], row.time.values[later]) - float(row.time_prime)

    exact = spherical_two_spin(times)
    mean = exact.copy()
    mean["C"] = sum(spherical_two_spin(times, N=100, rng=seed).C for seed in range(10)) / 10
    slope = {
        name: np.log(crossing(glass, 30.0) / crossing(glass, 3.0)) / np.log(10)
        for name, glass in (("infinite", exact), ("finite", mean))
    }
    assert slope["infinite"] == pytest.approx(1, abs=0.05)
    assert abs(slope["finite"] - 1) > 0.1


@pytest.mark.parametrize("bad", [([-1.0], {}), ([1.0], {"N": 10}), ([1.0], {"N": 1, "rng": 0})])
def test_two_spin_refuses(bad):
    with pytest.raises(ArgumentError):
        spherical_two_spin(bad[0], **bad[1])


def test_mean_field_trap_model_jumps_by_the_generalised_arcsine_law():
    steps = [0, 1000, 2000, 5000, 10_000]
    run = trap_model(steps, rng=0, x=0.5, n_parameters=4000)
    weights = run.weights.values[0]
    for later in (2, 3, 4):
        stayed = (weights[1] == weights[later]).mean()
        expected = trap_no_jump(1000.0, steps[later] - 1000.0, x=0.5).item()
        # Four binomial errors, and the 1/sqrt(t_w) correction to the late-time law.
        assert abs(stayed - expected) < 4 * np.sqrt(expected * (1 - expected) / 4000) + 0.02


def test_trap_law_ends_and_exponents():
    assert trap_no_jump(1.0, 0.0, x=0.3).item() == pytest.approx(1)
    assert trap_no_jump(1.0, 1e9, x=0.3).item() < 0.01
    assert trap_exponent(0.3) == 1
    assert trap_exponent(0.5, lattice="line") == pytest.approx(2 / 3)
    for bad in ({"x": 1.2}, {"x": 0.5, "lattice": "cube"}):
        with pytest.raises(ArgumentError):
            trap_exponent(bad["x"], lattice=bad.get("lattice", "mean_field"))
    with pytest.raises(ArgumentError, match="waiting times and lags"):
        trap_no_jump(-1.0, 1.0, x=0.5)


@pytest.mark.parametrize(("p", "T", "N", "replicas"), [(2, 0.0, 400, 10), (2, 0.5, 400, 10), (3, 0.3, 72, 16)])
def test_sampler_agrees_with_the_solver_before_the_finite_size_time(p, T, N, replicas):
    dt = 0.05
    solved = cugliandolo_kurchan(p=p, T=T, t_max=10, error_control=False)
    run = pspin_langevin(p=p, N=N, T=T, steps=[0, 20, 40, 80, 160], dt=dt, rng=1, replicas=replicas)
    delta = ts.msd(run, ts.time_pairs(run, waiting_time=[20]), per="all").compute()
    C = 1 - delta.values / 2
    error = C.std(axis=0, ddof=1) / np.sqrt(replicas)
    aging = solved.C_aging.sel(waiting_time=1.0).dropna("lag")
    expected = aging.interp(lag=delta.lag.values * dt, method="cubic").values
    # t distribution on 9 to 15 degrees: 4 errors; 2/N and dt for the systematic part.
    assert (np.abs(C.mean(axis=0) - expected) < 4 * error + 2 / N + 0.1 * dt).all()
    energy = run.energy.values
    wanted = solved.energy.interp(time=run.proper_time.values[1:]).values
    spread = energy[:, 1:].std(axis=0, ddof=1) / np.sqrt(replicas)
    assert (np.abs(energy[:, 1:].mean(axis=0) - wanted) < 4 * spread + 2 / N + 0.1 * dt).all()


def test_sampler_energy_is_minus_the_couplings_by_brute_force():
    from trajstats.theory.glasses.langevin import _force

    rng = np.random.default_rng(0)
    force = _force(3, 6, np.random.default_rng(5))
    s = rng.normal(size=6)
    h = 1e-5
    energy = lambda s: -(s @ force(s)) / 3  # noqa: E731
    gradient = [(energy(s + h * e) - energy(s - h * e)) / (2 * h) for e in np.eye(6)]
    np.testing.assert_allclose(force(s), -np.array(gradient), atol=1e-8)


def test_coupling_variance_gives_the_covariance_of_the_model():
    # Var H = N/2 up to 1/N for unit spins; three-spin sums leave out coinciding indices: (N-1)(N-2)/N^2.
    from trajstats.theory.glasses.langevin import _force

    s = np.ones(12)
    energies = [s @ _force(3, 12, np.random.default_rng(k))(s) / 3 for k in range(3000)]
    expected = 12 / 2 * 11 * 10 / 144
    assert np.var(energies) == pytest.approx(expected, rel=4 * np.sqrt(2 / 3000))


def test_sampler_writes_ordinary_stores_and_does_not_repeat_itself(tmp_path):
    options = {"p": 2, "N": 20, "T": 0.3, "steps": [0, 5, 10], "rng": 3, "replicas": 2}
    run = pspin_langevin(**options, path=tmp_path)
    memory = pspin_langevin(**options)
    np.testing.assert_array_equal(run.weights.values, memory.weights.values)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file() and "lock" not in p.name}
    pspin_langevin(**options, path=tmp_path)
    after = {p: p.stat().st_mtime_ns for p in before}
    # Opening a store may touch its metadata; no row is written again.
    assert {p.suffix for p in before if before[p] != after[p]} <= {".json"}
    assert ts.open_trajectory([str(p) for p in sorted(tmp_path.iterdir())]).sizes["replica"] == 2


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"p": 4}, "p=4"),
        ({"T": -1.0}, "T=-1"),
        ({"N": 3000, "p": 3}, "2 GiB"),
        ({"dt": 1.0}, "too large for stability"),
        ({"steps": [3, 2]}, "increasing"),
        ({"steps": []}, "increasing"),
        ({"replicas": 0}, "replicas=0"),
    ],
)
def test_sampler_refuses(change, match):
    with pytest.raises(ArgumentError, match=match):
        pspin_langevin(**{"p": 2, "N": 10, "steps": [0, 1], "rng": 0, **change})
