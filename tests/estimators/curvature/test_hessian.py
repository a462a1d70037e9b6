"""hessian_spectrum and extreme_eigenpairs: closed forms, labels, reproducibility, restarts, bad input."""

import copy
import os
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc

import dask
import numpy as np
import pytest
import xarray as xr
from scipy.sparse.linalg import LinearOperator
from scipy.stats import wasserstein_distance

from tests.reference.numpy_networks import Dense, LeastSquares, Logistic, SoftmaxLinear
from trajstats import (
    ArgumentError,
    NonFiniteError,
    SchemaError,
    StoreError,
    extreme_eigenpairs,
    hessian_spectrum,
    open_trajectory,
)
from trajstats.data.schema import trajectory_dataset
from trajstats.data.store.maintenance import append_from

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 7))
NETWORKS = {
    "least squares": LeastSquares(X, RNG.standard_normal((60, 2)), l2=0.1),
    "logistic": Logistic(X, RNG.integers(0, 2, 60)),
    "softmax": SoftmaxLinear(X, RNG.integers(0, 4, 60), n_outputs=4),
}


def trajectory(network, steps=(0, 10, 100), replicas=1, layers=None):
    weights = np.random.default_rng(1).standard_normal((replicas, len(steps), network.n_parameters))
    return trajectory_dataset(weights, step=steps, layers=layers)


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton", "fisher"])
@pytest.mark.parametrize("name", NETWORKS)
def test_exact_spectrum_of_closed_forms(name, kind):
    network = NETWORKS[name]
    run = trajectory(network, replicas=2)
    spectrum = hessian_spectrum(network, run, steps=[10, 100], kind=kind, rng=0)
    assert dict(spectrum.sizes) == {"replica": 2, "step": 2, "probe": 1, "node": network.n_parameters}
    for r in range(2):
        for step in (10, 100):
            w = run.weights[r].sel(step=step).values
            known = np.linalg.eigvalsh(network.dense(w, kind))
            here = spectrum.isel(replica=r, probe=0).sel(step=step)
            np.testing.assert_allclose(here.nodes, known, atol=1e-12)
            assert here.loss.item() == pytest.approx(network.loss(w))
    assert spectrum.exact.all()


def test_lanczos_with_as_many_steps_as_parameters_is_exact_in_its_nodes():
    network = NETWORKS["softmax"]
    run = trajectory(network, steps=(0,))
    spectrum = hessian_spectrum(network, run, method="lanczos", order=40, deflate=False, rng=0)
    known = np.linalg.eigvalsh(network.dense(run.weights[0, 0].values))
    heavy = spectrum.nodes.values[spectrum.weights.values > 1e-6]
    assert np.abs(heavy[:, None] - known).min(axis=1).max() < 1e-8
    np.testing.assert_allclose(spectrum.weights.sum("node"), 1, atol=1e-12)


def test_labels_and_attributes():
    network = NETWORKS["logistic"]
    spectrum = hessian_spectrum(network, trajectory(network), method="lanczos", order=8, probes=6, rng=3)
    for name in ("nodes", "weights", "residual", "exact"):
        assert spectrum[name].dims == ("replica", "step", "probe", "node")
    assert spectrum.alpha.dims == spectrum.beta.dims == ("replica", "step", "probe", "lanczos")
    assert spectrum.nodes.dtype == np.float64
    assert spectrum.step.values.tolist() == [0, 10, 100]
    assert {"long_name", "units", "estimator", "arguments", "source"} <= set(spectrum.attrs)
    assert (np.diff(spectrum.nodes.values, axis=-1) >= 0).all()


@pytest.mark.parametrize("deflate", [True, False])
def test_adding_probes_changes_none_of_the_earlier_ones(deflate):
    network = NETWORKS["softmax"]
    options = {"method": "lanczos", "order": 16, "deflate": deflate, "rng": 11}
    few = hessian_spectrum(network, trajectory(network), probes=3, **options)
    many = hessian_spectrum(network, trajectory(network), probes=12, **options)
    xr.testing.assert_identical(few.drop_attrs(), many.isel(probe=slice(3)).drop_attrs())
    other = hessian_spectrum(network, trajectory(network), probes=3, **{**options, "rng": 12})
    assert (other.beta != few.beta).any()


def test_results_do_not_depend_on_scheduler_or_chunks():
    network = NETWORKS["softmax"]
    run = trajectory(network)
    options = {"method": "lanczos", "order": 16, "rng": 11}
    plain = hessian_spectrum(network, run, **options)
    with dask.config.set(scheduler="threads", num_workers=2):
        threaded = hessian_spectrum(network, run.chunk(step=1, parameter=5), **options)
    xr.testing.assert_identical(plain.nodes, threaded.nodes)
    xr.testing.assert_identical(plain.weights, threaded.weights)


def test_restriction_to_layers_is_the_diagonal_block():
    network = copy.copy(NETWORKS["softmax"])
    network.layers = {"a": (1, 7), "b": (2, 7), "c": (7,)}
    run = trajectory(network, layers=network.layers)
    spectrum = hessian_spectrum(network, run, layers=["a", "c"], rng=0)
    chosen = np.r_[0:7, 21:28]
    for k in range(3):
        block = network.dense(run.weights[0, k].values)[np.ix_(chosen, chosen)]
        np.testing.assert_allclose(spectrum.nodes[0, k, 0], np.linalg.eigvalsh(block), atol=1e-12)


def test_unused_parameters_are_exact_zeros():
    matrix = np.zeros((300, 300))
    matrix[:40, :40] = np.diag(np.linspace(1, 3, 40))
    spectrum = hessian_spectrum(Dense(matrix), trajectory(Dense(matrix), steps=(0,)), method="lanczos", rng=0)
    flat = np.where(np.abs(spectrum.nodes) < 1e-9, spectrum.weights, 0).sum(axis=-1).mean()
    # 260 of 300; the standard error of ten probes is sqrt(2 x .87 x .13 / 3000) = 0.009 before deflation.
    assert abs(flat - 260 / 300) < 0.03


@pytest.mark.slow
def test_deflation_beats_plain_quadrature_at_the_same_number_of_products():
    # A bulk near zero and a power-law tail, as trained nets have.
    n = 600
    eigenvalues = np.concatenate(
        [1e-3 * np.random.default_rng(2).standard_normal(n - 60), 5 * np.arange(1, 61) ** -1.5]
    )
    q = np.linalg.qr(np.random.default_rng(3).standard_normal((n, n)))[0]
    errors = {True: [], False: []}
    counts = {}
    for deflate in errors:
        network = Dense((q * eigenvalues) @ q.T)
        for seed in range(8):
            found = hessian_spectrum(network, trajectory(network, (0,)), method="lanczos", deflate=deflate, rng=seed)
            nodes, weights = found.nodes.values.ravel(), found.weights.values.ravel() / 10
            errors[deflate].append(
                [
                    wasserstein_distance(nodes, eigenvalues, weights, np.ones(n)) / np.ptp(eigenvalues),
                    abs(weights @ nodes * n / eigenvalues.sum() - 1),
                    abs(np.sqrt(weights @ nodes**2 * n) / np.linalg.norm(eigenvalues) - 1),
                ]
            )
        counts[deflate] = network.products
    assert counts[True] <= counts[False] == 8 * 800
    gain = np.mean(errors[False], axis=0) / np.mean(errors[True], axis=0)
    assert (gain > [4, 10, 100]).all(), gain


def test_finished_tasks_are_kept_and_not_done_again(tmp_path):
    network = Dense(np.diag(np.linspace(-1, 2, 60)))
    options = {"method": "lanczos", "order": 16, "rng": 5, "store": tmp_path / "spectra"}
    run = trajectory(network)
    first = hessian_spectrum(network, run, probes=5, **options)
    done = network.products
    again = hessian_spectrum(network, run, probes=5, **options)
    assert network.products == done
    xr.testing.assert_identical(first, again)
    more = hessian_spectrum(network, run, probes=10, **options)
    assert network.products == done + 3 * 5 * 14
    xr.testing.assert_identical(first.nodes, more.nodes.isel(probe=slice(5)))


def test_tasks_read_their_own_weights_and_wait_for_the_network_alone(tmp_path, monkeypatch):
    network = NETWORKS["softmax"]
    run = trajectory(network, steps=range(6))
    options = {"method": "lanczos", "order": 8, "probes": 10, "deflate": False, "rng": 0}
    want = hessian_spectrum(network, run, **options)
    append_from(tmp_path / "run.zarr", run)
    waits = []

    def scheduler(graph, keys, **kwargs):
        graph = dict(graph.__dask_graph__())
        ours = [task for key, task in graph.items() if str(key).startswith(("_done", "probes_task"))]
        waits.extend(len(task.dependencies) for task in ours)
        return dask.get(graph, keys, **kwargs)

    def found(data):
        waits.clear()
        with dask.config.set(scheduler=scheduler):
            xr.testing.assert_equal(hessian_spectrum(network, data, **options), want)
        return waits

    assert found(run) == [1] * 18  # six losses, two chunks of probes at each checkpoint
    assert found(open_trajectory(tmp_path / "run.zarr")) == [1] * 18
    assert found(run.assign(weights=run.weights.chunk({"step": 3}) * 1)) == [1] * 18
    monkeypatch.setattr("trajstats.estimators.curvature._dask_tasks.SENT_BYTES", 0)
    assert found(run) == [2] * 18


def test_every_fourth_run_for_atoms_starts_by_itself():
    network = NETWORKS["softmax"]
    options = {"method": "lanczos", "order": 16, "probes": 5, "rng": 0}
    waits = {}

    def scheduler(graph, keys, **kwargs):
        graph = dict(graph.__dask_graph__())
        for key, task in graph.items():
            if str(key).startswith("atoms_task"):
                waits[key] = {str(one).partition("-")[0] for one in task.dependencies}
        return dask.get(graph, keys, **kwargs)

    with dask.config.set(scheduler=scheduler):
        hessian_spectrum(network, trajectory(network, steps=range(9)), **options)
    # Nine checkpoints: the first, fifth and ninth wait for the network alone.
    assert sorted("atoms_task" in names for names in waits.values()) == [False] * 3 + [True] * 6


KILLED = """
    import os, sys
    import numpy as np
    from tests.reference.numpy_networks import Dense
    from trajstats import hessian_spectrum
    from trajstats.data.schema import trajectory_dataset

    class Slow(Dense):
        def curvature(self, weights, kind="hessian"):
            print("task", flush=True)
            return super().curvature(weights, kind)

    matrix = np.random.default_rng(0).standard_normal((400, 400))
    run = trajectory_dataset(np.zeros((1, 4, 400)), step=[0, 1, 2, 3], attrs={"uid": "fixed"})
    run.attrs["uid"] = "fixed"
    found = hessian_spectrum(Slow(matrix + matrix.T), run, method="lanczos", order=80, rng=0, store=sys.argv[1])
    np.save(sys.argv[2], found.nodes.values)
"""


@pytest.mark.slow
def test_after_a_kill_only_what_is_missing_is_done_and_the_bits_agree(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(textwrap.dedent(KILLED))
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}

    def call(store, out):
        command = [sys.executable, str(script), str(tmp_path / store), str(tmp_path / out)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    whole = call("whole", "whole.npy")
    tasks = whole.communicate()[0].count("task")
    killed = call("killed", "killed.npy")
    for _ in range(5):
        killed.stdout.readline()
    time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed.npy").exists()
    rest = call("killed", "killed.npy")
    left = rest.communicate()[0].count("task")
    assert rest.returncode == 0
    assert tasks == 12
    assert 6 <= left <= 8
    assert (np.load(tmp_path / "whole.npy") == np.load(tmp_path / "killed.npy")).all()


def test_a_store_of_other_settings_or_of_another_network_is_refused(tmp_path):
    network = NETWORKS["logistic"]
    run = trajectory(network)
    options = {"method": "lanczos", "order": 8, "probes": 5, "store": tmp_path / "spectra"}
    hessian_spectrum(network, run, rng=0, **options)
    with pytest.raises(StoreError, match="entropy: 0 in the store, 1 now"):
        hessian_spectrum(network, run, rng=1, **options)
    with pytest.raises(StoreError, match="same network and data"):
        hessian_spectrum(Logistic(2 * X, network.y), run, rng=0, **options)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="another path"):
        hessian_spectrum(network, run, rng=0, **{**options, "store": tmp_path / "other"})


def test_extreme_eigenpairs_have_small_true_residuals():
    network = NETWORKS["softmax"]
    run = trajectory(network)
    pairs = extreme_eigenpairs(network, run, top=3, bottom=2, rng=0)
    assert pairs["rank"].values.tolist() == [1, 2, 3, -1, -2]
    for k in range(3):
        dense = network.dense(run.weights[0, k].values)
        here = pairs.isel(replica=0, step=k)
        known = np.linalg.eigvalsh(dense)
        np.testing.assert_allclose(here.eigenvalue[:3], known[::-1][:3], atol=1e-10)
        assert np.abs(here.eigenvalue.values[3] - known[0]) < 1e-10
        residual = here.vector.values @ dense - here.eigenvalue.values[:, None] * here.vector.values
        np.testing.assert_allclose(np.linalg.norm(residual, axis=1), here.residual, atol=1e-14)
        np.testing.assert_allclose(here.vector.values @ here.vector.values.T, np.eye(5), atol=1e-10)


BAD = {
    "kind": ({"kind": "hesian"}, ArgumentError, "did you mean 'hessian'"),
    "method": ({"method": "dense"}, ArgumentError, "'auto', 'exact', 'lanczos'"),
    "no probes": ({"probes": 0}, ArgumentError, "probes=0: give an integer of at least 1"),
    "no order": ({"order": 0}, ArgumentError, "order=0"),
    "missing checkpoint": (
        {"steps": [10, 57]},
        ArgumentError,
        "step 57 was not saved; the nearest saved one is 100",
    ),
    "no steps": ({"steps": []}, ArgumentError, "chooses nothing"),
    "layer": ({"layers": ["al"]}, ArgumentError, "did you mean 'all'"),
    "seed": ({"rng": None}, ArgumentError, "rng=None"),
    "memory": ({"method": "lanczos", "memory": 1000}, ArgumentError, "Raise memory, lower order"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named_before_any_product(name):
    options, error, message = BAD[name]
    network = Dense(np.diag(np.arange(200.0)))
    with pytest.raises(error, match=message):
        hessian_spectrum(network, trajectory(network), **{"rng": 0, **options})
    assert network.products == 0


def test_another_network_and_a_loss_that_is_not_finite_are_refused():
    network = Dense(np.eye(5))
    with pytest.raises(SchemaError, match="5 weights and the trajectory 6"):
        hessian_spectrum(network, trajectory(Dense(np.eye(6))), rng=0)
    with pytest.raises(NonFiniteError, match="the loss is nan at replica 0, step 0"):
        hessian_spectrum(Dense(np.eye(5), loss=np.nan), trajectory(network), rng=0)


@pytest.mark.parametrize("method", ["exact", "lanczos"])
def test_a_curvature_that_is_not_finite_is_named_with_its_checkpoint(method):
    matrix = np.eye(5)
    matrix[2, 2] = np.nan
    run = trajectory(Dense(matrix), steps=(10,))
    message = "the curvature.* is not finite at replica 0, step 10, though the loss is finite"
    with pytest.raises(NonFiniteError, match=message):
        hessian_spectrum(Dense(matrix), run, method=method, rng=0)
    with pytest.raises(NonFiniteError, match=message):
        extreme_eigenpairs(Dense(matrix), run, top=1, rng=0)


def test_warns_when_threads_times_workers_exceed_the_cores():
    network = NETWORKS["logistic"]
    cores = len(os.sched_getaffinity(0))
    message = f"{cores + 1} dask workers x 1 threads exceed the {cores} cores"
    with dask.config.set(scheduler="threads", num_workers=cores + 1), pytest.warns(RuntimeWarning, match=message):
        hessian_spectrum(network, trajectory(network), rng=0)


def test_vectors_stay_within_the_stated_budget():
    n, budget = 100_000, 2**27

    class Diagonal:
        n_parameters = n

        def loss(self, weights):
            return 0.0

        def curvature(self, weights, kind="hessian"):
            scale = np.linspace(0, 1, n)
            matmat = lambda v: scale[:, None] * v  # noqa: E731
            return LinearOperator((n, n), matvec=lambda v: scale * v.ravel(), matmat=matmat, dtype=np.float64)

    run = trajectory_dataset(np.zeros((1, n)), step=[0])
    tracemalloc.start()
    hessian_spectrum(Diagonal(), run, probes=4, order=40, memory=budget, rng=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Well used, and not exceeded by more than a fifth.
    assert 0.5 * budget < peak < 1.2 * budget
