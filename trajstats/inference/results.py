"""What every fit returns: posterior, summary, diagnostics, prediction and a file to keep it in."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data._clocks import CLOCK, REASON, unit_of
from trajstats.data.safety._budget import shorten
from trajstats.data.schema import STEP
from trajstats.data.store._results import UNVERIFIED, load_kept_tree, save_kept
from trajstats.errors import ArgumentError, StoreError, StoreNotFoundError, UnsupportedError
from trajstats.inference._labels import labelled, labelled_array
from trajstats.inference._uncertainty import half_interval

LEVELS = (0.68, 0.90, 0.95)
BOUNDS = ("lower", "upper")

# Who predicts for which kind of fit: a name, so that a loaded result needs no pickled code.
_PREDICTORS = {
    "fit_subaging": "trajstats.inference.aging.fit:predict",
    "fit_divergence": "trajstats.inference.transition._single:predict",
    "fit_decay": "trajstats.inference.decay.fit:predict",
}


@dataclass(frozen=True, repr=False)
class FitResult:
    """A fit: draws from the posterior and everything needed to judge them.

    Attributes
    ----------
    kind : str
        Public name of the fit that made it.
    posterior : xarray.Dataset
        Draws of each coefficient, dims (chain, draw); a chain is an independent ensemble of walkers.
    data : xarray.Dataset
        The points that were fitted, with prediction and residual.
    diagnostics : xarray.Dataset
        ``r_hat``, ``ess``, ``tau`` along `coefficient`; ``acceptance`` along `chain`; scalars ``stuck_walkers``,
        ``converged`` (bool) and ``reason`` (text, empty when converged).
    tables : mapping name -> xarray.Dataset
        What else the fit reports: estimators side by side, scans, model comparison, predictive check.
    flags : tuple of str
        What the error bars rest on and what the data could not tell, as sentences.
    status : str
        ``"ok"``, ``"not converged"``, ``"not identified"`` or ``"structured residuals"``.
    attrs : mapping
        How the fit was made: arguments, likelihood, priors, source.
    log_likelihood : xarray.Dataset
        Log density of each group of data at each draw, dims (chain, draw, group): given the coefficients, and where
        groups share their noise given the other groups too. Empty where the fit keeps no groups.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> draws = xr.Dataset({"mu": (("chain", "draw"), np.linspace(0, 1, 8).reshape(2, 4))})
    >>> fit = FitResult("fit_subaging", draws, xr.Dataset(), xr.Dataset())
    >>> float(fit.summary()["value"].sel(coefficient="mu"))
    0.5
    """

    kind: str
    posterior: xr.Dataset
    data: xr.Dataset
    diagnostics: xr.Dataset
    tables: Mapping[str, xr.Dataset] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    status: str = "ok"
    attrs: Mapping[str, Any] = field(default_factory=dict)
    log_likelihood: xr.Dataset = field(default_factory=xr.Dataset)

    def __post_init__(self) -> None:
        # frozen: the labels are part of making it
        clock = str(self.attrs.get("clock", STEP))
        for place in ("posterior", "data", "diagnostics", "log_likelihood"):
            object.__setattr__(self, place, labelled(getattr(self, place), place, clock=clock))
        tables = {name: labelled(table, name, clock=clock) for name, table in self.tables.items()}
        object.__setattr__(self, "tables", tables)

    def __repr__(self) -> str:
        # coefficients with their 68 % intervals, then status and flags: what to paste into a notebook
        table = self.summary(levels=(0.68,))
        lines = [f"{self.kind}: {self.status}"]
        for name in table["coefficient"].values:
            row = table.sel(coefficient=name)
            low, high = (float(edge) for edge in row["interval"].values[0])
            lines.append(
                f"  {name} = {float(row['value']):.4g} +- {float(row['stderr']):.2g}  (68 %: {low:.4g} to {high:.4g})"
            )
        if "used" in self.attrs:
            lines.append(f"  used: {self.attrs['used']}")
        return "\n".join([*lines, *(f"  - {flag}" for flag in self.flags)])

    def _repr_html_(self) -> str:
        from trajstats.inference._notebook import fit_html

        return fit_html(self)

    @property
    def converged(self) -> bool:
        """Whether the sampler met its stated rule; `diagnostics.reason` says why not."""
        return bool(self.diagnostics["converged"]) if "converged" in self.diagnostics else False

    def summary(self, *, levels: Sequence[float] = LEVELS) -> xr.Dataset:
        """Summarise the posterior of each scalar coefficient.

        Parameters
        ----------
        levels : sequence of float
            Probabilities of the central intervals.

        Returns
        -------
        xarray.Dataset
            Dim `coefficient`: ``value`` (posterior median), ``stderr`` (half the central 68 % interval,
            whatever `levels` are: draws for few replicas have no standard deviation) and ``interval`` with dims
            (coefficient, level, bound), bound being ``"lower"`` and ``"upper"``: central quantiles. A variable with a
            labelled dim of its own, such as w_c of each depth, gives one coefficient for each label:
            ``"w_c[depth=2]"``.
        """
        columns = _scalar_draws(self.posterior)
        names, draws = list(columns), list(columns.values())
        chosen = np.asarray(levels, dtype=float)
        tails = np.stack([(1 - chosen) / 2, (1 + chosen) / 2], axis=-1)
        result = xr.Dataset(
            {
                "value": ("coefficient", [float(np.median(d)) for d in draws]),
                "stderr": ("coefficient", [float(half_interval(d)) for d in draws]),
                "interval": (("coefficient", "level", "bound"), np.array([np.quantile(d, tails) for d in draws])),
            },
            coords={"coefficient": names, "level": chosen, "bound": list(BOUNDS)},
        )
        result.attrs = {"kind": self.kind, "status": self.status, "flags": "; ".join(self.flags)}
        if "used" in self.attrs:
            result.attrs["used"] = str(self.attrs["used"])
        return labelled(result, "summary")

    def predict(self, **where: Any) -> xr.DataArray:
        """Predict from the posterior.

        Parameters
        ----------
        **where
            Where to predict, in the words of the fit: ``waiting_time=`` and ``lag=`` (fit_subaging), ``width=``
            (fit_divergence), ``time=`` (fit_decay). At the fitted points if nothing is given.

        Returns
        -------
        xarray.DataArray
            Dims (chain, draw, ...): one predicted curve per draw.

        Raises
        ------
        UnsupportedError
            If fits of this kind do not predict.
        """
        if self.kind not in _PREDICTORS:
            msg = f"a fit of kind {shorten(self.kind)} does not predict; those of {', '.join(_PREDICTORS)} do"
            raise UnsupportedError(msg)
        module, name = _PREDICTORS[self.kind].split(":")
        found = getattr(importlib.import_module(module), name)(self, **where)
        return labelled_array(found, clock=str(self.attrs.get("clock", STEP)))

    def to_datatree(self) -> xr.DataTree:
        """Give the groups that ArviZ reads.

        Returns
        -------
        xarray.DataTree
            ``posterior``, ``observed_data``, ``sample_diagnostics``, ``log_likelihood`` where data have independent
            groups, and one group per table.
        """
        stats = self.diagnostics
        groups: dict[str, xr.Dataset] = {"posterior": self.posterior, "sample_diagnostics": stats}
        if self.data.data_vars:
            groups["observed_data"] = self.data
        if self.log_likelihood.data_vars:
            groups["log_likelihood"] = self.log_likelihood
        groups |= {f"tables/{name}": table for name, table in self.tables.items()}
        tree = xr.DataTree.from_dict(groups)
        tree.attrs = {
            "kind": self.kind,
            "status": self.status,
            "flags": json.dumps(list(self.flags)),
            "fit": json.dumps({k: v for k, v in self.attrs.items() if k != UNVERIFIED}, default=str),
            "order": json.dumps([str(name) for name in self.posterior.data_vars]),
        }
        return tree

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result to a zarr folder; nothing is left there if writing fails.

        Parameters
        ----------
        path : path
            A folder that does not exist yet.

        Raises
        ------
        StoreError
            If something is there already.
        """
        target = Path(path)
        if os.path.lexists(target):
            msg = f"{target} exists; a fit is never overwritten. Choose another name or remove it."
            raise StoreError(msg)
        tree = self.to_datatree().map_over_datasets(storable)
        tree.attrs = self.to_datatree().attrs
        save_kept(target, tree)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FitResult:
        """Read a result written by `save`.

        Parameters
        ----------
        path : path
            The folder.

        Returns
        -------
        FitResult

        Raises
        ------
        StoreNotFoundError
            If there is no such folder.
        StoreError
            If it holds no fit, or anything in it changed since it was saved.
        UnsafeInputError
            If there is a link in the folder, or data would unpack to far more than is there.

        Notes
        -----
        Every file has a checksum. A fit saved by a version without them is read all the same; its ``attrs`` then have
        an entry ``unverified``.
        """
        source = Path(path)
        if not source.exists():
            msg = f"no fit at {source}"
            raise StoreNotFoundError(msg)
        tree = load_kept_tree(source)
        attrs, groups = tree.attrs, {name: node.to_dataset(inherit=False) for name, node in tree.children.items()}
        tables = tree.children["tables"].children if "tables" in tree.children else {}
        parts = {key: _stored_json(attrs.get(key), source, key) for key in ("order", "flags", "fit")}
        order = _texts(parts["order"], source, "order")
        lost = [name for name in order if name not in groups.get("posterior", xr.Dataset())]
        lost += [name for name in ("posterior", "sample_diagnostics") if name not in groups]
        words = all(isinstance(attrs.get(key), str) for key in ("kind", "status"))
        if lost or not words or not isinstance(parts["fit"], dict):
            what = f"{shorten(lost)} are missing" if lost else "its kind, status or arguments are none that a fit has"
            msg = f"{source} holds no fit written by FitResult.save: {what}"
            raise StoreError(msg)
        return cls(
            attrs["kind"],
            groups["posterior"][order],
            groups.get("observed_data", xr.Dataset()),
            groups["sample_diagnostics"],
            {name: node.to_dataset(inherit=False) for name, node in tables.items()},
            tuple(_texts(parts["flags"], source, "flags")),
            attrs["status"],
            parts["fit"] | {key: attrs[key] for key in (UNVERIFIED,) if key in attrs},
            groups.get("log_likelihood", xr.Dataset()),
        )


def _stored_json(text: Any, source: Path, key: str) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"{source} holds no fit written by FitResult.save: its attribute {key!r} is {shorten(text)}"
        raise StoreError(msg) from error


def _texts(values: Any, source: Path, key: str) -> list[str]:
    if isinstance(values, list) and all(isinstance(value, str) for value in values):
        return values
    msg = f"{source} holds no fit written by FitResult.save: {key!r} is {shorten(values)}, not a list of text"
    raise StoreError(msg)


def _scalar_draws(posterior: xr.Dataset) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = {}
    for name, variable in posterior.data_vars.items():
        rest = [str(d) for d in variable.dims if d not in ("chain", "draw")]
        if not rest:
            columns[str(name)] = np.ravel(variable.values)
        elif len(rest) == 1 and rest[0] in posterior.coords:
            for label in posterior[rest[0]].values:
                columns[f"{name}[{rest[0]}={label}]"] = np.ravel(variable.sel({rest[0]: label}).values)
    return columns


def storable(dataset: xr.Dataset) -> xr.Dataset:
    """Make a dataset fit for zarr."""
    # zarr 3 has no stable spec for fixed-width text: variable-length text is written instead.
    text = {str(k): v.astype(object) for k, v in dataset.variables.items() if v.dtype.kind == "U"}
    return dataset.assign_coords({k: v for k, v in text.items() if k in dataset.coords}).assign(
        {k: v for k, v in text.items() if k not in dataset.coords}
    )


def check_predicted_clock(fit: FitResult, clock: str | None, numbers: Mapping[str, Any]) -> None:
    """Refuse times of a prediction that are, or could be, on another clock than that of the fit."""
    own, given = str(fit.attrs.get(CLOCK, STEP)), [name for name, value in numbers.items() if value is not None]
    if clock is not None and clock != own:
        msg = f"clock={clock!r}: this fit is in {own} ({unit_of(own)}); give times on that clock"
        raise ArgumentError(msg)
    if clock is None and given and fit.attrs.get(REASON):
        msg = (
            f"{' and '.join(given)} could be optimiser steps or on the clock of this fit, {own} ({unit_of(own)}), "
            f"which was chosen because {fit.attrs[REASON]}. Give times on that clock, with clock={own!r}."
        )
        raise ArgumentError(msg)
