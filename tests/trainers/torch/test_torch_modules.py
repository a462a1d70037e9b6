"""Every derivative of the modules that people bring, against torch's record of plain operations."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from trajstats_trainers.torch import _derivatives as torch_derivatives
from trajstats_trainers.torch import _trace as torch_trace
from trajstats_trainers.torch.adapter import TorchNetwork

from trajstats import UnsupportedError, gradient_noise, hessian_spectrum, trajectory_dataset

TOLERANCE = {"float64": 1e-10, "float32": 1e-5}
RNG = np.random.default_rng(0)
SEQUENCES, VECTORS = RNG.standard_normal((6, 5, 4)), RNG.standard_normal((6, 4))
TOKENS, LABELS = RNG.integers(0, 7, (6, 5)), RNG.integers(0, 3, 6)


class Pooled(nn.Module):
    """A sequence model, the mean over its outputs, and a linear readout."""

    def __init__(self, core, width=4):
        super().__init__()
        self.core, self.out = core, nn.Linear(width, 3)

    def forward(self, x):
        z = self.core(x)
        return self.out((z[0] if isinstance(z, tuple) else z).mean(1))


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        self.project, self.out = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x):
        q, k, v = (part[:, None] for part in self.project(x).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v, None, 0.0, True)[:, 0].mean(1))


class Straight(torch.autograd.Function):
    """A custom function of the old form, which torch cannot transform."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, g):
        return g * (1 - torch.tanh(ctx.saved_tensors[0]) ** 2)


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.second(Straight.apply(self.first(x)))


class InPlace(Custom):
    def forward(self, x):
        return self.second(self.first(x).mul_(2).tanh_())


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.out(torch.tanh(self.second(torch.tanh(self.first(x)))))


def mlp(wrap=lambda layer: layer, last=lambda layer: layer):
    return nn.Sequential(wrap(nn.Linear(4, 5)), nn.Tanh(), last(nn.Linear(5, 3)))


def convolution():
    return nn.Sequential(nn.Conv1d(5, 3, 3), nn.SiLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(3, 3))


def norms():
    module = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.GroupNorm(2, 6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 3)
    )
    module[1].running_mean += 0.3
    return module


MODULES = {
    "LSTM": (lambda: Pooled(nn.LSTM(4, 2, batch_first=True), 2), SEQUENCES[:, :2]),
    "GRU": (lambda: Pooled(nn.GRU(4, 2, bidirectional=True, batch_first=True)), SEQUENCES[:, :2]),
    "RNN": (lambda: Pooled(nn.RNN(4, 3, batch_first=True), 3), SEQUENCES[:, :2]),
    "MultiheadAttention": (SelfAttention, SEQUENCES),
    "TransformerEncoderLayer": (lambda: Pooled(nn.TransformerEncoderLayer(4, 2, 3, batch_first=True)), SEQUENCES),
    "fused attention": (Fused, SEQUENCES),
    "embedding": (lambda: Pooled(nn.Embedding(7, 4)), TOKENS),
    "sparse embedding": (lambda: Pooled(nn.Embedding(7, 4, sparse=True)), TOKENS),
    "convolution": (convolution, SEQUENCES),
    "norms": (norms, VECTORS),
    "weight_norm": (lambda: mlp(nn.utils.parametrizations.weight_norm), VECTORS),
    "spectral_norm": (lambda: mlp(nn.utils.parametrizations.spectral_norm), VECTORS),
    "orthogonal": (lambda: mlp(last=nn.utils.parametrizations.orthogonal), VECTORS),
    "custom function": (Custom, VECTORS),
    "in place": (InPlace, VECTORS),
    "tied": (Tied, VECTORS),
    "DataParallel": (lambda: nn.Sequential(nn.DataParallel(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)), VECTORS),
    "compiled": (lambda: torch.compile(mlp(), backend="eager"), VECTORS),
}  # fmt: skip


def made(name, dtype="float64", **options):
    torch.manual_seed(0)
    make, x = MODULES[name]
    network = TorchNetwork(make(), F.cross_entropy, (x, LABELS), dtype=dtype, **options)
    w = np.concatenate([p.double().numpy().ravel() for p in network.module.parameters()])
    return network, w, x


class Reference:
    """Derivatives in float64 by torch.autograd, on a module without fused operations."""

    def __init__(self, network, w, x):
        self.module = copy.deepcopy(network.module).double()
        for p in self.module.parameters():
            p.requires_grad_()
        self.shapes = {name: p.shape for name, p in self.module.named_parameters()}
        self.w = torch.tensor(w, requires_grad=True)
        self.x, self.y = torch.tensor(x), torch.tensor(LABELS)

    def outputs(self, w, x):
        parts = torch.split(w, [shape.numel() for shape in self.shapes.values()])
        named = {name: part.reshape(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}
        # torch's second derivative of its fused weight_norm takes the norm for a constant.
        with torch_derivatives.Unfused(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return torch.func.functional_call(self.module, named, (x,))

    def jacobian(self):
        return torch.autograd.functional.jacobian(lambda w: self.outputs(w, self.x), self.w).numpy()

    def hessian(self):
        loss = lambda w: F.cross_entropy(self.outputs(w, self.x), self.y)  # noqa: E731
        return torch.autograd.functional.hessian(loss, self.w).numpy()

    def example_gradients(self):
        each = lambda w: F.cross_entropy(self.outputs(w, self.x), self.y, reduction="none")  # noqa: E731
        return torch.autograd.functional.jacobian(each, self.w).numpy()

    def curves(self):
        p = torch.softmax(self.outputs(self.w, self.x), dim=1).detach()
        return (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]).numpy()

    def input_jacobian(self):
        found = [torch.autograd.functional.jacobian(lambda a: self.outputs(self.w, a[None])[0], a) for a in self.x]
        return torch.stack(found).reshape(len(self.x), 3, -1).detach().numpy()


def close(found, known, dtype):
    np.testing.assert_allclose(found, known, rtol=0, atol=TOLERANCE[dtype] * np.abs(known).max())


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", MODULES)
def test_every_derivative_of_every_module(name, dtype):
    network, w, x = made(name, dtype)
    known = Reference(network, w, x)
    hessian, jacobian, each = known.hessian(), known.jacobian(), known.example_gradients()
    eye = np.eye(len(w))
    close(network.curvature(w).matmat(eye), hessian, dtype)
    close(network.gradient(w), each.mean(axis=0), dtype)
    close(network.example_gradients(w, np.arange(6)), each, dtype)
    if dtype == "float32" and name not in ("LSTM", "fused attention"):
        return
    gauss_newton = np.einsum("aop,aoq,aqr->pr", jacobian, known.curves(), jacobian) / 6
    close(network.curvature(w, "gauss_newton").matmat(eye), gauss_newton, dtype)
    close(network.curvature(w, "fisher").matmat(eye), each.T @ each / 6, dtype)
    close(network.output_jvp(w, x, eye).transpose(1, 2, 0), jacobian, dtype)
    cotangents = RNG.standard_normal((6, 3))
    close(network.output_vjp(w, x, cotangents), np.einsum("ao,aop->ap", cotangents, jacobian), dtype)
    if x is not TOKENS:
        found = network.input_jacobian(w, x)
        close(found, known.input_jacobian(), dtype)
        operator = network.jacobian_operator(w, x[1])
        close(operator.matmat(np.eye(found.shape[2])), found[1], dtype)
        close(operator.rmatmat(np.eye(3)), found[1].T, dtype)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_mse_loss_does_not_end_the_process(reduction):
    code = f"""
import numpy as np, torch, trajstats as ts
from trajstats_trainers.torch.adapter import TorchNetwork
from trajstats_trainers.torch._derivatives import derivative

torch.manual_seed(0)
module = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).double()
x, y = torch.randn(10, 4).double(), torch.randn(10, 3).double()
flat = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
loss = torch.nn.MSELoss(reduction="{reduction}")
network = TorchNetwork(module, loss, (x, y), reduction="{reduction}", dtype="float64")
known = torch.autograd.functional.hessian(lambda w: network._data_loss(w, x, y), flat).numpy()
run = ts.trajectory_dataset(flat.numpy()[None], step=[0], layers=network.layers)
spectrum = ts.hessian_spectrum(network, run, method="exact", rng=0)
np.testing.assert_allclose(np.sort(spectrum.nodes.values.ravel()), np.linalg.eigvalsh(known), atol=1e-13)
assert network._ways["hessian"] == "forward"
assert all(traced is not None for traced in network._traced.values())
loss = lambda w: network._data_loss(w, x, y)
along = derivative(torch.func.grad(loss), flat)(torch.eye(len(flat), dtype=flat.dtype))
np.testing.assert_allclose(along.numpy(), known, atol=1e-13)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200)


def test_recurrent_nets_have_noise_and_a_spectrum():
    network, w, _ = made("LSTM")
    run = trajectory_dataset(w[None], step=[0], layers=network.layers)
    noise = gradient_noise(network, run, of="sample", per="all")
    each = network.example_gradients(w, np.arange(6))
    np.testing.assert_allclose(noise.D2.values, [[each.var(axis=0).sum()]], rtol=1e-12)
    assert hessian_spectrum(network, run, rng=0).nodes.size


@pytest.mark.parametrize("missing", ["make_fx", "dispatch", "attention"])
def test_without_the_private_parts_of_torch_plain_products_serve(missing, monkeypatch):
    known = made("weight_norm")[0]
    if missing == "make_fx":
        monkeypatch.setattr(torch_trace, "make_fx", None)
    elif missing == "dispatch":
        monkeypatch.setattr(torch_derivatives.RealZeros, "__enter__", None)
    else:
        monkeypatch.delattr(torch.ops.aten, "_scaled_dot_product_attention_math", raising=False)
    network, w, _ = made("weight_norm")
    found = network.curvature(w).matmat(np.eye(len(w)))
    assert network._ways["hessian"] == ("recorded" if missing == "dispatch" else "forward")
    assert missing == "attention" or set(network._traced.values()) <= {None}
    monkeypatch.undo()
    np.testing.assert_allclose(found, known.curvature(w).matmat(np.eye(len(w))), atol=1e-14)


def test_a_module_that_hangs_on_a_record_is_copied():
    torch.manual_seed(0)
    with pytest.warns(FutureWarning):
        module = mlp(nn.utils.weight_norm)
    module(torch.zeros(1, 4)).sum().backward()
    network = TorchNetwork(module, F.cross_entropy, (VECTORS, LABELS), dtype="float64")
    w = np.concatenate([p.double().numpy().ravel() for p in network.module.parameters()])
    np.testing.assert_allclose(network.outputs(w, VECTORS), module.double()(torch.tensor(VECTORS)).detach(), atol=1e-12)
    network.curvature(w + 0.1).matmat(np.eye(len(w)))


def test_a_module_that_cannot_be_copied_is_named():
    module = mlp()
    module.stream = sys.stdout
    with pytest.raises(UnsupportedError, match=r"Sequential cannot be copied: cannot pickle .* object"):
        TorchNetwork(module, F.cross_entropy, (VECTORS, LABELS))


class Wrong(torch.autograd.Function):
    """Its gradient is right, and the derivative of that is not."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        return g.detach() * 3 * ctx.saved_tensors[0] ** 2


def test_a_second_derivative_that_is_not_symmetric_is_refused(monkeypatch):
    monkeypatch.setattr(Custom, "forward", lambda self, x: self.second(Wrong.apply(self.first(x))))
    network, w, _ = made("custom function")
    with pytest.raises(UnsupportedError, match=r"not symmetric.*finite_difference"):
        network.curvature(w)


class Heads(Custom):
    """Several outputs, one of which has its examples along the second axis."""

    def __init__(self):
        super().__init__()
        self.core = nn.LSTM(4, 2, batch_first=True)

    def forward(self, x):
        z, (hidden, _) = self.core(x[:, None])
        return {"logits": self.second(torch.tanh(self.first(x))), "state": hidden, "none": None, "z": (z, 3)}


def heads_loss(out, targets):
    return F.cross_entropy(out["logits"], targets) + out["state"].square().mean() + out["z"][0].sin().mean()


def test_outputs_in_tuples_and_mappings():
    torch.manual_seed(0)
    network = TorchNetwork(Heads(), heads_loss, (VECTORS, LABELS), dtype="float64")
    w = np.concatenate([p.numpy().ravel() for p in network.module.parameters()])
    flat, x = torch.tensor(w), network._inputs

    def outputs(u):
        out = network._outputs(u, x)
        return torch.cat([out["logits"], out["state"][0], out["z"][0][:, 0]], dim=1)

    def loss(z):
        return F.cross_entropy(z[:, :3], network._targets) + z[:, 3:5].square().mean() + z[:, 5:].sin().mean()

    jacobian = torch.autograd.functional.jacobian(outputs, flat).numpy()
    curve = torch.autograd.functional.hessian(loss, outputs(flat).detach()).numpy()
    hessian = torch.autograd.functional.hessian(lambda u: loss(outputs(u)), flat).numpy()
    eye = np.eye(len(w))
    assert network.n_outputs == 7
    np.testing.assert_allclose(network.outputs(w, VECTORS), outputs(flat).detach(), atol=1e-14)
    close(network.output_jvp(w, VECTORS, eye).transpose(1, 2, 0), jacobian, "float64")
    close(network.curvature(w).matmat(eye), hessian, "float64")
    gauss_newton = np.einsum("aop,aobq,bqr->pr", jacobian, curve, jacobian)
    close(network.curvature(w, "gauss_newton").matmat(eye), gauss_newton, "float64")
    each = network.example_gradients(w, np.arange(6))
    close(network.curvature(w, "fisher").matmat(eye), each.T @ each / 6, "float64")
    assert network.input_jacobian(w, VECTORS).shape == (6, 7, 4)
    assert network.features(w, VECTORS, "core").shape == (6, 2)
