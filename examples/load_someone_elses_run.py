"""From a folder of somebody's checkpoints to an exponent of aging.

Public model series come as ``step0/model.safetensors``, ``step1/``, ``step2/``, ``step4/`` ... ``step512/``,
``step1000/``, ``step2000/`` and so on. Such a folder is made here from a small torch classifier of digits; everything
after that sees nothing but the files. The plan is looked at first (nothing is written), then the checkpoints become a
store, then its displacements are measured and fitted.

    python examples/load_someone_elses_run.py [--quick] [--out FOLDER]

The full setting (20,000 steps of training) takes 19 seconds on one core, --quick 13 seconds. Checkpoints that are there
are used again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from _common import conclude, parse
from tqdm.auto import tqdm

import trajstats as ts


def somebody_trains(folder: Path, *, last: int) -> None:
    """Train a classifier with momentum and save it as public model series are saved."""
    import torch
    from safetensors.torch import save_file
    from trajstats_trainers.tasks.digits import scikit_digits

    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    task = scikit_digits()
    inputs, labels = torch.from_numpy(task.inputs), torch.from_numpy(task.targets).long()
    model = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.Tanh(), torch.nn.Linear(16, 10))
    sgd = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    saved = {0, *(2**k for k in range(10)), *range(1_000, last + 1, 1_000)}
    for step in tqdm(range(last + 1), desc="somebody trains", unit="step", mininterval=0.5):
        if step in saved:
            place = folder / f"step{step}"
            place.mkdir(parents=True, exist_ok=True)
            save_file(model.state_dict(), place / "model.safetensors")
        batch = torch.from_numpy(rng.integers(len(labels), size=64))
        sgd.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
        sgd.step()


def main() -> None:
    """Make the folder, take it in, measure, fit."""
    import matplotlib.pyplot as plt

    given = parse(__doc__, __file__)
    last = 8_000 if given.quick else 20_000
    theirs, store = given.out / "theirs", given.out / "theirs.zarr"
    if not (theirs / f"step{last}" / "model.safetensors").exists():
        somebody_trains(theirs, last=last)

    plan = ts.ingest(theirs, store, dry_run=True)
    print(plan, end="\n\n")
    if not store.exists():
        ts.ingest(theirs, store)
    run = ts.open_trajectory(store)

    waiting = [256, 512, *(t for t in (1_000, 2_000, 4_000, 8_000) if t <= last // 4)]
    pairs = ts.time_pairs(run, waiting_time=waiting, lags_per_decade=8)
    print(ts.two_time_plan(run, pairs), end="\n\n")
    delta = ts.msd(run, pairs).compute()
    fit = ts.fit_subaging(delta, rng=0)

    figure, panels = plt.subplots(1, 2, figsize=(10.5, 4.6), layout="constrained")
    ts.plot_msd(delta, ax=panels[0])
    ts.plot_collapse(delta, fit, ax=panels[1])
    figure.savefig(given.out / "someone_elses_run.png", dpi=80)

    one = fit.summary(levels=[0.95]).sel(coefficient="mu")
    mu = (float(one["value"]), *(float(edge) for edge in one["interval"].values.ravel()))
    row = {"checkpoints": run.sizes["step"], "weights": run.sizes["parameter"], "steps found by": plan.rule}
    table = fit.tables["estimators"]
    words = [
        f"One run, waiting times {waiting[0]} to {waiting[-1]}: mu = {mu[0]:.2f}, 95 % interval {mu[1]:.2f} to "
        f"{mu[2]:.2f}. The other estimators give {float(table['mu'].min()):.2f} to {float(table['mu'].max()):.2f}. "
        "What the fit says about itself: " + "; ".join(fit.flags) + ".",
        "Public series save every 1,000 steps after the first 512: lags below 1,000 exist only at early waiting times, "
        "so the window of a fit is set by the folder, not by you.",
    ]
    conclude(given, {"What the files gave": [row | {"mu": mu, "fit": fit.status}]}, words)


if __name__ == "__main__":
    main()
