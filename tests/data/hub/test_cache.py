"""Hub caches: revisions are called by their refs, links lead to own blobs only, and no step comes from a hash."""

from __future__ import annotations

import hashlib
import json
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

import trajstats as ts
from trajstats.data.ingest.into_store import ingest

STEPS = (0, 512, 1000, 143000)


def state(step):
    rng = np.random.default_rng(step)
    return {f"layers.{k}.weight": rng.standard_normal((4, 3)).astype("f2") for k in range(2)}


def add(cache, ref, tree, *, shards=False, extra=()):
    """Put a revision into a cache as a download does."""
    commit = hashlib.sha1(f"{ref} {sorted(tree)}".encode()).hexdigest()
    snapshot = cache / "snapshots" / commit
    files = {"config.json": b"{}", **dict(extra)}
    for folder in (cache / "blobs", cache / "refs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    names = {"model.safetensors": list(tree)}
    if shards:
        names = {f"model-0000{k + 1}-of-00002.safetensors": [name] for k, name in enumerate(tree)}
        index = {"weight_map": {name: file for file, inside in names.items() for name in inside}}
        files["model.safetensors.index.json"] = json.dumps(index).encode()
    for file, inside in names.items():
        save_file({name: tree[name] for name in inside}, cache / "one")
        files[file] = (cache / "one").read_bytes()
    (cache / "one").unlink()
    for file, raw in files.items():
        blob = cache / "blobs" / hashlib.sha256(raw).hexdigest()
        blob.write_bytes(raw)
        (snapshot / file).symlink_to(f"../../blobs/{blob.name}")
    if ref is not None:
        (cache / "refs" / ref).parent.mkdir(exist_ok=True, parents=True)
        (cache / "refs" / ref).write_text(commit)
    return snapshot


@pytest.fixture(params=[False, True], ids=["whole", "sharded"])
def cache(tmp_path, request):
    folder = tmp_path / "hub" / "models--org--name-7b"
    for step in STEPS:
        add(folder, f"step{step}", state(step), shards=request.param)
    (folder / "refs" / "main").write_text((folder / "refs" / f"step{STEPS[-1]}").read_text())
    (tmp_path / "hub" / ".locks").mkdir()
    (tmp_path / "hub" / "version.txt").write_text("1")
    return folder


def snapshots(cache):
    return [cache / "snapshots" / (cache / "refs" / f"step{step}").read_text() for step in STEPS]


WAYS = {
    "cache": lambda cache: cache,
    "snapshots": lambda cache: cache / "snapshots",
    "hub": lambda cache: cache.parent,
    "list": lambda cache: snapshots(cache),
    "glob": lambda cache: str(cache / "snapshots" / "*"),
    "mapping": lambda cache: dict(zip(STEPS, snapshots(cache), strict=True)),
}


@pytest.mark.parametrize("way", WAYS)
def test_steps_are_those_of_the_refs(cache, tmp_path, way):
    plan = ingest(WAYS[way](cache), tmp_path / "run.zarr")
    assert plan.steps == list(STEPS)
    run = ts.open_trajectory(tmp_path / "run.zarr")
    wanted = [np.concatenate([tensor.ravel() for tensor in state(step).values()]) for step in STEPS]
    np.testing.assert_array_equal(run.weights.values[0], wanted)
    if way in ("cache", "snapshots", "hub"):
        assert plan.left_out == {
            "refs/main": "a name without a step, beside the series; its revision is that of 'step143000'"
        }


def test_files_of_snapshots_and_an_expression_for_the_step(cache, tmp_path):
    plan = ingest(cache, tmp_path / "run.zarr", step_from=r"step(\d+)", dry_run=True)
    assert plan.steps == list(STEPS)
    if (snapshots(cache)[0] / "model.safetensors").exists():
        files = [snapshot / "model.safetensors" for snapshot in snapshots(cache)]
        assert ingest(files, tmp_path / "run.zarr", dry_run=True).steps == list(STEPS)


def test_links_of_the_user_to_snapshots(cache, tmp_path):
    (tmp_path / "series").mkdir()
    for step, snapshot in zip(STEPS, snapshots(cache), strict=True):
        (tmp_path / "series" / f"step{step}").symlink_to(snapshot)
    assert ingest(str(tmp_path / "series" / "*"), tmp_path / "run.zarr", dry_run=True).steps == list(STEPS)
    with pytest.raises(ts.UnsafeInputError, match=r"leads out of .*give the links themselves"):
        ingest(tmp_path / "series", tmp_path / "run.zarr")


def test_a_revision_without_a_name_is_named_and_has_no_step(tmp_path):
    cache = tmp_path / "models--org--name"
    for step in (1, 2):
        add(cache, f"step{step}", state(step))
    lost = add(cache, None, state(7))
    plan = ingest(cache, tmp_path / "run.zarr", dry_run=True)
    assert plan.steps == [1, 2]
    assert "no ref names this revision" in plan.left_out[f"snapshots/{lost.name}"]
    with pytest.raises(ts.ArgumentError, match="no step in the name 'revision'"):
        ingest(lost, tmp_path / "run.zarr")
    with pytest.raises(ts.ArgumentError, match="no step in the name 'revision'"):
        ingest(
            [lost, *(cache / "snapshots" / (cache / "refs" / f"step{s}").read_text() for s in (1, 2))], tmp_path / "r"
        )
    assert ingest({7: lost}, tmp_path / "run.zarr", dry_run=True).steps == [7]


def test_two_refs_of_one_revision(tmp_path):
    cache = tmp_path / "models--org--name"
    for step in (1, 2):
        add(cache, f"step{step}", state(step))
    (cache / "refs" / "step3").write_text((cache / "refs" / "step2").read_text())
    with pytest.warns(UserWarning, match="step 3 equals step 2 bit for bit"):
        assert ingest(cache, tmp_path / "run.zarr").steps == [1, 2, 3]


def test_refs_that_are_missing_nested_or_not_of_a_series(tmp_path):
    cache = tmp_path / "models--org--name"
    add(cache, "steps/step1", state(1))
    add(cache, "steps/step2", state(2))
    add(cache, "pr/9", state(9))
    (cache / "refs" / "step3").write_text("0" * 40)
    plan = ingest(cache, tmp_path / "run.zarr", dry_run=True)
    assert plan.steps == [1, 2]
    assert plan.left_out["refs/pr/9"].startswith("a pull request")
    assert "not in the cache" in plan.left_out["refs/step3"]


def test_a_series_of_folders_in_one_revision(tmp_path):
    cache = tmp_path / "models--org--name"
    snapshot = add(cache, "main", state(0))
    (snapshot / "model.safetensors").unlink()
    for step in (100, 200):
        (snapshot / f"checkpoint-{step}").mkdir()
        save_file(state(step), cache / "blobs" / f"{step:064d}")
        (snapshot / f"checkpoint-{step}" / "model.safetensors").symlink_to(f"../../../blobs/{step:064d}")
    assert ingest(cache, tmp_path / "run.zarr").steps == [100, 200]
    assert ingest(snapshot, tmp_path / "run.zarr", dry_run=True).steps == [100, 200]


def outside(cache, snapshot, tmp_path):
    save_file(state(5), tmp_path / "elsewhere")
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(tmp_path / "elsewhere")


def chain(cache, snapshot, tmp_path):
    (tmp_path / "shared").mkdir()
    blob = (snapshot / "model.safetensors").resolve()
    blob.rename(tmp_path / "shared" / blob.name)
    blob.symlink_to(tmp_path / "shared" / blob.name)


def folder_of_blobs(cache, snapshot, tmp_path):
    (cache / "blobs").rename(tmp_path / "shared")
    (cache / "blobs").symlink_to(tmp_path / "shared")


def dangling(cache, snapshot, tmp_path):
    (snapshot / "model.safetensors").resolve().unlink()


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (outside, r"not a blob of its cache.*cp -rL.*local_dir"),
        (chain, r"not a blob of its cache.*cp -rL.*local_dir"),
        (folder_of_blobs, r"not a blob of its cache.*cp -rL.*local_dir"),
        (dangling, r"missing: the download was not finished"),
    ],
)
def test_links_that_lead_elsewhere(tmp_path, spoil, match):
    cache = tmp_path / "models--org--name"
    snapshot = add(cache, "step1", state(1))
    add(cache, "step2", state(2))
    spoil(cache, snapshot, tmp_path)
    for paths in (cache, str(cache / "snapshots" / "*"), snapshot):
        with pytest.raises(ts.TrajstatsError, match=match):
            ingest(paths, tmp_path / "run.zarr")
    assert not (tmp_path / "run.zarr").exists()


def test_a_shard_that_is_a_link_out_of_the_cache(tmp_path):
    cache = tmp_path / "models--org--name"
    snapshot = add(cache, "step1", state(1), shards=True)
    shard = snapshot / "model-00001-of-00002.safetensors"
    outside = tmp_path / "elsewhere"
    shard.resolve().rename(outside)
    shard.unlink()
    os.symlink(outside, shard)
    with pytest.raises(ts.UnsafeInputError, match="not a blob of its cache"):
        ingest(snapshot / "model.safetensors.index.json", tmp_path / "run.zarr", step_from=lambda path: 1)


def test_several_models_and_damaged_refs(tmp_path):
    for name in ("a", "b"):
        add(tmp_path / f"models--org--{name}", "step1", state(1))
    with pytest.raises(ts.ArgumentError, match=r"2 caches of a hub.*models--org--a, models--org--b.*give one"):
        ingest(tmp_path, tmp_path / "run.zarr")
    (tmp_path / "models--org--a" / "refs" / "step1").write_text("../../../etc")
    with pytest.raises(ts.StoreError, match="not the hash of a commit"):
        ingest(tmp_path / "models--org--a", tmp_path / "run.zarr")
    (tmp_path / "models--org--b" / "refs" / "step1").unlink()
    with pytest.raises(ts.StoreNotFoundError, match=r"no revision with a name.*\{step: folder\}"):
        ingest(tmp_path / "models--org--b", tmp_path / "run.zarr")


def test_a_download_into_a_folder_of_its_own(tmp_path):
    for step in (1, 2):
        folder = tmp_path / "in" / f"step{step}"
        (folder / ".cache" / "huggingface" / "download").mkdir(parents=True)
        (folder / ".cache" / "huggingface" / "download" / "model.safetensors.metadata").write_text("etag")
        save_file(state(step), folder / "model.safetensors")
    assert ingest(tmp_path / "in", tmp_path / "run.zarr").steps == [1, 2]
