"""Heavy tails of samples, weights and spectra."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "samples": ["hill_plot", "tail_fit"],
        "weights": ["spectral_tails", "weight_tails"],
    },
)
