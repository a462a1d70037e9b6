"""The HTML page of an analysis."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "analysis": ["analyze"],
        "html": ["write_report"],
    },
)
