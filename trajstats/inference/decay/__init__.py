"""Fits of the power-law decay of a loss to its floor."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "fit": ["fit_decay"],
    },
)
