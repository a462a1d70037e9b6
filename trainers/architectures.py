"""What the papers trained, once per framework where needed; equal layouts give equal flat vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trajstats.errors import ArgumentError, unknown

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
            raise ArgumentError(unknown("activation", self.activation, ACTIVATIONS))

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
        raise ArgumentError(unknown("activation", activation, ACTIVATIONS))
    blocks: list[torch.nn.Module] = [torch.nn.Flatten()]
    for layer, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        blocks.append(torch.nn.Linear(fan_in, fan_out))
        if activate_output or layer < len(sizes) - 2:
            blocks.append(kinds[activation]())
    return torch.nn.Sequential(*blocks)
