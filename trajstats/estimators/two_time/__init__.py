"""Observables of the displacement between two times: listed pairs or all pairs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "derived": ["dynamic_susceptibility", "epoch_echo", "local_exponent"],
        "distribution": ["van_hove"],
        "growing": ["cached_pairs", "extend_pairs"],
        "measures": ["all_pairs", "msd", "two_time", "two_time_plan"],
        "path": ["loss_regimes", "path_statistics", "trajectory_pca"],
        "stationarity": ["stationarity_test", "time_averaged_msd"],
    },
)
