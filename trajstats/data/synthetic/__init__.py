"""Random processes with exactly known two-time functions."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "jumps": ["displacement_noise", "trap_model"],
        "processes": [
            "ballistic",
            "brownian",
            "exact_msd",
            "ornstein_uhlenbeck",
            "scaled_brownian",
            "sgd_noise",
            "time_changed_ou",
        ],
    },
)
