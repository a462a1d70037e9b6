"""Reference glasses to compare a training run with.

Solved, sampled and exact: the spherical p-spin model (two-time equations, finite-size Langevin dynamics, statics), the
spherical 2-spin model, and trap models. Processes with exact answers are in `trajstats.data.synthetic.processes`.
"""

from trajstats.theory.glasses.dynamical_equations import cugliandolo_kurchan
from trajstats.theory.glasses.langevin import pspin_langevin
from trajstats.theory.glasses.statics import dynamic_temperature, fluctuation_dissipation, pspin_statics
from trajstats.theory.glasses.trap_models import trap_exponent, trap_no_jump
from trajstats.theory.glasses.two_spin import spherical_two_spin

__all__ = [
    "cugliandolo_kurchan",
    "dynamic_temperature",
    "fluctuation_dissipation",
    "pspin_langevin",
    "pspin_statics",
    "spherical_two_spin",
    "trap_exponent",
    "trap_no_jump",
]
