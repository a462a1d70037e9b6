"""Fixed points, cycles and basins of square networks."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "census": ["attractor_slice", "fixed_point_census"],
        "scan": ["census_scan"],
    },
)
