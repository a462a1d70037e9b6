"""Each format, bit for bit: written by its own library, read by trajstats."""

from __future__ import annotations

import json
import sys
import zipfile

import numpy as np
import pytest

import trajstats as ts
from trajstats.data.formats._open import open_checkpoint
from trajstats.data.ingest.into_store import ingest

NAMES = {"layers.0.weight": (7, 5), "layers.0.bias": (7,), "scale": ()}


def tree(dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in NAMES.items()}


def nested(flat):
    return {"layers": {"0": {"weight": flat["layers.0.weight"], "bias": flat["layers.0.bias"]}}, "scale": flat["scale"]}


def check(found, want, rename=lambda name: name):
    assert {rename(name) for name in found.tensors} == set(want)
    for name, tensor in found.tensors.items():
        values = np.asarray(want[rename(name)])
        assert tensor.shape == values.shape
        np.testing.assert_array_equal(tensor.read(0, tensor.size), values.reshape(-1))
        n = tensor.size
        for start, stop in [(0, 1), (n // 3, n // 2 + 1), (n - 1, n)] if n else []:
            np.testing.assert_array_equal(tensor.read(start, stop), values.reshape(-1)[start:stop])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_safetensors(tmp_path, dtype):
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file({**tree(dtype), "steps": np.arange(3)}, tmp_path / "a.safetensors", {"format": "np"})
    found = open_checkpoint(tmp_path / "a.safetensors")
    check(found, tree(dtype))
    assert found.buffers["steps"].dtype == "int64"
    assert found.buffers["steps"].read(0, 3).tolist() == [0, 1, 2]


def test_safetensors_bfloat16_is_exact(tmp_path):
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    source = torch.randn(50).to(torch.bfloat16)
    safetensors.save_file({"w": source}, tmp_path / "a.safetensors")
    check(open_checkpoint(tmp_path / "a.safetensors"), {"w": source.float().numpy()})


def test_sharded_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    want = tree()
    safetensors.save_file({"layers.0.weight": want["layers.0.weight"]}, tmp_path / "model-00001-of-00002.safetensors")
    rest = {name: want[name] for name in ("layers.0.bias", "scale")}
    safetensors.save_file(rest, tmp_path / "model-00002-of-00002.safetensors")
    where = {name: f"model-0000{1 if name == 'layers.0.weight' else 2}-of-00002.safetensors" for name in want}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (tmp_path / "optimizer.pt").write_bytes(b"never opened")
    check(open_checkpoint(tmp_path), want)
    check(open_checkpoint(tmp_path / "model.safetensors.index.json"), want)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ts.StoreNotFoundError):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
def test_torch(tmp_path, zipped, suffix):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2).to(torch.bfloat16))
    state = net.state_dict()
    state["tied"] = state["0.weight"]
    state["turned"] = state["0.weight"].t()
    state["part"] = torch.arange(20.0)[5:17:3]
    state["half"] = torch.randn(5).half()
    state["none"] = torch.zeros(0, 4)
    want = {k: v.float().numpy() for k, v in state.items() if k != "tied" and not k.startswith("1.")}
    want |= {k: v.detach().numpy() for k, v in net.named_parameters() if k.startswith("1.")}
    optimizer = torch.optim.Adam(net.parameters())
    file = tmp_path / f"model{suffix}"
    for saved in (
        state,
        {"epoch": 3, "state_dict": state},
        {"model": state, "optimizer": optimizer.state_dict(), "lr": 0.1},
    ):
        torch.save(saved, file, _use_new_zipfile_serialization=zipped)
        found = open_checkpoint(file)
        check(found, want)
        assert {name: tensor.dtype for name, tensor in found.buffers.items()} == {
            "1.running_mean": "float32",
            "1.running_var": "float32",
            "1.num_batches_tracked": "int64",
        }
        assert any("the same tensor as" in reason for reason in found.passed_over.values())
        assert "float64" not in {t.dtype for t in found.tensors.values()}


def test_torch_is_not_imported_to_read_torch_files(tmp_path):
    import subprocess

    torch = pytest.importorskip("torch")
    torch.save({"w": torch.ones(3)}, tmp_path / "a.pt")
    code = (
        "import sys; from trajstats.data.formats._open import open_checkpoint;"
        f"c = open_checkpoint({str(tmp_path / 'a.pt')!r}); c.tensors['w'].read(0, 3); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_optimizer_state_is_left_out_unless_asked(tmp_path):
    torch = pytest.importorskip("torch")
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
    assert set(open_checkpoint(tmp_path / "a.pt").tensors) == {"weight", "bias"}
    names = set(open_checkpoint(tmp_path / "a.pt", optimizer=True).tensors)
    assert {"model.weight", "optimizer.state.0.exp_avg"} <= names


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    want = {
        **tree("float64"),
        "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        "big": np.arange(4, dtype=">f4"),
    }
    save(tmp_path / "a.npz", **want)
    check(open_checkpoint(tmp_path / "a.npz"), want)


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6.0).reshape(2, 3))])
def test_npy(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    check(open_checkpoint(tmp_path / "a.npy"), {"array": array})


def test_hdf5_and_keras(tmp_path):
    h5py = pytest.importorskip("h5py")
    want = tree()
    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        group = file.create_group("layers/dense/vars")
        group.create_dataset("0", data=want["layers.0.weight"], chunks=(2, 5), compression="gzip", shuffle=True)
        group.create_dataset("1", data=want["layers.0.bias"])
        file["scale"] = want["scale"]
        file["optimizer/vars/0"] = np.int64(3)
        file["optimizer/vars/1"] = np.ones(7, "f4")
    renamed = {"layers.dense.vars.0": "layers.0.weight", "layers.dense.vars.1": "layers.0.bias", "scale": "scale"}
    check(open_checkpoint(tmp_path / "m.weights.h5"), want, renamed.__getitem__)
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "m.keras", "w", kind) as archive:
            archive.writestr("config.json", '{"class_name": "Sequential"}')
            archive.write(tmp_path / "m.weights.h5", "model.weights.h5")
        check(open_checkpoint(tmp_path / "m.keras"), want, renamed.__getitem__)


def test_flax_msgpack(tmp_path):
    msgpack = pytest.importorskip("msgpack")
    want = tree()

    def extension(value):
        content = (value.shape, value.dtype.name, value.tobytes())
        return msgpack.ExtType(1, msgpack.packb(content, use_bin_type=True))

    packed = msgpack.packb({"step": 7, "params": nested(want)}, default=extension, strict_types=True)
    (tmp_path / "a.msgpack").write_bytes(packed)
    found = open_checkpoint(tmp_path / "a.msgpack")
    check(found, want)
    flax = pytest.importorskip("flax.serialization")
    (tmp_path / "b.msgpack").write_bytes(flax.to_bytes({"params": nested(want)}))
    check(open_checkpoint(tmp_path / "b.msgpack"), want)


@pytest.mark.filterwarnings("ignore")
def test_orbax(tmp_path):
    orbax = pytest.importorskip("orbax.checkpoint")
    pytest.importorskip("tensorstore")
    import jax.numpy as jnp

    want = tree()
    state = {**nested(want), "count": 3, "low": jnp.arange(4, dtype=jnp.bfloat16)}
    for ocdbt in (True, False):
        path = tmp_path / f"{ocdbt}"
        orbax.Checkpointer(orbax.PyTreeCheckpointHandler(use_ocdbt=ocdbt)).save(path, state)
        check(open_checkpoint(path), {**want, "low": np.arange(4, dtype=np.float32)})


@pytest.mark.parametrize("kind", ["zarr", "netcdf3", "netcdf4"])
def test_zarr_and_netcdf_series(tmp_path, kind):
    import xarray as xr

    if kind == "netcdf4":
        pytest.importorskip("h5netcdf")

    w = np.random.default_rng(0).standard_normal((4, 3, 2)).astype("f4")
    data = xr.Dataset(
        {"w": (("time", "x", "y"), w), "b": (("time", "x"), w[:, :, 0] + 1)}, coords={"time": [0, 5, 9, 20]}
    )
    path = tmp_path / ("s.zarr" if kind == "zarr" else "s.nc")
    if kind == "zarr":
        data.to_zarr(path, consolidated=False, zarr_format=3)
    else:
        data.to_netcdf(path, engine="scipy" if kind == "netcdf3" else "h5netcdf")
    ingest(path, tmp_path / "out.zarr", dims={"step": "time"})
    run = ts.open_trajectory(tmp_path / "out.zarr")
    assert run.step.values.tolist() == [0, 5, 9, 20]
    np.testing.assert_array_equal(run.weights.values[0], np.concatenate([w[:, :, 0] + 1, w.reshape(4, 6)], axis=1))


def test_a_missing_library_is_named_with_its_pip_line(tmp_path, monkeypatch):
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ts.UnsupportedError, match=r"pip install 'trajstats\[hdf5\]'"):
        open_checkpoint(tmp_path / "a.h5")


def test_unknown_formats_are_named(tmp_path):
    (tmp_path / "a.xyz").write_bytes(b"hello")
    with pytest.raises(ts.UnsupportedError, match=r"\.xyz.*\.safetensors"):
        open_checkpoint(tmp_path / "a.xyz")
    with pytest.raises(ts.StoreNotFoundError):
        open_checkpoint(tmp_path / "no.pt")


@pytest.mark.parametrize("dtype", [">f8", "<f4"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_numbers_without_a_dimension_in_any_byte_order(tmp_path, dtype, save):
    save(tmp_path / "x.npz", scale=np.array(1.5, dtype), w=np.arange(3, dtype=dtype))
    np.save(tmp_path / "y.npy", np.array(2.5, dtype))
    found = open_checkpoint(tmp_path / "x.npz").tensors
    assert found["scale"].read(0, 1).tolist() == [1.5]
    assert found["w"].read(1, 3).tolist() == [1, 2]
    assert open_checkpoint(tmp_path / "y.npy").tensors["array"].read(0, 1).tolist() == [2.5]


def safetensors_file(path, tensors):
    """Write a safetensors file by hand: {name: (type, shape, bytes)}."""
    header, at = {}, 0
    for name, (kind, shape, raw) in tensors.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + len(raw)]}
        at += len(raw)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(raw for _, _, raw in tensors.values()))
    return path


@pytest.mark.parametrize(
    ("kind", "shape", "n_bytes"),
    [
        *((f"F8_{e}", [3, 2], 6) for e in ("E4M3", "E5M2", "E8M0", "E4M3FNUZ", "E5M2FNUZ")),
        *(("F4", [4, 2], 4), ("F4", [3], 2), ("F6_E2M3", [4], 3), ("F6_E3M2", [4], 3), ("C64", [2], 16)),
        ("F2_NEW", [5], 7),
    ],
)
def test_small_floats_of_safetensors_are_left_out_by_name(tmp_path, kind, shape, n_bytes):
    w = np.arange(4, dtype="<f4")
    file = safetensors_file(
        tmp_path / "x.safetensors", {"q": (kind, shape, bytes(n_bytes)), "w": ("F32", [4], w.tobytes())}
    )
    found = open_checkpoint(file)
    np.testing.assert_array_equal(found.tensors["w"].read(0, 4), w)
    assert found.passed_over["q"].startswith(f"type {kind}")
    if kind != "F2_NEW":
        file = safetensors_file(tmp_path / "x.safetensors", {"q": (kind, shape, bytes(n_bytes + 1))})
        with pytest.raises(ts.UnsafeInputError, match=f"of {kind} does not fit"):
            open_checkpoint(file)


def test_a_model_of_8_bits_is_refused_with_what_to_do(tmp_path):
    safetensors_file(tmp_path / "step1.safetensors", {"w": ("F8_E4M3", [2, 2], bytes(4))})
    with pytest.raises(ts.UnsupportedError, match="save the weights as bfloat16"):
        ingest(tmp_path / "step1.safetensors", tmp_path / "run.zarr")


def test_items_of_orbax_whatever_they_are_called(tmp_path):
    orbax = pytest.importorskip("orbax.checkpoint")
    save, note = orbax.args.StandardSave, orbax.args.JsonSave({"a": 1})
    state = {"params": {"w": np.arange(6.0).reshape(2, 3)}, "opt_state": {"m": np.ones(3)}}
    items = {
        "one": {"state": save(state), "metadata": note},
        "two": {"params": save({"w": np.arange(6.0).reshape(2, 3)}), "opt_state": save({"m": np.ones(3)})},
        "none": {"metadata": note},
        "rivals": {"model": save({"w": np.ones(2)}), "ema": save({"w": np.ones(2)})},
    }
    for name, given in items.items():
        with orbax.CheckpointManager(tmp_path / name) as manager:
            for step in (0, 100):
                manager.save(step, args=orbax.args.Composite(**given))
    for name in ("one", "two"):
        plan = ingest(tmp_path / name, tmp_path / f"{name}.zarr", dry_run=True)
        assert (plan.steps, plan.layers) == ([0, 100], {"w": (2, 3)})
        assert any("optimizer state" in why for why in plan.passed_over.values())
        found = open_checkpoint(tmp_path / name / "100")
        np.testing.assert_array_equal(found.tensors["w"].read(0, 6), np.arange(6.0))
    assert open_checkpoint(tmp_path / "one" / "0").passed_over["metadata"] == "an orbax item without arrays"
    with pytest.raises(ts.StoreError, match="no item of this orbax checkpoint.*its items are metadata"):
        open_checkpoint(tmp_path / "none" / "0")
    with pytest.raises(ts.ArgumentError, match="several sets of weights.*part='model'.*part='ema'"):
        open_checkpoint(tmp_path / "rivals" / "0")


def test_statistics_of_flax_nnx_are_buffers(tmp_path):
    orbax = pytest.importorskip("orbax.checkpoint")
    one = lambda: {"value": np.ones(3)}  # noqa: E731
    tree = {"bn": {name: one() for name in ("mean", "var", "scale", "bias")}, "head": {"mean": one(), "kernel": one()}}
    with orbax.StandardCheckpointer() as writer:
        writer.save(tmp_path / "step_1", tree)
    found = open_checkpoint(tmp_path / "step_1")
    assert found.buffers.keys() == {"bn.mean.value", "bn.var.value"}
    assert found.tensors.keys() == {"bn.scale.value", "bn.bias.value", "head.mean.value", "head.kernel.value"}
