"""How a net on real digits answers a training step, while it trains.

Full-batch gradient descent against SGD, tanh against ReLU against sigmoid, with and without label noise (a fifth of the
labels drawn anew): is the response constant or aging, does stochastic training shrink the feature space, does fragility
follow? Prints one table and writes ``training_response.png``.

    python examples/training_response.py [--quick]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import matplotlib as mpl
import numpy as np

import trajstats as ts

mpl.use("agg")

SETTINGS = {
    # label: activation, batch size (None is the full batch), share of labels drawn anew
    "SGD, tanh": ("tanh", 20, 0.0),
    "GD, tanh": ("tanh", None, 0.0),
    "SGD, ReLU": ("relu", 20, 0.0),
    "SGD, sigmoid": ("sigmoid", 20, 0.0),
    "SGD, tanh, label noise": ("tanh", 20, 0.2),
    "GD, tanh, label noise": ("tanh", None, 0.2),
}


def train(folder, label, *, steps, n):
    """Train one setting on n digits of 7 x 7 pixels; give its network, trajectory and held-out digits."""
    from trainers.architectures import JaxMLP, mlp_init
    from trainers.jax_adapter import JaxNetwork, cross_entropy
    from trainers.jax_sgd import train_jax
    from trainers.tasks import mnist_digits

    activation, batch, noise = SETTINGS[label]
    task = mnist_digits(pool=4)
    rng = np.random.default_rng(0)
    targets = task.targets[:n].copy()
    wrong = rng.random(n) < noise
    targets[wrong] = rng.integers(10, size=int(wrong.sum()), dtype=targets.dtype)
    data = (task.inputs[:n], targets)
    model, start = JaxMLP((49, 24, 24, 10), activation=activation), mlp_init((49, 24, 24, 10), 0)
    schedule = np.unique(np.r_[0, ts.log_schedule(1, steps, 14)])
    path = folder / f"{label.replace(' ', '').replace(',', '_')}.zarr"
    train_jax(
        model, [start], cross_entropy, data, [path],
        seeds=[0], schedule=schedule, learning_rate=0.1, batch_size=batch or n, progress=None,
    )  # fmt: skip
    return JaxNetwork(model, start, cross_entropy, data), ts.open_trajectory(path), task.inputs[-300:]


def measure(network, run, held_out, *, quick):
    """Measure response, feature space and fragility of one run."""
    few = 8 if quick else 16
    response = ts.training_response(network, run, held_out[:few], held_out[few : 2 * few])
    finite = ts.training_response(
        network, run.isel(step=[-1]), held_out[:2], held_out[2:4], method="finite_step", eta=1e-3
    )
    split = ts.separate_response(response, n_bootstrap=50)
    return {
        "split": split,
        "law": ts.fit_response_decay(split),
        "nonlinearity": float(finite.nonlinearity.max()),
        "size": ts.feature_space(network, run, held_out[: 60 if quick else 300], layers=["0", "1"], kernel=False),
        "fragility": ts.fragility(
            network, run.isel(step=slice(None, None, 3)), held_out[: 20 if quick else 100], sizes=10, pgd_steps=5
        ),
    }


def main(quick: bool) -> None:
    """Train, measure, print the table and draw the figure."""
    import matplotlib.pyplot as plt

    steps, n = (300, 400) if quick else (5_000, 1_000)
    figure, panels = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
    labels = list(SETTINGS)[:2] if quick else list(SETTINGS)
    print(f"{steps} steps on {n} real digits; A: decay of the response; PR: participation ratio, last hidden layer")
    heads = f"{'run':<24}{'A end/start':>12}{'law':>14}{'exponent':>22}"
    print(heads + f"{'unexplained':>13}{'PR end':>16}{'flip (pgd)':>12}")
    with tempfile.TemporaryDirectory() as folder:
        for colour, label in enumerate(labels):
            found = measure(*train(Path(folder), label, steps=steps, n=n), quick=quick)
            ts.plot_response_decay(found["split"], label=label, colour=colour, ax=panels[0])
            ts.plot_feature_space(found["size"].sel(layer=["1"]), label=label, colour=colour, ax=panels[1])
            ts.plot_fragility(found["fragility"], label=label, colour=colour, ax=panels[2])
            decay = found["split"].decay.sel(stage="whole").values[0]
            law, size = found["law"].isel(replica=0), found["size"].isel(replica=0, step=-1).sel(layer="1")
            low, high = law.exponent_interval.values
            last = found["fragility"].pgd.values[0, -1]
            print(
                f"{label:<24}{decay[-1] / decay[0]:>12.2f}{law.law.values[law.weight.argmax('law').item()]!s:>14}"
                f"{f'{law.exponent.item():.2f} [{low:.2f}, {high:.2f}]':>22}"
                f"{found['split'].unexplained.sel(stage='whole').item():>13.3f}"
                f"{f'{size.participation_ratio.item():.2f} +- {size.participation_ratio_stderr.item():.2f}':>16}"
                f"{np.median(np.where(np.isnan(last), np.inf, last)):>12.3f}",
                flush=True,
            )
    figure.savefig("training_response.png", dpi=110)
    print("figure: training_response.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two settings, 300 steps: about twenty seconds")
    main(parser.parse_args().quick)
