"""What a new user does first: run by `make package` with the installed wheel, where nothing else is installed."""

from __future__ import annotations

import tempfile
from pathlib import Path

import trajstats as ts


def main() -> None:
    """Record, open, measure, fit, and write the page."""
    with tempfile.TemporaryDirectory() as folder:
        steps = ts.aging_schedule([10, 30, 100, 300], ts.log_schedule(1, 300, 10))
        walk = ts.scaled_brownian(steps, rng=0, exponent=0.5, n_parameters=400)
        with ts.TrajectoryWriter(f"{folder}/run.zarr", {"w": (20, 20)}) as writer:
            for step, row in zip(steps, walk["weights"].values[0], strict=True):
                writer.append(int(step), row, loss=1 / (1 + step))
        run = ts.open_trajectory(f"{folder}/run.zarr")
        delta = ts.msd(run, ts.time_pairs(run, waiting_time=[10, 30, 100, 300]))
        fit = ts.fit_subaging(delta, rng=0)
        print(fit)
        mu = float(fit.summary()["value"].sel(coefficient="mu"))
        assert abs(mu - 0.5) < 0.2, mu
        page = ts.analyze(f"{folder}/run.zarr", f"{folder}/page.html", progress=False)
        assert Path(page).stat().st_size > 100_000
        print("installed from", Path(ts.__file__).parent)


if __name__ == "__main__":
    main()
