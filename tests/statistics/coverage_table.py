"""Print the coverage table of the documentation: python tests/statistics/coverage_table.py [simulations] [rows]."""

from __future__ import annotations

import sys

import numpy as np
from aging_simulations import MU, SCENARIOS, subaging_coverage
from divergence_simulations import BETA, W_C, decay_draws, divergence_draws, hits, learning_times


def line(name, n, ours, naive, bias):
    cells = " / ".join(f"{100 * x:.1f}" for x in ours)
    plain = " / ".join(f"{100 * x:.1f}" for x in naive) if naive is not None else "-"
    print(f"| {name} | {n} | {cells} | {plain} | {bias:+.4f} |", flush=True)


if __name__ == "__main__":
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    rows = sys.argv[2] if len(sys.argv) > 2 else "aging,divergence,decay"
    if "divergence" in rows:
        rng = np.random.default_rng(1)
        draws, r_hat = divergence_draws(learning_times(n, rng), rng)
        for k, name, truth in ((0, "w_c", W_C), (1, "nu", 1.0)):
            line(
                f"{name}, 30 % censored",
                n,
                hits(draws[..., k], truth).mean(0),
                None,
                np.median(draws[..., k], 1).mean() - truth,
            )
    if "decay" in rows:
        draws, r_hat = decay_draws(n // 2, np.random.default_rng(2))
        line(
            "beta, AR(1) noise",
            n // 2,
            hits(draws[..., 2], BETA).mean(0),
            None,
            np.median(draws[..., 2], 1).mean() - BETA,
        )
    if "aging" in rows:
        for name, scenario in SCENARIOS.items():
            count = max(n // 3, 1) if "replicas" in scenario else n
            wick, iid, _, estimates = subaging_coverage(name, count, seed=7)
            line(name, count, wick.mean(0), iid.mean(0), estimates.mean() - MU)
