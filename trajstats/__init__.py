"""trajstats: the statistical physics of saved neural-network training trajectories.

Every public name is here and is imported on first use, so that ``import trajstats`` stays fast. Type checkers and
editors read the same names in ``__init__.pyi``, which ``python tests/test_facade.py`` writes.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "trajstats.data.finite": ["check_finite"],
    "trajstats.data.ingest.into_store": ["ingest"],
    "trajstats.data.schedules": ["aging_schedule", "log_schedule", "time_pairs"],
    "trajstats.data.schema": ["check_trajectory", "trajectory_dataset"],
    "trajstats.data.sketch": ["Sketch", "sketch_msd"],
    "trajstats.data.store.maintenance": ["append_from", "compact", "delete_after"],
    "trajstats.data.store.open": ["follow", "open_trajectory"],
    "trajstats.data.store.verification": ["verify"],
    "trajstats.data.store.writer": ["TrajectoryWriter"],
    "trajstats.data.sweep.sweep": ["open_sweep", "select_runs", "sweep_table"],
    "trajstats.data.synthetic.jumps": ["displacement_noise", "trap_model"],
    "trajstats.data.synthetic.processes": [
        "ballistic",
        "brownian",
        "exact_msd",
        "ornstein_uhlenbeck",
        "scaled_brownian",
        "sgd_noise",
        "time_changed_ou",
    ],
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
    "trajstats.estimators.curvature.density": ["spectral_density", "spectral_summary"],
    "trajstats.estimators.curvature.eigenpairs": ["extreme_eigenpairs"],
    "trajstats.estimators.curvature.hessian": ["hessian_spectrum"],
    "trajstats.estimators.fixed_points.census": ["attractor_slice", "fixed_point_census"],
    "trajstats.estimators.fixed_points.scan": ["census_scan"],
    "trajstats.estimators.jacobian.jacobian": ["jacobian_esd"],
    "trajstats.estimators.noise.clocks": ["noise_clock", "noise_normalised_msd"],
    "trajstats.estimators.noise.gradient_noise": ["gradient_noise"],
    "trajstats.estimators.response.adversarial": ["fragility"],
    "trajstats.estimators.response.features": ["feature_space"],
    "trajstats.estimators.response.response": ["training_response"],
    "trajstats.estimators.tails.samples": ["hill_plot", "tail_fit"],
    "trajstats.estimators.tails.weights": ["spectral_tails", "weight_tails"],
    "trajstats.estimators.two_time.derived": ["dynamic_susceptibility", "epoch_echo", "local_exponent"],
    "trajstats.estimators.two_time.distribution": ["van_hove"],
    "trajstats.estimators.two_time.growing": ["cached_pairs", "extend_pairs"],
    "trajstats.estimators.two_time.measures": ["all_pairs", "msd", "two_time", "two_time_plan"],
    "trajstats.estimators.two_time.path": ["loss_regimes", "path_statistics", "trajectory_pca"],
    "trajstats.estimators.two_time.stationarity": ["stationarity_test", "time_averaged_msd"],
    "trajstats.inference.aging.compare_glasses": ["compare_aging", "glass_msd"],
    "trajstats.inference.aging.curves.master_curves": ["MasterCurve"],
    "trajstats.inference.aging.fit": ["fit_subaging"],
    "trajstats.inference.batch.many_fits": ["fit_batch"],
    "trajstats.inference.batch.sweeps": ["map_sweep"],
    "trajstats.inference.decay.fit": ["fit_decay"],
    "trajstats.inference.model_scores": ["compare_fits"],
    "trajstats.inference.response.separation": ["fit_response_decay", "separate_response"],
    "trajstats.inference.results": ["FitResult"],
    "trajstats.inference.transition.fit": ["fit_divergence"],
    "trajstats.inference.transition.learning_times": ["learning_times"],
    "trajstats.network": ["Network"],
    "trajstats.report.page.analysis": ["analyze"],
    "trajstats.report.page.html": ["write_report"],
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
    "trajstats.theory.random_matrix": ["variance_map"],
    "trajstats.theory.random_matrix.closed_forms": ["FussCatalan", "MarchenkoPastur"],
    "trajstats.theory.random_matrix.compare": ["compare_to_theory"],
    "trajstats.theory.random_matrix.jacobian_law": ["JacobianLaw"],
    "trajstats.theory.random_matrix.random_nets": ["CheckpointLaw", "RandomNet"],
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
# Of the package beside this one; each needs its framework.
_TRAINERS = {
    "JaxNetwork": ("trajstats_trainers.jax.adapter", "jax"),
    "Recorder": ("trajstats_trainers.recording", "trajstats"),
    "TorchNetwork": ("trajstats_trainers.torch.adapter", "torch"),
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if name in _TRAINERS:
        module, framework = _TRAINERS[name]
        from trajstats.errors import optional_package

        optional_package(framework, f"trajstats.{name}", f"trajstats[{framework}]")
        return getattr(importlib.import_module(module), name)
    if name == "theory":
        return importlib.import_module("trajstats.theory")
    msg = f"module 'trajstats' has no attribute {name!r}; public names: {', '.join(__all__)}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return [*__all__, *_TRAINERS, "__version__", "theory"]
