"""The coverage table of the documentation, in pieces that add up.

python tests/statistics/coverage_table.py run FILE FIRST LAST [ROW ...] appends simulations FIRST to LAST - 1 of each
row to FILE (those that it has already are not made again); `rows` lists the rows; `show FILE` prints the table.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from aging_simulations import SCENARIOS, subaging_rank, subaging_simulation
from calibration import hit_rates
from divergence_simulations import DECAY_PRIOR, DIVERGENCE_PRIOR, decay_block, decay_ranks, divergence_block
from divergence_simulations import divergence_ranks as ranks_of_divergence
from scipy.stats import kstest, norm
from scipy.stats import t as student

from trajstats.inference.aging._replicas import population_mean

BLOCK = 50
SEEDS = 8


def aging(name):
    """One simulation of a two-time MSD after the other: {row: (rank, naive rank, error, stated error)}."""
    return lambda seed: {name: [subaging_simulation(name, seed)]}


def ranks(label, names, make):
    """Ranks of truths drawn from the prior, one row a coefficient."""

    def block(seed):
        columns = make(BLOCK, np.random.default_rng([seed, 6])).T
        return {f"{label} {k}": [(r, "", "") for r in c] for k, c in zip(names, columns, strict=True)}

    return block


# name: (simulations made at a time, seed of the first -> rows)
ROWS = {name: (1, aging(name)) for name in SCENARIOS} | {
    "w_c and nu": (BLOCK, lambda seed: divergence_block(BLOCK, seed)),
    "beta": (BLOCK, lambda seed: decay_block(BLOCK, seed)),
    "ranks mu": (1, lambda seed: {"ranks mu": [(subaging_rank(seed), "", "")]}),
    "ranks divergence": (BLOCK, ranks("ranks", DIVERGENCE_PRIOR, ranks_of_divergence)),
    "ranks decay": (BLOCK, ranks("ranks decay", DECAY_PRIOR, decay_ranks)),
}


def run(path, first, last, names):
    """Append simulations to the file."""
    have = {(row, int(seed)) for row, seed, *_ in read(path)}
    with path.open("a", newline="") as file:
        out = csv.writer(file)
        for name in names:
            step, make = ROWS[name]
            for seed in range(first, last, step):
                if (name, seed) not in have:
                    # written whole, its mark last, so that a run cut short leaves nothing twice
                    found = [[row, seed + i, *v] for row, values in make(seed).items() for i, v in enumerate(values)]
                    out.writerows([*found, [name, seed]] if step > 1 else found)
                    file.flush()


def read(path):
    """Rows of the file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.reader(file))


def show(path):
    """Print the table, then the probability of ranks at least as uneven."""
    rows = defaultdict(dict)
    for row, seed, *values in read(path):
        if values:
            rows[row][int(seed)] = [float(v or "nan") for v in values]
    for row, found in rows.items():
        rank, naive, error, *scale = np.array(list(found.values())).T
        if np.isnan(naive).all():
            print(f"{row}: p = {kstest(rank, 'uniform').pvalue:.3f} (n = {rank.size})")
            continue
        line(row, rank, naive, error)
        if scale and not row.startswith("8 replicas") and rank.size >= 8 * SEEDS:
            line(f"{row}, 8 seeds each by itself", *seeds_by_themselves(error, scale[0]))


def line(row, rank, naive, error):
    """Print one line of the table."""
    cells, plain = (" / ".join(f"{100 * x:.1f}" for x in hit_rates(r)) for r in (rank, naive))
    uncertain = error.std() / np.sqrt(error.size)
    print(f"| {row} | {rank.size} | {cells} | {plain} | {error.mean():+.4f} ± {uncertain:.4f} |")


def seeds_by_themselves(error, scale):
    """Rank, the same for a normal with the stated errors, and error of the mean of eight runs each fitted by itself."""
    groups = len(error) // SEEDS
    own, stated = (x[: groups * SEEDS].reshape(groups, SEEDS) for x in (error, scale))
    mean, width, _ = np.array([population_mean(*group) for group in zip(own, stated, strict=True)]).T
    fixed = norm.cdf(-own.mean(axis=1) / np.sqrt((stated**2).mean(axis=1) / SEEDS))
    return student.cdf(-mean / width, SEEDS - 1), fixed, mean


def main(arguments):
    """Do what the command line asks."""
    match arguments:
        case ["rows"]:
            print("\n".join(ROWS))
        case ["show", file]:
            show(Path(file))
        case ["run", file, first, last, *names]:
            run(Path(file), int(first), int(last), names or list(ROWS))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
