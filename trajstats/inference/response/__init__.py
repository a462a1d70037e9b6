"""Separate a training response into its decay and its kernel."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "separation": ["fit_response_decay", "separate_response"],
    },
)
