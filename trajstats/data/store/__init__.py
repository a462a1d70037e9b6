"""The trajectory store: write, open, repair and check it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "maintenance": ["append_from", "compact", "delete_after"],
        "open": ["follow", "open_trajectory"],
        "verification": ["verify"],
        "writer": ["TrajectoryWriter"],
    },
)
