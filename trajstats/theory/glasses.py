"""Reference glasses to compare a training run with.

Solved, sampled and exact: the spherical p-spin model (two-time equations, finite-size Langevin dynamics, statics), the
spherical 2-spin model, and trap models.
"""

from trajstats.theory.cugliandolo_kurchan import cugliandolo_kurchan as cugliandolo_kurchan

__all__ = ["cugliandolo_kurchan"]
