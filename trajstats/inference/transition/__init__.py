"""Fits of the divergence of learning times at a critical width."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "fit": ["fit_divergence"],
        "learning_times": ["learning_times"],
    },
)
