"""Train one cell with one seed: the recipe, the two protocols, and the function that a study calls."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from mtl_axes.adapters.loop import Loop
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from mtl_axes import MultiTaskCriterion, compose
from mtl_axes.study import Outcome

from .data import Fleet
from .errors import RunError
from .methods import TASKS
from .metrics import BASELINES, Ridge, accuracy, clip_rul, nasa_score, rmse
from .model import TwoHeads, WeightAverage
from .runs import Run
from .windows import CHANNELS, Normaliser, Snapshots, TrainingWindows, split_engines, truncations

Protocol = Literal["honest", "published"]
Batch = tuple[Tensor, dict[str, Tensor]]

RIDGE_STRENGTHS = tuple(10.0**power for power in range(-5, 2))


@dataclass(frozen=True)
class Recipe:
    """How to train every cell and seed of a study. RECIPE.md says how it was chosen."""

    steps: int
    batch: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    clip: float = 1.0
    average: float = 0.999
    rul_scale: float = 40.0
    dropout: float = 0.1
    evaluations: int = 20
    measure_every: int = 20


@dataclass(frozen=True, eq=False)
class Prepared:
    """The data of one seed: for training, for choosing the checkpoint, and for the test."""

    train: TrainingWindows
    selection: Snapshots
    test: Snapshots


def prepare(fleet: Fleet, seed: int, protocol: Protocol) -> Prepared:
    """Prepare the data of a seed. Honest: a fifth of the training engines is held out. Published: none is."""
    if protocol == "published":
        normalise = Normaliser.fit(fleet.train)
        test = Snapshots.of(fleet.test, normalise)
        return Prepared(TrainingWindows.of(fleet.train, normalise), test, test)
    fit, held_out = split_engines(fleet.train, seed)
    normalise = Normaliser.fit(fit)
    return Prepared(
        TrainingWindows.of(fit, normalise),
        Snapshots.of(truncations(held_out, seed), normalise),
        Snapshots.of(fleet.test, normalise),
    )


def batches(windows: TrainingWindows, recipe: Recipe, seed: int) -> Iterator[list[NDArray[np.int64]]]:
    """Yield the indices of the batches, epoch by epoch, ``recipe.steps`` in all; an incomplete batch is dropped."""
    rng = np.random.default_rng([seed, 3])
    left = recipe.steps
    size = min(recipe.batch, len(windows))
    while left:
        order = rng.permutation(len(windows))
        count = min(left, len(windows) // size)
        yield [order[at * size : (at + 1) * size] for at in range(count)]
        left -= count


class Training:
    """The training function of a study: every cell, on one fleet, under one protocol, by one recipe."""

    def __init__(self, fleet: Fleet, protocol: Protocol, recipe: Recipe) -> None:
        self.fleet, self.protocol, self.recipe = fleet, protocol, recipe
        # The last seed's windows, which consecutive runs share.
        self._prepared: tuple[int, Prepared] | None = None

    def __call__(self, criterion: MultiTaskCriterion, seed: int) -> Outcome:
        """Train with one criterion."""
        return train_run(criterion, seed, self.prepared(seed), self.recipe).outcome()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the windows, which another process prepares again."""
        return {**self.__dict__, "_prepared": None}

    def prepared(self, seed: int) -> Prepared:
        """Return the data of a seed."""
        if self._prepared is None or self._prepared[0] != seed:
            self._prepared = seed, prepare(self.fleet, seed, self.protocol)
        return self._prepared[1]

    def config(self) -> dict[str, Any]:
        """Return everything that a result depends on, except the criterion and the seed, as plain data."""
        return {"data": self.fleet.digest, "protocol": self.protocol, "recipe": asdict(self.recipe)}


def train_run(criterion: MultiTaskCriterion, seed: int, prepared: Prepared, recipe: Recipe) -> Run:
    """Train, choose the checkpoint on ``prepared.selection``, and test that checkpoint once.

    Raises:
        RunError: no evaluation had finite predictions.
    """
    begin = time.perf_counter()
    torch.manual_seed(seed)
    windows = prepared.train
    model = TwoHeads(CHANNELS, mean_rul=float(windows.rul.mean()), rul_scale=recipe.rul_scale, dropout=recipe.dropout)
    average = WeightAverage(model, decay=recipe.average)
    shadow = copy.deepcopy(model).eval()
    # Fixed weights measure nothing, so a second criterion measures the norms of every cell; its loss is not used.
    ruler = compose({"name": "gaba", "warmup": 0}, criterion.config()["inner"], tasks=TASKS)
    weights: list[Tensor] = []
    losses: list[Tensor] = []
    norms: list[Tensor] = []
    norm_steps: list[int] = []
    selection: list[tuple[int, float]] = []
    best: dict[str, Tensor] = {}
    evaluate_at = {math.ceil(recipe.steps * (i + 1) / recipe.evaluations) for i in range(recipe.evaluations)}

    def compute_loss(batch: Batch) -> Tensor:
        inputs, targets = batch
        outputs = model(inputs)
        if loop.step % recipe.measure_every == 0:
            ruler(outputs, targets)
            assert ruler.report is not None and ruler.report.norms is not None
            norm_steps.append(loop.step)
            norms.append(ruler.report.norms)
        loss: Tensor = criterion(outputs, targets)
        return loss

    def after_step(loop: Loop) -> None:
        nonlocal best
        average.update(model)
        assert criterion.report is not None
        weights.append(criterion.report.weights)
        losses.append(criterion.report.losses)
        if loop.step in evaluate_at:
            shadow.load_state_dict(average.averages)
            predicted, _ = predict(shadow, prepared.selection)
            error = rmse(predicted, prepared.selection.rul)
            if math.isfinite(error) and error < min((row[1] for row in selection), default=math.inf):
                best = {name: value.clone() for name, value in average.averages.items()}
            selection.append((loop.step, error if math.isfinite(error) else math.inf))

    loop = Loop(
        model,
        criterion,
        lambda groups: torch.optim.AdamW(groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay),
        scheduler=lambda optimizer: CosineAnnealingLR(optimizer, T_max=recipe.steps),
        clip=recipe.clip,
        compute_loss=compute_loss,
        after_step=after_step,
        log_every=recipe.measure_every,
        progress=False,
    )
    for epoch in batches(windows, recipe, seed):
        loop.run(_tensors(windows, which) for which in epoch)
    if not best:
        raise RunError("no evaluation gave finite predictions, so no checkpoint could be chosen")
    shadow.load_state_dict(best)
    predicted, health = predict(shadow, prepared.test)
    return Run(
        rmse=rmse(predicted, prepared.test.rul),
        nasa=nasa_score(predicted, prepared.test.rul),
        health_accuracy=accuracy(health, prepared.test.health),
        seconds=time.perf_counter() - begin,
        predicted=predicted.tolist(),
        true=prepared.test.rul.tolist(),
        weights=torch.stack(weights).tolist(),
        losses=torch.stack(losses).tolist(),
        norm_steps=norm_steps,
        norms=torch.stack(norms).tolist(),
        selection=selection,
    )


@torch.no_grad()
def predict(model: TwoHeads, snapshots: Snapshots) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Predicted RUL within [0, 125] and health class of every snapshot."""
    starts = range(0, len(snapshots.inputs), 512)
    parts = [model(torch.from_numpy(snapshots.inputs[start : start + 512])) for start in starts]
    rul = torch.cat([part["rul"] for part in parts]).double().numpy()
    health = torch.cat([part["health"] for part in parts]).argmax(dim=1).numpy()
    return clip_rul(rul), health


def ridge_baselines(prepared: Prepared) -> dict[str, dict[str, float]]:
    """RMSE and NASA score of the ridge baselines, their strength chosen on the same engines as the networks' checkpoints."""
    every = np.arange(len(prepared.train))
    parts = np.array_split(every, len(every) // 4096 + 1)
    rul = prepared.train.rul.astype(np.float64)
    chosen, test = prepared.selection, prepared.test
    baselines = {}
    for name, features in BASELINES.items():
        fitted_on = np.concatenate([features(prepared.train.inputs(part)) for part in parts])
        fits = [Ridge(fitted_on, rul, strength=strength) for strength in RIDGE_STRENGTHS]
        chosen_features = features(chosen.inputs)
        best = min(fits, key=lambda fit: rmse(fit(chosen_features), chosen.rul))
        predicted = best(features(test.inputs))
        baselines[name] = {"rmse": rmse(predicted, test.rul), "nasa": nasa_score(predicted, test.rul)}
    return baselines


def _tensors(windows: TrainingWindows, which: NDArray[np.int64]) -> Batch:
    return torch.from_numpy(windows.inputs(which)), {
        "rul": torch.from_numpy(windows.rul[which]),
        "health": torch.from_numpy(windows.health[which]),
    }
