"""The ten lines: from a stored run to the exponent of aging.

Runs on the stores that `trajstats demo` (or `make demo`) leaves in ``runs/``; without them it trains a short one first.
"""

from __future__ import annotations

from pathlib import Path

import trajstats as ts


def main() -> None:
    """Fit the exponent of one run and draw the collapse."""
    run = ts.open_trajectory("runs/digits_w5.zarr")
    pairs = ts.time_pairs(run, waiting_time=[100, 1_000, 10_000], lags_per_decade=8)
    delta = ts.msd(run, pairs)  # lazy: (replica, pair, layer)
    fit = ts.fit_subaging(delta, rng=0)  # computes here, once
    print(fit.summary().sel(coefficient="mu"))
    ax = ts.plot_collapse(delta, fit)
    ax.figure.savefig("collapse.png", dpi=150)
    print("figure: collapse.png")


if __name__ == "__main__":
    if not Path("runs/digits_w5.zarr").exists():
        from trainers.demo import LAGS, UNDER, train

        print("no run in runs/ yet: training a short one (20,000 steps)")
        Path("runs").mkdir(exist_ok=True)
        steps = ts.aging_schedule([100, 316, 1_000, 3_162, 10_000], LAGS[LAGS <= 10_000])
        train(UNDER, Path("runs"), schedule=steps)
    main()
