"""Curvature spectra against curvlinops and a PyHessian-style loop: one interleaved run, one thread, process CPU time.

    OMP_NUM_THREADS=1 python -m pytest tests/benchmarks/test_bench_hessian.py --benchmark-only -s

curvlinops and its requirements are installed with ``pip install --no-deps curvlinops-for-pytorch einops einconv
backpack-for-pytorch linear_operator jaxtyping wadler-lindig``; it must not pull in another torch.
"""

import time
import warnings

import numpy as np
import pytest

from trajstats import hessian_spectrum
from trajstats.data.schema import trajectory_dataset

torch = pytest.importorskip("torch")
PROBES, ORDER, EXAMPLES = 10, 80, 1000


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


def pyhessian_probe(module, loss_fn, x, y):
    """One probe of PyHessian's published algorithm: the gradient's graph is kept, one pass of modified Gram-Schmidt."""
    parameters = list(module.parameters())
    gradients = torch.autograd.grad(loss_fn(module(x), y), parameters, create_graph=True)

    def product(vector):
        return torch.autograd.grad(gradients, parameters, grad_outputs=vector, retain_graph=True)

    def inner(a, b):
        return sum((p * q).sum() for p, q in zip(a, b, strict=True))

    v = [torch.randint_like(p, high=2) * 2 - 1 for p in parameters]
    norm = inner(v, v) ** 0.5
    v = [p / norm for p in v]
    basis, alpha, beta = [v], [], []
    w = None
    for step in range(ORDER):
        if step:
            beta.append(inner(w, w).sqrt().item())
            v = [p / beta[-1] for p in w]
            basis.append(v)
        image = product(v)
        alpha.append(inner(image, v).item())
        w = [p - alpha[-1] * q for p, q in zip(image, v, strict=True)]
        if step:
            w = [p - beta[-1] * q for p, q in zip(w, basis[-2], strict=True)]
        for known in basis:
            along = inner(w, known)
            w = [p - along * q for p, q in zip(w, known, strict=True)]
    return np.linalg.eigvalsh(np.diag(alpha) + np.diag(beta, 1) + np.diag(beta, -1))


def curvlinops_probe(operator):
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    return fast_lanczos(operator, ORDER)


def jax_network(module, x, y):
    """Give the same network in JAX."""
    jax = pytest.importorskip("jax")
    from trainers.jax_adapter import JaxNetwork, cross_entropy

    def apply(p, inputs):
        for k in (0, 2):
            inputs = jax.numpy.tanh(inputs @ p[f"{k}.weight"].T + p[f"{k}.bias"])
        return inputs @ p["4.weight"].T + p["4.bias"]

    params = {name: p.detach().numpy() for name, p in module.named_parameters()}
    return JaxNetwork(apply, params, cross_entropy, (x.numpy(), y.numpy()))


@pytest.mark.benchmark(group="hessian")
def test_bench_spectrum_against_peers(benchmark):
    torch.set_num_threads(1)
    from trainers.torch_adapter import TorchNetwork

    module, x, y = mlp_a()
    loss_fn = torch.nn.CrossEntropyLoss()
    network = TorchNetwork(module, loss_fn, (x, y))
    run = trajectory_dataset(flat(module)[None], step=[0])
    options = {"method": "lanczos", "probes": PROBES, "order": ORDER, "rng": 0}

    in_jax = jax_network(module, x, y)

    def plain(of=network):
        of._latest = None
        hessian_spectrum(of, run, deflate=False, **options)

    def deflated():
        network._latest = None
        hessian_spectrum(network, run, **options)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        curvlinops = pytest.importorskip("curvlinops")
        parameters = list(module.parameters())
        operator = curvlinops.HessianLinearOperator(module, loss_fn, parameters, [(x, y)], check_deterministic=False)
        # torch is traced and JAX compiled at the first checkpoint of a trajectory; what each one costs is timed.
        first = {"torch": cpu(plain)}
        for size in (1, 5):
            network.curvature(flat(module)).matmat(np.zeros((flat(module).size, size), np.float32))
        in_jax.curvature(flat(module)).matmat(np.zeros((flat(module).size, 5), np.float32))
        seconds = {"plain": [], "deflated": [], "jax": [], "curvlinops": [], "pyhessian": []}
        for _ in range(3):
            # A peer's probes are alike and one after the other: one tenth of its work is timed, and scaled.
            seconds["curvlinops"].append(PROBES * cpu(lambda: curvlinops_probe(operator)))
            seconds["plain"].append(cpu(plain))
            seconds["pyhessian"].append(PROBES * cpu(lambda: pyhessian_probe(module, loss_fn, x, y)))
            seconds["deflated"].append(cpu(deflated))
            seconds["jax"].append(cpu(lambda: plain(in_jax)))
    benchmark.pedantic(plain, rounds=1)
    print("first spectrum, with the trace:", first, {name: np.round(values, 2) for name, values in seconds.items()})
    best = {name: min(values) for name, values in seconds.items()}
    benchmark.extra_info.update(best)
    print({name: round(value, 2) for name, value in best.items()})
    for ours in ("plain", "deflated", "jax"):
        print(ours, "/ curvlinops", best[ours] / best["curvlinops"], "/ pyhessian", best[ours] / best["pyhessian"])
    benchmark.extra_info["target"] = "plain at most 0.45 curvlinops, 0.65 pyhessian"


@pytest.mark.benchmark(group="hessian")
@pytest.mark.parametrize(("framework", "most"), [("torch", 1.3), ("jax", 1.1)])
def test_bench_one_batched_product_in_gradients(benchmark, framework, most):
    module, x, y = mlp_a()
    if framework == "torch":
        from trainers.torch_adapter import TorchNetwork

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
def test_bench_two_workers_against_one(benchmark):
    """Wall clock: it needs two free cores. Eight checkpoints, two tasks of five probes each."""
    distributed = pytest.importorskip("distributed")
    from trainers.torch_adapter import TorchNetwork

    module, x, y = mlp_a()
    network = TorchNetwork(module, torch.nn.functional.cross_entropy, (x, y))
    run = trajectory_dataset(np.repeat(flat(module)[None], 8, axis=0), step=range(8))
    options = {"method": "lanczos", "probes": PROBES, "order": 20, "rng": 0, "deflate": False}
    seconds = {}
    for workers in (1, 2):
        with (
            distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster,
            distributed.Client(cluster),
        ):
            # every worker imports torch and compiles before the clock starts
            hessian_spectrum(network, run.isel(step=slice(0, 4)), **{**options, "order": 4})
            start = time.perf_counter()
            if workers == 1:
                hessian_spectrum(network, run, **options)
            else:
                benchmark.pedantic(lambda: hessian_spectrum(network, run, **options), rounds=1)
            seconds[workers] = time.perf_counter() - start
    benchmark.extra_info["one worker over two, wall clock"] = seconds[1] / seconds[2]
    print(seconds, "one over two:", seconds[1] / seconds[2])
    benchmark.extra_info["target"] = "at least 1.7"
