"""What the papers trained, once per framework where needed; equal layouts give equal flat vectors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trajstats.errors import ArgumentError, unknown_name_message

if TYPE_CHECKING:
    import torch

ACTIVATIONS = ("tanh", "relu", "sigmoid", "linear")


def mlp_shapes(sizes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a multilayer perceptron's tensors, in the order of the flat vector.

    Parameters
    ----------
    sizes : tuple of int
        Widths from input to output.

    Returns
    -------
    dict name -> tuple of int
        ``0.weight`` (out, in), ``0.bias`` (out,), ``1.weight``, ...

    Examples
    --------
    >>> mlp_shapes((784, 5, 10))
    {'0.weight': (5, 784), '0.bias': (5,), '1.weight': (10, 5), '1.bias': (10,)}
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        shapes[f"{layer}.weight"] = (fan_out, fan_in)
        shapes[f"{layer}.bias"] = (fan_out,)
    return shapes


def mlp_init(sizes: tuple[int, ...], seed: int, *, gain: float = 1.0) -> dict[str, np.ndarray]:
    r"""Draw initial weights: :math:`W_{ij}\sim N(0,g^2/\mathrm{fan\,in})`, biases zero.

    Parameters
    ----------
    sizes : tuple of int
        Widths from input to output.
    seed : int
        Seed of the draw.
    gain : float
        The factor :math:`g`.

    Returns
    -------
    dict name -> ndarray of float32
        In the order of `mlp_shapes`.

    Examples
    --------
    >>> weights = mlp_init((4, 3, 2), seed=0)
    >>> sum(w.size for w in weights.values())
    23
    """
    rng = np.random.default_rng(seed)
    return {
        name: (gain * rng.standard_normal(shape) / np.sqrt(shape[-1]) if len(shape) == 2 else np.zeros(shape)).astype(
            np.float32
        )
        for name, shape in mlp_shapes(sizes).items()
    }


def n_parameters(shapes: dict[str, tuple[int, ...]]) -> int:
    """Count the weights of a layout.

    Parameters
    ----------
    shapes : dict name -> tuple of int
        As `mlp_shapes` gives them.

    Returns
    -------
    int

    Examples
    --------
    >>> n_parameters(mlp_shapes((784, 5, 5, 5, 10)))
    4045
    """
    return sum(math.prod(shape) for shape in shapes.values())


@dataclass(frozen=True)
class SizedMLP:
    """Widths of a perceptron chosen for its number of parameters.

    Parameters
    ----------
    sizes : tuple of int
        Widths from input to output.
    n_parameters : int
        Weights and biases it has.
    deviation : float
        Relative difference from the number asked for; 0.01 is one per cent more.
    """

    sizes: tuple[int, ...]
    n_parameters: int
    deviation: float


def constant_count_family(
    n_inputs: int, n_outputs: int, *, depths: Iterable[int], n_parameters: int
) -> dict[int, SizedMLP]:
    r"""Choose widths at each depth so that the total number of parameters is as near to one number as can be.

    Hidden layers are as equal as the count allows: each has :math:`w` or :math:`w+1` units. Of all such nets the one
    nearest to the target is taken, of equally near ones the one whose wider layers come first.

    Parameters
    ----------
    n_inputs, n_outputs : int
        Ends of the perceptron.
    depths : iterable of int
        Numbers of hidden layers, 1 to 16.
    n_parameters : int
        Weights and biases asked for.

    Returns
    -------
    dict depth -> SizedMLP
        With the deviation from the target: a unit of the first layer costs n_inputs + 1 weights, so small nets on many
        inputs miss it by a few per cent.

    Raises
    ------
    ArgumentError
        If a depth is out of range, or even one unit a layer has more parameters than asked for.

    Notes
    -----
    Cost: two to the power of the depth, for a few values of w.

    References
    ----------
    Paper key *subaging*: Herrera Segura, Montoya and Tapias 2022, arXiv:2209.02517 (families of constant count).

    Examples
    --------
    >>> family = constant_count_family(784, 10, depths=[1, 3, 5], n_parameters=4045)
    >>> {depth: (net.sizes, net.n_parameters) for depth, net in family.items()}
    {1: ((784, 5, 10), 3985), 3: ((784, 5, 5, 5, 10), 4045), 5: ((784, 5, 4, 4, 4, 4, 10), 4059)}
    """
    return {depth: _sized(n_inputs, n_outputs, depth, n_parameters) for depth in depths}


def _sized(n_inputs: int, n_outputs: int, depth: int, target: int) -> SizedMLP:
    def count(hidden: tuple[int, ...]) -> int:
        return n_parameters(mlp_shapes((n_inputs, *hidden, n_outputs)))

    if not 1 <= depth <= 16:
        msg = f"depth={depth}: give 1 to 16 hidden layers"
        raise ArgumentError(msg)
    if (least := count((1,) * depth)) > target:
        msg = f"n_parameters={target}: {depth} hidden layers of one unit have {least}; ask for more, or fewer layers"
        raise ArgumentError(msg)
    width = 1
    while count((2 * width,) * depth) <= target:
        width *= 2
    step = width
    while step := step // 2:
        width += step if count((width + step,) * depth) <= target else 0
    # The target lies between depth layers of `width` and of `width + 1` units.
    mixed = [tuple(width + extra for extra in extras) for extras in itertools.product((1, 0), repeat=depth)]
    hidden = min(mixed, key=lambda widths: abs(count(widths) - target))
    found = count(hidden)
    return SizedMLP((n_inputs, *hidden, n_outputs), found, found / target - 1)


@dataclass(frozen=True)
class JaxMLP:
    r"""A multilayer perceptron as a JAX function: :math:`x^l=\varphi(W^lx^{l-1}+b^l)`, the last layer linear.

    Parameters
    ----------
    sizes : tuple of int
        Widths from input to output.
    activation : str
        ``"tanh"``, ``"relu"``, ``"sigmoid"`` or ``"linear"``.
    activate_output : bool
        Apply the activation to the last layer too (for maps of a space to itself).

    Raises
    ------
    ArgumentError
        If the activation is not known.

    Examples
    --------
    >>> model = JaxMLP((4, 3, 2))
    >>> model(mlp_init(model.sizes, seed=0), np.ones((5, 4), "float32")).shape
    (5, 2)
    """

    sizes: tuple[int, ...]
    activation: str = "tanh"
    activate_output: bool = False

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ArgumentError(unknown_name_message("activation", self.activation, ACTIVATIONS))

    def __call__(self, params: dict[str, Any], inputs: Any) -> Any:
        """Evaluate the network: (b, sizes[0]) -> (b, sizes[-1])."""
        x = inputs.reshape(inputs.shape[0], -1)
        for layer in range(len(self.sizes) - 1):
            x = self._layer(params, x, layer)
        return x

    def _layer(self, params: dict[str, Any], x: Any, layer: int) -> Any:
        x = x @ params[f"{layer}.weight"].T + params[f"{layer}.bias"]
        return self._phi(x) if self._activated(layer) else x

    def _activated(self, layer: int) -> bool:
        return self.activate_output or layer < len(self.sizes) - 2

    def _phi(self, x: Any) -> Any:
        import jax

        return {
            "tanh": jax.numpy.tanh,
            "relu": jax.nn.relu,
            "sigmoid": jax.nn.sigmoid,
            "linear": lambda z: z,
        }[self.activation](x)

    def features(self, params: dict[str, Any], inputs: Any) -> dict[str, Any]:
        """Activations after each layer, by its number: name -> (b, width)."""
        x = inputs.reshape(inputs.shape[0], -1)
        found = {}
        for layer in range(len(self.sizes) - 1):
            x = self._layer(params, x, layer)
            found[str(layer)] = x
        return found

    def jacobian_factors(self, params: dict[str, Any], inputs: Any) -> list[tuple[Any, Any]]:
        """Pairs D_l (b, width), W_l with J = D_L W_L ... D_1 W_1."""
        import jax

        x = inputs.reshape(inputs.shape[0], -1)
        slopes = {
            # a saturated unit's slope to its own precision, which 1 - y^2 and y (1 - y) lose
            "tanh": lambda z: 4 * jax.nn.sigmoid(2 * z) * jax.nn.sigmoid(-2 * z),
            "sigmoid": lambda z: jax.nn.sigmoid(z) * jax.nn.sigmoid(-z),
        }
        slope = slopes.get(self.activation, jax.vmap(jax.vmap(jax.grad(self._phi))))
        factors = []
        for layer in range(len(self.sizes) - 1):
            field = x @ params[f"{layer}.weight"].T + params[f"{layer}.bias"]
            activated = self._activated(layer)
            factors.append((slope(field) if activated else jax.numpy.ones_like(field), params[f"{layer}.weight"]))
            x = self._phi(field) if activated else field
        return factors


def torch_mlp(
    sizes: tuple[int, ...], *, activation: str = "tanh", activate_output: bool = False
) -> torch.nn.Sequential:
    """Build the same perceptron as a torch module whose parameters have the same order and shapes.

    Parameters
    ----------
    sizes : tuple of int
        Widths from input to output.
    activation : str
        ``"tanh"``, ``"relu"``, ``"sigmoid"`` or ``"linear"``.
    activate_output : bool
        Apply the activation to the last layer too.

    Returns
    -------
    torch.nn.Sequential

    Raises
    ------
    ArgumentError
        If the activation is not known.
    """
    import torch

    kinds = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU, "sigmoid": torch.nn.Sigmoid, "linear": torch.nn.Identity}
    if activation not in kinds:
        raise ArgumentError(unknown_name_message("activation", activation, ACTIVATIONS))
    blocks: list[torch.nn.Module] = [torch.nn.Flatten()]
    for layer, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        blocks.append(torch.nn.Linear(fan_in, fan_out))
        if activate_output or layer < len(sizes) - 2:
            blocks.append(kinds[activation]())
    return torch.nn.Sequential(*blocks)


def equal_dimension_mlp(width: int, depth: int, *, activation: str = "tanh") -> JaxMLP:
    r"""Build a map of a space to itself: `depth` layers of `width` units, the last one activated too.

    Parameters
    ----------
    width, depth : int
        N and L.
    activation : str
        As for `JaxMLP`.

    Returns
    -------
    JaxMLP
        The torch module with the same flat vector is ``torch_mlp(model.sizes, activate_output=True)``.

    References
    ----------
    Paper key *fixedpoints*: Berlyand and Slavin 2025, arXiv:2501.04182.

    Examples
    --------
    >>> equal_dimension_mlp(4, 2).sizes
    (4, 4, 4)
    """
    return JaxMLP((width,) * (depth + 1), activation=activation, activate_output=True)
