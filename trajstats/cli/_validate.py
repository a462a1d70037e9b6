"""The command ``trajstats validate``: whether stores are whole, and whether they are trajectories."""

from __future__ import annotations

from typing import Any

import click

from trajstats.cli._options import EXIT_CODES, FOUND, json_option, say, say_json
from trajstats.errors import StoreError, TrajstatsError


@click.command("validate", epilog=EXIT_CODES)
@click.argument("paths", nargs=-1, required=True)
@json_option
def validate_command(paths: tuple[str, ...], as_json: bool) -> None:
    """Read stores once and name everything in them that is damaged or against the schema.

    PATHS are stores, folders of stores, or their URLs. All are read, whatever is found in one.

    Example: trajstats validate runs/*.zarr
    """
    from trajstats.data.sweep._members import sweep_members

    stores = [str(store) for path in paths for store in sweep_members(path).values()]
    found = 0
    for store in stores:
        facts = _look(store)
        found += not facts["ok"]
        if as_json:
            say_json(facts)
            continue
        say(f"{store}: {'whole' if facts['ok'] else 'damaged'}, {facts['checked']} tiles read, {facts['state']}")
        for text in (*facts["damaged"], *facts["against_schema"]):
            say(f"  {text}")
    if found:
        click.get_current_context().exit(FOUND)


def _look(path: str) -> dict[str, Any]:
    from trajstats.data.store.open import open_trajectory
    from trajstats.data.store.verification import verify

    facts: dict[str, Any] = {"path": path, "ok": False, "checked": 0, "state": "unknown"}
    facts |= {"damaged": [], "against_schema": []}
    try:
        report = verify(path)
        facts["checked"] = report.checked
        # The first line of the report is a summary.
        facts["damaged"] = [] if report.ok else [line.strip() for line in str(report).splitlines()[1:]]
        run = open_trajectory(path)  # its metadata against the schema
        facts["state"] = str(run.attrs.get("state", "finished"))
    except TrajstatsError as error:
        if not facts["damaged"] or not isinstance(error, StoreError):  # else the same damage once more
            facts["against_schema"] = [f"{type(error).__name__}: {error}"]
    facts["ok"] = not facts["damaged"] and not facts["against_schema"]
    return facts
