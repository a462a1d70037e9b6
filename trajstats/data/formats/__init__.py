"""One reader for each checkpoint format; `_open` stands above them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "_open": ["open_checkpoint"],
    },
)
