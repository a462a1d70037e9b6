"""Two-time statistics: a longdouble double loop, known answers, and what must not change them."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import trajstats as ts
from trajstats.data.schema import trajectory_dataset
from trajstats.data.synthetic.jumps import displacement_noise
from trajstats.data.synthetic.processes import brownian, exact_msd, ornstein_uhlenbeck, time_changed_ou
from trajstats.errors import ArgumentError, NonFiniteError
from trajstats.estimators.two_time._sums import UNIT

LAYERS = {"0.weight": (100, 50), "0.bias": (100,), "1.weight": (7, 100), "1.bias": (7,), "norm.weight": (9, 300)}
SIZE = sum(int(np.prod(s)) for s in LAYERS.values())
STEPS = [0, 1, 2, 5, 10, 20, 50, 100, 200, 500]
EVERYTHING = [
    "msd", "fourth_moment", "kurtosis", "non_gaussian_parameter", "participation_ratio", "overlap", "correlation",
    "centred_correlation", "sign_flips", "self_intermediate_scattering",
]  # fmt: skip


@pytest.fixture(scope="module")
def run() -> xr.Dataset:
    return brownian(STEPS, rng=1, diffusion=1e-3, layers=LAYERS, start=1.0, replicas=2)


def naive(weights, i, j, *, q, epsilon):
    """Every observable of one pair, from its definition, in longdouble."""
    a, b = weights[i].astype(np.longdouble), weights[j].astype(np.longdouble)
    d = b - a
    m2, m4 = np.mean(d**2), np.mean(d**4)
    return {
        "msd": m2,
        "fourth_moment": m4,
        "kurtosis": m4 / m2**2,
        "non_gaussian_parameter": m4 / (3 * m2**2) - 1,
        "participation_ratio": np.sum(d**2) ** 2 / (d.size * np.sum(d**4)),
        "overlap": np.mean(np.abs(d) <= epsilon),
        "correlation": np.mean(a * b),
        "centred_correlation": np.mean((a - a.mean()) * (b - b.mean())),
        "sign_flips": np.mean((a < 0) != (b < 0)),
        "self_intermediate_scattering": np.mean(np.cos(q * d)),
    }


@pytest.mark.parametrize("per", ["all", "layer"])
@pytest.mark.parametrize("method", ["direct", "reference"])
def test_every_observable_against_a_longdouble_double_loop(run, per, method):
    q, epsilon = 3.0, 0.5
    got = ts.all_pairs(run, observables=EVERYTHING, per=per, wavenumber=q, epsilon=epsilon, method=method).compute()
    stops = [0, *run.layer_stop.values]
    for layer in range(len(LAYERS)) if per == "layer" else [None]:
        part = slice(None) if layer is None else slice(stops[layer], stops[layer + 1])
        mine = got if layer is None else got.isel(layer=layer)
        for r in range(2):
            w = run.weights.values[r][:, part]
            for i in range(len(STEPS)):
                for j in range(i + 1, len(STEPS)):
                    for name, want in naive(w, i, j, q=q, epsilon=epsilon).items():
                        value = float(mine[name][{"replica": r, "step": i, "step_prime": j}].squeeze())
                        np.testing.assert_allclose(value, float(want), rtol=3e-6, atol=2e-6, err_msg=f"{name} {i} {j}")
                    if method == "direct":
                        exact = naive(w, i, j, q=q, epsilon=epsilon)["msd"]
                        assert abs(float(mine.msd[r, i, j]) / exact - 1) <= mine.msd.attrs["error_bound"]


def stress(kind: str, size: float, rng: np.random.Generator) -> np.ndarray:
    t, n = 40, 3000
    start = 1 + 0.3 * rng.standard_normal(n)
    noise = size * rng.standard_normal((t, n))
    if kind == "brownian":
        return start + np.cumsum(noise, axis=0)
    if kind == "ou":
        return start + noise
    if kind == "aging":
        return start + np.cumsum(noise / np.sqrt(1 + np.arange(t))[:, None], axis=0)
    if kind == "drift":
        return start + size * np.arange(t)[:, None] * rng.standard_normal(n)
    if kind == "zigzag":
        return start + size * (np.arange(t) % 2)[:, None] * rng.standard_normal(n) + 1e-2 * noise
    phase = 2 * np.pi * rng.random(n)
    return start + size * np.cos(2 * np.pi * np.arange(t)[:, None] / 10 + phase)


@pytest.mark.parametrize("size", [1e-3, 1e-5, 1e-6])
@pytest.mark.parametrize("kind", ["brownian", "ou", "aging", "drift", "zigzag", "cyclic"])
def test_every_pair_is_within_the_stated_bound_whatever_the_path(kind, size):
    w = stress(kind, size, np.random.default_rng(5)).astype(np.float32)
    got = ts.all_pairs(trajectory_dataset(w, step=np.arange(40))).msd
    bound = got.attrs["error_bound"]
    assert bound <= 1e-6
    long = w.astype(np.longdouble)
    want = np.stack([np.mean((long - row) ** 2, axis=1) for row in long])
    got = got.compute().values[0]
    assert (got >= 0).all()
    np.testing.assert_array_equal(got[want == 0], 0)
    moved = want > 0
    assert np.max(np.abs(got[moved] / want[moved] - 1)) <= bound


def test_identical_rows_have_zero_displacement():
    w = np.random.default_rng(0).standard_normal((1, 5000)).astype(np.float32).repeat(4, axis=0)
    result = ts.all_pairs(trajectory_dataset(w, step=range(4)), observables=["msd", "overlap", "kurtosis"]).compute()
    assert (result.msd == 0).all()
    assert (result.overlap == 1).all()
    assert (result.overlap_null == 1).all()
    assert result.kurtosis.isnull().all()


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e18])
def test_tiny_and_huge_weights_keep_their_fourth_moment(scale):
    w = (np.random.default_rng(0).standard_normal((3, 4000)) * scale).astype(np.float32)
    got = ts.all_pairs(trajectory_dataset(w, step=range(3)), observables="kurtosis").compute()
    d = w[2].astype(np.longdouble) - w[0]
    assert float(got.msd[0, 0, 2]) == pytest.approx(float(np.mean(d**2)), rel=1e-6)
    assert float(got.kurtosis[0, 0, 2]) == pytest.approx(float(np.mean(d**4) / np.mean(d**2) ** 2), rel=3e-6)


def test_layers_kinds_and_groups_sum_to_the_total(run):
    total = ts.all_pairs(run).msd.compute() * SIZE
    mine = {"first": "0.*", "rest": ["1.*", "norm.weight"]}
    for per, dim in (("layer", "layer"), ("kind", "kind"), (mine, "group")):
        part = ts.all_pairs(run, per=per).msd.compute()
        np.testing.assert_allclose((part * part.n_parameters).sum(dim), total, rtol=1e-12)
    assert part.group.values.tolist() == ["first", "rest"]
    blocks = ts.all_pairs(run, blocks=8).msd.compute()
    np.testing.assert_allclose((blocks * blocks.n_parameters).sum("block"), total, rtol=2e-6)
    layered = ts.all_pairs(run, blocks=8, per="layer").msd.compute()
    np.testing.assert_allclose((layered * layered.n_parameters).sum("layer"), blocks * blocks.n_parameters, rtol=2e-6)


def test_random_blocks_are_balanced_reproducible_and_independent():
    run = brownian([0, 1], rng=0, diffusion=0.5, n_parameters=64_000)
    one = ts.all_pairs(run, blocks=32).msd.compute()
    again = ts.all_pairs(run, blocks=32, block_bytes=2 * 4 * UNIT).msd.compute()
    xr.testing.assert_identical(one, again)
    other = ts.all_pairs(run, blocks=32, rng=1).msd.compute()
    assert not np.allclose(one[0, 0, 1], other[0, 0, 1])
    sizes = one.n_parameters.values
    assert sizes.sum() == 64_000
    assert abs(sizes - 2000).max() < 6 * np.sqrt(2000)
    # 2000 independent squares each: relative scatter sqrt(2/2000); 32 blocks estimate it to one part in eight.
    scatter = float(one[0, 0, 1].std(ddof=1) / one[0, 0, 1].mean())
    assert scatter == pytest.approx(np.sqrt(2 / 2000), rel=0.5)


def test_listed_pairs_agree_with_all_pairs(run):
    pairs = ts.time_pairs(run, waiting_time=[0, 10], lags_per_decade=4)
    listed = ts.two_time(run, pairs, observables=EVERYTHING, per="layer", wavenumber=[1.0, 9.0]).compute()
    every = ts.all_pairs(run, observables=EVERYTHING, per="layer", wavenumber=[1.0, 9.0]).compute()
    for name in listed.data_vars:
        if name == "overlap_distance":
            want = every[name].sel(step=pairs["first"])
        else:
            want = every[name].sel(step=pairs["first"], step_prime=pairs["second"])
        np.testing.assert_allclose(
            listed[name].transpose(*want.dims).values, want.values, rtol=1e-6, atol=1e-7, err_msg=name
        )


def test_listed_pairs_read_only_the_checkpoints_they_need(run):
    read = []

    def load(block, block_info=None):
        read.append(block_info[0]["array-location"][1][0])
        return block

    w = da.from_array(run.weights.values, chunks=(1, 1, -1)).map_blocks(load, dtype=np.float32)
    chunked = trajectory_dataset(w, step=STEPS)
    pairs = ts.time_pairs(chunked, waiting_time=[10], lag=[90])
    read.clear()
    ts.msd(chunked, pairs).compute(scheduler="synchronous")
    assert set(read) == {4, 7}


@pytest.mark.parametrize("chunks", [(1, 10, 4096), (2, 3, 1000), (1, 10, -1), None])
def test_results_are_the_same_bits_for_any_chunking_and_scheduler(chunks):
    run = brownian(STEPS, rng=3, diffusion=1e-3, n_parameters=9 * UNIT + 777, start=1.0, replicas=2)
    want = ts.all_pairs(run, observables=["kurtosis", "sign_flips"]).compute(scheduler="synchronous")
    if chunks is not None:
        run = run.assign(weights=run.weights.chunk(dict(zip(run.weights.dims, chunks, strict=True))))
    for budget in (10 * 4 * UNIT, 4 * 10 * 4 * UNIT, None):
        for scheduler in ("synchronous", "threads"):
            got = ts.all_pairs(run, observables=["kurtosis", "sign_flips"], block_bytes=budget)
            xr.testing.assert_identical(got.compute(scheduler=scheduler).drop_attrs(), want.drop_attrs())


def test_velocity_correlation_is_the_cosine_of_successive_displacements(run):
    got = ts.all_pairs(run, observables="velocity_correlation").velocity_correlation.compute()
    step = np.diff(run.weights.values[1].astype(np.float64), axis=0)
    length = np.linalg.norm(step, axis=1)
    np.testing.assert_allclose(got[1, :-1, :-1], step @ step.T / np.outer(length, length), atol=2e-6)
    assert got[1, -1].isnull().all()


def test_an_empty_layer_is_nan_and_spoils_nothing():
    w = np.random.default_rng(0).standard_normal((4, 30)).astype(np.float32)
    run = trajectory_dataset(w, step=[0, 1, 2, 9], layers={"a": (5, 5), "none": (0,), "b": (5,)})
    full = trajectory_dataset(w, step=[0, 1, 2, 9], layers={"a": (5, 5), "b": (5,)})
    options = {"observables": ["kurtosis", "overlap", "velocity_correlation"], "per": "layer", "overlap_k": 2}
    got, want = ts.all_pairs(run, **options).compute(), ts.all_pairs(full, **options).compute()
    for name in want.data_vars:
        np.testing.assert_array_equal(got[name].sel(layer=["a", "b"]), want[name])
    assert got.kurtosis.sel(layer="none").isnull().all()


def test_overlap_distance_is_the_spread_of_weights_over_k(run):
    pairs = ts.time_pairs(run, waiting_time=[10])
    got = ts.two_time(run, pairs, observables="overlap", per="layer", overlap_k=4).compute()
    w = run.weights.values[0][:, :5000].astype(np.float64)
    epsilon = w[4].std() / 4
    assert float(got.overlap_distance[0, 0, 0]) == pytest.approx(epsilon, rel=1e-12)
    assert float(got.overlap[0, 2, 0]) == pytest.approx(np.mean(np.abs(w[7] - w[4]) <= epsilon), abs=1e-12)
    # Gaussian displacements: Q is its own null, to the binomial error of 5000 weights.
    assert float(abs(got.overlap - got.overlap_null)[:, :, 0].max()) < 5 * 0.5 / np.sqrt(5000)


def test_results_are_lazy_and_labelled(run):
    lazy = trajectory_dataset(
        run.weights.chunk().data, step=STEPS, layers=LAYERS, clocks={"proper_time": np.array(STEPS) / 7}
    )
    with dask.config.set(scheduler=lambda *a, **k: pytest.fail("computed")):
        pairs = ts.time_pairs(lazy, waiting_time=[10])
        delta = ts.msd(lazy, pairs, clock="proper_time")
        both = ts.all_pairs(lazy, observables=EVERYTHING, wavenumber=1.0)
    assert delta.dtype == np.float64
    assert delta.dims == ("replica", "pair", "layer")
    assert delta.n_parameters.values.tolist() == [int(np.prod(s)) for s in LAYERS.values()]
    np.testing.assert_allclose(delta.waiting_time, 10 / 7)
    np.testing.assert_allclose(delta.lag, (np.array(STEPS[5:]) - 10) / 7)
    assert {"long_name", "units", "estimator", "arguments", "source", "error_bound"} <= set(delta.attrs)
    np.testing.assert_allclose(both.proper_time, np.array(STEPS) / 7)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_stored_types(dtype):
    run = brownian(STEPS, rng=1, diffusion=1e-3, n_parameters=3000, start=1.0, dtype=dtype)
    w = run.weights.values[0].astype(np.longdouble)
    want = np.stack([np.mean((w - row) ** 2, axis=1) for row in w])
    got = ts.all_pairs(run).msd
    bound = got.attrs["error_bound"]
    assert (bound == 1e-12) == (dtype == "float64")
    np.testing.assert_allclose(got.compute()[0], want.astype(float), rtol=bound)


def test_rounding_floor_of_the_store_comes_with_the_msd(run):
    floor = np.random.default_rng(0).random((2, len(STEPS), len(LAYERS)))
    kept = run.assign(rounding_floor=(("replica", "step", "layer"), floor))
    pairs = ts.time_pairs(kept, waiting_time=[5], lag=[45])
    layered = ts.msd(kept, pairs)
    np.testing.assert_allclose(layered.rounding_floor[:, 0], floor[:, 3] + floor[:, 6])
    total = ts.msd(kept, pairs, per="all")
    sizes = layered.n_parameters.values
    np.testing.assert_allclose(total.rounding_floor[:, 0], (floor[:, 3] + floor[:, 6]) @ sizes / sizes.sum())


def test_known_answers_within_their_own_scatter():
    # One weight's squared displacement scatters by sqrt(2) times its mean, and weights are independent here.
    n = 20_000
    for run in (
        time_changed_ou([0, 10, 100, 1000], rng=0, mu=0.6, n_parameters=n),
        ornstein_uhlenbeck([0, 10, 100, 1000], rng=0, n_parameters=n),
        brownian([0, 3, 700], rng=0, n_parameters=n),
    ):
        pairs = ts.time_pairs(run)
        got = ts.msd(run, pairs, per="all").compute()[0]
        np.testing.assert_allclose(got, exact_msd(run, pairs), rtol=5 * np.sqrt(2 / n))


@pytest.mark.parametrize(
    ("law", "alpha", "error"),
    # Standard error of the sample kurtosis over 3 at 2e5 weights, from the eighth moment of each law.
    [("gaussian", 0, 0.004), ("laplace", 1, 0.05), ("two_populations", 0.81, 0.015)],
)
def test_non_gaussian_parameter_of_known_laws(law, alpha, error):
    run = displacement_noise([0, 1, 2], rng=3, law=law, n_parameters=200_000)
    pairs = ts.time_pairs(run, waiting_time=[0])
    got = ts.two_time(run, pairs, observables="non_gaussian_parameter", per="all").compute()
    assert float(got.non_gaussian_parameter[0, 0]) == pytest.approx(alpha, abs=4 * error)
    # Independent steps: the excess kurtosis halves over two; populations that stay keep it.
    later = 0.81 if law == "two_populations" else alpha / 2
    assert float(got.non_gaussian_parameter[0, 1]) == pytest.approx(later, abs=4 * error)


weights = hnp.arrays(np.float32, (4, 40), elements=st.floats(-2, 2, width=32))


@settings(max_examples=40, deadline=None)
@given(weights, st.permutations(range(40)), st.integers(-6, 6), st.integers(1, 1000))
def test_symmetries(w, order, power, shift):
    run = trajectory_dataset(w, step=[1, 2, 4, 8], layers={"a": (4, 5), "b": (20,)})
    pairs = ts.time_pairs(run)
    got = ts.msd(run, pairs, per="all").compute().values
    # Order of the parameters does not matter; a scale by a power of two is exact; only differences of steps matter.
    moved = trajectory_dataset(w[:, list(order)], step=[1, 2, 4, 8])
    np.testing.assert_allclose(ts.msd(moved, pairs, per="all").compute(), got, rtol=2e-6)
    scaled = trajectory_dataset(w * np.float32(2.0**power), step=[1, 2, 4, 8])
    np.testing.assert_allclose(ts.msd(scaled, pairs, per="all").compute(), got * 4.0**power, rtol=2e-6)
    later = trajectory_dataset(w, step=np.array([1, 2, 4, 8]) + shift)
    shifted = ts.msd(later, ts.time_pairs(later), per="all").compute()
    np.testing.assert_allclose(shifted, got, rtol=2e-6)
    np.testing.assert_array_equal(shifted.lag, pairs.lag)
    # Names of the layers and order of the replicas are labels.
    named = trajectory_dataset(w, step=[1, 2, 4, 8], layers={"y": (4, 5), "x": (20,)})
    np.testing.assert_array_equal(ts.msd(named, pairs).compute(), ts.msd(run, pairs).compute())
    both = trajectory_dataset(np.stack([w, w[::-1]]), step=[1, 2, 4, 8])
    swapped = trajectory_dataset(np.stack([w[::-1], w]), step=[1, 2, 4, 8])
    np.testing.assert_array_equal(ts.msd(both, pairs).compute()[::-1], ts.msd(swapped, pairs).compute())


def test_nan_names_checkpoint_and_layer_and_can_be_skipped(run):
    w = run.weights.values.copy()
    w[1, 6, 5050] = np.nan
    w[1, 3, 5051] = np.inf
    bad = trajectory_dataset(w, step=STEPS, layers=LAYERS)
    with pytest.raises(NonFiniteError, match=r"'0\.bias'.*step 5, 50 .*replica 1.*on_nan='skip'"):
        ts.all_pairs(bad).compute()
    got = ts.all_pairs(bad, per="layer", on_nan="skip").msd.compute()
    want = ts.all_pairs(run, per="layer").msd.compute()
    lost = np.isin(STEPS, [5, 50])
    assert got.sel(layer="0.bias")[1].isnull().values[lost].sum() == 2 * len(STEPS) - 2
    xr.testing.assert_equal(got.drop_sel(layer="0.bias"), want.drop_sel(layer="0.bias"))
    xr.testing.assert_equal(got[:, ~lost][:, :, ~lost], want[:, ~lost][:, :, ~lost])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda r: ts.all_pairs(r.isel(step=[0])), "1 checkpoint"),
        (lambda r: ts.all_pairs(r, per="layr"), "unknown per 'layr'.*'layer'"),
        (lambda r: ts.all_pairs(r, per={"a": "0.*", "b": "*bias"}), "'a' and 'b' overlap.*'0.bias'"),
        (lambda r: ts.all_pairs(r, per={"a": "2.*"}), "unknown layer or pattern '2"),
        (lambda r: ts.all_pairs(r, per={"a": []}), "'a' is empty"),
        (lambda r: ts.all_pairs(r, per={}), "no group"),
        (lambda r: ts.all_pairs(r, block_bytes=1000), "block_bytes=1000 is too small.*smallest block"),
        (lambda r: ts.all_pairs(r, memory_limit=1000), "memory_limit"),
        (lambda r: ts.all_pairs(r, observables="overlp"), "did you mean 'overlap'"),
        (lambda r: ts.all_pairs(r, observables="self_intermediate_scattering"), "wavenumber"),
        (lambda r: ts.all_pairs(r, method="gram"), "unknown method 'gram'"),
        (lambda r: ts.all_pairs(r, on_nan="ignore"), "unknown on_nan"),
        (lambda r: ts.all_pairs(r, epsilon=-1.0, observables="overlap"), "above 0"),
        (lambda r: ts.all_pairs(r, blocks=0), "blocks=0"),
        (
            lambda r: ts.msd(r, ts.time_pairs(r).assign(second=lambda p: p["second"] + 1)),
            "step 2 was not|was not saved",
        ),
        (lambda r: ts.time_pairs(r, waiting_time=[11]), "nearest saved one is 10"),
    ],
)
def test_bad_input_is_named_before_anything_is_read(run, call, words):
    with pytest.raises(ArgumentError, match=words):
        call(run)


def test_the_planner_counts_tasks_and_refuses_what_cannot_fit():
    big = trajectory_dataset(da.zeros((1, 512, 4_000_000), chunks=(1, 64, 16384), dtype="f4"), step=np.arange(512))
    plan = ts.two_time_plan(big)
    assert 32 * 2**20 <= plan.block_bytes <= 130 * 2**20
    assert plan.n_tasks < 10_000
    assert plan.memory_bytes < 1.2 * 2**30
    assert "reads 7.63 GiB in 123 blocks of 32768 parameters (64 MiB)" in str(plan)
    n_tasks = len(ts.all_pairs(big).msd.__dask_graph__())
    assert n_tasks < 10_000
    huge = trajectory_dataset(da.zeros((1, 2048, 4_000_000_000), chunks=-1, dtype="f4"), step=np.arange(2048))
    with pytest.raises(ArgumentError, match=r"(?s)tasks would be needed, more than 10000.*Select fewer"):
        ts.all_pairs(huge)
