"""The page of a run: its code redoes its figures, it is made whatever the run lacks, and it gives nothing away."""

from __future__ import annotations

import base64
import html
import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

import trajstats as ts
from trajstats.errors import ArgumentError, SchemaError, StoreError
from trajstats.report.page._measured import choose_waiting_times, measure
from trajstats.report.page._secrets import shown_attrs, without_secrets
from trajstats.report.page.html import _svg_uri, interval_text

WAITING = [20, 80, 320, 1_280]
STEPS = ts.aging_schedule(WAITING, ts.log_schedule(1, 1_280, 11))
FEW = [0, 10, 20, 40]
FIGURE = re.compile(r"data:image/svg\+xml;base64,[^\"]+")
CODE = re.compile(r"<pre><code>(.*?)</code></pre>", re.DOTALL)
LAYERS = {"0.weight": (30, 10), "0.bias": (30,), "1.weight": (10, 30)}


def walk(seed: int, steps: np.ndarray = STEPS, n: int = 630) -> np.ndarray:
    """A walk whose noise falls as one over the square root of the step: aging, mu = 1/2."""
    return ts.scaled_brownian(steps, rng=seed, exponent=0.5, n_parameters=n).weights.values[0]


def write(path, seed: int, *, steps: np.ndarray = STEPS, loss: bool = True, layers=LAYERS, **more):
    with ts.TrajectoryWriter(path, layers, replica=seed, **more) as writer:
        for step, row in zip(steps, walk(seed, steps), strict=True):
            writer.append(int(step), row, **({"loss": 1 / (1 + step)} if loss else {}))
    return path


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return [str(write(folder / f"run{seed}.zarr", seed)) for seed in range(2)]


@pytest.fixture(scope="module")
def page(stores, tmp_path_factory):
    return ts.analyze(stores, tmp_path_factory.mktemp("page") / "report.html", progress=False)


def code_of(text: str) -> str:
    return "\n".join(html.unescape(block) for block in CODE.findall(text))


def redo(code: str, names: dict) -> list[str]:
    """Run the code of a page as a reader would and give the figures it leaves open, in order."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    plt.close("all")
    with mpl.rc_context():
        exec(compile(code, "page", "exec"), names)
        return [_svg_uri(plt.figure(number)) for number in plt.get_fignums()]


def test_the_code_of_the_page_redoes_every_figure_and_number(page, capsys):
    text = page.read_text()
    names: dict = {}
    figures = redo(code_of(text), names)
    assert figures == FIGURE.findall(text)
    row = names["fit"].summary(levels=(0.95,)).sel(coefficient="mu")
    assert f"<td>{interval_text(float(row['value']), *row['interval'].values[0])}</td>" in text
    assert "fit_subaging" in capsys.readouterr().out


def test_headings_size_and_numbers(page):
    text = page.read_text()
    for heading in ("In numbers", "Loss", "Two-time displacement", "Aging exponent", "Layers", "How this was made"):
        assert f">{heading}</h2>" in text
    assert len(text) < 5 * 2**20
    assert "<script" not in text
    for name in LAYERS:
        assert f"<td>{name}</td>" in text


def small(tmp_path, steps, **more):
    return write(tmp_path / "run.zarr", 0, steps=np.asarray(steps), **more)


LACKING = {
    "no loss, one replica": (STEPS, {"loss": False}, ["No loss was recorded", "one replica"]),
    "three checkpoints": ([0, 10, 100], {}, ["No exponent was fitted"]),
    "one checkpoint": ([5], {}, ["1 checkpoints: a displacement needs", "No exponent was fitted"]),
    "none but the start": ([0], {}, ["No exponent was fitted"]),
    "sketches": (STEPS, {"sketch": ts.Sketch(buckets=64, hashes=4)}, ["Aging exponent"]),
}


@pytest.mark.parametrize("case", LACKING)
def test_the_page_is_made_whatever_the_run_lacks(case, tmp_path):
    steps, more, words = LACKING[case]
    path = small(tmp_path, steps, **more)
    text = ts.analyze(path, tmp_path / "r.html", progress=False).read_text()
    for word in words:
        assert word in html.unescape(text)
    if case == "sketches":
        assert redo(code_of(text), {}) == FIGURE.findall(text)


def test_weights_that_do_not_move_and_weights_that_are_not_finite(tmp_path):
    run = ts.trajectory_dataset(walk(0, np.array(FEW)), step=FEW)
    still = ts.trajectory_dataset(np.zeros((len(FEW), 4)), step=FEW)
    text = ts.analyze(still, tmp_path / "still.html", progress=False).read_text()
    assert "no weight moved between any two" in text
    broken = run.copy(deep=True)
    broken.weights.values[0, -2] = np.nan
    text = ts.analyze(broken, tmp_path / "broken.html", progress=False).read_text()
    assert re.search(r"\d+ pairs with a weight that is not finite were left out", text)
    broken.weights.values[:] = np.nan
    text = ts.analyze(broken, tmp_path / "broken.html", progress=False).read_text()
    assert "hold a weight that is not finite" in text


def test_with_a_network(tmp_path):
    from reference.numpy_networks import Dense

    network = Dense(np.diag(np.linspace(-1, 3, 30)))
    run = ts.trajectory_dataset(walk(0, np.array(FEW), n=30), step=FEW)
    text = ts.analyze(run, tmp_path / "r.html", network=network, progress=False).read_text()
    assert ">Curvature</h2>" in text
    code = code_of(text).replace("run = ...", "run = given").replace("network = ...", "network = net")
    assert redo(code, {"given": run, "net": network}) == FIGURE.findall(text)
    with pytest.raises(SchemaError, match="the network has"):
        ts.analyze(ts.trajectory_dataset(walk(0), step=STEPS), tmp_path / "s.html", network=network)
    assert not (tmp_path / "s.html").exists()


def test_text_from_the_run_is_never_read_as_html_or_mathematics(tmp_path):
    bad = "<img src=x onerror=alert(1)>$\\frac"
    path = write(
        tmp_path / "r<b>un.zarr",
        0,
        steps=np.array(FEW),
        layers={bad: (315,), "b": (315,)},
        attrs={bad: "</td><script>"},
    )
    text = ts.analyze(path, tmp_path / "r.html", progress=False, title="<i>t</i>").read_text()
    assert "<img src=x" not in text
    assert "<script" not in text
    assert "<i>t" not in text
    for figure in FIGURE.findall(text):
        tags = {
            node.tag.rpartition("}")[2]
            for node in ElementTree.fromstring(base64.b64decode(figure.partition(",")[2])).iter()
        }
        assert not tags & {"script", "img", "foreignObject", "a"}


def test_secrets_are_not_printed(tmp_path):
    attrs = {"optimiser": {"lr": 0.1, "wandb_api_key": "pa55word-1"}, "password": "pa55word-2",
             "data": "s3://me:pa55word-3@host/x?sig=pa55word-4", "note": "hf_pa55word5pa55word5"}  # fmt: skip
    run = ts.trajectory_dataset(walk(0, np.array(FEW)), step=FEW, attrs=attrs)
    text = ts.analyze(run, tmp_path / "r.html", progress=False).read_text()
    assert "pa55word" not in text
    assert "optimiser.lr" in text


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("gs://bucket/run.zarr", "gs://bucket/run.zarr"),
        ("https://u:p@h/x?token=1", "https://[not shown]@h/x?[not shown]"),
        ("runs/a.zarr", "runs/a.zarr"),
        ("key AKIAIOSFODNN7EXAMPLE", "key [not shown]"),
    ],
)
def test_without_secrets(given, shown):
    assert without_secrets(given) == shown


def test_shown_attrs_looks_into_lists_and_json():
    attrs = {"a": json.dumps({"b": [{"token": "x"}, 1]}), "tokenizer": "bpe", "not json": "{x"}
    shown = shown_attrs(attrs)
    assert shown == {"a.b.0.token": "[not shown]", "a.b.1": "1", "tokenizer": "bpe", "not json": "{x"}


def test_arguments_are_checked_before_anything_is_written(stores, tmp_path):
    with pytest.raises(StoreError, match="does not exist"):
        ts.analyze(stores[0], tmp_path / "no" / "r.html")
    with pytest.raises(ArgumentError, match="were not saved"):
        ts.analyze(stores[0], tmp_path / "r.html", waiting_time=[20, 33])
    with pytest.raises(ts.StoreNotFoundError):
        ts.analyze(tmp_path / "nowhere.zarr", tmp_path / "r.html")
    assert list(tmp_path.iterdir()) == []


def test_figures_of_the_caller_stay_open(stores, tmp_path):
    import matplotlib.pyplot as plt

    mine = plt.figure()
    run = ts.open_trajectory(stores[0]).isel(step=[0, 1, 5])
    ts.analyze(run, tmp_path / "r.html", progress=False)
    assert plt.get_fignums() == [mine.number]


@pytest.mark.parametrize(
    "steps",
    [STEPS, np.arange(0, 20_001, 500), np.unique(np.geomspace(1, 1e5, 60).astype(int)), np.array([0, 1, 2, 4, 8, 16])],
)
def test_waiting_times_are_saved_and_spread(steps):
    chosen = np.array(choose_waiting_times(steps))
    assert np.isin(chosen, steps).all()
    assert 1 < chosen.size <= 8
    assert (chosen > 0).all()
    assert (chosen <= steps[-1] / 1.5).all()
    width = np.log(chosen[-1] / chosen[0]) / 8
    assert np.diff(np.log(chosen)).min() > width / 2 - 1e-9


def test_waiting_times_of_a_schedule_are_found():
    assert choose_waiting_times(STEPS, at_most=4) == WAITING


def test_a_generator_gives_the_seed_the_page_states(stores, tmp_path):
    run = ts.open_trajectory(stores[0]).isel(step=[0, 1, 5])
    pages = [ts.analyze(run, tmp_path / f"{k}.html", rng=np.random.default_rng(5), progress=False) for k in range(2)]
    seeds = [re.search(r"<td>seed of the fits</td><td>(\d+)</td>", page.read_text()).group(1) for page in pages]
    assert seeds[0] == seeds[1] == str(int(np.random.default_rng(5).integers(2**31)))


def test_several_runs_side_by_side_are_labelled(stores):
    from trajstats.report.page._sections import aging_section, numbers_section

    one = measure(ts.open_trajectory(stores[0]), source="a", label="small net", layer_fits=0)
    two = replace(one, label="large net", fit=None, refused={"fit": "too few points"})
    table = numbers_section([one, two]).tables[0]
    assert [row[0] for row in table.rows] == ["small net", "large net"]
    assert "refused" in table.rows[1]
    assert "large net: No exponent was fitted: too few points" in aging_section([one, two]).text


def test_tables_head_their_columns_with_saved_lags():
    from trajstats.report.page._measured import Measured
    from trajstats.report.page._tables import grid_table

    def table(steps, waiting):
        run = ts.brownian(steps, rng=0, layers={"w": (50,)})
        delta = ts.msd(run, ts.time_pairs(run, waiting_time=waiting, min_lag=50)).compute()
        return grid_table(Measured("", "", run, 0, "", delta=delta))

    same = table([10, 20, 109, 119], [10, 20])
    assert same.header == ["MSD at waiting time \\ lag (optimiser steps)", "99"]
    mixed = table([20, 120, 1_000, 1_099], [20, 1_000])
    assert mixed.header[1] == "near 100"
    assert [row[1].partition(" ")[2] for row in mixed.rows] == ["(lag 100)", "(lag 99)"]
