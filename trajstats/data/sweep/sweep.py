"""A sweep: many runs with different settings, opened lazily, as a tree of trajectories and a table of settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data._naming import natural_key
from trajstats.data.safety._credentials import without_credentials
from trajstats.data.schema import PARAMETER, REPLICA, STEP
from trajstats.data.store.open import open_trajectory
from trajstats.data.sweep._members import sweep_members
from trajstats.errors import ArgumentError, StoreError, StoreNotFoundError, TrajstatsError, unknown_name_message

RUN = "run"
SKIPPED, WRITING = "skipped", "writing"
# Attributes that say how a store was made, not what was trained.
_BOOKKEEPING = frozenset(
    {"schema_version", "store_format", "committed_rows", "uid", "source", "created_with", "source_dtype", "checksums"}
    | {"state"}
)
# What zarr, numcodecs and the file system raise on files that are not what they should be.
_DAMAGE = (TrajstatsError, ValueError, KeyError, TypeError, RuntimeError, OSError)


def open_sweep(paths: Any, /, *, damaged: str = "raise", **options: Any) -> xr.DataTree:
    """Open the runs of a sweep lazily, one node a run; they may differ in architecture, times and settings.

    Parameters
    ----------
    paths : path, URL, glob pattern, or list of paths, URLs or zarr stores
        A folder that holds trajectory stores at any depth up to four, a pattern such as ``"runs/w*_seed?.zarr"``
        (patterns and folders may be URLs of any file system that fsspec knows), or the stores themselves.
    damaged : str
        ``"raise"``: a member that cannot be opened is an error that names it; ``"skip"``: it is left out, and named
        with its reason in the attribute ``skipped``.
    **options
        Passed to `open_trajectory` for each run: ``layers``, ``block_bytes``.

    Returns
    -------
    xarray.DataTree
        A child node for each run, in natural order. A node's name is the store's path below the folder (for a pattern:
        below its part without wildcards; for a list: below the common folder), with ``.`` for the separators and
        without ``.zarr``: a run keeps its name when others are added. Attributes: ``skipped`` (JSON list of ``run``,
        ``path``, ``reason``) and ``writing`` (JSON list of runs that are still being written, of which the committed
        rows are here).

    Raises
    ------
    ArgumentError
        If an argument is not allowed.
    StoreNotFoundError
        If there is no store.
    StoreError
        If a member cannot be opened, or none of them.

    Notes
    -----
    Metadata, steps and series of every run are read, no weight: about 10 ms a run. A tile that is damaged is found when
    it is read; `map_sweep` then reports that run as failed.

    Examples
    --------
    >>> import tempfile
    >>> from trajstats.data.store.open import TrajectoryWriter
    >>> folder = tempfile.mkdtemp()
    >>> for width in (4, 8):
    ...     with TrajectoryWriter(f"{folder}/w{width}.zarr", {"w": (width,)}, attrs={"net": {"width": width}}) as run:
    ...         run.append(0, np.zeros(width))
    >>> sweep = open_sweep(folder)
    >>> list(sweep.children), sweep_table(sweep)["net.width"].values.tolist()
    (['w4', 'w8'], [4, 8])
    """
    if damaged not in {"raise", "skip"}:
        raise ArgumentError(unknown_name_message("choice of damaged", damaged, ["raise", "skip"]))
    runs: dict[str, xr.Dataset] = {}
    skipped: list[dict[str, str]] = []
    for name, place in sweep_members(paths).items():
        shown = without_credentials(place)
        try:
            runs[name] = open_trajectory(place, **options)
        except ArgumentError:
            raise
        except _DAMAGE as error:
            if damaged == "raise":
                kind = StoreNotFoundError if isinstance(error, StoreNotFoundError) else StoreError
                msg = (
                    f"run {name!r} of the sweep, {shown}, cannot be opened: {error}. open_sweep(..., damaged='skip') "
                    "leaves such runs out"
                )
                raise kind(msg) from error
            skipped.append({"run": name, "path": shown, "reason": f"{type(error).__name__}: {error}"})
    if not runs:
        msg = f"none of the {len(skipped)} runs can be opened; the first, {skipped[0]['path']}: {skipped[0]['reason']}"
        raise StoreError(msg)
    sweep = xr.DataTree.from_dict(runs)
    writing = [name for name, run in runs.items() if run.attrs.get("state") == "writing"]
    sweep.attrs = {SKIPPED: json.dumps(skipped), WRITING: json.dumps(writing)}
    return sweep


def sweep_table(sweep: xr.DataTree | Mapping[str, xr.Dataset], /) -> xr.Dataset:
    """Tabulate the settings of the runs of a sweep.

    Parameters
    ----------
    sweep : DataTree or mapping name -> Dataset
        What `open_sweep` gave.

    Returns
    -------
    xarray.Dataset
        Dim `run`, its coordinate the names of the nodes. A variable for each setting in the runs' attributes, nested
        ones with dotted names (``optimiser.learning_rate``): numbers (NaN where a run lacks them), or text (empty where
        a run lacks it); lists are JSON text. Besides ``n_steps``, ``last_step``, ``n_parameters``, ``replica`` (label
        of the first replica) and ``state`` (``"finished"`` or ``"writing"``).

    Raises
    ------
    ArgumentError
        If the sweep holds no run.

    Examples
    --------
    >>> from trajstats.data.schema import trajectory_dataset
    >>> run = trajectory_dataset(np.zeros((2, 3)), step=[0, 9], attrs={"optimiser": {"lr": 0.1, "kind": "sgd"}})
    >>> table = sweep_table({"a": run})
    >>> float(table["optimiser.lr"][0]), str(table["optimiser.kind"].values[0]), int(table["last_step"][0])
    (0.1, 'sgd', 9)
    """
    runs = sweep_runs(sweep)
    rows = []
    for run in runs.values():
        steps = run[STEP].values
        facts = {
            "n_steps": int(steps.size),
            "last_step": int(steps[-1]) if steps.size else -1,
            "n_parameters": int(run["layer_stop"].values[-1]) if PARAMETER in run.dims else 0,
            "replica": int(run[REPLICA].values[0]),
            "state": str(run.attrs.get("state", "finished")),
        }
        rows.append({**_settings(run.attrs), **facts})
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: (RUN, _column([row.get(name) for row in rows])) for name in names}
    return xr.Dataset(columns, coords={RUN: np.array(list(runs), dtype=object)})


def select_runs(sweep: xr.DataTree, /, where: Mapping[str, Any] | None = None, **settings: Any) -> xr.DataTree:
    """Keep the runs of a sweep that have some settings.

    Parameters
    ----------
    sweep : DataTree
        What `open_sweep` gave.
    where : mapping name -> value, optional
        Settings whose names are not Python names, such as ``{"optimiser.kind": "sgd"}``.
    **settings
        Name -> a value, a list of values, or a function of the value that says yes or no. A name is a column of
        `sweep_table`, or its last part where that is unique: ``width`` for ``architecture.width``.

    Returns
    -------
    xarray.DataTree
        The runs that agree with all of them; still lazy.

    Raises
    ------
    ArgumentError
        If a name is not a setting, stands for several, or no run is left.

    Examples
    --------
    >>> from trajstats.data.schema import trajectory_dataset
    >>> runs = {f"w{w}": trajectory_dataset(np.zeros((1, w)), step=[0], attrs={"width": w}) for w in (2, 4, 8)}
    >>> list(select_runs(xr.DataTree.from_dict(runs), width=lambda w: w > 2).children)
    ['w4', 'w8']
    """
    runs, table = sweep_runs(sweep), sweep_table(sweep)
    keep = np.ones(len(runs), dtype=bool)
    asked = {**(where or {}), **settings}
    for name, wanted in asked.items():
        column = setting_name(table, name)
        keep &= [_agrees(value, wanted) for value in table[column].values.tolist()]
    if not keep.any():
        have = {name: sorted(set(table[setting_name(table, name)].values.tolist()), key=natural_key) for name in asked}
        msg = f"no run of the sweep has {asked}; its runs have {have}"
        raise ArgumentError(msg)
    kept = xr.DataTree.from_dict({name: run for (name, run), good in zip(runs.items(), keep, strict=True) if good})
    writing = [name for name in json.loads(sweep.attrs.get(WRITING, "[]")) if name in kept.children]
    kept.attrs = {**sweep.attrs, WRITING: json.dumps(writing)}
    return kept


def sweep_runs(sweep: xr.DataTree | Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """List the runs of a sweep."""
    if isinstance(sweep, xr.DataTree):
        runs = {node.path.strip("/") or RUN: node.to_dataset() for node in sweep.subtree if STEP in node.dims}
    elif hasattr(sweep, "keys"):
        runs = dict(sweep)
    else:
        msg = f"a {type(sweep).__name__} is no sweep; give what open_sweep returned, or a mapping name -> trajectory"
        raise ArgumentError(msg)
    odd = [name for name, run in runs.items() if not {STEP, REPLICA} <= set(getattr(run, "dims", ()))]
    if odd:
        msg = f"{odd[0]!r} is no trajectory with dims ('replica', 'step'); open runs with open_sweep or open_trajectory"
        raise ArgumentError(msg)
    if not runs:
        msg = "the sweep holds no run with dim 'step'; open one with open_sweep(folder)"
        raise ArgumentError(msg)
    return runs


def setting_name(table: xr.Dataset, name: str) -> str:
    """Find the column of a table that a setting's name stands for."""
    columns = [str(column) for column in table.data_vars]
    if name in columns:
        return name
    found = [column for column in columns if column.rpartition(".")[2] == name]
    if not found:
        raise ArgumentError(unknown_name_message("setting", name, columns))
    if len(found) > 1:
        msg = f"setting {name!r} stands for {', '.join(map(repr, found))}; give one of these names"
        raise ArgumentError(msg)
    return found[0]


def _agrees(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, Callable):  # type: ignore[arg-type]
        return bool(wanted(value))
    if isinstance(wanted, Collection) and not isinstance(wanted, str):
        return value in list(wanted)
    return bool(value == wanted)


def _settings(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}

    def lay(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                lay(f"{name}.{key}", inner)
        elif isinstance(value, list | tuple):
            flat[name] = json.dumps(value)
        elif value is not None:
            flat[name] = value.item() if isinstance(value, np.generic) else value

    for name, value in attrs.items():
        if str(name) not in _BOOKKEEPING:
            lay(str(name), _decoded(value))
    return flat


def _decoded(value: Any) -> Any:
    # The store keeps what is neither text nor a number as JSON.
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value)
    except ValueError:
        return value
    return found if isinstance(found, dict | list | bool) or found is None else value


def _column(values: Sequence[Any]) -> np.ndarray:
    known = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in known) and len(known) == len(values):
        return np.array(values, dtype=bool)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        whole = all(isinstance(value, int) and abs(value) < 2**53 for value in known) and len(known) == len(values)
        return np.array([np.nan if v is None else v for v in values], dtype=np.int64 if whole else np.float64)
    return np.array(["" if value is None else str(value) for value in values], dtype=object)
