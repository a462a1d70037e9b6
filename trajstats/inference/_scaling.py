"""Data in a unit of their own: a fit then gives the same numbers, bit by bit, whatever unit they came in."""

from __future__ import annotations

from typing import Any

import numpy as np

# A sampler turns a last bit into other draws: digits that a change of unit may move are rounded away. What is left is a
# thousand times finer than the smallest relative noise that any fit allows.
_BITS = 2.0**30


def own_unit(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Divide positive values by one of them, about the median, and round to nine digits.

    Parameters
    ----------
    values : ndarray
        Positive and finite.

    Returns
    -------
    scaled : ndarray
        Values of about 1.
    unit : float
        What one of these is worth.

    Examples
    --------
    >>> own_unit(np.array([1e-30, 2e-30, 8e-30]))
    (array([0.5, 1. , 4. ]), 2e-30)
    """
    unit = float(np.sort(values, axis=None)[values.size // 2]) if values.size else 1.0
    return rounded(values / unit), unit


def rounded(values: Any) -> Any:
    """Round numbers to 30 significant bits.

    Parameters
    ----------
    values : float or ndarray
        Any.

    Returns
    -------
    float or ndarray
        The same where they are 0 or infinite.

    Examples
    --------
    >>> bool(rounded(0.1 + 0.2) == rounded(0.3))
    True
    """
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.rint(mantissa * _BITS) / _BITS, exponent)
