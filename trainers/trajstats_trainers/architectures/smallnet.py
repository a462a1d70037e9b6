"""SmallNet, the small convolutional net of the glassy paper, in JAX and torch with one flat layout."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trajstats.errors import ArgumentError, unknown_name_message

if TYPE_CHECKING:
    import torch

KERNEL, CHANNELS = 5, (10, 20)


@dataclass(frozen=True)
class Variant:
    """What differs between the data sets.

    Parameters
    ----------
    image : (int, int, int)
        Channels, height and width of an input.
    hidden : int
        Units of the hidden fully connected layer.
    """

    image: tuple[int, int, int]
    hidden: int

    @property
    def n_flat(self) -> int:
        """Values that the second pooling hands on."""
        sides = self.image[1:]
        for _ in CHANNELS:
            sides = ((sides[0] - KERNEL + 1) // 2, (sides[1] - KERNEL + 1) // 2)
        return CHANNELS[-1] * math.prod(sides)


# The width of the MNIST variant follows from its 31,770 parameters.
VARIANTS = {"mnist": Variant((1, 28, 28), 80), "cifar": Variant((3, 32, 32), 100)}


def smallnet_shapes(variant: str = "mnist") -> dict[str, tuple[int, ...]]:
    """Name -> shape of SmallNet's tensors, in the order of the flat vector.

    Parameters
    ----------
    variant : str
        ``"mnist"`` (1 x 28 x 28; 320-80-10 after the convolutions) or ``"cifar"`` (3 x 32 x 32; 500-100-10).

    Returns
    -------
    dict name -> tuple of int

    Raises
    ------
    ArgumentError
        If the variant is not known.

    Examples
    --------
    >>> sum(math.prod(shape) for shape in smallnet_shapes("mnist").values())
    31770
    >>> sum(math.prod(shape) for shape in smallnet_shapes("cifar").values())
    56890
    """
    one = _variant(variant)
    first, second = CHANNELS
    return {
        "conv1.weight": (first, one.image[0], KERNEL, KERNEL),
        "conv1.bias": (first,),
        "conv2.weight": (second, first, KERNEL, KERNEL),
        "conv2.bias": (second,),
        "fc1.weight": (one.hidden, one.n_flat),
        "fc1.bias": (one.hidden,),
        "fc2.weight": (10, one.hidden),
        "fc2.bias": (10,),
    }


def smallnet_init(variant: str, seed: int) -> dict[str, np.ndarray]:
    r"""Draw initial weights uniformly in :math:`\pm1/\sqrt{\mathrm{fan\,in}}`, biases too: torch's own default.

    Parameters
    ----------
    variant : str
        As for `smallnet_shapes`.
    seed : int
        Seed of the draw (NumPy's: the same in both frameworks).

    Returns
    -------
    dict name -> ndarray of float32
        In the order of `smallnet_shapes`.

    Examples
    --------
    >>> bool(abs(smallnet_init("mnist", 0)["conv1.bias"]).max() < 0.2)
    True
    """
    rng = np.random.default_rng(seed)
    shapes = smallnet_shapes(variant)
    drawn = {}
    for name, shape in shapes.items():
        bound = 1 / math.sqrt(math.prod(shapes[f"{name.split('.')[0]}.weight"][1:]))
        drawn[name] = rng.uniform(-bound, bound, shape).astype(np.float32)
    return drawn


@dataclass(frozen=True)
class JaxSmallNet:
    r"""Conv 5x5 to 10 channels, max-pool 2, ReLU; conv 5x5 to 20, max-pool 2, ReLU; one hidden ReLU layer; linear.

    Parameters
    ----------
    variant : str
        ``"mnist"`` or ``"cifar"``.

    Raises
    ------
    ArgumentError
        If the variant is not known.

    References
    ----------
    Paper key *glassy*: Baity-Jesi et al. 2018, arXiv:1803.06969.

    Examples
    --------
    >>> JaxSmallNet("mnist")(smallnet_init("mnist", 0), np.zeros((2, 784), "float32")).shape
    (2, 10)
    """

    variant: str = "mnist"

    def __post_init__(self) -> None:
        _variant(self.variant)

    def __call__(self, params: dict[str, Any], inputs: Any) -> Any:
        """Evaluate the network: (b, pixels) or (b, channels, height, width) -> (b, 10)."""
        return self.features(params, inputs)["fc2"]

    def features(self, params: dict[str, Any], inputs: Any) -> dict[str, Any]:
        """Activations after each layer, by its name: name -> (b, ...)."""
        import jax

        x = inputs.reshape(inputs.shape[0], *VARIANTS[self.variant].image)
        found = {}
        for name in ("conv1", "conv2"):
            x = _convolve(x, params[f"{name}.weight"]) + params[f"{name}.bias"][:, None, None]
            # Windows do not overlap, so a reshape pools; its derivative is cheaper than that of reduce_window.
            b, c, height, width = x.shape
            x = x.reshape(b, c, height // 2, 2, width // 2, 2).max(axis=(3, 5))
            found[name] = x = jax.nn.relu(x)
        x = x.reshape(x.shape[0], -1)
        found["fc1"] = x = jax.nn.relu(x @ params["fc1.weight"].T + params["fc1.bias"])
        found["fc2"] = x @ params["fc2.weight"].T + params["fc2.bias"]
        return found


def torch_smallnet(variant: str = "mnist") -> torch.nn.Sequential:
    """Build the same network as a torch module whose parameters have the same names, order and shapes.

    Parameters
    ----------
    variant : str
        ``"mnist"`` or ``"cifar"``.

    Returns
    -------
    torch.nn.Sequential
        Inputs (b, pixels) or (b, channels, height, width).

    Raises
    ------
    ArgumentError
        If the variant is not known.
    """
    import torch

    one = _variant(variant)
    first, second = CHANNELS
    return torch.nn.Sequential(
        OrderedDict(
            flat=torch.nn.Flatten(),
            image=torch.nn.Unflatten(1, one.image),
            conv1=torch.nn.Conv2d(one.image[0], first, KERNEL),
            pool1=torch.nn.MaxPool2d(2),
            relu1=torch.nn.ReLU(),
            conv2=torch.nn.Conv2d(first, second, KERNEL),
            pool2=torch.nn.MaxPool2d(2),
            relu2=torch.nn.ReLU(),
            rows=torch.nn.Flatten(),
            fc1=torch.nn.Linear(one.n_flat, one.hidden),
            relu3=torch.nn.ReLU(),
            fc2=torch.nn.Linear(one.hidden, 10),
        )
    )


def _convolve(x: Any, kernel: Any) -> Any:
    # One matrix product over shifted copies: XLA's own convolution is ten times slower in a loop on a CPU.
    from jax import numpy as jnp

    b, c, height, width = x.shape
    rows, columns = height - KERNEL + 1, width - KERNEL + 1
    shifts = [x[:, :, i : i + rows, j : j + columns] for i in range(KERNEL) for j in range(KERNEL)]
    patches = jnp.stack(shifts, axis=2).reshape(b, c * KERNEL**2, rows * columns)
    return (kernel.reshape(len(kernel), -1) @ patches).reshape(b, len(kernel), rows, columns)


def _variant(name: str) -> Variant:
    if name not in VARIANTS:
        raise ArgumentError(unknown_name_message("variant", name, VARIANTS))
    return VARIANTS[name]
