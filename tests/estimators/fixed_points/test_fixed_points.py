import numpy as np
import pytest
from reference.numpy_mlp import NumpyMLP, draw

from trajstats import CheckpointLaw, RandomNet, attractor_slice, census_scan, fixed_point_census
from trajstats.data.schema import trajectory_dataset
from trajstats.errors import ArgumentError, NonFiniteError, SchemaError


def scalar_root(gain):
    """Positive fixed point of tanh(g x), by bisection."""
    low, high = 1e-9, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.tanh(gain * middle) > middle else (low, middle)
    return low


@pytest.mark.parametrize("dim", [2, 3])
def test_root_search_finds_all_three_to_the_n_points(dim):
    census = fixed_point_census(lambda x: np.tanh(2 * x), dim, starts=3000, method="newton", rng=0)
    assert int(census.n_fixed_points) == 3**dim
    assert int(census.n_stable_fixed_points) == 2**dim
    root = scalar_root(2.0)
    exact = np.array(np.meshgrid(*[[-root, 0, root]] * dim)).reshape(dim, -1).T
    found = census.point.values
    assert all(np.abs(found - point).max(axis=1).min() < 1e-12 for point in exact)
    zeros = (np.abs(found) < 1e-9).sum(axis=1)
    slope = 2 * (1 - root**2)
    np.testing.assert_allclose(census.spectral_radius, np.where(zeros > 0, 2.0, slope), rtol=1e-6)


def test_iteration_finds_the_stable_ones_and_their_equal_basins():
    census = fixed_point_census(lambda x: np.tanh(2 * x), 3, starts=4000, rng=1)
    assert int(census.n_fixed_points) == 8
    assert (census.status == "fixed_point").all()
    # eight orthants of equal mass: Wilson intervals at 99.9 % hold the truth
    wide = fixed_point_census(lambda x: np.tanh(2 * x), 3, starts=4000, rng=1, level=0.999)
    assert ((wide.share_low < 1 / 8) & (wide.share_high > 1 / 8)).all()
    np.testing.assert_array_equal(census["count"], np.bincount(census.label.values))


def test_a_contraction_has_exactly_one():
    census = fixed_point_census(RandomNet((60, 60, 60), scale=0.8, bias_scale=0.3, seed=2), 60, starts=300, rng=0)
    assert int(census.n_fixed_points) == 1
    assert float(census.share[0]) == 1.0
    assert float(census.spectral_radius[0]) < 1
    assert float(census.residual.max()) < 1e-14


def test_logistic_gaussian_net_has_exactly_one():
    net = RandomNet((50, 50, 50), scale=1.9, activation="sigmoid", bias_scale=1.0, seed=3)
    assert int(fixed_point_census(net, 50, starts=200, rng=0).n_fixed_points) == 1


def test_signed_permutation_has_known_cycles():
    # (a, b, c) -> (b, c, -a) has order six; with a gain its corners form one 6-cycle and one 2-cycle
    turn = np.array([[0, 1, 0], [0, 0, 1], [-1, 0, 0]])
    census = fixed_point_census(lambda x: np.tanh(2 * x @ turn.T), 3, starts=2000, rng=0)
    assert sorted(census.period.values.tolist()) == [2.0, 6.0]
    assert int(census.n_fixed_points) == 0
    six = int(np.flatnonzero(census.period == 6)[0])
    slope = 2 * (1 - scalar_root(2.0) ** 2)
    assert census.spectral_radius.values[six] == pytest.approx(slope**6, rel=1e-6)
    assert census.share.values[six] == pytest.approx(6 / 8, abs=0.05)


def test_a_plain_permutation_is_all_neutral_cycles():
    matrix = np.eye(5)[[1, 2, 0, 4, 3]]
    census = fixed_point_census(lambda x: x @ matrix.T, 5, starts=12, rng=0)
    assert (census.period == 6).all()
    assert (census.status == "cycle").all()
    assert not census.stable.any()
    np.testing.assert_allclose(census.spectral_radius, 1.0)


def test_logistic_map_period_four_and_chaos():
    starts = np.random.default_rng(0).random((60, 1))
    four = fixed_point_census(lambda x: 3.5 * x * (1 - x), 1, starts=starts, rng=0)
    assert four.period.values.tolist() == [4.0]
    # product of the slopes along the 4-cycle, from the orbit itself
    x = float(four.point[0, 0])
    multiplier = 1.0
    for _ in range(4):
        multiplier *= 3.5 * (1 - 2 * x)
        x = 3.5 * x * (1 - x)
    assert float(four.spectral_radius[0]) == pytest.approx(abs(multiplier), abs=1e-5)
    chaos = fixed_point_census(lambda x: 3.9 * x * (1 - x), 1, starts=starts, rng=0, max_iterations=300)
    assert (chaos.status == "unconverged").all()
    assert int(chaos.n_fixed_points) == 0


@pytest.mark.parametrize("gain", [1.0, 0.9999])
def test_at_the_edge_of_chaos_slow_is_unconverged_not_absent(gain):
    census = fixed_point_census(lambda x: np.tanh(gain * x), 2, starts=50, rng=0, max_iterations=400)
    assert (census.status == "unconverged").all()
    assert float(census.unconverged_share) == 1.0


def test_slow_but_sure_convergence_is_polished():
    census = fixed_point_census(lambda x: np.tanh(0.97 * x), 2, starts=50, rng=0)
    assert int(census.n_fixed_points) == 1
    assert float(np.abs(census.point).max()) < 1e-12


def test_growth_is_divergence():
    assert (fixed_point_census(lambda x: 3 * x, 2, starts=10, rng=0).status == "diverged").all()


def test_near_but_distinct_points_are_not_merged():
    # roots of x - F at 0, 1e-5 and 1: attractors 0 < repeller < attractor, the pair 1e-5 apart
    def map_(x):
        return x - 0.5 * x * (x - 1e-5) * (x - 1.0) * 1e4 / (1 + 1e4 * np.abs(x * (x - 1.0)))

    census = fixed_point_census(map_, 1, starts=400, method="newton", rng=0, tolerance=1e-13)
    found = np.sort(census.point.values.ravel())
    assert found.size == 3
    np.testing.assert_allclose(found, [0.0, 1e-5, 1.0], atol=1e-9)


def test_saturation_and_missed():
    # a staircase: every unit interval of the line is one basin, so most attractors are seen once or not at all
    census = fixed_point_census(
        lambda x: np.floor(x) + 0.5, 1, starts=np.random.default_rng(0).uniform(0, 200, (150, 1)), rng=0
    )
    seen = int(census.n_fixed_points)
    assert float(census.distinct[-1]) == seen
    assert (np.diff(census.distinct) > 0).all()
    assert float(census.missed) > 20
    assert 0.2 < float(census.missed_share) < float(census.missed_share_high) < 0.9
    one = fixed_point_census(lambda x: 0 * x, 1, starts=100, rng=0)
    assert float(one.missed) == 0.0
    # none missed among 100 still leaves 3 % possible
    assert float(one.missed_share_high) == pytest.approx(1 - 0.05 ** (1 / 100), rel=1e-6)


def test_a_network_at_a_checkpoint_equals_the_map():
    net = NumpyMLP((8, 8, 8))
    weights = draw((8, 8, 8), scale=1.5, bias=0.2, seed=4)
    run = trajectory_dataset(weights[None], step=[0], layers=net.layers)
    there = fixed_point_census(net, 8, weights=run.sel(replica=0, step=0), starts=100, rng=0)
    here = fixed_point_census(lambda x: net.outputs(weights, x), 8, starts=100, rng=0)
    np.testing.assert_allclose(there.point, here.point, atol=1e-9)
    np.testing.assert_array_equal(there.label, here.label)


def test_bad_input_is_named():
    with pytest.raises(ArgumentError, match="fixed points need"):
        fixed_point_census(lambda x: x[:, :1], 2, starts=5, rng=0)
    with pytest.raises(ArgumentError, match="fixed points need 6"):
        fixed_point_census(NumpyMLP((6, 5)), 6, weights=draw((6, 5)), starts=5, rng=0)
    with pytest.raises(ArgumentError, match="weights"):
        fixed_point_census(NumpyMLP((6, 6)), 6, starts=5, rng=0)
    with pytest.raises(SchemaError, match="weights"):
        fixed_point_census(NumpyMLP((6, 6)), 6, weights=np.zeros(3), starts=5, rng=0)
    with pytest.raises(ArgumentError, match="precision"):
        fixed_point_census(np.tanh, 2, starts=5, tolerance=1e-16, rng=0)
    with pytest.raises(ArgumentError, match="precision"):
        fixed_point_census(lambda x: np.tanh(x).astype("float32"), 2, starts=5, tolerance=1e-10, rng=0)
    with pytest.raises(NonFiniteError, match="NaN"):
        fixed_point_census(lambda x: np.where(x > 0, x, np.nan), 2, starts=5, rng=0)
    with pytest.raises(NonFiniteError, match="starts"):
        fixed_point_census(np.tanh, 2, starts=np.full((2, 2), np.inf), rng=0)
    with pytest.raises(ArgumentError, match="starts have shape"):
        fixed_point_census(np.tanh, 2, starts=np.zeros((2, 3)), rng=0)
    with pytest.raises(ArgumentError, match="unknown method"):
        fixed_point_census(np.tanh, 2, starts=5, method="nwton", rng=0)


def test_float32_maps_converge_within_their_own_precision():
    census = fixed_point_census(lambda x: np.tanh(2 * x).astype("float32"), 2, starts=100, rng=0)
    assert int(census.n_fixed_points) == 4
    assert np.abs(np.abs(census.point) - scalar_root(2.0)).max() < 1e-5


def test_slice_shows_the_quadrants():
    def map_(x):
        return np.tanh(2 * x)

    census = fixed_point_census(map_, 2, starts=200, rng=0)
    there = attractor_slice(map_, census, origin=[0, 0], first=[1, 0], second=[0, 1], points=10)
    for v in (-3.0, 3.0):
        for u in (-3.0, 3.0):
            point = census.point.values[int(there.label.sel(u=u, v=v))]
            assert np.sign(point).tolist() == [np.sign(u), np.sign(v)]


def test_scan_is_the_census_of_each_net_and_does_not_depend_on_the_scheduler():
    arguments = {"laws": ["gaussian", "cauchy"], "scales": [0.5], "seeds": 3, "starts": 40, "max_iterations": 100}
    scan = census_scan([12], [1, 3], rng=0, activation="sigmoid", **arguments)
    one, two = scan.compute(scheduler="synchronous"), scan.compute(scheduler="threads")
    np.testing.assert_array_equal(one.Q, two.Q)
    assert (one.Q.sel(law="gaussian") == 1).all()
    key = np.random.SeedSequence(0, spawn_key=(1, 0, 0, 1, 2)).generate_state(2)
    net = RandomNet((12,) * 4, law="cauchy", scale=0.5, activation="sigmoid", seed=int(key[0]))
    alone = fixed_point_census(net, 12, starts=40, rng=int(key[1]), max_iterations=100)
    assert float(one.n_fixed_points.values[1, 0, 0, 1, 2]) == float(alone.n_fixed_points)
    with pytest.raises(ArgumentError, match="weight law"):
        census_scan([3], [1], laws=["gauss"], rng=0)
    with pytest.raises(ArgumentError, match="seeds"):
        census_scan([3], [1], seeds=1, rng=0)


def test_scan_takes_the_weights_of_a_checkpoint_as_a_law():
    rng = np.random.default_rng(0)
    matrices = [5 + 3 * rng.standard_t(3, (40, 50)), 0.1 * rng.standard_normal((20, 50))]
    law = CheckpointLaw(matrices, name="trained")
    # mean zero and variance one in each part, so in the whole; the parts' shapes are kept
    assert (law.values.mean(), law.values.std()) == pytest.approx((0.0, 1.0), abs=1e-12)
    np.testing.assert_allclose(law.values[2000:] * matrices[1].std() + matrices[1].mean(), matrices[1].ravel())
    net = RandomNet((200, 300), law=law, scale=2.0, seed=1)
    drawn = net.layers[0][0] * np.sqrt(200) / 2.0
    order = np.sort(law.values)
    near = np.clip(np.searchsorted(order, drawn - 1e-9), 0, order.size - 1)
    np.testing.assert_allclose(drawn, order[near], rtol=0, atol=2e-9)
    arguments = {"scales": [0.5], "seeds": 2, "starts": 30, "activation": "sigmoid"}
    scan = census_scan([12], [2], laws=["gaussian", law], rng=3, **arguments).compute()
    assert scan.law.values.tolist() == ["gaussian", "trained"]
    key = np.random.SeedSequence(3, spawn_key=(1, 0, 0, 0, 1)).generate_state(2)
    alone = fixed_point_census(
        RandomNet((12,) * 3, law=law, scale=0.5, activation="sigmoid", seed=int(key[0])), 12, starts=30, rng=int(key[1])
    )
    assert float(scan.n_fixed_points.sel(law="trained", seed=1).item()) == float(alone.n_fixed_points)
    with pytest.raises(ArgumentError, match="one label"):
        census_scan([3], [1], laws=[law, law], rng=0)
    with pytest.raises(ArgumentError, match="constant"):
        CheckpointLaw([np.ones((3, 3))])
