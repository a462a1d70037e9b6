r"""Random nets as maps: :math:`x^l=\varphi(W_lx^{l-1}+b_l)` with weights drawn from light- or heavy-tailed laws."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from trajstats.errors import ArgumentError, unknown_name_message
from trajstats.theory.random_matrix._activations import Activation, activation

Draw = Callable[[np.random.Generator, tuple[int, int], float], np.ndarray]


def _stable(rng: np.random.Generator, shape: tuple[int, int], alpha: float) -> np.ndarray:
    # Chambers, Mallows, Stuck 1976, symmetric; at alpha = 2 the variance is 2
    angle = rng.uniform(-np.pi / 2, np.pi / 2, shape)
    if alpha == 1.0:
        return np.tan(angle)
    size = rng.exponential(size=shape)
    return (
        np.sin(alpha * angle)
        / np.cos(angle) ** (1 / alpha)
        * (np.cos((1 - alpha) * angle) / size) ** ((1 - alpha) / alpha)
    )


# Law of X in W = g N^(-1/2) X; variance one where there is one, except alpha-stable.
WEIGHT_LAWS: dict[str, Draw] = {
    "gaussian": lambda rng, shape, _: rng.standard_normal(shape),
    "uniform": lambda rng, shape, _: rng.uniform(-math.sqrt(3), math.sqrt(3), shape),
    "cauchy": lambda rng, shape, _: rng.standard_cauchy(shape),
    "student_t": lambda rng, shape, freedom: rng.standard_t(freedom, shape),
    "alpha_stable": _stable,
    "orthogonal": lambda rng, shape, _: _orthogonal(rng, shape),
}


def _orthogonal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    # times the square root of the columns, which W = g N^(-1/2) X takes out again
    tall = rng.standard_normal((max(shape), min(shape)))
    q, r = np.linalg.qr(tall)
    q = q * np.sign(np.diag(r))
    return math.sqrt(shape[1]) * (q if shape[0] >= shape[1] else q.T)


@dataclass(frozen=True, eq=False)
class CheckpointLaw:
    """Weight law of a trained network: entries of its weight matrices, drawn with replacement.

    What a random net keeps of the training is then the distribution of single weights, such as heavy tails, and not
    their correlations. The trained network itself is one map: give it to `fixed_point_census` with its weights.

    Parameters
    ----------
    matrices : sequence of array
        Weight matrices of a checkpoint, pooled after each is brought to mean zero and variance one.
    name : str
        Label of the law.

    Raises
    ------
    ArgumentError
        If there is no matrix, or one is constant or not finite.

    Examples
    --------
    >>> law = CheckpointLaw([np.array([[1.0, 3.0]])])
    >>> np.unique(RandomNet((4, 4), law=law, scale=2.0, seed=0).layers[0][0]).tolist()
    [-1.0, 1.0]
    """

    matrices: Sequence[np.ndarray]
    name: str = "checkpoint"
    values: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        pooled = []
        for i, given in enumerate(self.matrices):
            entries = np.asarray(given, dtype=np.float64).ravel()
            if not entries.size or not np.isfinite(entries).all() or not entries.std() > 0:
                msg = f"matrix {i} is empty, constant or not finite; give weight matrices of a checkpoint"
                raise ArgumentError(msg)
            pooled.append((entries - entries.mean()) / entries.std())
        if not pooled:
            msg = "no matrix given; give the weight matrices of a checkpoint"
            raise ArgumentError(msg)
        object.__setattr__(self, "values", np.concatenate(pooled))

    def __call__(self, rng: np.random.Generator, shape: tuple[int, int], parameter: float) -> np.ndarray:
        """Draw a matrix; `parameter` is of no use here."""
        del parameter
        return rng.choice(self.values, shape)


def finite_fourth_moment(law: str, parameter: float) -> bool:
    """Tell whether a weight law has a finite fourth moment, as the random-matrix laws need.

    Parameters
    ----------
    law : str
        A name of `WEIGHT_LAWS`.
    parameter : float
        Degrees of freedom of ``"student_t"``, stability index of ``"alpha_stable"``.

    Returns
    -------
    bool
    """
    if law == "student_t":
        return parameter > 4
    return law != "cauchy" and (law != "alpha_stable" or parameter >= 2)


def weight_law(given: str | Draw) -> Draw:
    """Look up a weight law by name, or pass a callable through.

    Parameters
    ----------
    given : str or callable
        A name of `WEIGHT_LAWS`, or (rng, shape, parameter) to an array.

    Returns
    -------
    callable

    Raises
    ------
    ArgumentError
        If the name is not known.
    """
    if not isinstance(given, str):
        return given
    if given not in WEIGHT_LAWS:
        raise ArgumentError(unknown_name_message("weight law", given, WEIGHT_LAWS, do="Or give a CheckpointLaw."))
    return WEIGHT_LAWS[given]


@dataclass(frozen=True)
class RandomNet:
    r"""A net with random weights :math:`W_l=g\,N_{l-1}^{-1/2}X`, as a map on batches.

    Parameters
    ----------
    widths : sequence of int
        Input, hidden layers, output.
    law : str or callable
        Law of X: ``"gaussian"``, ``"uniform"`` (variance one), ``"cauchy"``, ``"student_t"``, ``"alpha_stable"``
        (characteristic function :math:`e^{-|t|^\alpha}`) or ``"orthogonal"``; or (rng, shape, parameter) to an array,
        such as a `CheckpointLaw`.
    scale : float or sequence of float
        The g, one or one per layer; :math:`\sigma_w^2=g^2` where X has variance one.
    bias_scale : float or sequence of float
        Standard deviation of the Gaussian biases.
    parameter : float
        Degrees of freedom of ``"student_t"``, stability index of ``"alpha_stable"``.
    activation : str or Activation
        As in `variance_map`.
    seed : int
        Seed of the draw; a net is a function of its arguments alone.

    Raises
    ------
    ArgumentError
        If the law is not known or its parameter out of range.

    Examples
    --------
    >>> net = RandomNet((3, 3), law="cauchy", seed=1)
    >>> net(np.zeros((2, 3))).shape, net.jacobian(np.zeros((2, 3))).shape
    ((2, 3), (2, 3, 3))
    """

    widths: Sequence[int]
    law: str | Draw = "gaussian"
    scale: float | Sequence[float] = 1.0
    bias_scale: float | Sequence[float] = 0.0
    parameter: float = 3.0
    activation: str | Activation = "tanh"
    seed: int = 0
    layers: list[tuple[np.ndarray, np.ndarray]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        draw = weight_law(self.law)
        if not self.parameter > 0 or (self.law == "alpha_stable" and self.parameter > 2):
            msg = f"parameter={self.parameter} is out of range for {self.law}: positive, and at most 2 if alpha-stable"
            raise ArgumentError(msg)
        rng = np.random.default_rng(self.seed)
        depth = len(self.widths) - 1
        scale, bias = np.broadcast_to(self.scale, depth), np.broadcast_to(self.bias_scale, depth)
        layers = []
        for layer, (before, after) in enumerate(zip(self.widths[:-1], self.widths[1:], strict=True)):
            x = draw(rng, (after, before), self.parameter)
            layers.append((scale[layer] / math.sqrt(before) * x, bias[layer] * rng.standard_normal(after)))
        object.__setattr__(self, "layers", layers)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Evaluate the net: (b, inputs) to (b, outputs)."""
        phi = activation(self.activation).function
        for matrix, bias in self.layers:
            x = phi(x @ matrix.T + bias)
        return x

    def factors(self, x: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Give D_l (b, width) and W_l, first layer first."""
        kind = activation(self.activation)
        found = []
        for matrix, bias in self.layers:
            field_ = x @ matrix.T + bias
            found.append((kind.derivative(field_), matrix))
            x = kind.function(field_)
        return found

    def jacobian(self, x: np.ndarray) -> np.ndarray:
        """Differentiate outputs with respect to inputs: (b, outputs, inputs)."""
        factors = self.factors(x)
        product = factors[0][0][:, :, None] * factors[0][1]
        for slopes, matrix in factors[1:]:
            product = slopes[:, :, None] * (matrix @ product)
        return product
