"""Any estimator or fit over a sweep: labels from the settings, failures as rows, the same numbers however it runs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr

import trajstats as ts
from trajstats.errors import ArgumentError, StoreError
from trajstats.inference.results import FitResult

SYNC = {"scheduler": "synchronous"}


def sweep_of(widths=(4, 8), depths=(1, 2), seeds=(0, 1), leave_out=()):
    runs = {}
    for w in widths:
        for d in depths:
            for s in seeds:
                if (w, d, s) in leave_out:
                    continue
                rng = np.random.default_rng([w, d, s])
                steps = np.arange(4 + d)  # deeper nets were recorded longer
                layers = {f"{k}.w": (w,) for k in range(d)}
                runs[f"w{w}d{d}s{s}"] = ts.trajectory_dataset(
                    rng.standard_normal((steps.size, w * d)).astype("float32"),
                    step=steps,
                    layers=layers,
                    replica=[s],
                    series={"loss": 1.0 / (1 + steps)},
                    attrs={"seed": s, "architecture": {"width": w, "depth": d}},
                )
    return xr.DataTree.from_dict(runs)


def displacement(run, **options):
    return ts.msd(run, ts.time_pairs(run, waiting_time=[0, 1]), per="all", **options)


def mean_fit(run, *, rng, shift=0.0):
    """A fit in the smallest: draws of the mean weight."""
    mean = float(run["weights"].mean()) + shift
    draws = mean + 0.1 * rng.standard_normal((2, 50))
    judged = xr.Dataset({"converged": True, "reason": ""})
    return FitResult("mean_fit", xr.Dataset({"mu": (("chain", "draw"), draws)}), xr.Dataset(), judged)


def test_an_estimator_over_a_grid_has_the_settings_as_dims():
    sweep = sweep_of()
    result = ts.map_sweep(displacement, sweep, dims=("width", "depth", "seed"), **SYNC)
    assert result["msd"].dims == ("width", "depth", "seed", "pair")
    assert (result["status"] == "ok").all()
    assert result["msd"].attrs["units"] == "weight^2"
    assert result["seed"].values.tolist() == [0, 1]
    for name in ("w4d1s1", "w8d2s0"):
        alone = displacement(sweep[name].to_dataset()).compute()
        where = {"width": int(name[1]), "depth": int(name[3]), "seed": int(name[5])}
        row = result.sel(where)
        assert str(row["run"].values) == name
        np.testing.assert_array_equal(row["msd"][: alone.sizes["pair"]], alone[0])
        assert np.isnan(row["msd"][alone.sizes["pair"] :]).all()
        np.testing.assert_array_equal(row["lag"][: alone.sizes["pair"]], alone["lag"])


def test_without_dims_runs_are_rows_with_what_differs():
    result = ts.map_sweep(displacement, sweep_of(depths=(1,)), **SYNC)
    assert result["msd"].dims == ("run", "pair")
    assert result["lag"].dims == ("pair",)  # shared by all
    assert result["architecture.width"].values.tolist() == [4, 4, 8, 8]
    assert "architecture.depth" not in result.coords
    assert result["replica"].values.tolist() == [0, 1, 0, 1]


def test_layers_of_different_nets_are_united():
    result = ts.map_sweep(_per_layer, sweep_of(), **SYNC)
    assert result["layer"].values.tolist() == ["0.w", "1.w"]
    shallow = result["architecture.depth"].values == 1
    assert np.isnan(result["msd"].sel(layer="1.w").values[shallow]).all()
    assert np.isfinite(result["msd"].sel(layer="0.w", pair=0)).all()


def _per_layer(run):
    return ts.msd(run, ts.time_pairs(run, waiting_time=[0]))


def test_fits_give_a_batch_labelled_by_the_settings():
    result = ts.map_sweep(mean_fit, sweep_of(leave_out=[(8, 2, 1)]), dims=("width", "depth", "seed"), rng=3, **SYNC)
    assert result["value"].dims == ("width", "depth", "seed", "coefficient")
    assert result["converged"].dtype == bool
    hole = result.sel(width=8, depth=2, seed=1)
    assert str(hole["status"].values) == "missing"
    assert np.isnan(hole["value"]).all()
    assert int((result["status"] == "ok").sum()) == 7


def test_a_poisoned_sweep_loses_no_run():
    sweep = sweep_of()
    clean = ts.map_sweep(mean_fit, sweep, dims=("width", "depth", "seed"), rng=3, **SYNC)
    runs = {name: node.to_dataset() for name, node in sweep.children.items()}
    broken = runs["w4d2s1"].copy(deep=True)
    broken["weights"][0, 2, 1] = np.nan
    runs["w4d2s1"] = broken

    def careful(run, *, rng):
        displacement(run).compute()
        if run.attrs["seed"] == 1 and run.sizes["parameter"] == 8 and "1.w" not in run["layer"]:
            msg = "no such luck"
            raise ZeroDivisionError(msg)
        return mean_fit(run, rng=rng)

    result = ts.map_sweep(careful, runs, dims=("width", "depth", "seed"), rng=3, **SYNC)
    bad = result.sel(width=4, depth=2, seed=1)
    assert str(bad["status"].values) == "failed: NonFiniteError"
    assert "step 2" in str(bad["reason"].values)
    other = result.sel(width=8, depth=1, seed=1)
    assert str(other["reason"].values) == "ZeroDivisionError: no such luck"
    assert not bool(other["converged"])
    good = result["status"] == "ok"
    assert int(good.sum()) == 6
    np.testing.assert_array_equal(result["value"].where(good), clean["value"].where(good))


def test_all_runs_may_fail_and_what_is_no_result_is_told():
    result = ts.map_sweep(lambda run: 3, sweep_of(), **SYNC)
    assert set(result["status"].values) == {"failed: ArgumentError"}
    assert "returned int" in str(result["reason"].values[0])


def test_runs_of_the_same_labels_are_both_named():
    with pytest.raises(ArgumentError, match="'w4d1s0' and 'w4d1s1' both have width=4, depth=1; add a setting"):
        ts.map_sweep(displacement, sweep_of(), dims=("width", "depth"), **SYNC)
    with pytest.raises(ArgumentError, match="unknown setting 'widht'"):
        ts.map_sweep(displacement, sweep_of(), dims=("widht",), **SYNC)
    with pytest.raises(ArgumentError, match="unknown scheduler 'procesess'"):
        ts.map_sweep(displacement, sweep_of(), scheduler="procesess")


@pytest.mark.filterwarnings("ignore:3 dask workers:RuntimeWarning")
def test_numbers_do_not_depend_on_scheduler_workers_order_or_tasks():
    sweep = sweep_of()
    dims = ("width", "depth", "seed")
    first = ts.map_sweep(mean_fit, sweep, dims=dims, rng=3, **SYNC)
    backwards = dict(reversed([(name, node.to_dataset()) for name, node in sweep.children.items()]))
    for other in (
        ts.map_sweep(mean_fit, sweep, dims=dims, rng=3, scheduler="threads", workers=3, per_task=1),
        ts.map_sweep(mean_fit, backwards, dims=dims, rng=3, scheduler="threads", workers=2, per_task=5),
    ):
        xr.testing.assert_identical(first, other)
    other = ts.map_sweep(mean_fit, sweep, dims=dims, rng=4, **SYNC)
    assert (first["value"] != other["value"]).all()


def test_a_store_gives_back_what_it_has_and_only_that(tmp_path):
    calls = []

    def counted(run, *, rng, shift=0.0):
        calls.append(str(run.attrs["seed"]))
        return mean_fit(run, rng=rng, shift=shift)

    def mapped(sweep, rng=3, **more):
        del calls[:]
        return ts.map_sweep(
            counted, sweep, dims=("width", "depth", "seed"), rng=rng, store=tmp_path / "s", **SYNC, **more
        )

    first = mapped(sweep_of(seeds=(0,)))
    assert len(calls) == 4
    again = mapped(sweep_of())
    assert calls == ["1"] * 4
    xr.testing.assert_identical(first, again.sel(seed=[0]))
    xr.testing.assert_identical(again, mapped(sweep_of()))
    assert calls == []
    mapped(sweep_of(), shift=1.0)
    assert len(calls) == 8
    mapped(sweep_of(), rng=4)
    assert len(calls) == 8
    changed = {name: node.to_dataset() for name, node in sweep_of().children.items()}
    changed["w4d1s0"] = changed["w4d1s0"].copy(deep=True)
    changed["w4d1s0"]["weights"][0, 0, 0] += 1
    mapped(changed)
    assert calls == ["0"]
    xr.Dataset().to_zarr(tmp_path / "other", consolidated=False)
    with pytest.raises(StoreError, match="store of something else"):
        ts.map_sweep(displacement, sweep_of(), store=tmp_path / "other", **SYNC)


def test_a_member_that_was_cut_short_or_damaged_is_done_again(tmp_path):
    store = tmp_path / "s"
    options = {"dims": ("width", "depth", "seed"), "rng": 3, "store": store, **SYNC}
    first = ts.map_sweep(mean_fit, sweep_of(), **options)
    members = sorted(path for path in store.iterdir() if path.is_dir())
    assert len(members) == 8
    cut = json.loads((members[0] / "zarr.json").read_text())
    del cut["attributes"]["finished"]
    (members[0] / "zarr.json").write_text(json.dumps(cut))
    (members[1] / "value" / "zarr.json").write_text("{")
    xr.testing.assert_identical(first, ts.map_sweep(mean_fit, sweep_of(), **options))


def test_failures_are_tried_again(tmp_path):
    broken = True

    def unlucky(run, *, rng):
        if broken and run.attrs["seed"] == 1:
            raise MemoryError
        return mean_fit(run, rng=rng)

    options = {"rng": 3, "store": tmp_path / "s", **SYNC}
    first = ts.map_sweep(unlucky, sweep_of(), **options)
    assert (first["status"] == "failed: MemoryError").values.tolist() == [False, True] * 4
    broken = False
    assert (ts.map_sweep(unlucky, sweep_of(), **options)["status"] == "ok").all()


def test_progress_shows_rate_and_failures(capsys):
    def half(run):
        if run.attrs["seed"]:
            raise ValueError
        return displacement(run)

    ts.map_sweep(half, sweep_of(), progress=True, **SYNC)
    shown = capsys.readouterr().err
    assert "8/8" in shown
    assert "failed=4" in shown
    assert "run/s" in shown


def test_a_run_that_is_being_written_says_so(tmp_path):
    writer = ts.TrajectoryWriter(tmp_path / "a.zarr", {"w": (3,)}, attrs={"width": 3})
    for step in range(3):
        writer.append(step, np.full(3, step, "float32"))
    result = ts.map_sweep(displacement, ts.open_sweep(tmp_path), dims=("width",), **SYNC)
    assert result["state"].values.tolist() == ["writing"]
    np.testing.assert_array_equal(np.sort(result["msd"].values[0]), [1.0, 1.0, 4.0])
    writer.close()


def test_a_damaged_tile_is_a_failed_run(tmp_path):
    for seed in (0, 1):
        with ts.TrajectoryWriter(tmp_path / f"s{seed}.zarr", {"w": (64,)}, attrs={"seed": seed}) as run:
            for step in range(3):
                run.append(step, np.random.default_rng([seed, step]).standard_normal(64).astype("float32"))
    tile = next(p for p in (tmp_path / "s1.zarr" / "weights" / "c").rglob("*") if p.is_file())
    raw = bytearray(tile.read_bytes())
    raw[len(raw) // 2] ^= 1
    tile.write_bytes(bytes(raw))
    result = ts.map_sweep(displacement, ts.open_sweep(tmp_path), dims=("seed",), **SYNC)
    assert result["status"].values.tolist() == ["ok", "failed: StoreError"]
    assert "s1.zarr" in str(result["reason"].values[1])
