"""trajstats: the statistical physics of saved neural-network training trajectories.

Every public name is here and is imported on first use, so that ``import trajstats`` stays fast.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "trajstats.errors": [
        "ArgumentError",
        "ClusterError",
        "FitError",
        "NonFiniteError",
        "SchemaError",
        "StoreError",
        "StoreNotFoundError",
        "TooFewReplicasError",
        "TrajstatsError",
        "UnsafeInputError",
        "UnsupportedError",
    ],
    "trajstats.network": ["Network"],
    "trajstats.data.schema": ["check_trajectory", "trajectory_dataset"],
    "trajstats.data.schedules": ["aging_schedule", "log_schedule", "time_pairs"],
    "trajstats.data.store": ["TrajectoryWriter", "follow", "open_trajectory"],
    "trajstats.data.sweep": ["open_sweep", "select_runs", "sweep_table"],
    "trajstats.data.ingest": ["ingest"],
    "trajstats.data.maintenance": ["append_from", "compact", "delete_after"],
    "trajstats.data.sketch": ["Sketch", "sketch_msd"],
    "trajstats.data.finite": ["check_finite"],
    "trajstats.data.verify": ["verify"],
    "trajstats.data.synthetic": [
        "ballistic",
        "brownian",
        "exact_msd",
        "ornstein_uhlenbeck",
        "scaled_brownian",
        "sgd_noise",
        "time_changed_ou",
    ],
    "trajstats.data.synthetic_jumps": ["displacement_noise", "trap_model"],
    "trajstats.estimators.displacement": ["dynamic_susceptibility", "epoch_echo", "local_exponent"],
    "trajstats.estimators.incremental": ["cached_pairs", "extend_pairs"],
    "trajstats.estimators.stationarity": ["stationarity_test", "time_averaged_msd"],
    "trajstats.estimators.van_hove": ["van_hove"],
    "trajstats.estimators.one_time": ["loss_regimes", "path_statistics", "trajectory_pca"],
    "trajstats.estimators.two_time": ["all_pairs", "msd", "two_time", "two_time_plan"],
    "trajstats.estimators.hessian": ["hessian_spectrum"],
    "trajstats.estimators.eigenpairs": ["extreme_eigenpairs"],
    "trajstats.estimators.noise": ["gradient_noise"],
    "trajstats.estimators.noise_units": ["noise_clock", "noise_normalised_msd"],
    "trajstats.estimators.spectrum": ["spectral_density", "spectral_summary"],
    "trajstats.estimators.census_scan": ["census_scan"],
    "trajstats.estimators.fixed_points": ["attractor_slice", "fixed_point_census"],
    "trajstats.estimators.jacobian": ["jacobian_esd"],
    "trajstats.estimators.tails": ["hill_plot", "tail_fit"],
    "trajstats.estimators.weight_tails": ["spectral_tails", "weight_tails"],
    "trajstats.theory.comparison": ["compare_to_theory"],
    "trajstats.theory.random_nets": ["CheckpointLaw", "RandomNet"],
    "trajstats.theory.random_matrix": ["FussCatalan", "JacobianLaw", "MarchenkoPastur", "variance_map"],
    "trajstats.inference.aging": ["fit_subaging"],
    "trajstats.estimators.response": ["training_response"],
    "trajstats.estimators.feature_space": ["feature_space"],
    "trajstats.estimators.fragility": ["fragility"],
    "trajstats.inference.glass_comparison": ["compare_aging", "glass_msd"],
    "trajstats.inference.response_separation": ["fit_response_decay", "separate_response"],
    "trajstats.inference.results": ["FitResult"],
    "trajstats.inference.models": ["MasterCurve"],
    "trajstats.inference.transition": ["fit_divergence"],
    "trajstats.inference.learning": ["learning_times"],
    "trajstats.inference.decay": ["fit_decay"],
    "trajstats.inference.batch": ["fit_batch"],
    "trajstats.inference.comparison": ["compare_fits"],
    "trajstats.inference.sweep_map": ["map_sweep"],
    "trajstats.report.plots": [
        "plot_attractor_slice",
        "plot_basins",
        "plot_collapse",
        "plot_corner",
        "plot_curvatures",
        "plot_decay",
        "plot_divergence",
        "plot_feature_space",
        "plot_fixed_point_count",
        "plot_flat_directions",
        "plot_fluctuation_dissipation",
        "plot_fragility",
        "plot_glass_comparison",
        "plot_glass_correlation",
        "plot_glass_energy",
        "plot_hill",
        "plot_jacobian_esd",
        "plot_local_exponent",
        "plot_loss",
        "plot_msd",
        "plot_msd_layers",
        "plot_mu_estimators",
        "plot_posterior",
        "plot_response_decay",
        "plot_scan",
        "plot_spectrum",
        "plot_tail_index",
        "plot_top_eigenvalues",
        "plot_two_time_map",
        "plot_van_hove",
    ],
    "trajstats.report.analysis": ["analyze"],
    "trajstats.report.html": ["write_report"],
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if name == "theory":
        return importlib.import_module("trajstats.theory")
    msg = f"module 'trajstats' has no attribute {name!r}; public names: {', '.join(__all__)}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
