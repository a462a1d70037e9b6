"""Names that change along a series, equal checkpoints, and tensors of another step."""

from __future__ import annotations

import numpy as np
import pytest

import trajstats as ts
from trajstats.data.ingest._continuity import equal_checkpoints, repeated_tensors
from trajstats.data.ingest._in_memory import in_memory

SHAPES = {"tok.weight": (7, 4), "blocks.0.w": (4, 4), "blocks.1.w": (4, 4), "ln.weight": (9,)}


def walk(n, scale=0.1):
    """A series of small steps: step -> weights."""
    rng = np.random.default_rng(0)
    now = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    series = {}
    for k in range(n):
        now = {name: value + scale * rng.standard_normal(value.shape) for name, value in now.items()}
        series[10 * k] = {name: value.astype("f4") for name, value in now.items()}
    return series


def renamed(tree, give):
    return {give(name): value for name, value in tree.items()}


WRAPPERS = {
    "later compiled": ["", "", "_orig_mod."],
    "later parallel": ["", "module.", "module."],
    "both, two orders": ["module._orig_mod.", "_orig_mod.module.", "_orig_mod.module."],
    "taken off again": ["module.", "_orig_mod.module.", ""],
    "sharded": ["", "_fsdp_wrapped_module.", "module._fsdp_wrapped_module."],
    "always": ["_orig_mod."] * 3,
    "parallel inside": ["", lambda name: name.replace("blocks.0.", "blocks.0.module."), ""],
    "model and state_dict": ["", "state_dict.model.", "model._orig_mod."],
    "inside": ["", lambda name: name.replace("blocks.", "blocks._checkpoint_wrapped_module."), ""],
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_wrappers_are_taken_off_along_a_series(tmp_path, kind):
    series = walk(3)
    given = {}
    for (step, tree), mark in zip(series.items(), WRAPPERS[kind], strict=True):
        given[step] = renamed(tree, mark if callable(mark) else lambda name, mark=mark: mark + name)
    ts.ingest(given, tmp_path / "out.zarr")
    run = ts.open_trajectory(tmp_path / "out.zarr")
    assert run.layer.values.tolist() == sorted(SHAPES)
    want = np.stack([np.concatenate([tree[name].ravel() for name in sorted(tree)]) for tree in series.values()])
    np.testing.assert_array_equal(run.weights.values[0], want)


def findings(given):
    return ts.ingest(given, "never.zarr", dry_run=True).findings


def test_a_rename_is_proposed_by_name_and_confirmed_by_value():
    series = walk(2)
    series[10] = renamed(series[10], lambda name: f"bert.{name}")
    found = findings(series)
    assert {(f.kind, f.tensor) for f in found} == {("renamed", name) for name in SHAPES}
    assert all("removeprefix('bert.')" in f.detail for f in found)
    plan = ts.ingest(series, "never.zarr", dry_run=True, rename=lambda name: name.removeprefix("bert."))
    assert plan.findings == []


def test_names_that_are_alike():
    series = walk(2)
    series[10] = renamed(series[10], lambda name: name.replace("ln.weight", "ln.weights"))
    (found,) = findings(series)
    assert found.kind == "renamed"
    assert "rename={'ln.weights': 'ln.weight'}" in found.detail


def test_shape_alone_proposes_nothing():
    series = walk(2)
    series[10] = renamed(series[10], lambda name: name.replace("blocks.0.w", "alpha").replace("blocks.1.w", "beta"))
    assert sorted(f.kind for f in findings(series)) == ["extra", "extra", "missing", "missing"]


def test_values_that_contradict_the_names_propose_nothing():
    series = walk(2)
    swap = {"blocks.0.w": "net.blocks.1.w", "blocks.1.w": "net.blocks.0.w"}
    series[10] = renamed(series[10], lambda name: swap.get(name, f"net.x.{name}"))
    assert not [f for f in findings(series) if f.kind == "renamed" and f.tensor.startswith("blocks")]


def test_equal_checkpoints_are_named_and_can_be_left_out(tmp_path):
    series = walk(5)
    series[0]["ln.weight"][:] = 0
    series[10] = dict(series[0])
    series[20] = {**series[0], "ln.weight": -series[0]["ln.weight"]}
    with pytest.warns(UserWarning, match="identical") as caught:
        plan = ts.ingest(series, tmp_path / "kept.zarr")
    text = "\n".join(str(w.message) for w in caught)
    assert "step 10 equals step 0 bit for bit" in text
    assert "step 20 equals step 0 up to the sign of zeros" in text
    assert "drop_identical=True" in text
    assert plan.steps == [0, 10, 20, 30, 40]
    plan = ts.ingest(series, tmp_path / "left.zarr", drop_identical=True)
    assert plan.steps == [0, 30, 40]
    assert len(plan.left_out) == 2
    run = ts.open_trajectory(tmp_path / "left.zarr")
    assert float(ts.msd(run, ts.time_pairs(run), per="all").min()) > 0
    with pytest.raises(ts.SchemaError, match="equals step 0"):
        ts.ingest(series, tmp_path / "strict.zarr", on_finding="raise")


def test_a_tensor_of_another_step_is_named(tmp_path):
    series = walk(30)
    series[50] = {**series[50], "tok.weight": series[290]["tok.weight"]}
    with pytest.warns(UserWarning, match="repeated") as caught:
        ts.ingest(series, tmp_path / "out.zarr")
    (message,) = [str(w.message) for w in caught]
    assert "step 290 in memory, tensor 'tok.weight': 1 of 4 tensors" in message
    assert "equal those of step 50" in message
    assert "at step 50 they are out of line" in message
    assert "repeated" in ts.open_trajectory(tmp_path / "out.zarr").findings


def test_a_tensor_that_stands_still_between_two_steps(tmp_path):
    series = walk(6)
    series[30] = {**series[30], "tok.weight": series[20]["tok.weight"], "blocks.0.w": series[20]["blocks.0.w"]}
    with pytest.warns(UserWarning, match=r"unchanged: step 30 in memory: 2 of 4 tensors"):
        ts.ingest(series, tmp_path / "out.zarr")


@pytest.mark.parametrize("kind", ["frozen", "frozen at first", "zero at first"])
def test_what_is_frozen_is_no_finding(tmp_path, kind):
    series = walk(6)
    for k, tree in enumerate(series.values()):
        if kind == "frozen" or k < 3:
            tree["tok.weight"] = np.zeros((7, 4), "f4") if kind == "zero at first" else series[0]["tok.weight"]
    assert ts.ingest(series, tmp_path / "out.zarr").findings == []


def test_large_checkpoints_that_differ_in_one_number():
    base = {f"w{k}": np.zeros(5000, "f4") for k in range(30)}
    other = {**base, "w29": base["w29"].copy()}
    other["w29"][4000] = 1
    layers = {name: value.shape for name, value in base.items()}
    given = [in_memory(step, tree) for step, tree in enumerate([base, other, base])]
    assert equal_checkpoints(given, layers) == [(2, 0, "bit for bit")]


def test_digests_of_whole_copies_are_not_reported_twice():
    digests = np.array([[1, 5], [2, 6], [1, 5], [3, 7]], dtype=np.uint64)
    assert repeated_tensors(digests, {"a": (10,), "b": (10,)}) == []
    digests[2, 1] = 8
    assert repeated_tensors(digests, {"a": (10,), "b": (10,)}) == [("repeated", 2, 0, ["a"])]


# ---- time in files of a whole series


def stored(tmp_path, time):
    import xarray as xr

    w = np.arange(len(time))[:, None] * np.ones((len(time), 3), "f4")
    xr.Dataset({"w": (("time", "x"), w)}, coords={"time": time}).to_netcdf(tmp_path / "a.nc", engine="scipy")
    return tmp_path / "a.nc"


def test_epochs_become_a_clock(tmp_path):
    path = stored(tmp_path, [0.5, 0.25, 1.0])
    with pytest.raises(ts.ArgumentError, match=r"steps are whole numbers.*dims=\{'epoch': 'time'\}"):
        ts.ingest(path, tmp_path / "out.zarr", dims={"step": "time"})
    ts.ingest(path, tmp_path / "out.zarr", dims={"epoch": "time"})
    run = ts.open_trajectory(tmp_path / "out.zarr")
    assert run.step.values.tolist() == [0, 1, 2]
    assert run.epoch.values.tolist() == [0.25, 0.5, 1.0]
    assert run.weights.values[0, :, 0].tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    "time",
    [
        np.array(["2024-01-01", "2024-01-02"], "datetime64[ns]"),
        np.array([0, 10], "timedelta64[s]"),
        np.array([0.0, np.nan]),
        np.array([0.0, 1e300]),
    ],
)
def test_times_that_are_no_steps(tmp_path, time):
    with pytest.raises(ts.ArgumentError, match="assign_coords"):
        ts.ingest(stored(tmp_path, time), tmp_path / "out.zarr", dims={"step": "time"})


def test_several_runs_in_one_file_and_old_formats(tmp_path):
    import xarray as xr

    data = xr.Dataset({"w": (("time", "seed"), np.arange(4.0).reshape(2, 2))}, coords={"time": [0, 1]})
    data.to_netcdf(tmp_path / "a.nc", engine="scipy")
    with pytest.raises(ts.ArgumentError, match="'seed' seems to hold several runs"):
        ts.ingest(tmp_path / "a.nc", tmp_path / "out.zarr", dims={"step": "time"})
    data.isel(seed=0).to_zarr(tmp_path / "old.zarr", zarr_format=2, consolidated=False)
    with pytest.raises(ts.UnsupportedError, match="zarr_format=3"):
        ts.ingest(tmp_path / "old.zarr", tmp_path / "out.zarr", dims={"step": "time"})
    with pytest.raises(ts.ArgumentError, match="dims="):
        ts.ingest(tmp_path / "old.zarr", tmp_path / "out.zarr")
    old = xr.open_zarr(tmp_path / "old.zarr", consolidated=False)
    old.drop_encoding().to_zarr(tmp_path / "new.zarr", zarr_format=3, consolidated=False)
    assert ts.ingest(tmp_path / "new.zarr", tmp_path / "out.zarr", dims={"step": "time"}).steps == [0, 1]


def tied(step, *, names=("embed.weight", "lm_head.weight"), prefix=""):
    torch = pytest.importorskip("torch")
    matrix = torch.full((4, 3), float(step)) + torch.arange(12.0).reshape(4, 3)
    return {f"{prefix}layer.weight": torch.full((3, 3), float(step)), **{prefix + name: matrix for name in names}}


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize(
    "names",
    [
        [("embed.weight", "lm_head.weight"), ("embed.weight",)],
        [("embed.weight", "lm_head.weight"), ("lm_head.weight",)],
        [("lm_head.weight",), ("embed.weight", "lm_head.weight")],
        [("embed.weight",), ("embed.weight", "lm_head.weight"), ("embed.weight",)],
        [("lm_head.weight",), ("embed.weight",), ("embed.weight", "lm_head.weight")],
        [("head",), ("embed.weight", "lm_head.weight"), ("head", "embed.weight"), ("lm_head.weight",)],
    ],
)
def test_tied_tensors_under_either_name_and_another_format(tmp_path, names, prefix):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    (tmp_path / "in").mkdir()
    for step, kept in enumerate(names, 1):
        state = tied(step, names=kept, prefix=prefix)
        if len(kept) == 2:
            torch.save(state, tmp_path / "in" / f"step{step}.bin")
        else:
            save_file(state, tmp_path / "in" / f"step{step}.safetensors")
    plan = ts.ingest(tmp_path / "in", tmp_path / "run.zarr")
    assert plan.steps == list(range(1, len(names) + 1))
    run = ts.open_trajectory(tmp_path / "run.zarr")
    assert run.sizes["layer"] == 2
    for step, row in enumerate(run.weights.values[0], 1):
        assert sorted(row) == sorted([*np.arange(12.0) + step, *np.full(9, step)])


def test_names_that_were_never_tied_are_not_taken_for_one_tensor(tmp_path):
    torch = pytest.importorskip("torch")
    (tmp_path / "in").mkdir()
    for step, kept in ((1, ("embed.weight",)), (2, ("lm_head.weight",))):
        torch.save(tied(step, names=kept), tmp_path / "in" / f"step{step}.bin")
    with pytest.raises(ts.SchemaError, match="lm_head"):
        ts.ingest(tmp_path / "in", tmp_path / "run.zarr")


@pytest.mark.parametrize("turned", [False, True])
def test_weights_that_are_tied_in_some_checkpoints_only_are_refused(tmp_path, turned):
    torch = pytest.importorskip("torch")
    apart = tied(2)
    apart["lm_head.weight"] = apart["lm_head.weight"] + 1
    for step, state in enumerate([tied(1), apart][:: -1 if turned else 1]):
        torch.save(state, tmp_path / f"step{step}.bin")
    with pytest.raises(ts.SchemaError, match="lm_head"):
        ts.ingest(tmp_path, tmp_path / "run.zarr")


def test_module_inside_names_is_left_out_only_where_that_decides():
    rng = np.random.default_rng(0)
    names = [["a.module.w", "a.w"], ["a.module.w", "a.module.module.w"]]
    given = {k: {name: rng.standard_normal((3, 2)).astype("f4") for name in pair} for k, pair in enumerate(names)}
    assert {f.kind for f in findings(given)} & {"missing", "extra", "renamed"}


def test_a_name_that_is_alike_with_other_values_is_not_proposed():
    series = walk(2)
    rng = np.random.default_rng(9)
    other = {name: rng.standard_normal(w.shape).astype("f4") for name, w in series[10].items()}
    series[10] = renamed(other, lambda name: name.replace("ln.weight", "ln.weights"))
    assert sorted(f.kind for f in findings(series) if "ln" in f.tensor) == ["extra", "missing"]
