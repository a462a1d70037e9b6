"""Data in a unit of their own: a fit then gives the same numbers, bit by bit, whatever unit they came in."""

from __future__ import annotations

from typing import Any

import numpy as np

# A sampler turns a last bit into other draws: digits that a change of unit may move are rounded away. What is left is a
# thousand times finer than the smallest relative noise that any fit allows.
_BITS = 2.0**30


def own_unit(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Divide positive values by one of them, about the median, and round to nine digits."""
    unit = float(np.sort(values, axis=None)[values.size // 2]) if values.size else 1.0
    return rounded(values / unit), unit


def rounded(values: Any) -> Any:
    """Round numbers to 30 significant bits."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.rint(mantissa * _BITS) / _BITS, exponent)
