"""The command ``trajstats info``: what stores hold."""

from __future__ import annotations

from typing import Any

import click

from trajstats.cli._options import EXIT_CODES, FOUND, json_option, say, say_json


@click.command("info", epilog=EXIT_CODES)
@click.argument("paths", nargs=-1, required=True)
@json_option
def info_command(paths: tuple[str, ...], as_json: bool) -> None:
    """Say what trajectory stores and sweeps hold, without reading a weight.

    PATHS are stores, folders of stores, or their URLs.

    Example: trajstats info runs/*.zarr
    """
    from trajstats.data.store.open import open_trajectory
    from trajstats.data.sweep._members import sweep_members

    skipped = 0
    for path in paths:
        members = [str(store) for store in sweep_members(path).values()]
        if [_last(store) for store in members] != [_last(path)]:
            skipped += _sweep(path, as_json)
            continue
        facts = _facts(path, open_trajectory(members[0]))
        if as_json:
            say_json(facts)
            continue
        say(f"{path}: {facts['checkpoints']} checkpoints of {facts['parameters']} weights, {facts['state']}")
        say(f"  steps {facts['first_step']} to {facts['last_step']}, {facts['bytes'] / 2**20:.1f} MiB")
        say(f"  layers: {', '.join(facts['layers'])}")
        say(f"  series: {', '.join(facts['series']) or 'none'}")
    if skipped:
        click.get_current_context().exit(FOUND)


def _last(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


def _sweep(path: str, as_json: bool) -> int:
    import json

    from trajstats.data.sweep.sweep import open_sweep, sweep_runs, sweep_table

    sweep = open_sweep(path, damaged="skip")
    table = sweep_table(sweep)
    settings = {
        str(name): sorted({v.item() if hasattr(v, "item") else v for v in table[name].values}) for name in table
    }
    skipped = json.loads(str(sweep.attrs["skipped"]))
    runs = [_facts(name, run) for name, run in sweep_runs(sweep).items()]
    if as_json:
        say_json({"path": path, "runs": runs, "settings": settings, "skipped": skipped})
        return len(skipped)
    say(f"{path}: {len(runs)} runs")
    for name, values in settings.items():
        if len(values) > 1:
            more = f", ... {values[-1]} ({len(values)} values)" if len(values) > 6 else ""
            say(f"  {name}: {', '.join(str(value) for value in values[: 5 if more else 6])}{more}")
    for facts in runs:
        say(f"  {facts['path']}: {facts['checkpoints']} checkpoints to step {facts['last_step']}, {facts['state']}")
    for one in skipped:
        say(f"  cannot be opened: {one['run']}: {one['reason']}")
    return len(skipped)


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
