"""Training response, feature spaces and fragility."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "adversarial": ["fragility"],
        "features": ["feature_space"],
        "response": ["training_response"],
    },
)
