"""Two-time MSD of sketched trajectories, labelled as that of saved weights, with error bars from the hash replicas."""

from __future__ import annotations

import xarray as xr

from trajstats.data._clocks import pair_clock, pair_coords
from trajstats.data.schema import annotate
from trajstats.data.sketch import check_sketch, sketch_msd
from trajstats.errors import UnsupportedError
from trajstats.estimators._checkpoints import saved_rows
from trajstats.estimators.two_time._groups import Per, read_groups

STDERR = "msd_stderr"


def is_sketched(trajectory: object) -> bool:
    """Tell whether a trajectory holds sketches in place of weights."""
    return isinstance(trajectory, xr.Dataset) and "sketch" in trajectory and "weights" not in trajectory


def sketched_two_time(
    trajectory: xr.Dataset, pairs: xr.Dataset, *, observables: object, per: Per, clock: str | None, blocks: int | None
) -> xr.Dataset:
    """Estimate the MSD of listed pairs from sketches."""
    wanted = [observables] if isinstance(observables, str) else list(observables)  # type: ignore[call-overload]
    if wanted != ["msd"] or per not in ("layer", "all") or blocks is not None:
        msg = (
            f"observables={wanted}, per={per!r}, blocks={blocks}: a sketch keeps the MSD of each layer and of all "
            "weights, nothing else. Ask for observables='msd' with per='layer' or 'all', or save the weights."
        )
        raise UnsupportedError(msg)
    trajectory = check_sketch(trajectory)
    rows = [saved_rows(trajectory, pairs[end].values) for end in ("first", "second")]
    groups, carried = read_groups(trajectory, per), pair_clock(trajectory, pairs, clock)
    coords = {**pair_coords(trajectory, rows[0], rows[1], carried), **groups.coords()}
    estimate, stderr = sketch_msd(trajectory, pairs, per=str(per))
    out = xr.Dataset({"msd": estimate.assign_coords(coords), STDERR: stderr.assign_coords(coords)})
    about = {"estimator": "two_time", "source": str(trajectory.attrs["uid"]), **carried}
    arguments = {
        "observables": wanted,
        "per": groups.argument,
        "blocks": None,
        "method": "sketch",
        "on_nan": "raise",
        "rng": 0,
    }
    for name, text in (("msd", "mean squared displacement (sketched)"), (STDERR, "standard error from hash replicas")):
        annotate(out[name], name=name, long_name=text, units="weight^2", arguments=arguments, **about)
    return annotate(out, name="", long_name="two-time statistics", units="", arguments=arguments, **about)
