"""Print the coverage table of the documentation: python tests/statistics/coverage_table.py [simulations] [rows]."""

from __future__ import annotations

import sys

import numpy as np
from aging_simulations import MU, SCENARIOS, subaging_coverage, subaging_ranks
from divergence_simulations import (
    BETA,
    W_C,
    decay_draws,
    decay_ranks,
    divergence_draws,
    divergence_ranks,
    hits,
    learning_times,
    naive_decay,
    naive_divergence,
    training_curves,
)
from scipy.stats import kstest


def line(name, n, ours, naive, error):
    """Print one row; `error` holds estimate minus truth of each simulation."""
    cells, plain = (" / ".join(f"{100 * x:.1f}" for x in hit.mean(axis=0)) for hit in (ours, naive))
    bias, uncertain = error.mean(), error.std() / np.sqrt(error.size)
    print(f"| {name} | {n} | {cells} | {plain} | {bias:+.4f} ± {uncertain:.4f} |", flush=True)


def uniform(name, ranks):
    """Print the probability of ranks at least as uneven, one for each coefficient."""
    columns = np.reshape(ranks, (len(ranks), -1)).T
    print(f"ranks of {name}: p =", ", ".join(f"{kstest(c, 'uniform').pvalue:.2f}" for c in columns), flush=True)


if __name__ == "__main__":
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    rows = sys.argv[2] if len(sys.argv) > 2 else "aging,replicas,divergence,decay,ranks"
    if "divergence" in rows:
        rng = np.random.default_rng(1)
        times = learning_times(n, rng)
        draws, _ = divergence_draws(times, rng)
        for k, (name, truth) in enumerate((("w_c", W_C), ("nu", 1.0))):
            error = np.median(draws[..., k], axis=1) - truth
            line(f"{name}, 30 % censored", n, hits(draws[..., k], truth), naive_divergence(times)[k], error)
    if "decay" in rows:
        data = training_curves(n, np.random.default_rng(2))
        draws, _ = decay_draws(data, np.random.default_rng(3))
        error = np.median(draws[..., 2], axis=1) - BETA
        line("beta, AR(1) noise", n, hits(draws[..., 2], BETA), naive_decay(data), error)
    if "ranks" in rows:
        uniform("mu", subaging_ranks(n, seed=5))
        uniform("w_c, nu, ln sigma, ln delta", divergence_ranks(n // 2, np.random.default_rng(6)))
        uniform("L_inf, ln A, beta, noise, share, range, power", decay_ranks(n // 2, np.random.default_rng(7)))
    for name, scenario in SCENARIOS.items():
        if ("replicas" if "replicas" in scenario else "aging") in rows:
            wick, iid, _, estimates = subaging_coverage(name, n, seed=7)
            line(name, n, wick, iid, estimates - MU)
