"""Buffers: told from parameters, kept in their own types to the bit, never a part of what is trained."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import trajstats as ts
from trajstats.data._buffer_tensors import BUFFER_TYPES, BufferTensor, check_buffers, pack_buffer, unpack_buffer
from trajstats.data._buffers import buffers_at, is_buffer, tensors_of
from trajstats.data.schema import check_trajectory


@pytest.mark.parametrize(
    ("name", "dtype", "shape"),
    [
        ("bn1.running_mean", "float32", (64,)),
        ("layers/0/running_var", "float16", (3,)),
        ("bn1.num_batches_tracked", "int64", ()),
        ("batch_normalization/moving_variance", "float32", (8,)),
        ("['batch_stats']['bn']['mean']", "float32", (8,)),
        ("h.3.attn.bias", "float32", (1, 1, 64, 64)),
        ("gpt_neox.layers.0.attention.masked_bias", "float32", ()),
        ("gpt_neox.layers.0.attention.rotary_emb.inv_freq", "float32", (16,)),
        ("embeddings.position_ids", "int64", (1, 512)),
        ("mask", "bool", (4, 4)),
        ("conv.weight_u", "float32", (8,)),
        ("module.n_averaged", "torch.int64", ()),
        ("anything", np.dtype("uint8"), (2,)),
    ],
)
def test_buffers_are_recognised(name, dtype, shape):
    assert is_buffer(name, dtype, shape)


@pytest.mark.parametrize(
    ("name", "dtype", "shape"),
    [
        ("bn1.weight", "float32", (64,)),
        ("bn1.bias", "float32", (64,)),
        ("h.3.attn.c_attn.bias", "float32", (2304,)),
        ("attn.bias", "float32", (768,)),
        ("mean", "float32", (4,)),
        ("params/bn/scale", "float32", (8,)),
        ("running", "float32", (8,)),
        ("cell.weight_u", "float32", (8, 8)),
        ("conv.bias", "float32", (1, 1, 4, 4)),
        ("", "float32", (1,)),
    ],
)
def test_parameters_are_left_alone(name, dtype, shape):
    assert not is_buffer(name, dtype, shape)


def extremes(kind: str) -> np.ndarray:
    if kind == "bool":
        return np.array([[True, False], [False, False]])
    if kind == "bfloat16":
        return np.array([[-0.0, np.inf], [np.nan, 1.0078125]], dtype="float32")
    if "float" in kind:
        info = np.finfo(kind)
        return np.array([[-0.0, np.inf, np.nan], [info.max, info.smallest_subnormal, -np.inf]], dtype=kind)
    info = np.iinfo(kind)
    largest = min(int(info.max), 2**53)
    return np.array([[0, largest], [max(int(info.min), -(2**53)), 1]], dtype=kind)


@pytest.mark.parametrize("kind", BUFFER_TYPES)
def test_every_type_is_packed_and_unpacked_to_the_bit(kind):
    values = extremes(kind)
    tensor = BufferTensor("b", values.shape, kind)
    raw = pack_buffer(tensor, values)
    assert raw.dtype == np.uint8
    assert raw.size == tensor.nbytes == values.size * (2 if kind == "bfloat16" else values.itemsize)
    back = unpack_buffer(tensor, raw.tobytes()).reshape(values.shape)
    assert back.dtype == values.dtype
    np.testing.assert_array_equal(back, values)
    if kind.startswith(("float", "bfloat")):
        np.testing.assert_array_equal(np.signbit(back), np.signbit(values))


def test_torch_types_are_taken_as_they_are():
    torch = pytest.importorskip("torch")
    for value in (torch.tensor([1.5, -3.25], dtype=torch.bfloat16), torch.tensor(7), torch.tensor([True, False])):
        (tensor,) = check_buffers({"b": value})
        assert tensor.dtype == str(value.dtype).rpartition(".")[2]
        back = unpack_buffer(tensor, pack_buffer(tensor, value).tobytes())
        np.testing.assert_array_equal(back, value.double().numpy().reshape(-1))
    (tensor,) = check_buffers({"b": ((2,), torch.float16)})
    assert tensor == BufferTensor("b", (2,), "float16")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.array([2**53 + 1]), r"'b' holds 9007199254740993"),
        (np.array([1 + 2j]), "'b': unknown type 'complex128'"),
        (np.array(["x"]), "'b': unknown type"),
        (np.array([object()]), "'b': unknown type 'object'"),
        (np.array(["2020-01-01"], dtype="datetime64[s]"), r"'b': unknown type"),
    ],
)
def test_what_cannot_be_kept_exactly_is_refused_by_name(value, reason):
    with pytest.raises(ts.ArgumentError, match=reason):
        ts.trajectory_dataset(np.zeros((1, 2)), step=[0], buffers={"b": value})


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("float16", np.array([0.1])),
        ("bfloat16", np.array([1.001], "float32")),
        ("int8", np.array([300])),
        ("uint8", np.array([-1])),
        ("bool", np.array([2])),
        ("int64", np.array([np.nan])),
        ("float32", np.array([1e300])),
    ],
)
def test_a_value_that_its_type_cannot_hold_is_refused(kind, value):
    with pytest.raises(ts.ArgumentError, match="'b' holds"):
        pack_buffer(BufferTensor("b", (1,), kind), value)


def test_a_value_of_another_type_is_taken_where_it_fits():
    assert unpack_buffer(BufferTensor("n", (), "int64"), pack_buffer(BufferTensor("n", (), "int64"), 12)).tolist() == [
        12
    ]
    tensor = BufferTensor("m", (3,), "bool")
    assert unpack_buffer(tensor, pack_buffer(tensor, [0, 1.0, 0])).tolist() == [False, True, False]


def test_mixed_types_come_back_from_a_dataset():
    rng = np.random.default_rng(0)
    state = {
        "running_mean": rng.standard_normal((2, 3, 4)).astype("float16"),
        "num_batches_tracked": np.array([[0, 1, 2**53], [3, 4, 5]]),
        "mask": rng.random((2, 3, 2, 2)) < 0.5,
        "scale": rng.standard_normal((2, 3, 1)),
    }
    run = ts.trajectory_dataset(np.zeros((2, 3, 5), "float32"), step=[0, 1, 5], buffers=state)
    assert run.buffers.dims == ("replica", "step", "buffer")
    assert run.buffer_name.values.tolist() == ["running_mean"] * 4 + ["num_batches_tracked"] + ["mask"] * 4 + ["scale"]
    for run_now in (run, run.sel(step=[1, 5]), run.isel(replica=[1]), check_trajectory(run)):
        for i, replica in enumerate(run_now.replica.values):
            for j, step in enumerate(run_now.step.values):
                found = buffers_at(run_now, i, j)
                assert list(found) == list(state)
                for name, values in found.items():
                    expected = state[name][replica, [0, 1, 5].index(step)]
                    assert values.dtype == expected.dtype
                    assert values.shape == expected.shape
                    np.testing.assert_array_equal(values, expected)


def test_steps_alone_are_shared_by_replicas_and_ambiguous_shapes_follow_the_weights():
    both = ts.trajectory_dataset(np.zeros((2, 3, 5)), step=[0, 1, 2], buffers={"n": np.arange(3)})
    assert int(buffers_at(both, 1, 2)["n"]) == 2
    single = ts.trajectory_dataset(np.zeros((1, 5)), step=[0], buffers={"n": np.ones((1, 1))})
    assert buffers_at(single, 0, 0)["n"].shape == (1,)
    full = ts.trajectory_dataset(np.zeros((1, 1, 5)), step=[0], buffers={"n": np.ones((1, 1))})
    assert buffers_at(full, 0, 0)["n"].shape == ()
    with pytest.raises(ts.SchemaError, match=r"'n' has shape \(4,\)"):
        ts.trajectory_dataset(np.zeros((3, 5)), step=[0, 1, 2], buffers={"n": np.arange(4)})


def test_without_buffers_there_is_nothing(small_run):
    assert "buffers" not in small_run
    assert buffers_at(small_run, 0, 0) == {}


def test_a_buffer_with_the_name_of_a_layer_is_refused():
    with pytest.raises(ts.ArgumentError, match="'w' is a layer and a buffer"):
        ts.trajectory_dataset(np.zeros((1, 2)), step=[0], layers={"w": (2,)}, buffers={"w": np.zeros((1, 3))})


def buffered() -> xr.Dataset:
    return ts.trajectory_dataset(np.zeros((2, 4)), step=[0, 1], buffers={"a": np.arange(2), "b": np.ones((2, 3))})


def test_the_schema_checks_buffers():
    run = buffered()
    assert tensors_of(run)[1] == BufferTensor("b", (3,), "float64")
    with pytest.raises(ts.SchemaError, match="Do not select along 'buffer'"):
        check_trajectory(run.isel(buffer=slice(2)))
    with pytest.raises(ts.SchemaError, match="buffers have dims"):
        check_trajectory(run.assign(buffers=run.buffers.transpose("step", "replica", "buffer")))
    for text in (None, "{}", "[1]", '[{"name": "a", "shape": [-1], "dtype": "int64"}]', "[" * 5000):
        broken = run.copy()
        broken["buffers"] = run.buffers.assign_attrs(tensors=text)
        with pytest.raises(ts.SchemaError, match="attribute 'tensors'"):
            check_trajectory(broken)
    unnamed = check_trajectory(run.drop_vars("buffer_name"))
    assert unnamed.buffer_name.values.tolist() == ["a", "b", "b", "b"]


def test_a_row_without_buffers_is_not_turned_into_integers():
    run = buffered()
    filled = run.reindex(step=[0, 1, 2])
    with pytest.raises(ts.SchemaError, match="holds no buffers"):
        buffers_at(filled, 0, 2)


def test_displacements_do_not_see_buffers():
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((5, 6)).astype("float32")
    layers = {"w": (2, 2), "b": (2,)}
    plain = ts.trajectory_dataset(weights, step=range(5), layers=layers)
    state = {"running_var": rng.standard_normal((5, 50)) * 100}
    with_state = ts.trajectory_dataset(weights, step=range(5), layers=layers, buffers=state)
    pairs = ts.time_pairs(plain, lag=[1, 2])
    xr.testing.assert_equal(ts.msd(plain, pairs), ts.msd(with_state, pairs))
    assert with_state.layer.values.tolist() == ["w", "b"]
