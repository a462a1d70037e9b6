"""`trajstats demo`: the main job end to end on real digits, from training to a report."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import click

from trajstats_trainers.demo.nets import OVER, STEPS, UNDER
from trajstats_trainers.demo.training import train_all


@click.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Folder for runs/ and report.html; the current one if not given.",
)
def demo(out: Path) -> None:
    """Train two digit classifiers, record them, and ask whether they age.

    Two minutes on two cores. Runs that are already there are used again; delete them to train again.

    Example: trajstats demo --out my-demo
    """
    missing = [name for name in ("jax", "mlxtend") if importlib.util.find_spec(name) is None]
    if missing:
        msg = f"the demo needs {' and '.join(missing)}; run: pip install 'trajstats[demo]'"
        raise click.ClickException(msg)
    from trajstats_trainers.demo.page import write_demo_report

    began = time.perf_counter()
    runs = out / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    click.echo(f"1/2 training {UNDER.label} and {OVER.label} digit classifiers, {STEPS[-1]:,} steps of SGD each")
    train_all([UNDER, OVER], runs)
    trained = time.perf_counter()
    click.echo("2/2 measuring and fitting")
    report = write_demo_report(runs, out / "report.html", training_seconds=trained - began)
    click.echo(f"done in {time.perf_counter() - began:.0f} s; the report is at {report.resolve()}")
