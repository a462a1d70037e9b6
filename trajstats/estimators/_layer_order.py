"""Match the layers of a run and of a network by name and shape, and let the network work in the run's order."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from scipy.sparse.linalg import LinearOperator

from trajstats.data._naming import plain_name
from trajstats.data.schema import LAYER, PARAMETER, layer_shapes
from trajstats.errors import SchemaError
from trajstats.network import CurvatureKind, Network

Shape = tuple[int, ...]
# What `trajectory_dataset` calls the one layer of a run whose layers were not given.
UNNAMED = "all"
# Names shown in a message, of each kind.
_SHOWN = 6


def in_order_of(network: Network, trajectory: xr.Dataset) -> Network:
    """Check that a network has the layers of a run, and return it as a function of the run's flat vector.

    Layers are matched by name and shape, never by position; wrappers in front of names (`plain_name`) do not count.
    """
    run, own = _run_layers(trajectory), _network_layers(network)
    total = trajectory.sizes[PARAMETER]
    if own is not None and list(own) == [UNNAMED] and len(run) > 1:
        own = None
    if own is None or (len(own) == 1 and UNNAMED in (*run, *own)):
        _check_total(network, total)
        if len(run) > 1:
            _warn_unknown_order(list(run))
        return network
    if list(run) == [UNNAMED]:
        raise SchemaError(_unnamed_message(total, own))
    found = match_names(run, own, getattr(network, "tied", {}))
    if "layer_shape" not in trajectory.coords:
        run |= {name: own[main] for name, main in found.items() if math.prod(own[main]) == math.prod(run[name])}
    if differences := _differences(run, own, found, network):
        raise SchemaError(_message(differences, run, own))
    if list(found.values()) == list(own):
        return network
    inward = _spans(run, {main: name for name, main in found.items()}, own)
    return Reordered(network, run, inward, _spans(own, found, run))


def match_names(given: Iterable[str], own: Iterable[str], tied: Mapping[str, str] | None = None) -> dict[str, str]:
    """Find the names of a network that names of a run stand for."""
    given, own = list(given), list(own)
    best: dict[str, str] = {}
    for spell in (str, plain_name):
        table = _table(spell, own, tied or {})
        if table is None or len({spell(name) for name in given}) < len(given):
            continue
        found = {name: table[spell(name)] for name in given if spell(name) in table}
        if len(found) == len(given) == len(own) == len(set(found.values())):
            return found
        best = max(best, found, key=len)
    return best


def warn_user(message: str) -> None:
    """Warn at the line outside of this package from which it was called."""
    depth, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("trajstats."):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=depth)


def listed(layers: Mapping[str, Shape | None]) -> str:
    """Write names with their shapes, cut to a readable length."""
    shown = [f"{name!r:.80}" + ("" if shape is None else f" {shape}") for name, shape in layers.items()]
    return ", ".join(shown[:_SHOWN]) + (f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else "")


class Reordered:
    """A network as a function of flat vectors whose layers have another order."""

    def __init__(
        self, network: Network, layers: Mapping[str, Shape], inward: list[slice], outward: list[slice]
    ) -> None:
        self._network, self._layers, self._inward, self._outward = network, layers, inward, outward

    def __getattr__(self, name: str) -> Any:
        # Settings (threads, reduction, memory). Members that take weights are below, each with its reordering.
        if name.startswith("_"):
            raise AttributeError(name)
        inner = getattr(self._network, name)
        if name == "jacobian_operator":
            return lambda weights, point: inner(self._in(weights), point)
        if name == "with_buffers":
            return lambda buffers: Reordered(inner(buffers), self._layers, self._inward, self._outward)
        return inner

    @property
    def layers(self) -> Mapping[str, Shape]:
        """Name -> shape, in the order of the vectors that this one takes."""
        return self._layers

    def _in(self, rows: Any) -> np.ndarray:
        return _gathered(np.asarray(rows), self._inward)

    def _out(self, rows: np.ndarray) -> np.ndarray:
        return _gathered(np.asarray(rows), self._outward)

    @property
    def n_parameters(self) -> int:
        """Number of weights."""
        return self._network.n_parameters

    @property
    def n_inputs(self) -> int:
        """Number of input features of one example."""
        return self._network.n_inputs

    @property
    def n_outputs(self) -> int:
        """Number of outputs of one example."""
        return self._network.n_outputs

    @property
    def n_examples(self) -> int:
        """Number of examples."""
        return self._network.n_examples

    def loss(self, weights: np.ndarray) -> float:
        """Evaluate the loss."""
        return self._network.loss(self._in(weights))

    def gradient(self, weights: np.ndarray, indices: np.ndarray | None = None) -> np.ndarray:
        """Differentiate the loss."""
        if indices is None:
            return self._out(self._network.gradient(self._in(weights)))
        return self._out(self._network.gradient(self._in(weights), indices))

    def curvature(self, weights: np.ndarray, kind: CurvatureKind = "hessian") -> LinearOperator:
        """Linearise at these weights."""
        return _ReorderedCurvature(self, self._network.curvature(self._in(weights), kind))

    def example_gradients(self, weights: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Differentiate the loss of each example."""
        return self._out(self._network.example_gradients(self._in(weights), indices))

    def outputs(self, weights: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """Evaluate the network."""
        return self._network.outputs(self._in(weights), inputs)

    def output_jvp(self, weights: np.ndarray, inputs: np.ndarray, tangents: np.ndarray) -> np.ndarray:
        """Differentiate the outputs along weight directions."""
        return self._network.output_jvp(self._in(weights), inputs, self._in(tangents))

    def output_vjp(self, weights: np.ndarray, inputs: np.ndarray, cotangents: np.ndarray) -> np.ndarray:
        """Differentiate weighted outputs with respect to the weights."""
        return self._out(self._network.output_vjp(self._in(weights), inputs, cotangents))

    def features(self, weights: np.ndarray, inputs: np.ndarray, layer: str) -> np.ndarray:
        """Evaluate the activations of a named layer."""
        return self._network.features(self._in(weights), inputs, layer)

    def input_jacobian(self, weights: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """Differentiate outputs with respect to inputs."""
        return self._network.input_jacobian(self._in(weights), inputs)

    def jacobian_factors(self, weights: np.ndarray, inputs: np.ndarray) -> Sequence[tuple[np.ndarray, np.ndarray]]:
        """Give the factors of the input Jacobian."""
        return self._network.jacobian_factors(self._in(weights), inputs)


class _ReorderedCurvature(LinearOperator):
    """A symmetric operator on reordered vectors."""

    def __init__(self, network: Reordered, operator: LinearOperator) -> None:
        super().__init__(operator.dtype, operator.shape)
        self._network, self._operator = network, operator

    def _matmat(self, vectors: np.ndarray) -> np.ndarray:
        # On rows, each in one piece: what networks take and return without a copy.
        rows = self._network._in(np.asarray(vectors).T)
        return self._network._out(np.asarray(self._operator.matmat(rows.T)).T).T

    def _matvec(self, vector: np.ndarray) -> np.ndarray:
        return self._matmat(np.asarray(vector).reshape(-1, 1))[:, 0]

    def _rmatvec(self, vector: np.ndarray) -> np.ndarray:
        return self._matvec(vector)


def _gathered(rows: np.ndarray, parts: list[slice]) -> np.ndarray:
    return np.concatenate([rows[..., part] for part in parts], axis=-1)


def _spans(given: Mapping[str, Shape], names: Mapping[str, str], wanted: Iterable[str]) -> list[slice]:
    # The parts of a vector of the `given` layers in the order of the `wanted` ones; neighbours are taken in one piece.
    stops = np.cumsum([math.prod(shape) for shape in given.values()]).tolist()
    where = {name: slice(start, stop) for name, start, stop in zip(given, [0, *stops[:-1]], stops, strict=True)}
    spans: list[slice] = []
    for name in wanted:
        part = where[names[name]]
        if spans and spans[-1].stop == part.start:
            spans[-1] = slice(spans[-1].start, part.stop)
        elif part.stop > part.start:
            spans.append(part)
    return spans


def _table(spell: Callable[[str], str], own: list[str], tied: Mapping[str, str]) -> dict[str, str] | None:
    # None where two tensors would be spelled alike.
    table: dict[str, str] = {}
    for name, main in [*zip(own, own, strict=True), *tied.items()]:
        if table.setdefault(spell(name), main) != main:
            return None
    return table


def _run_layers(trajectory: xr.Dataset) -> dict[str, Shape]:
    names = [str(name) for name in trajectory[LAYER].values]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        msg = f"two layers of the run are called {twice!r}; give each a name of its own: run.assign_coords(layer=[...])"
        raise SchemaError(msg)
    if "layer_shape" in trajectory.coords:
        return layer_shapes(trajectory)
    sizes = np.diff(trajectory["layer_stop"].values, prepend=0).tolist()
    return {name: (size,) for name, size in zip(names, sizes, strict=True)}


def _network_layers(network: Network) -> dict[str, Shape] | None:
    found = getattr(network, "layers", None)
    if found is None:
        return None
    layers = {str(name): tuple(int(n) for n in shape) for name, shape in found.items()}
    size = sum(math.prod(shape) for shape in layers.values())
    if size != network.n_parameters:
        msg = (
            f"the network's layers hold {size} weights and its n_parameters is {network.n_parameters}: make them agree"
        )
        raise SchemaError(msg)
    return layers


def _check_total(network: Network, total: int) -> None:
    if network.n_parameters != total:
        raise SchemaError(_count_message(network.n_parameters, total))


def _count_message(own: int, total: int) -> str:
    return (
        f"the network has {own} weights and the trajectory {total}: give the network of this run, built with the run's "
        "widths (trajectory.layer_shape)"
    )


def _warn_unknown_order(names: list[str]) -> None:
    warn_user(
        f"the network does not say which layers its flat vector has, so their order cannot be compared with the run's. "
        f"It is taken to be the run's: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}. Give the "
        "network an attribute layers, name -> shape in the order of its flat vector."
    )


def _unnamed_message(total: int, own: Mapping[str, Shape]) -> str:
    size = sum(math.prod(shape) for shape in own.values())
    if size != total:
        return f"{_count_message(size, total)}. The network's layers: {listed(own)}."
    return (
        f"the run has one layer without a name of its own ({UNNAMED!r}), the network has {len(own)}: {listed(own)}. "
        "Weights are matched by name, never by position. If the run's vectors are in the network's order, say so: "
        "trajectory_dataset(weights, step=..., layers=network.layers)."
    )


def _differences(
    run: Mapping[str, Shape], own: Mapping[str, Shape], found: Mapping[str, str], network: Network
) -> list[str]:
    # What keeps the layers from being the same set, a sentence each.
    out = []
    if only := {name: shape for name, shape in run.items() if name not in found}:
        out.append(f"Only in the run: {listed(only)}.")
        buffers = match_names(only, getattr(network, "buffers", {}))
        if buffers:
            out.append(f"Of these, {listed(dict.fromkeys(buffers))} are buffers of the network, which are not trained.")
    if missing := {name: shape for name, shape in own.items() if name not in found.values()}:
        out.append(f"Only in the network: {listed(missing)}.")
    twice = [name for name, main in found.items() if list(found.values()).count(main) > 1]
    if twice:
        out.append(f"{', '.join(map(repr, twice[:_SHOWN]))} are one tied tensor in the network: leave all but one out.")
    other = [
        f"{name!r:.80} is {run[name]} in the run and {own[main]} in the network"
        for name, main in found.items()
        if run[name] != own[main]
    ]
    if other:
        out.append(f"Of another shape: {'; '.join(other[:_SHOWN])}{'; ...' if len(other) > _SHOWN else ''}.")
    return out


def _message(differences: list[str], run: Mapping[str, Shape], own: Mapping[str, Shape]) -> str:
    sizes = [sum(math.prod(shape) for shape in layers.values()) for layers in (run, own)]
    return (
        f"the layers of the run and of the network differ. {' '.join(differences)} "
        f"The run has {sizes[0]} weights in {len(run)} layers: {listed(run)}. "
        f"The network has {sizes[1]} weights in {len(own)} layers: {listed(own)}. "
        "Weights are matched by name and shape, never by position: give the network of this run, or, where only the "
        "names differ, rename the layers: run.assign_coords(layer=[...]) with the network's names in the run's order."
    )
