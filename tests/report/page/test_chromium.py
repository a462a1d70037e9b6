"""Pages in a real browser: nothing is fetched or logged, images load, nothing scrolls sideways on a phone."""

from __future__ import annotations

import chromium
import numpy as np
import pytest

import trajstats as ts

PROGRAM = chromium.find()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    started = chromium.Chromium(PROGRAM)
    yield started
    started.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A run with names and attributes as long as they come in practice."""
    steps = ts.aging_schedule([20, 80, 320], ts.log_schedule(1, 640, 8))
    layers = {f"model.decoder.layers.{k}.self_attn.q_proj.very_long_name.weight": (15, 10) for k in range(3)}
    run = ts.scaled_brownian(steps, rng=0, exponent=0.5, n_parameters=450, layers=layers)
    run["loss"] = (("replica", "step"), 1 / (1 + np.arange(steps.size))[None])
    run.attrs["source"] = "runs/" + "a_very_long_folder_name_" * 8 + ".zarr"
    return ts.analyze(run, tmp_path_factory.mktemp("page") / "report.html", progress=False)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_of_a_run(browser, page, width, dark):
    seen = browser.look(page, width=width, dark=dark)
    assert seen["errors"] == []
    assert seen["failed"] == []
    assert seen["requests"] == []
    assert len(seen["images"]) > 5
    assert all(seen["images"])
    assert seen["width"] <= width
    assert seen["wide"] == 0
    ink, paper = (sum(map(int, seen[key].removeprefix("rgb(").rstrip(")").split(","))) for key in ("ink", "paper"))
    assert (ink > paper) == dark
    assert abs(ink - paper) > 450  # of 765


def test_the_page_in_print(browser, page, tmp_path):
    seen = browser.look(page, width=800, media="print", pdf=tmp_path / "page.pdf",
                        script="({menu: getComputedStyle(document.querySelector('nav')).display})")  # fmt: skip
    assert seen["errors"] == []
    assert seen["menu"] == "none"
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def test_a_page_that_is_wrong_is_seen_to_be(browser, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!doctype html><meta name='viewport' content='width=device-width'><main><p style='width:900px'>wide</p>"
        "<img src='missing.png'></main><script>nothere()</script>"
    )
    seen = browser.look(bad, width=400)
    assert any("nothere" in error for error in seen["errors"])
    assert seen["images"] == [False]
    assert seen["failed"] != []
    assert seen["wide"] == 1
    assert seen["width"] > 400
