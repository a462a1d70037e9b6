"""Spectra and eigenvectors of the Hessian, Gauss-Newton and Fisher matrices."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "density": ["spectral_density", "spectral_summary"],
        "eigenpairs": ["extreme_eigenpairs"],
        "hessian": ["hessian_spectrum"],
    },
)
