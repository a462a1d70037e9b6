"""The command ``trajstats info``: what stores hold."""

from __future__ import annotations

from typing import Any

import click

from trajstats.cli_options import json_option, say, say_json


@click.command("info")
@click.argument("paths", nargs=-1, required=True)
@json_option
def info_command(paths: tuple[str, ...], as_json: bool) -> None:
    """Say what trajectory stores hold, without reading a weight.

    PATHS are stores or their URLs.

    Example: trajstats info runs/*.zarr
    """
    from trajstats.data.store import open_trajectory

    for path in paths:
        facts = _facts(path, open_trajectory(path))
        if as_json:
            say_json(facts)
            continue
        say(f"{path}: {facts['checkpoints']} checkpoints of {facts['parameters']} weights, {facts['state']}")
        say(f"  steps {facts['first_step']} to {facts['last_step']}, {facts['bytes'] / 2**20:.1f} MiB")
        say(f"  layers: {', '.join(facts['layers'])}")
        say(f"  series: {', '.join(facts['series']) or 'none'}")


def _facts(path: str, run: Any) -> dict[str, Any]:
    weights = run["weights"] if "weights" in run else run["sketch"]
    steps = run["step"].values
    return {
        "path": path,
        "replica": [int(r) for r in run["replica"].values],
        "checkpoints": int(steps.size),
        "first_step": int(steps[0]) if steps.size else None,
        "last_step": int(steps[-1]) if steps.size else None,
        "parameters": int(run["layer_stop"].values[-1]),
        "layers": [str(name) for name in run["layer"].values],
        "series": [str(name) for name, values in run.data_vars.items() if values.dims == ("replica", "step")],
        "bytes": int(weights.nbytes),
        "state": str(run.attrs.get("state", "finished")),
        "attrs": {str(key): str(value) for key, value in run.attrs.items()},
    }
