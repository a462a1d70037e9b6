"""Plots of curvature spectra draw what the estimators gave, with labels."""

import numpy as np
import pytest

from tests.reference.numpy_networks import SoftmaxLinear
from trajstats import (
    extreme_eigenpairs,
    hessian_spectrum,
    plot_curvatures,
    plot_flat_directions,
    plot_spectrum,
    plot_top_eigenvalues,
    spectral_density,
    spectral_summary,
)
from trajstats.data.schema import trajectory_dataset

RNG = np.random.default_rng(0)
NETWORK = SoftmaxLinear(RNG.standard_normal((30, 5)), RNG.integers(0, 4, 30), n_outputs=4)
RUN = trajectory_dataset(RNG.standard_normal((2, 3, 20)), step=[0, 10, 100])
LANCZOS = {"method": "lanczos", "order": 8, "rng": 0}


@pytest.mark.parametrize("scale", ["symlog", "linear"])
def test_spectrum_has_a_line_and_a_band_per_checkpoint(scale):
    spectrum = hessian_spectrum(NETWORK, RUN, **LANCZOS)
    ax = plot_spectrum(spectrum, replica=1, scale=scale)
    rho = spectral_density(spectrum, scale=scale)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["0", "10", "100"]
    np.testing.assert_array_equal(ax.get_lines()[2].get_ydata(), rho.density[1, 2])
    assert len(ax.collections) == 3
    assert "Hessian" in ax.get_xlabel()
    assert "weight" in ax.get_ylabel()
    assert ax.get_xscale() == {"symlog": "asinh", "linear": "linear"}[scale]
    again = plot_spectrum(rho, replica=1)
    np.testing.assert_array_equal(again.get_lines()[2].get_ydata(), rho.density[1, 2])


def test_kinds_are_drawn_on_one_grid():
    spectra = [hessian_spectrum(NETWORK, RUN, kind=kind, **LANCZOS) for kind in ("hessian", "gauss_newton", "fisher")]
    ax = plot_curvatures(spectra)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["Hessian", "Gauss-Newton", "Fisher"]
    first, *others = [line.get_xdata() for line in ax.get_lines()]
    for other in others:
        np.testing.assert_array_equal(first, other)


def test_flat_directions_have_a_line_per_threshold():
    spectrum = hessian_spectrum(NETWORK, RUN, rng=0)
    ax = plot_flat_directions(spectrum, eps=[0.01, 0.1])
    summary = spectral_summary(spectrum, eps=0.1, relative=False)
    np.testing.assert_array_equal(ax.get_lines()[1].get_ydata(), summary.flat_fraction[0])
    assert ax.get_xlabel() == "$t$ (optimiser steps)"
    assert "flat" in ax.get_ylabel()


def test_top_eigenvalues_from_pairs_and_from_a_spectrum():
    pairs = extreme_eigenpairs(NETWORK, RUN, top=2, bottom=1, rng=0)
    ax = plot_top_eigenvalues(pairs)
    np.testing.assert_array_equal(ax.get_lines()[2].get_ydata(), pairs.eigenvalue[0, :, 2])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["1", "2", "-1"]
    ax = plot_top_eigenvalues(hessian_spectrum(NETWORK, RUN, rng=0))
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), pairs.eigenvalue[0, :, 0], rtol=1e-9)
