"""Coverage from ranks: the rank of a truth is the posterior probability below it."""

from __future__ import annotations

import numpy as np

LEVELS = np.array([0.68, 0.90, 0.95])


def hits(ranks):
    """Hits (n, level) of central intervals."""
    return np.abs(np.asarray(ranks)[:, None] - 0.5) < LEVELS / 2


def hit_rates(ranks):
    """Coverage (level,)."""
    return hits(ranks).mean(axis=0)
