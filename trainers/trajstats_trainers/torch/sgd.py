"""Plain SGD in torch that records while it trains: the loop of `trajstats_trainers.jax.sgd` for one torch module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from trajstats.data._buffers import buffers_at
from trajstats.data.store.open import open_trajectory
from trajstats_trainers._module_state import module_buffers, module_parameters
from trajstats_trainers.recording import (
    Recorder,
    batch_order,
    check_finite_weights,
    check_same_settings,
    layer_shapes,
    sgd_settings,
    unflatten,
)

EVALUATED_AT_ONCE = 1_000


def train_torch(
    module: torch.nn.Module,
    loss_fn: Callable[[Any, Any], Any],
    data: tuple[np.ndarray, np.ndarray],
    path: str | Path,
    *,
    seed: int,
    schedule: Sequence[int] | np.ndarray,
    learning_rate: float,
    batch_size: int,
    l2: float = 0.0,
    order: str = "shuffled",
    metrics: Mapping[str, Callable[[Any, Any], Any]] | None = None,
    attrs: Mapping[str, Any] | None = None,
    progress: str | None = "training",
) -> Path:
    r"""Train a module in place and record it into a trajectory store while it trains.

    One step is :math:`w\leftarrow w-\eta\,\nabla[L_B(w)+\lambda\sum_iw_i^2]` with :math:`L_B` the loss over a batch; no
    momentum. The batches of epoch `e` depend on (seed, e) alone and are those of `train_jax`, so a
    killed run continues from its last committed step as it would have gone on.

    Parameters
    ----------
    module : torch.nn.Module
        The model, at its initial weights; without dropout, whose random numbers a store does not hold. Its buffers
        (running statistics of batch norms) are recorded with it.
    loss_fn : callable (outputs, targets) -> scalar tensor
        Mean over the batch.
    data : (inputs, targets)
        Training set, arrays held in memory. Integer targets become int64.
    path : str or Path
        Store to write, or to resume.
    seed : int
        Label of the replica and seed of the batch order.
    schedule : sequence of int
        Steps at which to record; training ends at the last.
    learning_rate, batch_size, l2 : float, int, float
        :math:`\eta`, :math:`B`, :math:`\lambda`.
    order : str
        ``"shuffled"``, ``"cyclic"`` or ``"replacement"``, see `batch_order`; kept in the store's attributes.
    metrics : mapping name -> callable (outputs, targets) -> scalar, optional
        Recorded over the whole training set beside ``loss`` (which has no L2 term), averaged over examples.
    attrs : mapping, optional
        More to keep with the store.
    progress : str, optional
        Label of the progress bar; None for no bar.

    Returns
    -------
    Path
        The store.

    Raises
    ------
    ArgumentError
        If the batch does not fit the data.
    NonFiniteError
        If the weights overflow: what was committed before stays.
    StoreError
        If a store to resume was written with other settings.
    """
    n = len(data[0])
    optimiser = sgd_settings(
        n,
        learning_rate=learning_rate,
        batch_size=batch_size,
        l2=l2,
        order=order,
        framework=f"torch {torch.__version__}",
    )
    per_epoch = optimiser["steps_per_epoch"]
    named = dict(module.named_parameters())
    check_same_settings(path, list(named), optimiser)
    inputs, targets = (torch.as_tensor(array) for array in data)
    targets = targets if targets.is_floating_point() else targets.long()
    # torch's weight_decay adds w * weight_decay to the gradient: twice the L2 factor.
    sgd = torch.optim.SGD(named.values(), lr=learning_rate, weight_decay=2 * l2)
    kept = {"seed": int(seed), "optimiser": optimiser, **(attrs or {})}
    watched = {"loss": loss_fn, **(metrics or {})}
    with Recorder(path, module, schedule, replica=int(seed), attrs=kept) as recorder:
        last = int(recorder.schedule[-1])
        start = _resume(module, path, recorder.committed)
        rows = batch_order(order, n, seed=seed, epoch=start // per_epoch)
        for step in tqdm(range(start, last + 1), desc=progress, unit="step", disable=progress is None, mininterval=0.5):
            if recorder.due(step):
                series = _measure(module, watched, inputs, targets)
                finite = np.isfinite(series["loss"]) and all(bool(torch.isfinite(p).all()) for p in named.values())
                check_finite_weights(bool(finite), recorder, step)
                recorder.record(step, module, epoch=step / per_epoch, proper_time=learning_rate * step, **series)
            if step == last:
                break
            at = step % per_epoch
            if at == 0:
                rows = batch_order(order, n, seed=seed, epoch=step // per_epoch)
            chosen = torch.from_numpy(rows[at * batch_size :][:batch_size])
            sgd.zero_grad()
            loss_fn(module(inputs[chosen]), targets[chosen]).backward()
            sgd.step()
    return Path(path)


def _resume(module: torch.nn.Module, path: str | Path, committed: Sequence[int]) -> int:
    if not committed:
        return 0
    step = max(committed)
    run = open_trajectory(str(path)).sel(step=[step])
    values = {**unflatten(run["weights"].values[0, 0], layer_shapes(module)), **buffers_at(run, 0, 0)}
    named = {**module_parameters(module), **module_buffers(module)}
    with torch.no_grad():
        for name, value in values.items():
            named[name].copy_(torch.from_numpy(np.array(value)))
    return step


@torch.no_grad()
def _measure(
    module: torch.nn.Module, watched: Mapping[str, Callable[[Any, Any], Any]], inputs: Any, targets: Any
) -> dict[str, float]:
    totals = dict.fromkeys(watched, 0.0)
    training = module.training
    module.eval()  # so that batch norms neither use nor change the statistics of these inputs
    for start in range(0, len(inputs), EVALUATED_AT_ONCE):
        part = slice(start, start + EVALUATED_AT_ONCE)
        outputs = module(inputs[part])
        for name, function in watched.items():
            totals[name] += float(function(outputs, targets[part])) * len(outputs)
    module.train(training)
    return {name: total / len(inputs) for name, total in totals.items()}
