"""Every variable and coordinate of every public result has a name and units of its own, none inherited."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
import xarray as xr
from trajstats_trainers.torch.adapter import TorchNetwork

import trajstats as ts
from trajstats.theory.glasses import cugliandolo_kurchan

LAYERS = {"0.weight": (4, 4), "0.bias": (4,), "2.weight": (4, 4), "2.bias": (4,)}


class Made:
    """Results made once and used by several rows."""

    def __init__(self):
        rng = np.random.default_rng(0)
        module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 4))
        self.x = rng.standard_normal((10, 4)).astype("float32")
        data = (torch.from_numpy(self.x), torch.from_numpy(self.x[::-1].copy()))
        self.network = TorchNetwork(module, lambda a, b: ((a - b) ** 2).mean(), data)
        step = np.unique(np.rint(np.geomspace(1, 1000, 16)).astype(int))
        weights = 0.1 * np.cumsum(rng.standard_normal((4, step.size, 40)), axis=1)
        loss = np.ones((4, 1)) / np.sqrt(step)
        clocks = {"proper_time": 0.1 * step}
        self.run = ts.trajectory_dataset(weights, step=step, layers=LAYERS, series={"loss": loss}, clocks=clocks)
        self.ends = [1, 1000]
        self.pairs = ts.time_pairs(self.run)
        self.delta = ts.msd(self.run, self.pairs)
        self.even = ts.trajectory_dataset(np.cumsum(rng.standard_normal((2, 40, 16)), axis=1), step=range(40))
        self.wide = ts.trajectory_dataset(rng.standard_normal((1, 2, 6400)), step=[0, 1], layers={"w.weight": (80, 80)})
        self.spectrum = ts.hessian_spectrum(self.network, self.run, steps=self.ends, rng=0)
        self.noise = ts.gradient_noise(self.network, self.run, batch_size=4)
        self.esd = ts.jacobian_esd(self.network, self.run, self.x, steps=self.ends, rng=0)
        self.response = ts.training_response(
            self.network, self.run.sel(replica=[0]), self.x[:3], self.x[:2], steps=[1, 3, 1000]
        )
        self.net = ts.RandomNet((4, 4))
        self.census = ts.fixed_point_census(self.net, 4, rng=0, starts=10)
        self.glass = cugliandolo_kurchan(p=3, T=0.5, t_max=5.0)
        self.cold = cugliandolo_kurchan(p=3, T=0.3, t_max=400, error_control=False)
        self.walk = ts.brownian([0, 1, 10], rng=0)
        self.long_walk = ts.brownian(np.unique(np.r_[np.geomspace(1, 500, 40)].astype(int)), rng=0)
        t = np.array([0, 1, 3, 10, 30, 100, 300, 1000])
        split = xr.Dataset({"decay": (("replica", "stage", "step"), (1 / (1 + t))[None, None])})
        self.split = split.assign_coords(step=t, stage=["whole"])
        noise = np.exp(0.02 * rng.standard_normal((2, step.size)))
        self.sweep = {
            f"w{w}": ts.trajectory_dataset(
                weights[:1], step=step, layers=LAYERS, series={"loss": 4 * loss[:1] / w * noise[k]}, attrs={"width": w}
            )
            for k, w in enumerate((4, 8))
        }
        self.curves = {name: run["loss"].isel(replica=0) for name, run in self.sweep.items()}
        self.curves["all NaN"] = self.curves["w4"] * np.nan
        width = np.repeat([6.0, 8.0, 12.0, 20.0, 40.0], 4)
        times = 100 / (width - 4) * np.exp(0.05 * rng.standard_normal(20))
        times = xr.DataArray(times, dims="run", coords={"width": ("run", width)})
        self.fits = {str(nu): ts.fit_divergence(times, rng=0, nu=nu, max_steps=500) for nu in (1, 2)}


ROWS = {
    "trajectory_dataset": lambda m: m.run,
    "time_pairs": lambda m: m.pairs,
    "msd": lambda m: m.delta,
    "two_time": lambda m: ts.two_time(m.run, m.pairs, observables=["msd", "kurtosis", "overlap", "sign_flips"]),
    "all_pairs": lambda m: ts.all_pairs(m.run, observables=["msd", "velocity_correlation"], per="layer"),
    "van_hove": lambda m: ts.van_hove(m.run, m.pairs.isel(pair=slice(3)), bins=4),
    "local_exponent": lambda m: ts.local_exponent(m.delta),
    "epoch_echo": lambda m: ts.epoch_echo(ts.msd(m.even, ts.time_pairs(m.even), per="all"), epoch=10),
    "dynamic_susceptibility": lambda m: ts.dynamic_susceptibility(
        ts.two_time(m.run, m.pairs, observables=["overlap"]).overlap
    ),
    "time_averaged_msd": lambda m: ts.time_averaged_msd(ts.all_pairs(m.even).msd),
    "stationarity_test": lambda m: ts.stationarity_test(ts.all_pairs(m.even).msd, windows=3),
    "path_statistics": lambda m: ts.path_statistics(m.run),
    "trajectory_pca": lambda m: ts.trajectory_pca(ts.all_pairs(m.run).msd),
    "loss_regimes": lambda m: ts.loss_regimes(m.run, rng=0, resamples=10),
    "hessian_spectrum": lambda m: m.spectrum,
    "spectral_density": lambda m: ts.spectral_density(m.spectrum),
    "spectral_summary": lambda m: ts.spectral_summary(m.spectrum),
    "extreme_eigenpairs": lambda m: ts.extreme_eigenpairs(m.network, m.run, steps=[1000], rng=0),
    "gradient_noise": lambda m: m.noise,
    "noise_clock": lambda m: ts.noise_clock(m.noise),
    "noise_normalised_msd": lambda m: ts.noise_normalised_msd(m.delta, m.noise, learning_rate=0.1),
    "jacobian_esd": lambda m: m.esd,
    "training_response": lambda m: m.response,
    "feature_space": lambda m: ts.feature_space(m.network, m.run, m.x, steps=m.ends),
    "fragility": lambda m: ts.fragility(m.network, m.run, m.x, steps=[1000]),
    "fixed_point_census": lambda m: m.census,
    "attractor_slice": lambda m: ts.attractor_slice(
        m.net, m.census, origin=np.zeros(4), first=np.ones(4), second=np.arange(4.0)
    ),
    "census_scan": lambda m: ts.census_scan([4], [1], rng=0, seeds=2, starts=5, laws=["gaussian"], scales=[0.5]),
    "hill_plot": lambda m: ts.hill_plot(np.random.default_rng(0).standard_cauchy(1000)),
    "tail_fit": lambda m: ts.tail_fit(np.random.default_rng(0).standard_cauchy(1000), rng=0),
    "weight_tails": lambda m: ts.weight_tails(m.wide, rng=0, compare=False),
    "spectral_tails": lambda m: ts.spectral_tails(m.wide, rng=0),
    "compare_to_theory": lambda m: ts.compare_to_theory(
        m.esd, ts.JacobianLaw(activation="tanh", sigma_w2=1.0, depth=2), rng=0
    ),
    "separate_response": lambda m: ts.separate_response(m.response),
    "glass_msd": lambda m: ts.glass_msd(m.glass),
    "cugliandolo_kurchan": lambda m: m.glass,
    "check_finite": lambda m: ts.check_finite(m.run),
    "check_trajectory": lambda m: ts.check_trajectory(m.run),
    "brownian": lambda m: m.walk,
    "ornstein_uhlenbeck": lambda m: ts.ornstein_uhlenbeck([0, 1, 10], rng=0),
    "displacement_noise": lambda m: ts.displacement_noise([0, 1], rng=0),
    "exact_msd": lambda m: ts.exact_msd(m.walk, ts.time_pairs(m.walk)),
    "learning_times": lambda m: ts.learning_times(m.sweep, loss=[0.5, 0.2]),
    "fit_batch": lambda m: ts.fit_batch(ts.fit_decay, m.curves, rng=0, max_steps=100, scheduler="synchronous"),
    "map_sweep": lambda m: ts.map_sweep(ts.path_statistics, m.sweep, scheduler="synchronous"),
    "sweep_table": lambda m: ts.sweep_table(m.sweep),
    "compare_fits": lambda m: ts.compare_fits(m.fits),
    "compare_aging": lambda m: ts.compare_aging({"walk": m.long_walk}, {"3-spin": m.cold}),
    "fit_response_decay": lambda m: ts.fit_response_decay(m.split),
}
# They extend, store, open or select what the rows above make, or are made by the same function as a row.
SAME_AS_OTHERS = {
    *("cached_pairs", "extend_pairs", "follow", "open_trajectory", "open_sweep", "select_runs", "sketch_msd"),
    *("ballistic", "scaled_brownian", "sgd_noise", "time_changed_ou", "trap_model"),
}
LABELLED = ("Dataset", "DataArray", "DataTree")
# Rows that still lack labels; strict, so that a row which is mended has to leave this set.
STILL_BARE = {"compare_aging", "map_sweep", "sweep_table"}


@pytest.fixture(scope="module")
def made():
    return Made()


def test_every_public_function_that_returns_labelled_data_has_a_row():
    """By what it returns, in whatever folder it is: a list of folders would miss some."""
    public = {
        name
        for names in ts._MODULES.values()
        for name in names
        if inspect.isfunction(function := getattr(ts, name))
        and any(kind in str(inspect.signature(function).return_annotation) for kind in LABELLED)
    }
    assert public - set(ROWS) == SAME_AS_OTHERS


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.xfail(strict=True)) if n in STILL_BARE else n for n in ROWS],
)
def test_own_names_and_units(name, made):
    result = ROWS[name](made)
    variables = {str(key): variable for key, variable in result.coords.items()}
    if isinstance(result, xr.Dataset):
        variables |= {str(key): variable for key, variable in result.data_vars.items()}
    else:
        variables["the result"] = result
    lacking = [k for k, v in variables.items() if not (v.attrs.get("long_name") and v.attrs.get("units"))]
    assert lacking == []
    names = [v.attrs["long_name"] for v in variables.values()]
    assert len(set(names)) == len(names), "two variables with one name: " + ", ".join(sorted(names))
    assert result.attrs.get("estimator", name) == name


def test_a_slope_is_not_called_a_displacement(made):
    """With any xarray: newer ones keep attributes in arithmetic."""
    with xr.set_options(keep_attrs=True):
        slopes = ts.local_exponent(made.delta)
        chi = ts.dynamic_susceptibility(ts.two_time(made.run, made.pairs, observables=["overlap"]).overlap)
    assert slopes.exponent.attrs["units"] == "1"
    assert "displacement" not in slopes.exponent.attrs["long_name"]
    assert "error_bound" not in slopes.exponent.attrs
    assert chi.chi4.attrs["long_name"] == "dynamic susceptibility chi_4"
