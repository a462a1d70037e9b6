"""TorchNetwork: the Network protocol for any torch module."""

from __future__ import annotations

import copy
import functools
import math
import threading
import uuid
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch.func import functional_call, jvp

from trajstats.errors import ArgumentError, UnsupportedError, unknown_name_message
from trajstats.network import CurvatureKind
from trajstats.runtime._threads import torch_threads
from trajstats_trainers.networks import VECTORS_PER_CALL, FrameworkNetwork
from trajstats_trainers.torch._batches import each_gradient, input_jacobians
from trajstats_trainers.torch._curvature import TorchCurvature, held_buffers
from trajstats_trainers.torch._derivatives import derivative, gradient_of, some_rows, transposed
from trajstats_trainers.torch._losses import SeenLosses, own_loss
from trajstats_trainers.torch._modules import own_copy
from trajstats_trainers.torch._outputs import Outputs

ELEMENTWISE = (
    torch.nn.Tanh,
    torch.nn.ReLU,
    torch.nn.Sigmoid,
    torch.nn.Identity,
    torch.nn.GELU,
    torch.nn.SiLU,
    torch.nn.Softplus,
    torch.nn.LeakyReLU,
    torch.nn.ELU,
    torch.nn.Hardtanh,
)

with warnings.catch_warnings():
    # The first forward-mode derivative loads decompositions through torch.jit.script, which warns.
    warnings.simplefilter("ignore", DeprecationWarning)
    jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))


class TorchNetwork(FrameworkNetwork):
    r"""A torch module, its loss and its data as a function of the flat weight vector.

    :math:`L(w)=\frac1n\sum_a\ell(f_w(x_a),y_a)+\lambda\sum_iw_i^2`. The flat vector is the module's parameters in the
    order of ``named_parameters``, each in C order; tied parameters appear once. The module is copied and put in
    evaluation mode: dropout is off and batch norms use their running statistics, those of the module until
    `with_buffers` gives others (as estimators do, of each checkpoint of a run that holds them). Threads may share a
    network: each works on a copy of the module's structure, made at its first call, with the same tensors.

    Parameters
    ----------
    module : torch.nn.Module
        The model: inputs (b, ...) to outputs (b, n_outputs), or to tuples or mappings of them, which `loss_fn` takes.
    loss_fn : callable (outputs, targets) -> scalar tensor
        Mean (or sum, see `reduction`) over the batch.
    data : (inputs, targets)
        Arrays or tensors whose first axis is the example.
    l2 : float
        The factor :math:`\lambda` of the L2 term.
    reduction : str
        ``"mean"`` or ``"sum"``: what `loss_fn` does over the batch.
    weight : array (n,) or callable (targets) -> array (n,), optional
        What each example counts in the mean, if `loss_fn` averages over tokens that are not padding, or by class
        weights, instead of over examples: the loss of a batch is :math:`\sum_ac_a\ell_a/\sum_ac_a`. With it no result
        depends on `batch_size` or `memory`. Found by itself where `loss_fn` calls torch's cross-entropy or
        NLL loss. Whether the loss of a few examples follows from
        those of two parts of them is checked when the network is made.
    dtype : str
        ``"float32"`` or ``"float64"``.
    batch_size : int
        Examples evaluated at once.
    threads : int, optional
        Torch threads during a call; the process's setting is restored after it. None leaves it alone.
    memory : int
        Budget in bytes for the activations and tangents of a curvature product.
    products : str
        How curvature products are made: ``"exact"`` by differentiating twice, ``"finite_difference"`` from gradients
        (relative error about 1e-9 in float64, 1e-4 in float32), for operations that cannot be differentiated twice.

    Raises
    ------
    ArgumentError
        If `reduction`, `dtype` or `products` is not known, inputs and targets differ in length, or the loss of a few
        examples does not follow from those of two parts of them.

    Examples
    --------
    >>> module = torch.nn.Linear(2, 1, bias=False)
    >>> network = TorchNetwork(module, torch.nn.functional.mse_loss, (torch.eye(2), torch.ones(2, 1)))
    >>> network.loss(np.zeros(2)), network.gradient(np.zeros(2)).tolist()
    (1.0, [-1.0, -1.0])
    """

    def __init__(
        self,
        module: torch.nn.Module,
        loss_fn: Callable[[Any, Any], Any],
        data: tuple[Any, Any],
        *,
        l2: float = 0.0,
        reduction: str = "mean",
        weight: Any = None,
        dtype: str = "float32",
        batch_size: int = 5_000,
        threads: int | None = 1,
        memory: int = 2**28,
        products: str = "exact",
    ) -> None:
        self._torch_dtype = getattr(torch, np.dtype(dtype).name, None)
        super().__init__(
            own_loss(loss_fn, self._torch_dtype),
            data,
            l2=l2,
            reduction=reduction,
            dtype=dtype,
            batch_size=batch_size,
            memory=memory,
            products=products,
        )
        self.module = own_copy(module).to("cpu", self._torch_dtype).eval()
        self._free = self._mask(self.module)
        self.module.requires_grad_(False)
        self._here = threading.local()
        self.threads = threads
        self._known: dict[str, Outputs] = {}
        # Which ways of differentiating were right, by what is differentiated.
        self._ways: dict[Any, str] = {}
        # Products that were traced, by kind and shapes; and the name by which copies in other processes share theirs.
        self._traced: dict[Any, Any] = {}
        self._name = uuid.uuid4().hex
        self._targets = _targets(self._targets)
        self._layers = {name: tuple(p.shape) for name, p in self.module.named_parameters()}
        self._tied = _other_names(self.module)
        kept = self.module.state_dict().keys()
        self._buffers = {name: tuple(b.shape) for name, b in self.module.named_buffers() if name in kept}
        with torch.no_grad():
            self._start = torch.cat([p.reshape(-1) for p in self.module.parameters()])
            # Nearby, where the outputs of different examples differ even if the weights given are all zero.
            size = 0.1 * (self._start.square().mean().sqrt() or 1)
            self._start = self._start + size * some_rows(1, self._start)[0]
        self._settle(weight)
        del self._start

    def __getstate__(self) -> dict[str, Any]:
        return {name: kept for name, kept in super().__getstate__().items() if name != "_here"} | {"_traced": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._here = threading.local()

    @property
    def _own(self) -> torch.nn.Module:
        # A call puts its weights into the module while it runs. In one for all threads they would meet each other's,
        # and one sent to another process meanwhile would hold them, or tensors that cannot be sent.
        if not hasattr(self._here, "module"):
            shared = {id(tensor): tensor for tensor in (*self.module.parameters(), *self.module.buffers())}
            self._here.module = copy.deepcopy(self.module, shared)
        return self._here.module

    def _mask(self, module: torch.nn.Module) -> torch.Tensor | None:
        # 1 where a parameter is trained, 0 where it is frozen; None where all are trained.
        if all(p.requires_grad for p in module.parameters()):
            return None
        parts = [torch.full((p.numel(),), float(p.requires_grad)) for p in module.parameters()]
        return torch.cat(parts).to(self._torch_dtype)

    @property
    def tied(self) -> Mapping[str, str]:
        """Further names of tensors that have several, with the one in `layers` or `buffers`."""
        return self._tied

    @property
    def n_outputs(self) -> int:
        """Outputs of one example."""
        return self._layout.width

    @property
    def _layout(self) -> Outputs:
        # Shared, as the ways are, with the networks that `with_buffers` makes.
        if "outputs" not in self._known:
            with torch_threads(self.threads), torch.no_grad():
                two = torch.arange(2) % self.n_examples
                self._known["outputs"] = Outputs(self._own(self._inputs[two[:1]]), self._own(self._inputs[two]))
        return self._known["outputs"]

    def loss(self, weights: np.ndarray) -> float:
        """Evaluate the loss over the data set, in batches."""
        with torch_threads(self.threads), torch.no_grad():
            w = self._flat(weights)
            total = sum(share * float(self._data_loss(w, x, y)) for share, x, y in self._batches())
            return total + self.l2 * float(w @ w)

    def gradient(self, weights: np.ndarray, indices: np.ndarray | None = None) -> np.ndarray:
        """Differentiate the loss over all examples, or over those at `indices`: (n_parameters,)."""
        with torch_threads(self.threads):
            w = self._flat(weights)
            total = 2 * self.l2 * w
            for share, x, y in self._batches(indices):
                total = total + share * gradient_of(self._loss_of(x, y), w)
            return (total if self._free is None else total * self._free).numpy()

    def example_gradients(self, weights: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Differentiate each example's share of the loss: (b, n_parameters), no L2 term; their mean is the gradient."""
        with torch_threads(self.threads):
            w = self._flat(weights)
            rows = np.asarray(indices)
            x, y = self._examples(rows)

            def example_loss(u: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
                return self._data_loss(u, a[None], b[None])

            counts = self._counts(rows)
            found = torch.zeros(len(rows), len(w), dtype=w.dtype)
            # An example without a target that counts has no loss of its own.
            there = torch.from_numpy(np.flatnonzero(counts))
            if len(there):
                found[there] = each_gradient(example_loss, w, (x[there], y[there]), self._ways)
            found *= torch.from_numpy(counts.astype(self.dtype))[:, None]
            return (found if self._free is None else found * self._free).numpy()

    def outputs(self, weights: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """Evaluate the network: (b, n_outputs)."""
        with torch_threads(self.threads), torch.no_grad():
            return self._rows(self._flat(weights), self._cast(inputs)).numpy()

    def output_jvp(self, weights: np.ndarray, inputs: np.ndarray, tangents: np.ndarray) -> np.ndarray:
        """Differentiate the outputs along weight directions (k, n_parameters): (k, b, n_outputs)."""
        with torch_threads(self.threads):
            x = self._cast(inputs)
            along = derivative(lambda u: self._rows(u, x), self._flat(weights))
            rows = torch.from_numpy(np.array(tangents, dtype=self.dtype))
            return torch.cat([along(part) for part in torch.split(rows, VECTORS_PER_CALL)]).numpy()

    def output_vjp(self, weights: np.ndarray, inputs: np.ndarray, cotangents: np.ndarray) -> np.ndarray:
        """Differentiate c_a . f(x_a) with respect to the weights, cotangents c (b, n_outputs): (b, n_parameters)."""
        with torch_threads(self.threads):

            def output_along(u: torch.Tensor, a: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
                return self._rows(u, a[None])[0] @ c

            c = torch.from_numpy(np.array(cotangents, dtype=self.dtype))
            return each_gradient(output_along, self._flat(weights), (self._cast(inputs), c), self._ways).numpy()

    def features(self, weights: np.ndarray, inputs: np.ndarray, layer: str) -> np.ndarray:
        """Evaluate what the submodule called `layer` gives out: (b, width)."""
        modules = dict(self._own.named_modules())
        if layer not in modules:
            raise ArgumentError(unknown_name_message("layer", layer, [name for name in modules if name]))
        caught: list[torch.Tensor] = []

        def catch(_module: Any, _args: Any, out: Any) -> None:
            # Of a recurrent or an attention layer, what goes on to the next one.
            caught.append((out[0] if isinstance(out, tuple | list) else out).detach())

        handle = modules[layer].register_forward_hook(catch)
        try:
            with torch_threads(self.threads), torch.no_grad():
                self._outputs(self._flat(weights), self._cast(inputs))
        finally:
            handle.remove()
        return caught[-1].reshape(len(inputs), -1).numpy()

    def input_jacobian(self, weights: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """Differentiate outputs with respect to inputs: (b, n_outputs, n_inputs)."""
        with torch_threads(self.threads):
            w = self._flat(weights)

            def of(x: torch.Tensor) -> torch.Tensor:
                return self._rows(w, x)

            jacobian = input_jacobians(of, self._cast(inputs), self._ways)
            return jacobian.reshape(len(inputs), self.n_outputs, self.n_inputs).numpy()

    def jacobian_operator(self, weights: np.ndarray, point: np.ndarray) -> LinearOperator:
        """Apply the Jacobian at one input, and its transpose, without forming it: (n_outputs, n_inputs)."""
        w, x = self._flat(weights), self._cast(point)

        def of(y: torch.Tensor) -> torch.Tensor:
            return self._rows(w, y[None])[0]

        def applied(make: Callable[..., Any], shape: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
            @functools.cache
            def product() -> Any:
                return make(of, x)

            def call(columns: np.ndarray) -> np.ndarray:
                rows = torch.from_numpy(np.ascontiguousarray(np.asarray(columns).T, dtype=self.dtype))
                with torch_threads(self.threads):
                    return product()(rows.reshape(-1, *shape)).reshape(len(rows), -1).numpy().T

            return call

        forward, backward = applied(derivative, tuple(x.shape)), applied(transposed, (self.n_outputs,))
        return self._jacobian(forward, backward)

    def jacobian_factors(self, weights: np.ndarray, inputs: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Pairs D_l (b, width), W_l, first layer first, for a Sequential of Linear and elementwise modules."""
        blocks = list(self._own.named_children()) if isinstance(self._own, torch.nn.Sequential) else []
        if not any(isinstance(block, torch.nn.Linear) for _, block in blocks):
            msg = "jacobian_factors needs a torch.nn.Sequential of Linear and elementwise modules; use input_jacobian"
            raise UnsupportedError(msg)
        with torch_threads(self.threads):
            named = self._named(self._flat(weights))
            x = self._cast(inputs).reshape(len(inputs), -1)
            factors: list[list[torch.Tensor]] = []
            for name, block in blocks:
                if isinstance(block, torch.nn.Linear):
                    x = functional_call(block, _below(named, name), (x,))
                    factors.append([torch.ones_like(x), named[f"{name}.weight"]])
                elif isinstance(block, ELEMENTWISE) and factors:
                    x, slope = _with_slope(block, x)
                    factors[-1][0] = factors[-1][0] * slope
                elif not isinstance(block, torch.nn.Flatten | torch.nn.Identity | torch.nn.Dropout):
                    msg = f"jacobian_factors cannot pass through {name}: {type(block).__name__}; use input_jacobian"
                    raise UnsupportedError(msg)
            return [(d.numpy(), matrix.numpy()) for d, matrix in factors]

    def _linearise(self, weights: np.ndarray, kind: CurvatureKind) -> LinearOperator:
        return TorchCurvature(self, weights, kind)

    def _cast(self, array: Any) -> torch.Tensor:
        tensor = torch.as_tensor(array)
        return tensor.to(self._torch_dtype) if tensor.is_floating_point() else tensor

    def _flat(self, weights: Any) -> torch.Tensor:
        return torch.from_numpy(self._checked(weights))

    def _named(self, w: torch.Tensor) -> dict[str, torch.Tensor]:
        sizes = [math.prod(shape) for shape in self._layers.values()]
        parts = torch.split(w, sizes)
        return {n: part.reshape(shape) for (n, shape), part in zip(self._layers.items(), parts, strict=True)}

    def _outputs(self, w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return functional_call(self._own, {**self._named(w), **held_buffers(self)}, (x,))

    def _rows(self, w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self._layout.pack(self._outputs(w, x))

    def _loss_of(self, x: torch.Tensor, y: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda u: self._data_loss(u, x, y)

    def _data_loss(self, w: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.loss_fn(self._outputs(w, x), y)

    def _few(self, count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
        # The first examples that count in the loss.
        return self._examples(np.flatnonzero(self._counts(np.arange(self.n_examples)))[:count])

    def _try(self, indices: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        with torch_threads(self.threads), torch.no_grad(), SeenLosses() as seen:
            loss = self._data_loss(self._start, *self._examples(indices))
        return np.asarray(loss), seen.counts(self._targets, len(indices))

    def _examples(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.from_numpy(np.asarray(indices, dtype=np.int64))
        return self._inputs[rows], self._targets[rows]


def _other_names(module: torch.nn.Module) -> dict[str, str]:
    # The names under which a shared parameter or buffer appears again.
    again: dict[str, str] = {}
    for named in (module.named_parameters, module.named_buffers):
        first = {id(tensor): name for name, tensor in named()}
        again |= {n: first[id(t)] for n, t in named(remove_duplicate=False) if first[id(t)] != n}
    return again


def _targets(targets: torch.Tensor) -> torch.Tensor:
    # torch's losses on class labels want int64; other frameworks store int32.
    return targets.long() if targets.dtype in (torch.int8, torch.int16, torch.int32, torch.uint8) else targets


def _with_slope(block: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # Values and slopes; a saturated unit's to its own precision, which 1 - y^2 and y (1 - y) lose.
    if isinstance(block, torch.nn.Tanh):
        return block(x), 4 * torch.sigmoid(2 * x) * torch.sigmoid(-2 * x)
    if isinstance(block, torch.nn.Sigmoid):
        return block(x), torch.sigmoid(x) * torch.sigmoid(-x)
    value, slope = jvp(block, (x,), (torch.ones_like(x),))
    return value, slope


def _below(named: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name[len(prefix) + 1 :]: value for name, value in named.items() if name.startswith(f"{prefix}.")}
