"""A series of checkpoints becomes a trajectory: the right steps, every number, and everything odd is named."""

from __future__ import annotations

import re

import numpy as np
import pytest

import trajstats as ts
from trajstats.data._naming import natural_key
from trajstats.data.ingest.into_store import ingest
from trajstats.data.store.verification import verify

SHAPES = {"b.weight": (30, 20), "a": (7,), "b.bias": (30,), "s": ()}


def weights(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype("f4") for name, shape in SHAPES.items()}


def flat(tree):
    return np.concatenate([np.ravel(tree[name]) for name in sorted(tree, key=natural_key)])


def series(folder, steps, change=lambda step, tree: tree, pattern="step{}.npz"):
    folder.mkdir(exist_ok=True)
    for step in steps:
        file = folder / pattern.format(step)
        file.parent.mkdir(exist_ok=True)
        np.savez(file, **change(step, weights(step)))
    return folder


def test_a_folder_in_natural_order(tmp_path):
    ingest(series(tmp_path / "in", [1, 2, 10, 100]), tmp_path / "out.zarr", attrs={"task": {"name": "x"}}, replica=2)
    run = ts.open_trajectory(tmp_path / "out.zarr")
    assert run.step.values.tolist() == [1, 2, 10, 100]
    assert run.replica.values.tolist() == [2]
    assert run.layer.values.tolist() == ["a", "b.bias", "b.weight", "s"]
    np.testing.assert_array_equal(run.weights.values[0], np.stack([flat(weights(s)) for s in (1, 2, 10, 100)]))
    assert verify(tmp_path / "out.zarr").ok
    assert run.task == '{"name": "x"}'


@pytest.mark.parametrize("given_as", ["glob", "list", "memory"])
def test_ways_to_give_a_series(tmp_path, given_as):
    folder = series(tmp_path / "in", [3, 20])
    paths = {
        "glob": str(folder / "*.npz"),
        "list": [folder / "step3.npz", folder / "step20.npz"],
        "memory": ((s, weights(s)) for s in (3, 20)),
    }[given_as]
    ingest(paths, tmp_path / "out.zarr")
    run = ts.open_trajectory(tmp_path / "out.zarr")
    assert run.step.values.tolist() == [3, 20]
    np.testing.assert_array_equal(run.weights.values[0], np.stack([flat(weights(s)) for s in (3, 20)]))


def test_key_order_does_not_matter(tmp_path):
    turned = lambda step, tree: dict(reversed(tree.items())) if step % 2 else tree  # noqa: E731
    ingest(series(tmp_path / "a", [1, 2, 3]), tmp_path / "a.zarr")
    ingest(series(tmp_path / "b", [1, 2, 3], turned), tmp_path / "b.zarr")
    a, b = (ts.open_trajectory(tmp_path / f"{x}.zarr") for x in "ab")
    np.testing.assert_array_equal(a.weights.values, b.weights.values)
    assert a.layer.values.tolist() == b.layer.values.tolist()


def test_step_from(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for x, y in [(1, 10), (2, 20)]:
        np.savez(folder / f"x{x}y{y}.npz", **weights(x))
    for step_from in (
        r"x(\d+)",
        lambda path: re.search(r"x(\d)", path)[1],
        {str(folder / f"x{x}y{x}0.npz"): x for x in (1, 2)},
    ):
        assert ingest(folder, tmp_path / "out.zarr", step_from=step_from, dry_run=True).steps == [1, 2]
    with pytest.raises(ts.ArgumentError, match="finds no whole number"):
        ingest(folder, tmp_path / "out.zarr", step_from=r"z(\d+)")
    with pytest.raises(ts.ArgumentError, match="one, around the number"):
        ingest(folder, tmp_path / "out.zarr", step_from=r"x\d+")


def test_dry_run_reads_no_weights_and_writes_nothing(tmp_path):
    folder = series(tmp_path / "in", [1, 2])
    text = str(ingest(folder, tmp_path / "out.zarr", dry_run=True))
    for part in ("2 checkpoints", "step1.npz", "steps 1 to 2", "'b.weight' (30, 20)", "638 weights", "float32"):
        assert part in text
    assert not (tmp_path / "out.zarr").exists()


def drop(name):
    return lambda step, tree: {k: v for k, v in tree.items() if k != name or step != 3}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (drop("a"), r"missing: .*step3.npz, tensor 'a'"),
        (lambda s, t: t | ({"new": np.ones(2, "f4")} if s == 3 else {}), r"extra: .*step3.npz, tensor 'new'"),
        (
            lambda s, t: t | ({"a": np.ones(8, "f4")} if s == 3 else {}),
            r"reshaped: .*step3.npz, tensor 'a': has shape \(8,\)",
        ),
    ],
)
def test_tensors_that_change_are_named(tmp_path, change, match):
    folder = series(tmp_path / "in", [1, 2, 3, 4], change)
    with pytest.raises(ts.SchemaError, match=match):
        ingest(folder, tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()
    plan = ingest(folder, tmp_path / "out.zarr", dry_run=True)
    assert len(plan.findings) == 1


def test_include_and_rename_mend_a_series(tmp_path):
    def change(step, tree):
        return {(f"model/{k}" if step > 2 else k): v for k, v in tree.items()} | (
            {"extra": np.ones(3)} if step == 4 else {}
        )

    folder = series(tmp_path / "in", [1, 2, 3, 4], change)
    ingest(folder, tmp_path / "out.zarr", rename=lambda n: n.removeprefix("model/"), include=r"^(a|b\.|s$)")
    run = ts.open_trajectory(tmp_path / "out.zarr")
    np.testing.assert_array_equal(run.weights.values[0], np.stack([flat(weights(s)) for s in (1, 2, 3, 4)]))
    ingest(folder, tmp_path / "b.zarr", rename=lambda n: n.removeprefix("model/"), include=["a"])
    assert ts.open_trajectory(tmp_path / "b.zarr").layer.values.tolist() == ["a"]


def test_duplicate_and_unordered_steps(tmp_path):
    folder = series(tmp_path / "in", [1, 2])
    np.savez(folder / "again_step2.npz", **weights(9))
    with pytest.raises(ts.SchemaError, match=r"duplicate step: .*step 2 belongs to"):
        ingest(folder, tmp_path / "out.zarr")
    plan = ingest([folder / "step2.npz", folder / "step1.npz"], tmp_path / "out.zarr", dry_run=True)
    assert plan.steps == [1, 2]
    assert [f.kind for f in plan.findings] == ["out of order"]


def test_type_changes_are_named_and_kept_exactly(tmp_path):
    folder = series(tmp_path / "in", [1, 2, 3], lambda s, t: t | {"a": t["a"].astype("f8" if s == 2 else "f4")})
    with pytest.warns(UserWarning, match=r"dtype: .*step[23].npz, tensor 'a'"):
        plan = ingest(folder, tmp_path / "out.zarr")
    assert [f.kind for f in plan.findings] == ["dtype", "dtype"]
    run = ts.open_trajectory(tmp_path / "out.zarr")
    assert run.weights.dtype == "float64"
    np.testing.assert_array_equal(run.weights.values[0], np.stack([flat(weights(s)) for s in (1, 2, 3)]))


def test_nan_and_identical_checkpoints_are_named(tmp_path):
    def change(step, tree):
        if step == 30:
            return weights(20)
        if step == 40:
            tree["b.weight"][3, 4] = np.nan
            tree["b.weight"][3, 5] = np.inf
        return tree

    folder = series(tmp_path / "in", [10, 20, 30, 40], change)
    with pytest.warns(UserWarning, match="identical|not finite") as caught:
        plan = ingest(folder, tmp_path / "out.zarr")
    text = "\n".join(str(w.message) for w in caught)
    assert re.search(r"identical: .*step30.npz: step 30 equals step 20 bit for bit", text)
    assert re.search(r"not finite: .*step40.npz, tensor 'b.weight': 2 weights", text)
    assert len(plan.findings) == 2
    assert "identical" in ts.open_trajectory(tmp_path / "out.zarr").findings
    with pytest.raises((ts.NonFiniteError, ts.SchemaError), match="step"):
        ingest(folder, tmp_path / "strict.zarr", on_finding="raise")


def test_source_is_untouched_and_other_stores_are_safe(tmp_path):
    folder = series(tmp_path / "in", [1, 2])
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()}
    ingest(folder, tmp_path / "out.zarr")
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()} == before
    again = ingest(folder, tmp_path / "out.zarr")  # nothing to do
    assert again.steps == [1, 2]
    other = series(tmp_path / "other", [1, 5], lambda step, tree: weights(step + 1))
    with pytest.raises(ts.StoreError, match="not made from these"):
        ingest(other, tmp_path / "out.zarr")


def test_interrupted_ingest_goes_on(tmp_path, monkeypatch):
    from trajstats.data.store._tiles import Tiles

    monkeypatch.setattr("trajstats.data.store._layout.TILE_ROWS", 4)
    monkeypatch.setattr("trajstats.data.store._layout.TILE_BYTES", 4 * 4 * 100)
    steps = list(range(1, 11))
    folder = series(tmp_path / "in", steps, lambda s, t: weights(2) if s == 9 else t)
    write, calls = Tiles.write, []

    def third_fails(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(self, *args, **kwargs)

    monkeypatch.setattr(Tiles, "write", third_fails)
    with pytest.raises(KeyboardInterrupt):
        ingest(folder, tmp_path / "out.zarr")
    assert ts.open_trajectory(tmp_path / "out.zarr").sizes["step"] == 8
    with pytest.warns(UserWarning, match="step 9 equals step 2 bit for bit"):
        ingest(folder, tmp_path / "out.zarr")
    assert len(calls) == 4
    run = ts.open_trajectory(tmp_path / "out.zarr")
    np.testing.assert_array_equal(run.weights.values[0], np.stack([flat(weights(2 if s == 9 else s)) for s in steps]))


def test_bfloat16_series_keeps_its_rounding_floor(tmp_path):
    torch = pytest.importorskip("torch")
    for step in (1, 2):
        torch.save({"w": torch.full((64,), 1.0 + step).to(torch.bfloat16)}, tmp_path / f"step{step}.pt")
    ingest(str(tmp_path / "*.pt"), tmp_path / "out.zarr")
    run = ts.open_trajectory(tmp_path / "out.zarr")
    assert run.source_dtype == "bfloat16"
    np.testing.assert_allclose(run.rounding_floor.values[0].sum(), 2 * 2**-12 / 12)


@pytest.mark.slow
def test_memory_stays_in_the_budget(tmp_path):
    import subprocess
    import sys

    n = 12_000_000
    for step in range(1, 9):
        np.save(tmp_path / f"step{step}.npy", np.random.default_rng(step).standard_normal(n, dtype="f4"))
    code = f"""
import resource
import numpy as np
import trajstats as ts
from trajstats.data.ingest import ingest
ingest([(0, {{"w": np.ones(10)}})], {str(tmp_path / "warm.zarr")!r})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ingest({str(tmp_path / "*.npy")!r}, {str(tmp_path / "out.zarr")!r}, memory=2**26)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert float(done.stdout) < 320  # the whole series is 384 MB; blocks, codecs and their copies


@pytest.mark.parametrize("bad", [{"memory": 5}, {"workers": 0}, {"on_finding": "ignore"}])
def test_arguments(tmp_path, bad):
    with pytest.raises(ts.ArgumentError):
        ingest([(0, {"w": np.ones(3)})], tmp_path / "out.zarr", **bad)


def test_nothing_to_read(tmp_path):
    (tmp_path / "in").mkdir()
    for paths in (tmp_path / "in", str(tmp_path / "*.pt"), [], tmp_path / "no"):
        with pytest.raises(ts.TrajstatsError):
            ingest(paths, tmp_path / "out.zarr")
