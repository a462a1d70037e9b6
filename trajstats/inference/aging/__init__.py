"""Fits of subaging exponents to two-time mean squared displacements."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "compare_glasses": ["compare_aging", "glass_msd"],
        "fit": ["fit_subaging"],
    },
)
