"""Turn somebody's series of checkpoints into a trajectory store."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "into_store": ["ingest"],
    },
)
