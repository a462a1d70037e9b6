"""Many fits at once, on processes or a dask cluster."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "many_fits": ["fit_batch"],
        "sweeps": ["map_sweep"],
    },
)
