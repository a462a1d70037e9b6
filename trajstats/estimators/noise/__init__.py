"""Gradient noise and the clocks made from it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "clocks": ["noise_clock", "noise_normalised_msd"],
        "gradient_noise": ["gradient_noise"],
    },
)
