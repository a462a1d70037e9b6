"""Runs and glasses in the same variables: planted aging, diffusion, plateaus, finite size, and what is refused."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import xarray as xr

import trajstats as ts
from trajstats.errors import ArgumentError
from trajstats.inference.aging.compare_glasses import VARIABLES
from trajstats.theory.glasses import cugliandolo_kurchan

STEPS = np.unique(np.r_[np.geomspace(1, 300, 8), np.geomspace(1, 3000, 60)].astype(int))


@functools.cache
def cold():
    return cugliandolo_kurchan(p=3, T=0.3, t_max=300.0, error_control=False)


@functools.cache
def table():
    runs = {
        "walk": ts.brownian(STEPS, rng=0, n_parameters=2000),
        "subaging": ts.time_changed_ou(STEPS, rng=0, mu=0.6, n_parameters=2000),
    }
    noise = {"walk": xr.DataArray(np.ones(STEPS.size), dims="step", coords={"step": STEPS})}
    return ts.compare_aging(runs, {"3-spin": cold()}, noise=noise)


def test_a_walk_diffuses_and_does_not_age():
    walk = table().sel(system="walk")
    assert abs(walk.exponent.item()) < 0.1
    assert not walk.plateau.item()
    assert walk.late_exponent.item() == pytest.approx(1, abs=4 * walk.late_exponent_stderr.item() + 0.05)
    assert walk.collapse.sel(variable="raw").item() < 0.1
    np.testing.assert_allclose(walk.collapse.sel(variable="per_noise"), walk.collapse.sel(variable="raw"))


def test_noise_is_integrated_over_the_clock_of_the_lags():
    # Steps of variance D * eta at a rate that falls as one over the step, with D falling in proper time: the MSD is
    # the integral of D over proper time, whatever the clock of the noise says.
    time = np.cumsum(1 / np.arange(1, STEPS[-1] + 1))[STEPS - 1]
    strength = 1 / time
    moved = np.diff(np.log(time), prepend=np.log(time[0]) - 1)
    path = np.cumsum(np.random.default_rng(0).standard_normal((STEPS.size, 3000)) * np.sqrt(moved)[:, None], axis=0)
    run = ts.trajectory_dataset(path, step=STEPS, clocks={"proper_time": time})
    noise = xr.DataArray(strength, dims="step", coords={"step": STEPS})
    labelled = noise.assign_coords(proper_time=("step", time))
    for given in (noise, labelled):
        row = ts.compare_aging({"run": run}, {}, noise={"run": given}).sel(system="run")
        assert row["clock"].item() == "proper_time"
        assert row.collapse.sel(variable="noise_clock").item() < 0.1
        assert row.collapse.sel(variable="raw").item() > 0.3


def test_planted_subaging_is_found_and_collapses_when_scaled():
    aging = table().sel(system="subaging")
    low, high = aging.exponent_interval.values
    assert low - 0.05 < 0.6 < high + 0.05
    raw, scaled = (aging.collapse.sel(variable=v).item() for v in ("raw", "scaled"))
    assert scaled < 0.3 * raw


def test_the_cold_three_spin_has_a_plateau_and_ages():
    glass = table().sel(system="3-spin")
    assert glass.plateau.item()
    assert glass.plateau_level.item() == pytest.approx(2 * (1 - 0.80722), abs=0.1)  # t_max 300 is not infinite
    assert glass.exponent.item() > 0.5
    assert np.isnan(glass.finite_size_time.item())


def test_the_warm_three_spin_saturates_without_ageing_or_plateau():
    warm = cugliandolo_kurchan(p=3, T=1.0, t_max=60.0, error_control=False)
    found = ts.compare_aging({"walk": ts.brownian(STEPS, rng=0)}, {"warm": warm}).sel(system="warm")
    assert not found.plateau.item()
    assert found.collapse.sel(variable="raw").item() < 0.02


def test_finite_systems_are_flagged():
    small = ts.theory.glasses.pspin_langevin(
        p=2, N=16, T=0.0, steps=np.unique(np.geomspace(1, 2000, 50).astype(int)), rng=0
    )
    large = ts.time_changed_ou([*range(1, 40)], rng=0, mu=0.6, n_parameters=5000)
    found = ts.compare_aging({"small": small}, {"large": large})
    assert found.finite_size_flag.values.tolist() == [True, False]
    assert "mu < 1" in str(found.note.sel(system="small").item())


def test_solutions_become_two_time_displacements():
    delta = ts.glass_msd(cold())
    one = delta.isel(pair=40)
    aging = cold().C_aging.sel(waiting_time=float(one.waiting_time), lag=float(one.lag))
    assert one.item() == pytest.approx(2 * (1 - aging.item()))
    assert np.isfinite(delta.values).all()


def test_results_are_labelled_and_drawn():
    found = table()
    assert found.collapse.dims == ("system", "variable")
    assert found.variable.values.tolist() == list(VARIABLES)
    figure = ts.plot_glass_comparison(found)
    assert len(figure.axes) == 2 * found.sizes["system"]
    assert figure.axes[0].get_xlabel()


def test_a_late_exponent_that_lags_cannot_tell_says_so():
    # two lags in the last half decade of each waiting time, then three at one waiting time alone
    wait, lag = (a.ravel() for a in np.meshgrid([10.0, 100.0, 1000.0], [1.0, 10.0, 300.0, 500.0, 900.0], indexing="ij"))
    for dense, words in ((np.inf, "no late exponent"), (1000.0, "its error is not known")):
        keep = (lag != 500) | (wait == dense)
        delta = xr.DataArray(
            lag[keep] ** 0.7, dims="pair", coords={"waiting_time": ("pair", wait[keep]), "lag": ("pair", lag[keep])}
        )
        found = ts.compare_aging(delta, cold()).sel(system="run")
        assert words in str(found.note.item())
        assert np.isnan(found.late_exponent_stderr.item())
        assert np.isnan(found.late_exponent.item()) == (dense == np.inf)


def test_bad_input_is_named():
    with pytest.raises(ArgumentError, match="a trajectory, a two-time MSD or a solved glass"):
        ts.compare_aging(3, cold())
    with pytest.raises(ArgumentError, match="rename one"):
        ts.compare_aging({"x": cold()}, {"x": cold()})
    with pytest.raises(ArgumentError, match="must be a solved glass"):
        ts.glass_msd(xr.Dataset())
