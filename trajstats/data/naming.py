"""Names of checkpoints: natural order, and the optimiser step a name stands for."""

from __future__ import annotations

import re


def natural_key(name: object) -> list[tuple[int, int, str]]:
    """Make a sort key that counts: ``step9`` before ``step10``.

    Parameters
    ----------
    name : str or path
        A name.

    Returns
    -------
    list
        A key for `sorted`.

    Examples
    --------
    >>> sorted(["step10", "step9"], key=natural_key)
    ['step9', 'step10']
    """
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"([0-9]+)", str(name)) if part]
