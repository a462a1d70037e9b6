"""Any fit over a grid of layers, widths and seeds: one labelled result, failures as labelled data."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from trajstats.errors import ArgumentError, StoreError, TrajstatsError
from trajstats.inference.results import FitResult

Fit = Callable[..., FitResult]


def fit_batch(
    fit: Fit,
    cases: Mapping[Hashable, Any],
    /,
    *,
    rng: int,
    dims: tuple[str, ...] = ("case",),
    scheduler: str = "threads",
    workers: int | None = None,
    store: str | os.PathLike[str] | None = None,
    progress: bool = False,
    **options: Any,
) -> xr.Dataset:
    """Run one fit on many data sets, as dask tasks.

    No case can stop another: a case that fails is a row with its own status and reason. Every case draws from a stream
    that depends on `rng` and on its label only, so that its numbers do not depend on which others are in the batch,
    nor on their order.

    Parameters
    ----------
    fit : callable
        `fit_subaging`, `fit_divergence`, `fit_decay`, or any function ``(data, *, rng, **options) -> FitResult``.
    cases : mapping label -> data
        Data sets; a label is a value, or a tuple of values in the order of `dims`.
    rng : int
        Seed of the batch.
    dims : tuple of str
        Names of the parts of a label, such as ``("layer", "width", "seed")``.
    scheduler : str
        dask scheduler: ``"threads"``, ``"processes"``, ``"synchronous"``, or ``"distributed"`` for the current client.
    workers : int, optional
        Number of threads or processes.
    store : path, optional
        Folder where each finished case is kept; a batch that was interrupted does only the missing ones.
    progress : bool
        Show a progress bar.
    **options
        Passed to `fit`.

    Returns
    -------
    xarray.Dataset
        Dim `case` with the coords `dims`: ``value``, ``stderr`` (case, coefficient), ``interval`` (case, coefficient,
        level, bound), ``converged``, ``status`` (that of the fit, or ``"failed: <kind of error>"``), ``reason``.

    Raises
    ------
    ArgumentError
        If a label does not have as many parts as `dims`, or there is no case.

    Examples
    --------
    >>> from trajstats.inference.decay import fit_decay
    >>> bad = xr.DataArray([1.0, np.nan], dims="step", coords={"step": [1, 2]})
    >>> fit_batch(fit_decay, {"a": bad}, rng=0, scheduler="synchronous").status.item()
    'failed: NonFiniteError'
    """
    import dask

    labels = [label if isinstance(label, tuple) else (label,) for label in cases]
    if not labels or any(len(label) != len(dims) for label in labels):
        msg = f"labels must have {len(dims)} parts ({', '.join(dims)}); got {labels[:2]}"
        raise ArgumentError(msg)
    folder = None if store is None else Path(store)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    tasks = [
        dask.delayed(_one, pure=False)(
            fit, data, stream_seed(rng, label), options, _place(folder, label, rng, fit, options)
        )
        for label, data in zip(labels, cases.values(), strict=True)
    ]
    rows = _run(tasks, scheduler, workers, progress)
    return _collect(labels, dims, rows)


def stream_seed(rng: int, label: Iterable[Hashable]) -> list[int]:
    """Seed of one case: from the seed of the batch and the label, on any machine.

    Parameters
    ----------
    rng : int
        Seed of the batch.
    label : tuple
        Label of the case.

    Returns
    -------
    list of int
        Entropy for `numpy.random.default_rng`.
    """
    digest = hashlib.sha256(json.dumps([_plain(part) for part in label]).encode()).digest()
    return [rng, *np.frombuffer(digest[:16], dtype=np.uint32).tolist()]


def _plain(part: Hashable) -> Any:
    return part.item() if isinstance(part, np.generic) else part


def _place(
    folder: Path | None, label: tuple[Hashable, ...], rng: int, fit: Fit, options: Mapping[str, Any]
) -> Path | None:
    if folder is None:
        return None
    key = json.dumps(
        [[_plain(p) for p in label], rng, getattr(fit, "__name__", "fit"), options], default=str, sort_keys=True
    )
    return folder / hashlib.sha256(key.encode()).hexdigest()[:24]


def _one(fit: Fit, data: Any, seed: list[int], options: Mapping[str, Any], place: Path | None) -> dict[str, Any]:
    if place is not None and place.exists():
        try:
            return _row(FitResult.load(place))
        except StoreError:
            # a half-read result is made again rather than trusted
            import shutil

            shutil.rmtree(place)
    try:
        result = fit(data, rng=np.random.default_rng(seed), **options)
        row = _row(result)
    except TrajstatsError as error:
        return {"status": f"failed: {type(error).__name__}", "reason": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever breaks in one case must not stop the others
        return {"status": f"failed: {type(error).__name__}", "reason": f"{type(error).__name__}: {error}"}
    if place is not None:
        result.save(place)
    return row


def _row(result: FitResult) -> dict[str, Any]:
    reason = str(result.diagnostics["reason"].values) if "reason" in result.diagnostics else ""
    flagged = "; ".join(result.flags) if result.status != "ok" else ""
    return {
        "status": result.status,
        "reason": "; ".join(text for text in (reason, flagged) if text),
        "converged": result.converged,
        "summary": result.summary(),
    }


def _run(tasks: list[Any], scheduler: str, workers: int | None, progress: bool) -> list[dict[str, Any]]:
    import dask

    if scheduler == "distributed":
        return list(dask.compute(*tasks))
    settings: dict[str, Any] = {"scheduler": scheduler, **({"num_workers": workers} if workers else {})}
    if not progress:
        return list(dask.compute(*tasks, **settings))
    from tqdm.dask import TqdmCallback

    with TqdmCallback(desc="fits"):
        return list(dask.compute(*tasks, **settings))


def _collect(labels: list[tuple[Hashable, ...]], dims: tuple[str, ...], rows: list[dict[str, Any]]) -> xr.Dataset:
    good = [row["summary"] for row in rows if "summary" in row]
    names = list(dict.fromkeys(str(n) for one in good for n in one["coefficient"].values))
    if good:
        empty = xr.full_like(good[0].reindex(coefficient=names), np.nan)
        parts = [row["summary"].reindex(coefficient=names) if "summary" in row else empty for row in rows]
        result = xr.concat(parts, "case", combine_attrs="drop")
    else:
        result = xr.Dataset(coords={"case": np.arange(len(rows))}).drop_vars("case")
    result["status"] = ("case", np.array([row["status"] for row in rows], dtype=object))
    result["reason"] = ("case", np.array([row["reason"] for row in rows], dtype=object))
    result["converged"] = ("case", np.array([bool(row.get("converged", False)) for row in rows]))
    columns = {name: [label[k] for label in labels] for k, name in enumerate(dims)}
    coords = {
        name: ("case", np.array(v, dtype=object) if any(isinstance(x, str) for x in v) else np.array(v))
        for name, v in columns.items()
    }
    return result.assign_coords(coords)
