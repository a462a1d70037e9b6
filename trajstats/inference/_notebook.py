"""What a notebook shows of a fit: coefficients with intervals, status and flags; diagnostics and tables folded."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

import xarray as xr

# Rows of a folded table: enough for estimators, scans and seeds, not for raw points.
MOST_ROWS = 60


def fit_html(fit: Any) -> str:
    """Write the HTML of a fit."""
    import jinja2

    source = resources.files("trajstats.inference").joinpath("fit.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    summary = fit.summary(levels=(0.68, 0.95))
    rows = [
        [
            str(name),
            f"{float(one['value']):.4g}",
            f"{float(one['stderr']):.2g}",
            *(f"{float(low):.4g} to {float(high):.4g}" for low, high in one["interval"].values),
        ]
        for name in summary["coefficient"].values
        for one in [summary.sel(coefficient=name)]
    ]
    return environment.from_string(source).render(
        kind=fit.kind,
        status=fit.status,
        converged=fit.converged,
        reason=str(fit.diagnostics["reason"].item()) if "reason" in fit.diagnostics else "",
        header=["coefficient", "median", "± (half of 68 %)", "68 %", "95 %"],
        rows=rows,
        flags=fit.flags,
        tables=_folded({"diagnostics": fit.diagnostics, **fit.tables}, fit.attrs),
    )


def _folded(tables: Mapping[str, xr.Dataset], attrs: Mapping[str, Any]) -> dict[str, Any]:
    import pandas as pd
    from markupsafe import Markup

    shown: dict[str, Any] = {}
    for name, table in tables.items():
        # One frame for each set of dims: diagnostics run along coefficients and along chains.
        by_dims: dict[tuple, list[str]] = {}
        for key, values in table.data_vars.items():
            by_dims.setdefault(values.dims, []).append(str(key))
        frames = []
        for dims, keys in by_dims.items():
            part = table[keys]
            frame = part.to_dataframe() if dims else pd.DataFrame({key: [part[key].item()] for key in keys})
            frames.append(frame.head(MOST_ROWS).to_html(border=0, float_format=lambda x: f"{x:.4g}", index=bool(dims)))
        if frames:
            shown[name] = Markup("".join(frames))  # to_html has escaped every cell and label
    made = pd.DataFrame({"value": {str(key): str(value) for key, value in attrs.items()}})
    if len(made):
        shown["how it was made"] = Markup(made.to_html(border=0))
    return shown
