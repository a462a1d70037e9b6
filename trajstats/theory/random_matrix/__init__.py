"""Laws of random matrices and of Jacobians, and the comparison of spectra with them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "_activations": ["variance_map"],
        "closed_forms": ["FussCatalan", "MarchenkoPastur"],
        "compare": ["compare_to_theory"],
        "jacobian_law": ["JacobianLaw"],
        "random_nets": ["CheckpointLaw", "RandomNet"],
    },
)
