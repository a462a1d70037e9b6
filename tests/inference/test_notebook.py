"""What notebooks show: a fit's HTML, plots inline, progress bars of long calls."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray as xr

import trajstats as ts


@pytest.fixture(scope="module")
def fit():
    wait, lag = (a.ravel() for a in np.meshgrid([100.0, 1e3, 1e4], np.geomspace(10, 1e4, 6)))
    coords = {"waiting_time": ("pair", wait), "lag": ("pair", lag)}
    delta = xr.DataArray((wait + lag) ** 0.5 - wait**0.5, dims="pair", coords=coords)
    return ts.fit_subaging(delta, rng=0)


class Balanced(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data.strip())


def test_coefficients_status_flags_and_tables(fit):
    page = Balanced(fit._repr_html_())
    assert page.open == []
    row = fit.summary(levels=(0.95,)).sel(coefficient="mu")
    low, high = row["interval"].values[0]
    for word in ("mu", f"{float(row['value']):.4g}", f"{low:.4g} to {high:.4g}", *fit.flags):
        assert word in page.words
    assert any(fit.status in word for word in page.words)
    for name in ("diagnostics", "how it was made", *fit.tables):
        assert name in page.words
    assert len(fit._repr_html_()) < 60_000


def test_text_is_escaped(fit):
    bad = "<script>alert(1)</script>"
    table = xr.Dataset({bad: ("x", [bad])}, {"x": [bad]})
    shown = replace(fit, flags=(bad,), status=bad, tables={bad: table}, attrs={bad: bad})._repr_html_()
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown


def test_a_bare_fit_has_a_repr():
    draws = xr.Dataset({"mu": (("chain", "draw"), np.linspace(0, 1, 8).reshape(2, 4))})
    assert "0.5" in ts.FitResult("fit_subaging", draws, xr.Dataset(), xr.Dataset())._repr_html_()


@pytest.mark.slow
def test_in_a_notebook(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    cells = [
        "%matplotlib inline\nimport numpy as np, trajstats as ts\n"
        "run = ts.scaled_brownian(ts.aging_schedule([10, 100], ts.log_schedule(1, 200, 8)), rng=0, exponent=0.5)\nrun",
        "delta = ts.msd(run, ts.time_pairs(run, waiting_time=[10, 100]))\n"
        "fit = ts.fit_subaging(delta, rng=0, estimator='power_law', max_steps=200, progress=True)\nfit",
        "ts.plot_collapse(delta, fit);",
        "ts.analyze(run, 'report.html')",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    shown = [[key for out in cell.outputs for key in out.get("data", {})] for cell in notebook.cells]
    texts = ["".join(out.get("text", "") for out in cell.outputs) for cell in notebook.cells]
    assert "text/html" in shown[0]
    html = "".join(out.get("data", {}).get("text/html", "") for out in notebook.cells[1].outputs)
    assert "trajstats-fit" in html
    assert "image/png" in shown[2]
    # with ipywidgets tqdm draws a widget, without it a line on stderr
    for k in (1, 3):
        assert "%" in texts[k] or any("widget" in key for key in shown[k])
    assert (tmp_path / "report.html").exists()
