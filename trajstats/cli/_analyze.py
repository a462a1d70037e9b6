"""The command ``trajstats analyze``: a thin door to :func:`trajstats.report.page.analysis.analyze`."""

from __future__ import annotations

from pathlib import Path

import click

from trajstats.cli._options import EXIT_CODES, clock_option, json_option, say, say_json, scheduler_options
from trajstats.errors import resumable


@click.command("analyze", epilog=EXIT_CODES)
@click.argument("paths", nargs=-1, required=True)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True, help="The page."
)
@click.option(
    "--waiting-time", "waiting", metavar="TIME", type=float, multiple=True, help="Saved time; repeat for more."
)
@clock_option
@click.option("--title", help="Heading of the page.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the fits.")
@scheduler_options
@json_option
def analyze_command(
    paths: tuple[str, ...],
    out: Path,
    waiting: tuple[float, ...],
    clock: str | None,
    title: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Analyse a run, or several seeds of one architecture, and write one self-contained page.

    PATHS are stores, their URLs or quoted glob patterns. Spectra need the network: see `analyze` of the Python API.

    Example: trajstats analyze runs/a_seed*.zarr --out a.html
    """
    from trajstats.report.page.analysis import analyze

    source = paths[0] if len(paths) == 1 else list(paths)
    with resumable(f"{out} was not touched. The same command again starts the analysis anew."):
        page = analyze(
            source, out, waiting_time=waiting or None, clock=clock, rng=seed, title=title, progress=not as_json
        )
    if as_json:
        say_json({"page": str(page.absolute()), "sources": paths, "seed": seed})
    else:
        say(f"the page is at {page.absolute()}")
