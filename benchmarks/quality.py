"""How accurate the cheap probes are: their weights against the weights of exact norms in every step.

One model is trained by the plain sum. At every step each probe's criterion runs a forward and a backward pass on the current
model, as if it trained it; its weights are recorded and its gradients discarded. All probes see the same parameters and the
same batches, so that only the probe differs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.methods import EVERY, quiet
from benchmarks.models import CHANNELS, CLASSES, FEATURES, WINDOW, MultiTask, cnn_bilstm, mlp, task_losses
from mtl_axes import MultiTaskCriterion, OuterWeighting, Signals, compose, create
from mtl_axes.probes import Exact, Probe
from mtl_axes.signals import Need, TaskInfo

__all__ = ["run"]

FORMS = ("complement", "inverse")
AVERAGES = {"raw": 0.0, "average 0.9": 0.9}
VARIANTS = list(itertools.product(FORMS, AVERAGES))
REFERENCE = "exact"
# The scales of the targets, and at first the gradient norms, spread over this factor.
SPREAD = 300.0
# Steps that are not compared: some task is not measured yet, or the average is still near its start.
BURN_IN = 50

Batch = Callable[[], tuple[Tensor, dict[str, Tensor]]]


class _Variants(OuterWeighting):
    """Several forms of GABA on the same signals, so that a probe runs once for all of them. The sum stays plain."""

    needs: ClassVar[Need] = "norms"

    latest: Tensor

    def __init__(self, source: str = "norms") -> None:
        super().__init__()
        self.source = source
        self.variants = nn.ModuleList(
            [create("outer", "gaba", beta=AVERAGES[average], floor=0.0, warmup=0, form=form) for form, average in VARIANTS]
        )

    def bind(self, tasks: tuple[TaskInfo, ...]) -> None:
        super().bind(tasks)
        self.register_buffer("latest", torch.full((len(VARIANTS), len(tasks)), 1.0 / len(tasks)))

    def forward(self, signals: Signals, /) -> Tensor:
        if self.source == "losses":
            signals = Signals(
                signals.losses, norms=signals.losses, active=signals.active, elapsed=signals.elapsed, step=signals.step
            )
        self.latest.copy_(torch.stack([variant(signals) for variant in self.variants]))
        return self.current.clone()


def _probes() -> dict[str, tuple[Probe | str, int]]:
    return {
        REFERENCE: ("exact", 1),
        "rotate": (Exact(rotate=True), 1),
        f"exact, every {EVERY}": ("exact", EVERY),
        f"rotate, every {EVERY}": (Exact(rotate=True), EVERY),
        "representation": ("representation", 1),
        "lagged": ("lagged", 1),
    }


def run(*, steps: int = 200, batch: int = 32) -> list[dict[str, Any]]:
    """Return the error of every probe on an MLP with four tasks and on a CNN + BiLSTM with two."""
    records = []
    with quiet():
        for title, model, draw in (_mlp_trajectory(batch), _lstm_trajectory(batch)):
            errors = _errors(title, model, draw, steps)
            for (probe, (form, average)), values in errors.items():
                sample = torch.tensor(values)
                records.append(
                    {
                        "model": title,
                        "probe": probe,
                        "form": form,
                        "average": average,
                        "median": sample.quantile(0.5).item(),
                        "p90": sample.quantile(0.9).item(),
                    }
                )
    return records


def _errors(title: str, model: MultiTask, draw: Batch, steps: int) -> dict[tuple[str, tuple[str, str]], list[float]]:
    """Return max_k |log(w_k / w_exact_k)| by probe and variant, one per step after the burn-in."""
    _, targets = draw()
    criteria = {
        name: compose(_Variants(), "mse", tasks=list(targets), probe=probe, every=every)
        for name, (probe, every) in _probes().items()
    }
    criteria["1 / loss"] = compose(_Variants("losses"), "mse", tasks=list(targets))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    errors: dict[tuple[str, tuple[str, str]], list[float]] = {
        (name, variant): [] for name in criteria if name != REFERENCE for variant in VARIANTS
    }
    for step in tqdm(range(steps), desc=title, leave=False):
        inputs, targets = draw()
        weights = {name: _weights(criterion, model, inputs, targets) for name, criterion in criteria.items()}
        if step >= min(BURN_IN, steps // 2):
            for name, variants in weights.items():
                if name != REFERENCE:
                    worst = (variants / weights[REFERENCE]).log().abs().amax(1)
                    for variant, error in zip(VARIANTS, worst.tolist(), strict=True):
                        errors[name, variant].append(error)
        torch.stack(task_losses(model(inputs), targets)).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return errors


def _weights(criterion: MultiTaskCriterion, model: MultiTask, inputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
    """Weights that a step would use, by variant."""
    loss = criterion(model(inputs), targets)
    assert isinstance(criterion.outer, _Variants)
    weights: Tensor = criterion.outer.latest.clone()
    loss.backward()
    model.zero_grad()
    return weights


def _mlp_trajectory(batch: int) -> tuple[str, MultiTask, Batch]:
    """Four regressions of one random network's outputs, their scales spread evenly in the logarithm."""
    model = mlp(4, batch=batch, width=256).model
    teacher = nn.Sequential(nn.Linear(FEATURES, 64), nn.Tanh(), nn.Linear(64, 4)).requires_grad_(False)
    scales = torch.logspace(0, math.log10(SPREAD), 4)

    def draw() -> tuple[Tensor, dict[str, Tensor]]:
        inputs = torch.randn(batch, FEATURES)
        values = scales * (teacher(inputs) + 0.1 * torch.randn(batch, 4))
        return inputs, {f"task{index}": values[:, index] for index in range(4)}

    return "MLP, K=4", model, draw


def _lstm_trajectory(batch: int) -> tuple[str, MultiTask, Batch]:
    """A regression on a large scale and three classes, both of the windows' last steps."""
    model = cnn_bilstm(batch=batch).model
    direction = torch.randn(CHANNELS)

    def draw() -> tuple[Tensor, dict[str, Tensor]]:
        windows = torch.randn(batch, WINDOW, CHANNELS).cumsum(1) / math.sqrt(WINDOW)
        value = windows[:, -5:].mean(1) @ direction / math.sqrt(CHANNELS)
        state = torch.bucketize(value, torch.linspace(-0.4, 0.4, CLASSES - 1))
        return windows, {"value": SPREAD * value, "state": state}

    return "CNN + BiLSTM, K=2", model, draw
