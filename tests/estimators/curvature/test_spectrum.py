"""Densities, summaries and their intervals, from spectra that are known."""

import numpy as np
import pytest
import xarray as xr

from tests.reference.numpy_networks import Dense
from trajstats import ArgumentError, hessian_spectrum, spectral_density, spectral_summary
from trajstats.data.schema import trajectory_dataset
from trajstats.errors import SchemaError


def matrix_of(eigenvalues, seed=0):
    n = len(eigenvalues)
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    return (q * eigenvalues) @ q.T


def spectrum_of(eigenvalues, **options):
    run = trajectory_dataset(np.zeros((1, len(eigenvalues))), step=[0])
    return hessian_spectrum(Dense(matrix_of(eigenvalues)), run, **{"method": "lanczos", "rng": 0, **options})


@pytest.mark.parametrize("scale", ["linear", "symlog"])
def test_density_integrates_to_one_and_is_the_smoothed_spectrum(scale):
    eigenvalues = np.random.default_rng(1).uniform(-1, 3, 120)
    rho = spectral_density(spectrum_of(eigenvalues, method="exact"), scale=scale, points=3000)
    np.testing.assert_allclose(rho.density.integrate("eigenvalue"), 1, atol=1e-3)
    np.testing.assert_array_equal(rho.low, rho.density)
    x, width, s = rho.eigenvalue.values, rho.attrs["width"], rho.attrs["linear_below"]
    u, slope = (x, 1) if scale == "linear" else (np.arcsinh(x / s), 1 / np.hypot(x, s))
    at = eigenvalues if scale == "linear" else np.arcsinh(eigenvalues / s)
    naive = [np.mean(np.exp(-((v - at) ** 2) / (2 * width**2))) / np.sqrt(2 * np.pi) / width for v in u]
    np.testing.assert_allclose(rho.density[0, 0], np.array(naive) * slope, rtol=1e-9, atol=1e-300)


def test_summary_of_an_exact_spectrum_is_plain_counting():
    eigenvalues = np.array([-2.0, -0.5, -1e-4, 0.0, 2e-4, 1.0, 4.0])
    summary = spectral_summary(spectrum_of(eigenvalues, method="exact"), eps=1e-3, relative=False)
    known = {
        "trace": eigenvalues.sum(),
        "frobenius": np.sqrt((eigenvalues**2).sum()),
        "largest": 4,
        "smallest": -2,
        "negative_fraction": 2 / 7,
        "flat_fraction": 3 / 7,
    }
    for name, value in known.items():
        for end in ("", "_low", "_high"):
            np.testing.assert_allclose(summary[name + end].item(), value, rtol=1e-12)


def test_relative_threshold_is_in_units_of_the_largest_eigenvalue():
    summary = spectral_summary(spectrum_of(np.array([-8.0, 0.5, 1.0, 4.0]), method="exact"), eps=0.1)
    assert summary.eps.item() == pytest.approx(0.8)
    assert summary.flat_fraction.item() == pytest.approx(0.25)


@pytest.mark.parametrize("method", ["exact", "lanczos"])
def test_every_direction_of_a_zero_operator_is_flat(method):
    summary = spectral_summary(spectrum_of(np.zeros(60), method=method))
    for name, value in (("flat_fraction", 1), ("negative_fraction", 0), ("trace", 0), ("frobenius", 0)):
        assert [summary[name + end].item() for end in ("_low", "", "_high")] == pytest.approx([value] * 3)


def test_intervals_hold_the_truth_on_a_bulk_with_null_space_and_spikes():
    rng = np.random.default_rng(4)
    eigenvalues = np.concatenate([np.zeros(150), rng.uniform(0.05, 1, 145), [5.0, 6.0, 8.0, 10.0, 12.0]])
    summary = spectral_summary(spectrum_of(eigenvalues), eps=0.02, relative=False, level=0.9999)
    known = {
        "trace": eigenvalues.sum(),
        "frobenius": np.linalg.norm(eigenvalues),
        "largest": 12,
        "smallest": 0,
        "negative_fraction": 0,
        "flat_fraction": 0.5,
    }
    for name, value in known.items():
        slack = 1e-9 * 12
        assert summary[f"{name}_low"].item() - slack <= value <= summary[f"{name}_high"].item() + slack, name
    assert summary.flat_fraction_high - summary.flat_fraction_low < 0.3
    assert summary.negative_fraction_high < 1e-6


def test_more_probes_narrow_the_band_as_one_over_the_root():
    eigenvalues = np.random.default_rng(5).uniform(-1, 3, 400)
    widths = []
    for probes in (10, 40):
        summary = spectral_summary(spectrum_of(eigenvalues, probes=probes, order=20))
        widths.append((summary.trace_high - summary.trace_low).item())
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.1)


def test_derived_quantities_are_lazy_and_cost_no_products():
    network = Dense(matrix_of(np.linspace(-1, 2, 60)))
    run = trajectory_dataset(np.zeros((2, 60)), step=[0, 1])
    spectrum = hessian_spectrum(network, run, method="lanczos", rng=0, order=16)
    products = network.products
    lazy = spectrum.chunk({"step": 1})
    summary = spectral_summary(lazy)
    rho = spectral_density(lazy, grid=np.linspace(-1, 2, 9), width=0.1, linear_below=0.1)
    assert summary.trace.chunks is not None
    assert rho.density.chunks is not None
    xr.testing.assert_allclose(summary.compute(), spectral_summary(spectrum))
    assert network.products == products


def test_bad_input_is_named():
    spectrum = spectrum_of(np.ones(4), method="exact")
    with pytest.raises(ArgumentError, match=r"symlgo.*did you mean 'symlog'"):
        spectral_density(spectrum, scale="symlgo")
    with pytest.raises(ArgumentError, match="level=1"):
        spectral_density(spectrum, level=1)
    with pytest.raises(ArgumentError, match="eps=0"):
        spectral_summary(spectrum, eps=0)
    with pytest.raises(SchemaError, match="hessian_spectrum"):
        spectral_summary(spectrum.drop_vars("exact"))
