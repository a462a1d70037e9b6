"""Many runs in one directory, opened together."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "sweep": ["open_sweep", "select_runs", "sweep_table"],
    },
)
