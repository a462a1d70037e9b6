"""Curvature spectra against curvlinops and a PyHessian-style loop: one interleaved run, one thread, process CPU time.

    OMP_NUM_THREADS=1 python -m pytest tests/benchmarks/test_bench_hessian.py --benchmark-only -s

curvlinops and its requirements are installed with ``pip install --no-deps curvlinops-for-pytorch einops einconv
backpack-for-pytorch linear_operator jaxtyping wadler-lindig``; it must not pull in another torch.
"""

import os
import time
import warnings

import numpy as np
import pytest

from trajstats import hessian_spectrum
from trajstats.data.schema import trajectory_dataset

torch = pytest.importorskip("torch")
PROBES, ORDER, EXAMPLES = 10, 80, 1000
CHECKPOINTS = 3


def mlp_a():
    torch.manual_seed(0)
    linear, tanh = torch.nn.Linear, torch.nn.Tanh
    module = torch.nn.Sequential(linear(784, 128), tanh(), linear(128, 128), tanh(), linear(128, 10))
    return module, torch.randn(EXAMPLES, 784), torch.randint(0, 10, (EXAMPLES,))


def flat(module):
    return np.concatenate([p.detach().numpy().ravel() for p in module.parameters()])


def cpu(function):
    start = time.process_time()
    function()
    return time.process_time() - start


def kept_graph(module, loss_fn, x, y):
    """What PyHessian keeps of a batch, for all its probes: the parameters, and the gradients with their graph."""
    parameters = list(module.parameters())
    return parameters, torch.autograd.grad(loss_fn(module(x), y), parameters, create_graph=True)


def pyhessian_probe(parameters, gradients):
    """One probe as `density` of PyHessian 0.1 takes it, operation by operation; torch has dropped its `torch.eig`."""

    def inner(a, b):
        return sum(torch.sum(p * q) for p, q in zip(a, b, strict=True))

    def add(a, b, alpha):
        for p, q in zip(a, b, strict=True):
            p.data.add_(q * alpha)
        return a

    def normalised(a):
        norm = (inner(a, a) ** 0.5).cpu().item()
        return [p / (norm + 1e-6) for p in a]

    v = [torch.randint_like(p, high=2) for p in parameters]
    for p in v:
        p[p == 0] = -1
    v = normalised(v)
    basis, alphas, betas, w = [v], [], [], None
    for step in range(ORDER):
        if step:
            beta = torch.sqrt(inner(w, w))
            betas.append(beta.cpu().item())
            for known in basis:
                w = add(w, known, -inner(w, known))
            v = normalised(w)
            basis.append(v)
        image = torch.autograd.grad(gradients, parameters, grad_outputs=v, only_inputs=True, retain_graph=True)
        alpha = inner(image, v)
        alphas.append(alpha.cpu().item())
        w = add(list(image), v, -alpha)
        if step:
            w = add(w, basis[-2], -beta)
    return np.linalg.eigh(np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1))


def curvlinops_probe(operator):
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    return fast_lanczos(operator, ORDER)


def jax_network(module, x, y):
    """Give the same network in JAX."""
    jax = pytest.importorskip("jax")
    from trajstats_trainers.jax.adapter import JaxNetwork, cross_entropy

    def apply(p, inputs):
        for k in (0, 2):
            inputs = jax.numpy.tanh(inputs @ p[f"{k}.weight"].T + p[f"{k}.bias"])
        return inputs @ p["4.weight"].T + p["4.bias"]

    params = {name: p.detach().numpy() for name, p in module.named_parameters()}
    return JaxNetwork(apply, params, cross_entropy, (x.numpy(), y.numpy()))


@pytest.mark.benchmark(group="hessian")
def test_bench_spectrum_against_peers(benchmark):
    torch.set_num_threads(1)
    from trajstats_trainers.torch.adapter import TorchNetwork

    module, x, y = mlp_a()
    loss_fn = torch.nn.CrossEntropyLoss()
    network = TorchNetwork(module, loss_fn, (x, y))
    shifts = 0.01 * np.random.default_rng(0).standard_normal((CHECKPOINTS, flat(module).size)).astype(np.float32)
    run = trajectory_dataset(flat(module) + shifts, step=range(CHECKPOINTS), layers=network.layers)
    options = {"method": "lanczos", "probes": PROBES, "order": ORDER, "rng": 0}

    in_jax = jax_network(module, x, y)
    kept = []

    def spectra(of, steps=None, **more):
        of._latest.clear()
        hessian_spectrum(of, run, steps=steps, **options, **more)

    def each(of, **more):
        """CPU seconds of one checkpoint of the trajectory."""
        return cpu(lambda: spectra(of, **more)) / CHECKPOINTS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        curvlinops = pytest.importorskip("curvlinops")
        parameters = list(module.parameters())
        operator = curvlinops.HessianLinearOperator(module, loss_fn, parameters, [(x, y)], check_deterministic=False)
        # torch is traced and JAX compiled at the first checkpoint of a trajectory; what each one costs is timed.
        first = {"torch": cpu(lambda: spectra(network, [0], deflate=False))}
        for size in (1, 5):
            network.curvature(flat(module)).matmat(np.zeros((flat(module).size, size), np.float32))
        in_jax.curvature(flat(module)).matmat(np.zeros((flat(module).size, 5), np.float32))
        seconds = {name: [] for name in ("plain", "deflated", "jax", "alone", "curvlinops", "pyhessian")}
        for _ in range(5):
            # A peer's probes are alike and one after the other: one tenth of its work is timed, and scaled.
            seconds["curvlinops"].append(PROBES * cpu(lambda: curvlinops_probe(operator)))
            seconds["plain"].append(each(network, deflate=False))
            once = cpu(lambda: kept.__setitem__(slice(None), kept_graph(module, loss_fn, x, y)))
            seconds["pyhessian"].append(once + PROBES * cpu(lambda: pyhessian_probe(*kept)))
            seconds["deflated"].append(each(network))
            seconds["jax"].append(each(in_jax, deflate=False))
            # A call for a single checkpoint pays by itself for the memory of the Lanczos vectors.
            seconds["alone"].append(cpu(lambda: spectra(network, [0], deflate=False)))
    benchmark.pedantic(lambda: spectra(network, [0], deflate=False), rounds=1)
    print("first spectrum, with the trace:", first, {name: np.round(values, 2) for name, values in seconds.items()})
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    benchmark.extra_info.update(median)
    print("medians:", {name: round(value, 2) for name, value in median.items()}, "load:", os.getloadavg())
    for ours in ("plain", "deflated", "jax", "alone"):
        for peer in ("curvlinops", "pyhessian"):
            ratio = np.divide(seconds[ours], seconds[peer])
            print(f"{ours} / {peer}: {np.median(ratio):.3f} ({ratio.min():.3f} to {ratio.max():.3f})")
    benchmark.extra_info["target"] = "plain at most 0.45 curvlinops, 0.65 pyhessian"


@pytest.mark.benchmark(group="hessian")
@pytest.mark.parametrize(("framework", "most"), [("torch", 1.3), ("jax", 1.1)])
def test_bench_one_batched_product_in_gradients(benchmark, framework, most):
    module, x, y = mlp_a()
    if framework == "torch":
        from trajstats_trainers.torch.adapter import TorchNetwork

        network = TorchNetwork(module, torch.nn.functional.cross_entropy, (x, y))
    else:
        network = jax_network(module, x, y)
    w = flat(module)
    operator = network.curvature(w)
    vectors = np.random.default_rng(0).standard_normal((5, w.size)).astype(np.float32).T
    operator.matmat(vectors)
    network.gradient(w)
    gradient, product = [], []
    for _ in range(15):
        gradient.append(cpu(lambda: network.gradient(w)))
        product.append(cpu(lambda: operator.matmat(vectors)) / 5)
    benchmark.pedantic(lambda: operator.matmat(vectors), rounds=1)
    ratio = np.median(product) / np.median(gradient)
    benchmark.extra_info["gradients per product"] = ratio
    print(framework, "gradients per product:", ratio)
    benchmark.extra_info["target"] = most


@pytest.mark.benchmark(group="hessian")
@pytest.mark.parametrize("deflate", [False, True])
def test_bench_two_workers_against_one(benchmark, deflate):
    """Wall clock: it needs two free cores. Eight checkpoints, two tasks of five probes each."""
    distributed = pytest.importorskip("distributed")
    from trajstats_trainers.torch.adapter import TorchNetwork

    module, x, y = mlp_a()
    network = TorchNetwork(module, torch.nn.functional.cross_entropy, (x, y))
    run = trajectory_dataset(np.repeat(flat(module)[None], 8, axis=0), step=range(8), layers=network.layers)
    options = {"method": "lanczos", "probes": PROBES, "order": ORDER, "rng": 0, "deflate": deflate}
    seconds = {1: [], 2: []}

    def timed(workers):
        with (
            distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster,
            distributed.Client(cluster),
        ):
            # every worker imports torch and compiles before the clock starts
            hessian_spectrum(network, run, **{**options, "order": 8})
            start = time.perf_counter()
            hessian_spectrum(network, run, **options)
            seconds[workers].append(time.perf_counter() - start)

    for workers in (1, 2, 2, 1):
        timed(workers)
    benchmark.pedantic(lambda: timed(2), rounds=1)
    ratio = np.median(seconds[1]) / np.median(seconds[2])
    benchmark.extra_info["one worker over two, wall clock"] = ratio
    print(seconds, "one over two:", ratio)
    benchmark.extra_info["target"] = "at least 1.7"
