"""Do the stated intervals of curvature spectra cover, and is the accuracy what is claimed? Known spectra only."""

import numpy as np
import pytest
from scipy.sparse.linalg import LinearOperator
from scipy.stats import wasserstein_distance

from trajstats import hessian_spectrum, spectral_density, spectral_summary
from trajstats.data.schema import trajectory_dataset

SEEDS = 100


class Diagonal:
    """A curvature in its own eigenbasis: probes uniform on the sphere do not notice the rotation."""

    def __init__(self, eigenvalues):
        self.eigenvalues = eigenvalues
        self.n_parameters = len(eigenvalues)

    def loss(self, weights):
        return 0.0

    def curvature(self, weights, kind="hessian"):
        n, scale = self.n_parameters, self.eigenvalues
        return LinearOperator(
            (n, n), matvec=lambda v: scale * v.ravel(), matmat=lambda v: scale[:, None] * v, dtype=np.float64
        )


def spiked_wishart(n, seed):
    z = np.random.default_rng(seed).standard_normal((n, n))
    spikes = np.zeros(n)
    spikes[:3] = 5, 4, 3
    return np.linalg.eigvalsh(np.diag(spikes) + z @ z.T / n)


def spectrum(eigenvalues, method="lanczos", seed=0, **options):
    run = trajectory_dataset(np.zeros((1, len(eigenvalues))), step=[0])
    return hessian_spectrum(Diagonal(eigenvalues), run, method=method, rng=seed, **options)


@pytest.mark.slow
def test_bands_cover_the_smoothed_density_and_the_trace():
    inside, traces, flats = [], 0, 0
    for seed in range(SEEDS):
        eigenvalues = spiked_wishart(500, 1000 + seed)
        found = spectrum(eigenvalues, seed=seed)
        band = spectral_density(found, scale="linear", points=100).isel(replica=0, step=0)
        width, grid = band.attrs["width"], band.eigenvalue.values
        exact = np.exp(-(((grid[:, None] - eigenvalues) / width) ** 2) / 2).mean(axis=1) / (width * np.sqrt(2 * np.pi))
        # Where the smoothed density is the kernel's far tail there is nothing to cover.
        seen = exact > 1e-6 * exact.max()
        ok = (band.low.values <= exact * (1 + 1e-9)) & (exact <= band.high.values * (1 + 1e-9))
        inside.append(ok[seen])
        summary = spectral_summary(found, eps=0.05, relative=False)
        traces += bool(summary.trace_low <= eigenvalues.sum() <= summary.trace_high)
        flat = (np.abs(eigenvalues) < 0.05).mean()
        flats += bool(summary.flat_fraction_low <= flat <= summary.flat_fraction_high)
    print("density:", np.concatenate(inside).mean(), "trace:", traces, "flat:", flats)
    assert np.concatenate(inside).mean() >= 0.90
    # 100 draws at 95 %: outside 90 to 99 with probability 1.8 %.
    assert 90 <= traces <= 99
    # The bounds of quadrature come on top of chance.
    assert flats >= 90


@pytest.mark.slow
def test_outliers_of_the_spiked_wishart_are_where_theory_puts_them():
    # diag(theta) + Z Z^T / n, free addition with Marchenko-Pastur of ratio 1: theta -> theta + 1 / (1 - G(theta)) for
    # G the Cauchy transform's inverse R(g) = 1 / (1 - g), so lambda = theta + R(1 / theta) = theta + theta/(theta - 1).
    n = 500
    found = []
    for seed in range(20):
        eigenvalues = spiked_wishart(n, seed)
        nodes = spectrum(eigenvalues, seed=seed)
        found.append(np.sort(nodes.nodes.values[0, 0, 0])[-3:])
        np.testing.assert_allclose(found[-1], eigenvalues[-3:], rtol=1e-8)
    theory = np.array([3 + 3 / 2, 4 + 4 / 3, 5 + 5 / 4])
    error = np.std(found, axis=0) / np.sqrt(20)
    # The mean is off by O(1 / n) beside the standard error.
    assert (np.abs(np.mean(found, axis=0) - theory) < 4 * error + 10 / n).all()


@pytest.mark.slow
def test_accuracy_on_a_trained_net_at_eight_hundred_products():
    torch = pytest.importorskip("torch")
    datasets = pytest.importorskip("sklearn.datasets")
    from trajstats_trainers.torch.adapter import TorchNetwork

    torch.manual_seed(0)
    linear, tanh = torch.nn.Linear, torch.nn.Tanh
    module = torch.nn.Sequential(linear(64, 24), tanh(), linear(24, 16), tanh(), linear(16, 10))
    digits = datasets.load_digits()
    x, y = torch.tensor(digits.data[:1000] / 16, dtype=torch.float32), torch.tensor(digits.target[:1000])
    loss = torch.nn.functional.cross_entropy
    optimiser, generator = torch.optim.SGD(module.parameters(), lr=0.1), torch.Generator().manual_seed(1)
    for _ in range(1000):
        rows = torch.randint(0, 1000, (50,), generator=generator)
        optimiser.zero_grad()
        loss(module(x[rows]), y[rows]).backward()
        optimiser.step()
    weights = np.concatenate([p.detach().numpy().ravel() for p in module.parameters()])
    assert weights.size == 2130
    exact = TorchNetwork(module, loss, (x, y), dtype="float64")
    run = trajectory_dataset(weights[None], step=[1000], layers=exact.layers)
    known = hessian_spectrum(exact, run, method="exact", rng=0).nodes.values.ravel()
    network = TorchNetwork(module, loss, (x, y))
    errors = []
    for seed in range(20):
        found = hessian_spectrum(network, run, method="lanczos", rng=seed)
        nodes, shares = found.nodes.values.ravel(), found.weights.values.ravel() / 10
        trace, frobenius = 2130 * shares @ nodes, np.sqrt(2130 * shares @ nodes**2)
        distance = wasserstein_distance(nodes, known, shares, np.ones(2130)) / np.ptp(known)
        errors.append([distance, abs(trace / known.sum() - 1), abs(frobenius / np.linalg.norm(known) - 1)])
    mean = np.mean(errors, axis=0)
    print("Wasserstein-1 / range, trace, Frobenius:", mean)
    assert (mean <= [1.5e-4, 1e-2, 2e-3]).all(), mean
