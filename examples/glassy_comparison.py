"""Are nets on digits like a glass? After Baity-Jesi et al. 2018 (arXiv:1803.06969).

Toy nets with one hidden layer of m = 10, 100 and 1,000 ReLU units (sigmoid outputs, squared error to one-hot labels)
and SmallNet (two convolutions; cross-entropy), from under- to over-parametrised, beside the spherical 3-spin glass at
T = 0.3. The regimes of the loss, mean squared displacements (MSD) over the gradient noise D and against its integral,
aging within each regime, and the flat directions of the loss, measured by the Hessian.

    python examples/glassy_comparison.py [--quick] [--out FOLDER]

The full setting takes about 13 minutes on one core, --quick 40 seconds. Finished runs are used again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from _common import conclude, parse
from tqdm.auto import tqdm

import trajstats as ts

BATCH, EXAMPLES, EPS = 50, 1_000, 1e-3
# Seeds by number of hidden units; steps x batch x rate = 1e6 for the toy nets, as in the paper.
TOY = {10: 3, 100: 3, 1_000: 2}
TOY_RATE, TOY_STEPS = 0.2, 100_000
SMALLNET_SEEDS, SMALLNET_RATE, SMALLNET_STEPS = 1, 0.05, 20_000


def schedule(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Give waiting times from 1 to a tenth of the run, and lags from 1, both log-spaced; fewer for short runs."""
    short = steps <= 5_000
    waiting = ts.log_schedule(1, steps // 10, 6 if short else 13)
    return waiting, ts.log_schedule(1, steps - int(waiting[-1]), 12 if short else 20)


def toy(folder: Path, width: int, *, seeds: int, steps: int, examples: int) -> tuple[xr.Dataset, Any]:
    """Train the toy net of one width; give its runs and its network on the first examples."""
    import jax
    from trajstats_trainers.architectures.mlp import JaxMLP, mlp_init
    from trajstats_trainers.jax.adapter import JaxNetwork, accuracy
    from trajstats_trainers.jax.sgd import train_jax
    from trajstats_trainers.tasks.digits import mnist_digits

    def loss(outputs: Any, labels: Any) -> Any:
        return ((jax.nn.sigmoid(outputs) - jax.nn.one_hot(labels, 10)) ** 2).mean()

    task = mnist_digits(pool=2)
    sizes = (task.inputs.shape[1], width, 10)
    model, starts = JaxMLP(sizes, activation="relu"), [mlp_init(sizes, seed) for seed in range(seeds)]
    paths = [folder / f"toy{width}-seed{seed}.zarr" for seed in range(seeds)]
    attrs = {"task": task.describe(), "architecture": {"kind": "mlp", "activation": "relu", "sizes": list(sizes)}}
    train_jax(
        model, starts, loss, (task.inputs, task.targets), paths,
        seeds=range(seeds), schedule=ts.aging_schedule(*schedule(steps)), learning_rate=TOY_RATE, batch_size=BATCH,
        metrics={"accuracy": accuracy}, attrs=attrs, progress=f"train toy net, m = {width}",
    )  # fmt: skip
    network = JaxNetwork(model, starts[0], loss, (task.inputs[:examples], task.targets[:examples]))
    return ts.open_trajectory([str(path) for path in paths]), network


def smallnet(folder: Path, *, seeds: int, steps: int, n: int, examples: int) -> tuple[xr.Dataset, Any]:
    """Train SmallNet; give its runs and its network on the first examples."""
    import torch
    from trajstats_trainers.architectures.smallnet import smallnet_init, torch_smallnet
    from trajstats_trainers.recording import flatten
    from trajstats_trainers.tasks.digits import mnist_digits
    from trajstats_trainers.torch.adapter import TorchNetwork
    from trajstats_trainers.torch.sgd import train_torch

    def accuracy(outputs: Any, labels: Any) -> Any:
        return (outputs.argmax(1) == labels).float().mean()

    torch.set_num_threads(1)
    task, loss = mnist_digits(), torch.nn.functional.cross_entropy
    paths = [folder / f"smallnet-seed{seed}.zarr" for seed in range(seeds)]
    attrs = {"task": task.describe(), "architecture": {"kind": "smallnet", "variant": "mnist"}}
    module = torch_smallnet("mnist")
    for seed, path in enumerate(paths):
        start = torch.from_numpy(flatten(smallnet_init("mnist", seed)))
        torch.nn.utils.vector_to_parameters(start, module.parameters())
        train_torch(
            module, loss, (task.inputs[:n], task.targets[:n]), path,
            seed=seed, schedule=ts.aging_schedule(*schedule(steps)), learning_rate=SMALLNET_RATE, batch_size=BATCH,
            metrics={"accuracy": accuracy}, attrs=attrs, progress=f"train SmallNet, seed {seed}",
        )  # fmt: skip
    network = TorchNetwork(module, loss, (task.inputs[:examples], task.targets[:examples]))
    return ts.open_trajectory([str(path) for path in paths]), network


def measure(run: xr.Dataset, network: Any, folder: Path, name: str, *, quick: bool) -> dict[str, Any]:
    """Measure displacement, regimes, and of the first seed noise and curvature."""
    steps = int(run["step"][-1])
    waiting, lags = schedule(steps)
    first = run.isel(replica=[0])
    saved = run["step"].values
    noisy = nearest(saved, np.geomspace(1, steps, 6 if quick else 20))
    curved = nearest(saved, np.geomspace(100, steps, 2 if quick else 4))
    noise = ts.gradient_noise(
        network, first, steps=noisy, batch_size=BATCH, examples=100 if quick else 500, per="all"
    ).compute()
    spectrum = ts.hessian_spectrum(
        network, first, steps=curved, method="lanczos", probes=1 if quick else 2, order=16 if quick else 40,
        store=folder / f"spectrum-{name}.zarr", rng=0,
    )  # fmt: skip
    return {
        "run": run,
        "delta": ts.msd(run, ts.time_pairs(run, waiting_time=waiting, lag=lags), per="all").compute(),
        "regimes": ts.loss_regimes(run, rng=0),
        "noise": noise["D2"],
        "spectrum": spectrum,
        "flat": ts.spectral_summary(spectrum, eps=EPS, relative=True).isel(replica=0),
    }


def nearest(saved: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Pick the saved steps nearest to the wanted ones."""
    return np.unique(saved[np.abs(saved[:, None] - wanted).argmin(axis=0)])


def regimes_of(one: dict[str, Any]) -> dict[str, xr.DataArray]:
    """Cut the MSD into pairs that lie within one regime of the loss, where it has ten pairs of two waiting times."""
    t1, t2 = (float(one["regimes"][name].median()) for name in ("t1", "t2"))
    delta = one["delta"]
    ends = {"before t1": (0.0, t1), "t1 to t2": (t1 if np.isfinite(t1) else 0.0, t2), "after t2": (t2, np.inf)}
    parts = {}
    for name, (start, stop) in ends.items():
        inside = (delta.waiting_time.values >= start) & (delta.waiting_time.values + delta.lag.values <= stop)
        part = delta.isel(pair=np.flatnonzero(inside))
        if inside.sum() >= 10 and np.unique(part.waiting_time).size >= 2:
            parts[name] = part
    return parts


def mu_text(row: xr.Dataset) -> Any:
    """Give mu with its 95 % interval, for a table."""
    return (float(row["exponent"]), *(float(edge) for edge in row["exponent_interval"].values))


def last_slope(part: xr.DataArray) -> tuple[float, float]:
    """Give the local exponent at the longest lag of a regime, and its standard error over seeds (NaN for one)."""
    slopes = ts.local_exponent(part)
    at = int(np.where(np.isfinite(slopes["exponent"].values), part["lag"].values, -1).argmax())
    return float(slopes["exponent"][at]), float(slopes["stderr"][at])


def slope_text(value: float, error: float) -> str:
    """Word a local exponent."""
    return f"{value:.2f} ± {error:.2f}" if np.isfinite(error) else f"{value:.2f}"


def spread(row: xr.Dataset, variable: str) -> str:
    """Word how far the curves of different waiting times are apart."""
    value, error = (float(row[key].sel(variable=variable)) for key in ("collapse", "collapse_stderr"))
    return f"{value:.2f} ± {error:.2f}" if np.isfinite([value, error]).all() else "-"


def tables(
    found: dict[str, dict], after: xr.Dataset, by_regime: xr.Dataset, parts: dict[str, xr.DataArray]
) -> dict[str, list[dict]]:
    """Lay out nets, regimes, comparison with the glass, and flat directions."""
    nets, regimes, glass, flat = [], [], [], []
    for name, one in found.items():
        run, found_regimes = one["run"], one["regimes"]
        row = {"net": name, "weights": run.sizes["parameter"], "seeds": run.sizes["replica"]}
        accuracy = 100 * float(run["accuracy"][:, -1].mean())
        nets.append(row | {"final loss": float(run["loss"][:, -1].mean()), "train accuracy": f"{accuracy:.1f} %"})
        for t in ("t1", "t2"):
            known = float(found_regimes[t].median())
            ends = (float(found_regimes[f"{t}_low"].min()), float(found_regimes[f"{t}_high"].max()))
            nets[-1][f"{t} (steps)"] = f"{known:,.0f} [{ends[0]:,.0f}, {ends[1]:,.0f}]" if np.isfinite(known) else "-"
        nets[-1]["D(end)/D(t2)"] = fade(one)
        for at in range(one["flat"].sizes["step"]):
            here = one["flat"].isel(step=at)
            flat.append(
                {
                    "net": name,
                    "step": int(here["step"]),
                    f"flat share (below {EPS:g} of the largest)": tuple(
                        float(here[key]) for key in ("flat_fraction", "flat_fraction_low", "flat_fraction_high")
                    ),
                    "negative share": float(here["negative_fraction"]),
                    "largest": float(here["largest"]),
                    "loss": float(one["spectrum"]["loss"].values[0, at]),
                }
            )
    for name in by_regime["system"].values:
        row = by_regime.sel(system=name)
        regimes.append(
            {
                "net, regime": str(name),
                "mu": mu_text(row),
                "local exponent at the longest lag": slope_text(*last_slope(parts[str(name)])),
                "spread between waiting times": spread(row, "raw"),
            }
        )
    for name in after["system"].values:
        row = after.sel(system=name)
        glass.append(
            {
                "system": str(name),
                "mu": mu_text(row),
                "plateau": f"at {float(row['plateau_level']):.2g}" if bool(row["plateau"]) else "no",
                "smallest local exponent": float(row["plateau_exponent"]),
                "Delta against t": spread(row, "raw"),
                "Delta / D(t_w)": spread(row, "per_noise"),
                "against the integral of D": spread(row, "noise_clock"),
                "against t / t_w^mu": spread(row, "scaled"),
            }
        )
    return {
        "Nets": nets,
        "Within one regime of the loss": regimes,
        "After t1, beside a glass: spread of ln MSD between waiting times (0 is a perfect collapse)": glass,
        f"Flat directions (Hessian over {EXAMPLES:,} digits, 200 with --quick; first seed)": flat,
    }


def fade(one: dict[str, Any]) -> float:
    """Give the noise at the end over that at t2."""
    noise = one["noise"].isel(replica=0)
    t2 = float(one["regimes"]["t2"].median())
    return float(noise[-1] / noise.sel(step=t2 if np.isfinite(t2) else 1, method="nearest"))


def words(
    found: dict[str, dict], after: xr.Dataset, by_regime: xr.Dataset, parts: dict[str, xr.DataArray]
) -> list[str]:
    """Say, from the numbers, what agrees with the paper and what does not."""
    rows = {str(name): by_regime.sel(system=name) for name in by_regime["system"].values}
    late = {name: row for name, row in rows.items() if name.endswith("after t2")}
    nets = list(found)
    low = {name: float(after.sel(system=name)["exponent_interval"][0]) for name in nets}
    high = {name: float(after.sel(system=name)["exponent_interval"][1]) for name in nets}
    raw, per = ({n: float(after.sel(system=n)["collapse"].sel(variable=v)) for n in nets} for v in ("raw", "per_noise"))
    seen = [name for name in nets if bool(found[name]["regimes"]["plateau_seen"].all())]
    growth = {
        name: float(one["flat"]["flat_fraction"][-1] - one["flat"]["flat_fraction"][0]) for name, one in found.items()
    }
    glass = after.sel(system=[name for name in after["system"].values if name not in found][0])
    return [
        f"Three regimes: an initial plateau of the loss is seen for {len(seen)} of {len(nets)} nets"
        f"{' (' + ', '.join(seen) + ')' if seen else ''}; t2 is found for "
        f"{sum(bool(one['regimes']['floor_reached'].all()) for one in found.values())}.",
        "After t2 the paper finds diffusion that no longer ages (mu = 0, local exponent 1). Here: "
        + (
            "; ".join(
                f"{name}: mu = {float(row['exponent']):.2f}, exponent {last_slope(parts[name])[0]:.2f}"
                for name, row in late.items()
            )
            or "no run is long enough after t2"
        )
        + ".",
        "Dividing by D(t_w) changes the spread between waiting times from "
        + "; ".join(f"{raw[n]:.2f} to {per[n]:.2f} ({n}, D(end)/D(t2) = {fade(found[n]):.2g})" for n in nets)
        + ".",
        f"The glass has mu = {float(glass['exponent']):.2f} and {'a' if bool(glass['plateau']) else 'no'} plateau. "
        + "The interval of mu contains that of the glass for: "
        + (", ".join(n for n in nets if low[n] <= float(glass["exponent"]) <= high[n]) or "none of the nets")
        + "; a plateau: "
        + (", ".join(n for n in nets if bool(after.sel(system=n)["plateau"])) or "none of them")
        + ".",
        "Flat directions, which the paper infers and does not measure: from the first to the last checkpoint their "
        "share changes by " + "; ".join(f"{value:+.3f} ({name})" for name, value in growth.items()) + ".",
        "Beside the paper: 5,000 digits (14 x 14 for the toy nets, 28 x 28 for SmallNet) instead of MNIST and "
        "CIFAR-10, no momentum instead of 0.5, and fewer waiting times and lags.",
    ]


def draw(found: dict[str, dict], after: xr.Dataset, out: Path) -> None:
    """Draw the comparison with the glass, and losses beside flat directions."""
    import matplotlib.pyplot as plt

    ts.plot_glass_comparison(after).savefig(out / "glassy_comparison.png", dpi=58)
    figure, panels = plt.subplots(2, len(found), figsize=(3.6 * len(found), 6.4), layout="constrained", squeeze=False)
    for column, (name, one) in enumerate(found.items()):
        ts.plot_loss(one["run"], one["regimes"], ax=panels[0, column])
        panels[0, column].set_title(name, fontsize=9)
        ts.plot_flat_directions(one["spectrum"], eps=(1e-2, EPS), relative=True, ax=panels[1, column])
    figure.savefig(out / "glassy_regimes.png", dpi=75)


def main() -> None:
    """Train, measure, compare, conclude."""
    given = parse(__doc__, __file__)
    widths = {10: 2, 100: 1} if given.quick else TOY
    steps, examples = (5_000, 200) if given.quick else (TOY_STEPS, EXAMPLES)
    nets = {
        f"toy, m = {m:,}": lambda m=m, n=n: toy(given.out, m, seeds=n, steps=steps, examples=examples)
        for m, n in widths.items()
    }
    short = {"seeds": 1, "steps": 200, "n": 1_000}
    full = {"seeds": SMALLNET_SEEDS, "steps": SMALLNET_STEPS, "n": 5_000}
    nets["SmallNet"] = lambda: smallnet(given.out, examples=examples, **(short if given.quick else full))
    found = {}
    for name, train in (bar := tqdm(nets.items(), desc="nets", unit="net")):
        bar.set_postfix_str(name)
        found[name] = measure(*train(), given.out, name.replace(" ", ""), quick=given.quick)
    glass = ts.theory.glasses.cugliandolo_kurchan(
        p=3, T=0.3, t_max=100 if given.quick else 1_000, error_control=not given.quick
    )
    noise = {name: one["noise"] for name, one in found.items()}
    later = {name: after_start(one) for name, one in found.items()}
    after = ts.compare_aging(later, {"3-spin, T = 0.3": glass}, noise=noise)
    parts = {f"{name}, {part}": delta for name, one in found.items() for part, delta in regimes_of(one).items()}
    by_regime = ts.compare_aging(parts, {})
    draw(found, after, given.out)
    conclude(given, tables(found, after, by_regime, parts), words(found, after, by_regime, parts))


def after_start(one: dict[str, Any]) -> xr.DataArray:
    """Leave out waiting times before t1 (before step 10 where t1 is not seen)."""
    t1 = float(one["regimes"]["t1"].median())
    late = one["delta"].waiting_time.values >= (t1 if np.isfinite(t1) else 10)
    return one["delta"].isel(pair=np.flatnonzero(late))


if __name__ == "__main__":
    main()
