"""Name and units of every variable and coordinate of every public result, in one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import xarray as xr

T = TypeVar("T", xr.DataArray, xr.Dataset)
Table = Mapping[str, tuple[str, str]]

STEPS = "optimiser steps"
COUNT = "1"
WEIGHT = "weight"
LOSS = "loss"

# What a name means wherever an estimator does not say otherwise.
COMMON: Table = {
    "replica": ("replica", COUNT),
    "step": ("optimiser step", STEPS),
    "step_prime": ("optimiser step, the other one", STEPS),
    "first": ("optimiser step at the waiting time", STEPS),
    "second": ("optimiser step at the waiting time plus the lag", STEPS),
    "waiting_time": ("waiting time", STEPS),
    "lag": ("lag", STEPS),
    "epoch": ("epoch", "epochs"),
    "proper_time": ("proper time, the sum of learning rates", "sum of learning rates"),
    "parameter": ("parameter", COUNT),
    "layer": ("layer", COUNT),
    "layer_stop": ("end of the layer along parameter", COUNT),
    "layer_shape": ("shape of the layer", COUNT),
    "layer_kind": ("kind of the layer", COUNT),
    "kind": ("kind", COUNT),
    "group": ("group of layers", COUNT),
    "block": ("random block of parameters", COUNT),
    "n_parameters": ("number of parameters", COUNT),
    "buffer_name": ("tensor of the buffer", COUNT),
    "weights": ("weights", WEIGHT),
    "sketch": ("random projections of the displacement from the start", WEIGHT),
    "buffers": ("state that is not trained", COUNT),
    "digest": ("digest of each tensor", COUNT),
    "rounding_floor": ("mean square rounding error of the stored weights", f"{WEIGHT}^2"),
    "loss": ("loss", LOSS),
    "source": ("where the run came from", COUNT),
    "seed": ("seed", COUNT),
    "stage": ("stage of training", COUNT),
    "bound": ("end of the interval", COUNT),
    "law": ("law", COUNT),
    "input": ("input", COUNT),
    "probe": ("probe", COUNT),
    "rank": ("rank from the end of the spectrum", COUNT),
    "component": ("principal component", COUNT),
    "n_pairs": ("pairs of checkpoints averaged", COUNT),
    "stderr": ("standard error", COUNT),
}

_SPECTRAL = {
    "trace": "trace of the curvature",
    "frobenius": "Frobenius norm of the curvature",
    "largest": "largest eigenvalue",
    "smallest": "smallest eigenvalue",
    "negative_fraction": "share of negative eigenvalues",
    "flat_fraction": "share of flat directions",
}
CURVATURE = "loss / weight^2"
_SIZES = {
    "participation_ratio": "participation ratio",
    "stable_rank": "stable rank",
    "effective_dimension": "effective dimension",
}
_COUNTED: Table = {
    "n_fixed_points": ("number of fixed points", COUNT),
    "n_stable_fixed_points": ("number of stable fixed points", COUNT),
    "n_cycles": ("number of cycles", COUNT),
    "unconverged_share": ("share of starts that did not converge", COUNT),
    "missed": ("estimated number of attractors that no start found", COUNT),
}
_TAIL: Table = {
    "alpha": ("exponent of the density's power law", COUNT),
    "alpha_stderr": ("standard error of the exponent", COUNT),
    "x_min": ("smallest value of the tail", "as the values"),
    "n_tail": ("values in the tail", COUNT),
    "ks_distance": ("Kolmogorov-Smirnov distance of the power law", COUNT),
    "p_value": ("p-value of the power law", COUNT),
    "log_likelihood_ratio": ("log likelihood ratio, positive for the power law", COUNT),
    "comparison_p_value": ("p-value of the likelihood ratio", COUNT),
    "law_parameters": ("parameters of the other law", "as the values or 1, see parameter_names"),
    "law": ("other law of the tail", COUNT),
    "parameter_names": ("names of the other law's parameters", COUNT),
    "kind": ("whether the values are continuous, discrete or rounded", COUNT),
    "grid_step": ("spacing of the values' grid", "as the values"),
    "hill_index": ("Hill's tail index", COUNT),
    "hill_stderr": ("standard error of Hill's tail index", COUNT),
    "excess_kurtosis": ("excess kurtosis of the weights", COUNT),
    "reason": ("why the layer could not be fitted", COUNT),
    "bulk_variance": ("variance of the Marchenko-Pastur bulk", f"{WEIGHT}^2"),
    "bulk_edge": ("upper edge of the Marchenko-Pastur bulk", f"{WEIGHT}^2"),
    "n_spikes": ("eigenvalues above the bulk", COUNT),
    "largest": ("largest eigenvalue", f"{WEIGHT}^2"),
}
JACOBIAN = "(output / input)^2"
_BINS: Table = {
    "squared_singular_value": ("squared singular value", JACOBIAN),
    "bin_low": ("lower edge of the bin", JACOBIAN),
    "bin_high": ("upper edge of the bin", JACOBIAN),
}

BY_ESTIMATOR: Mapping[str, Table] = {
    "hessian_spectrum": {
        "nodes": ("Ritz values", CURVATURE),
        "weights": ("weights of the Ritz values in the density", COUNT),
        "residual": ("residual norm of each Ritz pair", CURVATURE),
        "exact": ("whether the node is a converged eigenvalue", COUNT),
        "loss": ("loss at the checkpoint", LOSS),
    },
    "spectral_density": {
        "density": ("spectral density", "weight^2 / loss"),
        "low": ("lower end of the density's band", "weight^2 / loss"),
        "high": ("upper end of the density's band", "weight^2 / loss"),
        "eigenvalue": ("eigenvalue", CURVATURE),
    },
    "spectral_summary": {
        **{
            f"{name}{end}": (f"{prefix}{text}", COUNT if name.endswith("fraction") else CURVATURE)
            for name, text in _SPECTRAL.items()
            for end, prefix in (("", ""), ("_low", "lower end: "), ("_high", "upper end: "))
        },
        "eps": ("largest modulus of a flat direction's eigenvalue", CURVATURE),
    },
    "extreme_eigenpairs": {
        "eigenvalue": ("extreme eigenvalue", CURVATURE),
        "residual": ("residual norm of the eigenpair", CURVATURE),
        "vector": ("eigenvector", COUNT),
    },
    "jacobian_esd": {
        **_BINS,
        "log_singular_values": ("natural logarithm of the singular values", COUNT),
        "resolved": ("whether the singular value is above rounding", COUNT),
        "spectral_norm": ("spectral norm of the Jacobian", "output / input"),
        "spectral_radius": ("spectral radius of the Jacobian", "output / input"),
        "eigenvalue_real": ("real part of the eigenvalues", "output / input"),
        "eigenvalue_imag": ("imaginary part of the eigenvalues", "output / input"),
        "nodes": ("Ritz values of the squared singular values", JACOBIAN),
        "weights": ("weights of the Ritz values in the density", COUNT),
        "weight_tail_index": ("Hill's tail index of the layer's weights", COUNT),
        "weight_tail_stderr": ("standard error of the weights' tail index", COUNT),
        "density": ("density of the squared singular values", f"1 / {JACOBIAN}"),
        "density_low": ("lower end of the density's band", f"1 / {JACOBIAN}"),
        "density_high": ("upper end of the density's band", f"1 / {JACOBIAN}"),
    },
    "compare_to_theory": {
        **_BINS,
        "ks": ("Kolmogorov-Smirnov distance from the law", COUNT),
        "ks_p_value": ("p-value of the distance", COUNT),
        "simulated_ks": ("distances of simulated nets", COUNT),
        "moment_ratio": ("moment over the law's moment", COUNT),
        "order": ("order of the moment", COUNT),
        "theory": ("density of the law", f"1 / {JACOBIAN}"),
        "band_low": ("lower end of the band of simulated nets", f"1 / {JACOBIAN}"),
        "band_high": ("upper end of the band of simulated nets", f"1 / {JACOBIAN}"),
    },
    "separate_response": {"unexplained_interval": ("interval of the unexplained share", COUNT)},
    "feature_space": {
        f"{name}{end}": (f"{text}{more}", COUNT)
        for name, text in _SIZES.items()
        for end, more in (
            ("_uncorrected", ", not corrected for the number of inputs"),
            ("_stderr", ", standard error"),
            ("_interval", ", interval"),
        )
    },
    "fragility": {
        "fgsm_flipped": ("whether FGSM flips the prediction", COUNT),
        "pgd_flipped": ("whether PGD flips the prediction", COUNT),
    },
    "fixed_point_census": {
        **_COUNTED,
        "point": ("points of the attractor", "state"),
        "period": ("period of the attractor", "iterations"),
        "spectral_radius": ("spectral radius of the Jacobian along the attractor", COUNT),
        "stable": ("whether the attractor is stable", COUNT),
        "residual": ("distance of the polished point from its image", "state"),
        "count": ("starts that reached the attractor", COUNT),
        "share": ("share of the starts", COUNT),
        "share_low": ("lower end of the share's interval", COUNT),
        "share_high": ("upper end of the share's interval", COUNT),
        "status": ("what became of the start", COUNT),
        "label": ("attractor that the start reached", COUNT),
        "iterations": ("iterations of the start", "iterations"),
        "distinct": ("expected distinct attractors from so many starts", COUNT),
        "distinct_stderr": ("standard error of the distinct attractors", COUNT),
        "missed_share": ("estimated share of the attractors that no start found", COUNT),
        "missed_share_high": ("upper end of the missed share", COUNT),
        "sample_size": ("number of starts", COUNT),
    },
    "attractor_slice": {
        "label": ("attractor reached from the point of the plane", COUNT),
        "u": ("coordinate along the first direction", "state"),
        "v": ("coordinate along the second direction", "state"),
    },
    "census_scan": {
        **_COUNTED,
        "largest_share": ("share of the largest basin", COUNT),
        "law": ("law of the weights", COUNT),
        "scale": ("scale of the weights", COUNT),
        "width": ("width N", "units"),
        "depth": ("depth L", "layers"),
        "Q": ("mean number of fixed points", COUNT),
        "Q_stderr": ("standard error of the mean number of fixed points", COUNT),
        "Q_share_multiple": ("share of nets with more than one fixed point", COUNT),
    },
    "hill_plot": {
        "index": ("Hill's tail index", COUNT),
        "stderr": ("standard error of the tail index", COUNT),
        "k": ("order statistics used", COUNT),
        "threshold": ("smallest modulus used", "as the values"),
    },
    "tail_fit": _TAIL,
    "weight_tails": _TAIL,
    "spectral_tails": {**_TAIL, "x_min": ("smallest eigenvalue of the tail", f"{WEIGHT}^2")},
    "van_hove": {
        "bin": ("centre of the bin of displacements", "see the attribute scale"),
        "bin_width": ("width of the bin", "see the attribute scale"),
        "count": ("displacements in the bin", COUNT),
        "outside": ("displacements outside all bins", COUNT),
        "null": ("density of a Gaussian with the same variance", "1 / bin units"),
    },
    "local_exponent": {
        "exponent": ("local exponent d ln MSD / d ln t", COUNT),
        "stderr": ("standard error of the local exponent", COUNT),
    },
    "epoch_echo": {
        "depth": ("depth of the dip at a multiple of the epoch", COUNT),
        "mean_depth": ("mean depth of the dips", COUNT),
        "multiple": ("multiple of the epoch", "epochs"),
        "detected": ("whether an echo was detected", COUNT),
    },
    "dynamic_susceptibility": {
        "chi4": ("dynamic susceptibility chi_4", COUNT),
        "stderr": ("standard error of chi_4", COUNT),
        "null": ("chi_4 of independent parameters", COUNT),
    },
    "stationarity_test": {
        "p_value": ("p-value of stationarity", COUNT),
        "p_value_of_run": ("p-value of stationarity of one replica", COUNT),
        "tau": ("Kendall's tau of the MSD against the waiting time", COUNT),
        "stationary": ("whether stationarity stands", COUNT),
        "n_windows": ("windows that do not overlap", COUNT),
    },
    "trajectory_pca": {
        "score": ("coordinate along the component", WEIGHT),
        "explained": ("share of the variance explained", COUNT),
        "participation_rank": ("effective rank by participation", COUNT),
        "entropy_rank": ("effective rank by entropy", COUNT),
    },
    "loss_regimes": {
        **{
            f"{name}{end}": (f"{prefix}{text}", STEPS)
            for name, text in (("t1", "end of the initial plateau"), ("t2", "time at which the loss reaches its floor"))
            for end, prefix in (("", ""), ("_low", "lower end: "), ("_high", "upper end: "))
        },
        "plateau": ("loss of the initial plateau", LOSS),
        "floor": ("floor of the loss", LOSS),
        "plateau_seen": ("whether an initial plateau was seen", COUNT),
        "floor_reached": ("whether the floor was reached", COUNT),
    },
}


def label(result: T, estimator: str = "") -> T:
    """Give every variable and coordinate its own name and units, in place of inherited ones.

    What the table says of an estimator's variable replaces whatever the arithmetic left; of the rest, only what lacks a
    name or units is given the common one, so that units of a clock stay.
    """
    own = BY_ESTIMATOR.get(estimator, {})
    names = result.coords if isinstance(result, xr.DataArray) else result.variables
    for name in map(str, names):
        variable = result[name].variable
        attrs = variable.attrs
        if name in own:
            inherited = attrs.get("estimator", estimator) != estimator
            variable.attrs = {**({} if inherited else attrs), **_attrs(own[name])}
        elif name in COMMON and not (attrs.get("long_name") and attrs.get("units")):
            variable.attrs = {**attrs, **_attrs(COMMON[name])}
    return result


def _attrs(what: tuple[str, str]) -> dict[str, str]:
    """Return name and units as attributes."""
    return {"long_name": what[0], "units": what[1]}
