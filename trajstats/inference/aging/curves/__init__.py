"""Master curves: named forms and a smooth spline."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "master_curves": ["MasterCurve"],
    },
)
