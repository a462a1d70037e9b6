"""From a training loop to a trajectory store: flatten named arrays, record at the steps of a schedule."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from trajstats.data._arrays import to_numpy
from trajstats.data.store.open import open_trajectory
from trajstats.data.store.writer import TrajectoryWriter
from trajstats.errors import (
    ArgumentError,
    NonFiniteError,
    SchemaError,
    StoreError,
    StoreNotFoundError,
    unknown_name_message,
)
from trajstats_trainers._module_state import is_module, module_buffers, module_parameters, split_state
from trajstats_trainers._pytrees import named_leaves


def layer_shapes(arrays: Any) -> dict[str, tuple[int, ...]]:
    """List name -> shape of named arrays, the `layers` of a trajectory store.

    Parameters
    ----------
    arrays : mapping name -> array, or pytree
        In the order the flat vector shall have; nested ones are named by `named_leaves`. Of a torch module, its
        parameters.

    Returns
    -------
    dict name -> tuple of int

    Examples
    --------
    >>> layer_shapes({"w": np.zeros((2, 3)), "b": np.zeros(2)})
    {'w': (2, 3), 'b': (2,)}
    """
    arrays = module_parameters(arrays) if is_module(arrays) else named_leaves(arrays)
    return {str(name): tuple(int(n) for n in np.shape(array)) for name, array in arrays.items()}


def flatten(arrays: Any, dtype: Any = None) -> np.ndarray:
    """Lay named arrays end to end, each in C order.

    Parameters
    ----------
    arrays : mapping name -> array, or pytree
        Of NumPy, torch or JAX; torch's bfloat16 becomes the equal float32.
    dtype : dtype, optional
        Type of the result; the arrays' common type if not given.

    Returns
    -------
    ndarray, (n_parameters,)

    Examples
    --------
    >>> flatten({"w": np.arange(4.0).reshape(2, 2), "b": np.array([9.0])}).tolist()
    [0.0, 1.0, 2.0, 3.0, 9.0]
    """
    parts = [to_numpy(array).reshape(-1) for array in named_leaves(arrays).values()]
    flat = np.concatenate(parts) if parts else np.zeros(0)
    return flat if dtype is None else flat.astype(dtype, copy=False)


def unflatten(flat: np.ndarray, layers: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Cut a flat vector back into named arrays (views).

    Parameters
    ----------
    flat : ndarray, (n_parameters,)
        A row of `weights`.
    layers : mapping name -> shape
        The layers of the store.

    Returns
    -------
    dict name -> ndarray

    Raises
    ------
    SchemaError
        If the vector's length is not the sum of the layers' sizes.

    Examples
    --------
    >>> unflatten(np.arange(3.0), {"w": (1, 2), "b": (1,)})["b"]
    array([2.])
    """
    sizes = [math.prod(shape) for shape in layers.values()]
    if flat.shape != (sum(sizes),):
        msg = (
            f"flat vector has shape {flat.shape}; these layers need ({sum(sizes)},). Check that run and network agree."
        )
        raise SchemaError(msg)
    stops = np.cumsum(sizes)
    return {
        name: flat[stop - size : stop].reshape(tuple(shape))
        for (name, shape), size, stop in zip(layers.items(), sizes, stops, strict=True)
    }


class Recorder:
    """Record the weights of a training loop at the steps of a schedule.

    Parameters
    ----------
    path : str or path
        The trajectory store to write; opened again after a kill, it resumes.
    layers : mapping name -> shape, or torch module
        As `layer_shapes` gives them. Of a module, its parameters are the layers, and its buffers are kept beside them.
    schedule : iterable of int
        Optimiser steps at which to record, such as `trajstats.aging_schedule` gives.
    replica : int
        Label of this run among runs of the same settings, usually the seed.
    buffers : mapping name -> array, or name -> (shape, dtype), or pytree of arrays, optional
        State that is not trained, such as running statistics; those of the module if one is given.
    attrs : mapping, optional
        Task and optimiser settings; kept with the store as JSON.
    **writer_options
        Passed to `trajstats.TrajectoryWriter`.

    Raises
    ------
    ArgumentError
        If the schedule is empty, negative or has duplicates.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "run.zarr"
    >>> weights = {"w": np.zeros(3, "float32")}
    >>> with Recorder(path, layer_shapes(weights), schedule=[0, 2, 4]) as recorder:
    ...     for step in range(5):
    ...         if recorder.due(step):
    ...             recorder.record(step, weights, loss=1.0 / (1 + step))
    >>> recorder.committed
    [0, 2, 4]
    """

    def __init__(
        self,
        path: Any,
        layers: Any,
        schedule: Iterable[int],
        *,
        replica: int = 0,
        buffers: Mapping[str, Any] | None = None,
        attrs: Mapping[str, Any] | None = None,
        **writer_options: Any,
    ) -> None:
        steps = np.asarray(list(schedule), dtype=np.int64)
        if steps.size == 0 or steps.min() < 0 or np.unique(steps).size != steps.size:
            msg = f"schedule of {steps.size} steps must be non-empty, >= 0 and without duplicates"
            raise ArgumentError(msg)
        self.schedule = np.sort(steps)
        self._due = frozenset(self.schedule.tolist())
        if is_module(layers):
            buffers = module_buffers(layers) if buffers is None else buffers
            layers = layer_shapes(layers)
        if isinstance(buffers, Mapping) and any(isinstance(value, Mapping) for value in buffers.values()):
            buffers = named_leaves(buffers)
        self._buffers = dict(buffers or {})
        self._writer = TrajectoryWriter(
            path, layers, replica=replica, buffers=buffers, attrs=dict(attrs or {}), **writer_options
        )
        self._done = set(self.committed)

    def __enter__(self) -> Recorder:
        self._writer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)

    @property
    def committed(self) -> list[int]:
        """Steps safely in the store."""
        return [int(step) for step in self._writer.committed]

    def due(self, step: int) -> bool:
        """Tell whether the schedule asks for this step and the store does not have it yet."""
        return step in self._due and step not in self._done

    def record(self, step: int, weights: Any, *, buffers: Any = None, **series: float) -> None:
        """Append one checkpoint.

        Parameters
        ----------
        step : int
            The optimiser step.
        weights : mapping name -> array, pytree, or array (n_parameters,)
            The weights now, of any framework, nested ones named by `named_leaves`; an array is taken in the order of
            the layers. Torch tensors are detached and copied to the CPU, and bfloat16 is stored as the equal float32.
            Of a torch module, or of a state dict that holds the buffers too, both are recorded.
        buffers : mapping name -> array, or pytree, optional
            The buffers now, if the run has any and they are not among `weights`.
        **series : float
            Scalars such as ``loss``, and clocks (``epoch``, ``proper_time``).
        """
        if is_module(weights):
            buffers = module_buffers(weights) if buffers is None else buffers
            weights = module_parameters(weights)
        elif not hasattr(weights, "shape"):
            weights = named_leaves(weights)
            if buffers is None:
                weights, buffers = split_state(weights, self._writer.layers, self._buffers)
        self._writer.append(step, weights, buffers=None if buffers is None else named_leaves(buffers), **series)
        self._done.add(step)


ORDERS = ("shuffled", "cyclic", "replacement")


def batch_order(kind: str, n_examples: int, *, seed: int, epoch: int) -> np.ndarray:
    """Order of the examples in one epoch, the same for every framework.

    Parameters
    ----------
    kind : str
        ``"shuffled"``: a new permutation each epoch; ``"cyclic"``: the data's own order, every epoch the same, which
        leaves an echo in two-time observables at multiples of the epoch; ``"replacement"``: independent draws.
    n_examples : int
        Examples in the data set.
    seed, epoch : int
        Key of the draw: an order depends on nothing else, so that a resumed run continues as it would have.

    Returns
    -------
    ndarray of int32, (n_examples,)

    Raises
    ------
    ArgumentError
        If `kind` is not known.

    Examples
    --------
    >>> batch_order("cyclic", 4, seed=0, epoch=3).tolist()
    [0, 1, 2, 3]
    >>> sorted(batch_order("shuffled", 4, seed=0, epoch=3).tolist())
    [0, 1, 2, 3]
    """
    if kind not in ORDERS:
        raise ArgumentError(unknown_name_message("order", kind, ORDERS))
    if kind == "cyclic":
        return np.arange(n_examples, dtype=np.int32)
    rng = np.random.default_rng([seed, epoch])
    if kind == "shuffled":
        return rng.permutation(n_examples).astype(np.int32)
    return rng.integers(n_examples, size=n_examples, dtype=np.int32)


def steps_per_epoch(n_examples: int, batch_size: int) -> int:
    """Whole batches in one pass; the examples left over wait for another epoch's order.

    Parameters
    ----------
    n_examples, batch_size : int
        Sizes of the data set and of a batch.

    Returns
    -------
    int

    Raises
    ------
    ArgumentError
        If the batch is empty or larger than the data set.

    Examples
    --------
    >>> steps_per_epoch(5000, 50)
    100
    """
    if not 1 <= batch_size <= n_examples:
        msg = f"batch_size={batch_size}: it must be between 1 and the number of examples, {n_examples}"
        raise ArgumentError(msg)
    return n_examples // batch_size


def sgd_settings(
    n_examples: int, *, learning_rate: float, batch_size: int, l2: float, order: str, framework: str
) -> dict[str, Any]:
    """Gather the settings of plain SGD as a store keeps them under ``optimiser``.

    Parameters
    ----------
    n_examples, batch_size : int
        Sizes of the data set and of a batch.
    learning_rate, l2 : float
        Rate, and factor of the sum of squared weights.
    order : str
        See `batch_order`.
    framework : str
        Name and version.

    Returns
    -------
    dict

    Raises
    ------
    ArgumentError
        If the batch does not fit the data.

    Examples
    --------
    >>> sgd_settings(100, learning_rate=0.1, batch_size=10, l2=0.0, order="cyclic", framework="")["steps_per_epoch"]
    10
    """
    return {
        "kind": "sgd",
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "l2": l2,
        "order": order,
        "steps_per_epoch": steps_per_epoch(n_examples, batch_size),
        "framework": framework,
    }


def check_finite_weights(finite: bool, recorder: Recorder, step: int, replica: int | None = None) -> None:
    """Stop a training that has overflowed, before its weights are recorded.

    Parameters
    ----------
    finite : bool
        Whether weights and loss are finite.
    recorder : Recorder
        What is in its store stays.
    step : int
        Where.
    replica : int, optional
        Which of several.

    Raises
    ------
    NonFiniteError
        If they are not.
    """
    if not finite:
        whose = "" if replica is None else f" (replica {replica})"
        msg = (
            f"the weights are not finite at step {step}{whose}; lower the learning rate. "
            f"Steps up to {max(recorder.committed, default=None)} are in the store."
        )
        raise NonFiniteError(msg)


def check_same_settings(path: str | Path, names: Sequence[str], optimiser: Mapping[str, Any]) -> None:
    """Refuse to continue a run under other settings than it was recorded with.

    Parameters
    ----------
    path : str or Path
        A store; one that does not exist passes.
    names : sequence of str
        Layers of the network that would go on.
    optimiser : mapping
        Its settings, the attribute ``optimiser`` of a run; ``framework`` (a version) may change.

    Raises
    ------
    StoreError
        If layers or settings differ; it names them.
    """
    try:
        run = open_trajectory(str(path))
    except StoreNotFoundError:
        return
    stored = json.loads(run.attrs.get("optimiser", "{}"))
    keys = {**stored, **optimiser}
    different = [key for key in keys if key != "framework" and stored.get(key) != optimiser.get(key)]
    if different or [str(name) for name in run["layer"].values] != list(names):
        then = {key: stored.get(key) for key in different} or "other layers"
        now = {key: optimiser.get(key) for key in different}
        msg = (
            f"{path} was recorded with other settings ({then}; now {now}); "
            "give another path, or delete that store to start again"
        )
        raise StoreError(msg)
