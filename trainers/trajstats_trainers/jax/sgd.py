"""Plain SGD in JAX, compiled as one loop between two records, several seeds at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm.auto import tqdm

from trajstats.data.store.open import open_trajectory
from trajstats.errors import ArgumentError
from trajstats_trainers._pytrees import named_leaves
from trajstats_trainers.jax._parameters import flat_order, unravel
from trajstats_trainers.recording import (
    Recorder,
    batch_order,
    check_finite_weights,
    check_same_settings,
    layer_shapes,
    sgd_settings,
    steps_per_epoch,
)

EPOCHS_PER_CALL = 32


def train_jax(
    apply_fn: Callable[[Any, Any], Any],
    params: Sequence[Any],
    loss_fn: Callable[[Any, Any], Any],
    data: tuple[np.ndarray, np.ndarray],
    paths: Sequence[str | Path],
    *,
    seeds: Sequence[int],
    schedule: Sequence[int] | np.ndarray,
    learning_rate: float,
    batch_size: int,
    l2: float = 0.0,
    order: str = "shuffled",
    warm_up: int = 0,
    project: Callable[[Any], Any] | None = None,
    project_every: int = 200,
    metrics: Mapping[str, Callable[[Any, Any], Any]] | None = None,
    attrs: Mapping[str, Any] | None = None,
    progress: str | None = "training",
    position: int = 0,
) -> list[Path]:
    r"""Train replicas of one network and record each into its own trajectory store while it trains.

    One step is :math:`w\leftarrow w-\eta\,\nabla[L_B(w)+\lambda\sum_iw_i^2]` with :math:`L_B` the loss over a batch; no
    momentum. The clock ``proper_time`` is the sum of :math:`\eta` over the steps made. The batches of seed `s` in epoch
    `e` depend on (s, e) alone, so a killed run continues from its last committed step as it would have gone on.

    Parameters
    ----------
    apply_fn : callable (params, inputs) -> outputs
        The model.
    params : sequence of pytrees, one per seed
        Initial weights.
    loss_fn : callable (outputs, targets) -> scalar
        Mean over the batch.
    data : (inputs, targets)
        Training set, held in memory.
    paths : sequence of path, one per seed
        Stores to write, or to resume.
    seeds : sequence of int
        Labels of the replicas and seeds of the batch order.
    schedule : sequence of int
        Steps at which to record; training ends at the last.
    learning_rate, batch_size, l2 : float, int, float
        :math:`\eta`, :math:`B`, :math:`\lambda`.
    order : str
        ``"shuffled"``, ``"cyclic"`` or ``"replacement"``, see `batch_order`; kept in the store's attributes.
    warm_up : int
        Steps in which the rate rises as :math:`\eta\sin(\pi s/2s_0)`, s = 1, 2, ...; 0 for a constant rate.
    project : callable params -> params, optional
        Put the weights back onto a constraint after every `project_every` steps; its name is kept in the attributes.
    project_every : int
        Steps between projections.
    metrics : mapping name -> callable (outputs, targets) -> scalar, optional
        Recorded over the whole training set beside ``loss`` (which has no L2 term).
    attrs : mapping, optional
        More to keep with each store.
    progress : str, optional
        Label of the progress bar; None for no bar.
    position : int
        Line of the bar, for several processes.

    Returns
    -------
    list of Path
        The stores.

    Raises
    ------
    ArgumentError
        If params, paths and seeds differ in number, the batch does not fit the data, or a number of steps is negative.
    NonFiniteError
        If the weights overflow: what was committed before stays.
    StoreError
        If a store to resume was written with other settings.
    """
    if not len(params) == len(paths) == len(seeds) > 0:
        msg = (
            f"{len(params)} params, {len(paths)} paths, {len(seeds)} seeds: give one of each per replica, at least one"
        )
        raise ArgumentError(msg)
    if warm_up < 0 or project_every < 1:
        msg = f"warm_up={warm_up}, project_every={project_every}: give at least 0 and 1 step"
        raise ArgumentError(msg)
    optimiser = sgd_settings(
        len(data[0]),
        learning_rate=learning_rate,
        batch_size=batch_size,
        l2=l2,
        order=order,
        framework=f"jax {jax.__version__}",
    )
    per_epoch = optimiser["steps_per_epoch"]
    layers = layer_shapes(params[0])
    for tree in params:
        if layer_shapes(tree).items() != layers.items():
            msg = (
                "the replicas' params have other names or shapes than the first's; give the same model with other seeds"
            )
            raise ArgumentError(msg)
    rate = functools.partial(_rate, learning_rate, warm_up)
    constrain = None if project is None else (project, project_every)
    advance, measure = _compile(apply_fn, params[0], loss_fn, data, rate, batch_size, l2, constrain, metrics or {})
    settings = {
        "optimiser": {
            **optimiser,
            **({"warm_up": warm_up} if warm_up else {}),
            **({"projection": {"by": project.__name__, "every": project_every}} if project else {}),
        },
        **(attrs or {}),
    }
    with ExitStack() as stack:
        recorders = []
        for path, seed in zip(paths, seeds, strict=True):
            check_same_settings(path, list(layers), settings["optimiser"])
            recorder = Recorder(path, layers, schedule, replica=int(seed), attrs={"seed": int(seed), **settings})
            recorders.append(stack.enter_context(recorder))
        step, weights = _start(recorders, paths, params)
        bar = stack.enter_context(
            tqdm(
                total=int(recorders[0].schedule[-1]),
                initial=step,
                desc=progress,
                unit="step",
                unit_scale=True,
                position=position,
                disable=progress is None,
                mininterval=0.5,
            )
        )
        block, orders = -1, None
        for stop in recorders[0].schedule[recorders[0].schedule >= step].tolist():
            while step < stop:
                if step // (per_epoch * EPOCHS_PER_CALL) != block:
                    block = step // (per_epoch * EPOCHS_PER_CALL)
                    orders = _orders(order, len(data[0]), seeds, block * EPOCHS_PER_CALL)
                to = min(stop, (block + 1) * per_epoch * EPOCHS_PER_CALL)
                weights = advance(weights, orders, block * EPOCHS_PER_CALL, step, to)
                bar.update(to - step)
                step = to
            if any(recorder.due(step) for recorder in recorders):
                tau = _proper_time(learning_rate, warm_up, step)
                _record(recorders, step, np.asarray(weights), measure(weights), step / per_epoch, tau)
    return [Path(path) for path in paths]


def _compile(
    apply_fn: Callable[[Any, Any], Any],
    like: Any,
    loss_fn: Callable[[Any, Any], Any],
    data: tuple[np.ndarray, np.ndarray],
    rate: Callable[[Any], Any],
    batch_size: int,
    l2: float,
    constrain: tuple[Callable[[Any], Any], int] | None,
    metrics: Mapping[str, Callable[[Any, Any], Any]],
) -> tuple[Any, Any]:
    inputs, targets = jnp.asarray(data[0]), jnp.asarray(data[1])
    per_epoch = steps_per_epoch(len(inputs), batch_size)
    _, leaves, places, treedef = flat_order(like)
    shapes = [tuple(np.shape(leaf)) for leaf in leaves]

    def outputs(w: Any, x: Any) -> Any:
        return apply_fn(unravel(w, shapes, places, treedef), x)

    def batch_loss(w: Any, x: Any, y: Any) -> Any:
        return loss_fn(outputs(w, x), y) + l2 * jnp.sum(w * w)

    def onto_constraint(w: Any) -> Any:
        assert constrain is not None
        tree = constrain[0](unravel(w, shapes, places, treedef))
        parts = [jnp.zeros(0)] * len(places)
        for place, leaf in zip(places, jax.tree.leaves(tree), strict=True):
            parts[place] = jnp.ravel(leaf)
        return jnp.concatenate(parts)

    gradients = jax.vmap(jax.grad(batch_loss))

    @jax.jit
    def advance(weights: Any, orders: Any, first_epoch: Any, start: Any, stop: Any) -> Any:
        def step(s: Any, w: Any) -> Any:
            at = (0, s // per_epoch - first_epoch, (s % per_epoch) * batch_size)
            rows = lax.dynamic_slice(orders, at, (w.shape[0], 1, batch_size))[:, 0]
            w = w - rate(s) * gradients(w, inputs[rows], targets[rows])
            if constrain is None:
                return w
            return lax.cond((s + 1) % constrain[1] == 0, jax.vmap(onto_constraint), lambda w: w, w)

        return lax.fori_loop(start, stop, step, weights)

    @jax.jit
    def measure(weights: Any) -> dict[str, Any]:
        def one(w: Any) -> dict[str, Any]:
            out = outputs(w, inputs)
            return {"loss": loss_fn(out, targets), **{name: metric(out, targets) for name, metric in metrics.items()}}

        # One replica after the other: a vmap over replicas would turn GEMMs into batched products, slower on a CPU.
        return lax.map(one, weights)

    return advance, measure


def _rate(learning_rate: float, warm_up: int, step: Any) -> Any:
    if not warm_up:
        return learning_rate
    return learning_rate * jnp.sin(jnp.pi / 2 * jnp.minimum(1.0, (step + 1) / warm_up))


def _proper_time(learning_rate: float, warm_up: int, step: int) -> float:
    # The sum of the rates of the steps made, in double precision.
    rising = np.sin(np.pi / 2 * np.arange(1, min(step, warm_up) + 1) / warm_up).sum() if warm_up else 0.0
    return learning_rate * (rising + max(step - warm_up, 0))


def _orders(kind: str, n: int, seeds: Sequence[int], first_epoch: int) -> Any:
    epochs = range(first_epoch, first_epoch + EPOCHS_PER_CALL)
    return jnp.asarray(
        np.stack([[batch_order(kind, n, seed=int(seed), epoch=epoch) for epoch in epochs] for seed in seeds])
    )


def _start(recorders: Sequence[Recorder], paths: Sequence[str | Path], params: Sequence[Any]) -> tuple[int, Any]:
    # Start from the last step that every replica has committed, or from the initial weights.
    common = set.intersection(*(set(recorder.committed) for recorder in recorders))
    if not common:
        # By name: mappings that JAX returned have sorted keys, others their own order.
        names = list(named_leaves(params[0]))
        leaves = [named_leaves(tree) for tree in params]
        return 0, jnp.asarray(np.stack([np.concatenate([np.ravel(tree[name]) for name in names]) for tree in leaves]))
    step = max(common)
    rows = [open_trajectory(str(path))["weights"].sel(step=step).values[0] for path in paths]
    return step, jnp.asarray(np.stack(rows))


def _record(
    recorders: Sequence[Recorder],
    step: int,
    weights: np.ndarray,
    measured: Mapping[str, Any],
    epoch: float,
    proper_time: float,
) -> None:
    series = {name: np.asarray(values, dtype=np.float64) for name, values in measured.items()}
    for k, recorder in enumerate(recorders):
        finite = np.isfinite(weights[k]).all() and np.isfinite(series["loss"][k])
        check_finite_weights(bool(finite), recorder, step, k)
    for k, recorder in enumerate(recorders):
        if recorder.due(step):
            values = {name: float(value[k]) for name, value in series.items()}
            recorder.record(step, weights[k], epoch=epoch, proper_time=proper_time, **values)
