"""The command line: thin over the Python API."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import click

from trajstats import __version__
from trajstats.cli_ingest import ingest_command
from trajstats.errors import TrajstatsError

COMMANDS = "trajstats.commands"


class _Main(click.Group):
    """A group that also offers the commands of installed packages, and words our own errors without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *metadata.entry_points(group=COMMANDS).names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        found = metadata.entry_points(group=COMMANDS, name=cmd_name)
        if own is not None or not found:
            return own
        entry = next(iter(found))
        try:
            return entry.load()
        except ModuleNotFoundError as error:
            msg = f"'{cmd_name}' needs {error.name}, which is not installed; run: pip install 'trajstats[{cmd_name}]'"
            raise click.ClickException(msg) from error

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except TrajstatsError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="trajstats")
def main() -> None:
    """Statistical physics of saved neural-network training trajectories."""


@main.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object a store, for machines.")
def info(paths: tuple[Path, ...], as_json: bool) -> None:
    """Say what trajectory stores hold, without reading a weight.

    Example: trajstats info runs/*.zarr
    """
    from trajstats.data.store import open_trajectory

    for path in paths:
        run = open_trajectory(str(path))
        steps = run["step"].values
        series = [str(name) for name, values in run.data_vars.items() if values.dims == ("replica", "step")]
        facts = {
            "path": str(path),
            "replica": [int(r) for r in run["replica"].values],
            "checkpoints": int(steps.size),
            "first_step": int(steps[0]) if steps.size else None,
            "last_step": int(steps[-1]) if steps.size else None,
            "parameters": int(run.sizes["parameter"]),
            "layers": [str(name) for name in run["layer"].values],
            "series": series,
            "bytes": int(run["weights"].nbytes),
            "attrs": {str(key): str(value) for key, value in run.attrs.items()},
        }
        if as_json:
            click.echo(json.dumps(facts))
            continue
        click.echo(f"{path}: {facts['checkpoints']} checkpoints of {facts['parameters']} weights")
        click.echo(f"  steps {facts['first_step']} to {facts['last_step']}, {run['weights'].nbytes / 2**20:.1f} MiB")
        click.echo(f"  layers: {', '.join(run['layer'].values)}")
        click.echo(f"  series: {', '.join(series) or 'none'}")


main.add_command(ingest_command)

if __name__ == "__main__":
    main()
