"""Trainings that a history is tested on."""

from __future__ import annotations

import copy
from typing import Any

import torch
from strategies import Heads, batch_for, model_for
from torch import Tensor

from mtl_axes import MultiTaskCriterion, compose
from mtl_axes.history import History

KINDS = {"rul": "regression", "health": "multiclass", "wear": "regression"}
Columns = dict[str, list[float | None]]


class Training:
    """A model, a criterion, SGD, and batches that differ; some without labels of a task."""

    def __init__(self, outer: Any, *, kinds: dict[str, str] = KINDS, **options: Any) -> None:
        self.kinds = kinds
        self.model: Heads = model_for(kinds)
        self.criterion: MultiTaskCriterion = compose(outer, "mse", tasks=list(kinds), **options)
        groups = [{"params": list(self.model.parameters())}, *self.criterion.param_groups()]
        self.optimizer = torch.optim.SGD(groups, lr=1e-2)
        self.size = 1 if options.get("accumulate") == "manual" else options.get("accumulate", 1)
        self.call = 0

    def loss(self, call: int) -> Tensor:
        inputs, targets = batch_for(self.kinds, seed=call)
        here = {name: None if call % 7 == 4 and name == "health" else target for name, target in targets.items()}
        return self.criterion(self.model(inputs), here)

    def advance(self, calls: int, *, skip: tuple[int, ...] = (), tell: bool = False) -> Training:
        """Train for some calls; ``tell`` the criterion of steps; of those after the calls in ``skip`` as skipped."""
        for _ in range(calls):
            self.loss(self.call).backward()
            self.call += 1
            if self.call % self.size == 0:
                skipped = self.call in skip
                if not skipped:
                    self.optimizer.step()
                self.optimizer.zero_grad()
                if tell or skipped:
                    self.criterion.step(skipped=skipped)
        return self

    def saved(self) -> dict[str, Any]:
        parts = {"model": self.model, "criterion": self.criterion, "optimizer": self.optimizer}
        states = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
        return {**states, "call": self.call, "gradients": [copy.deepcopy(parameter.grad) for parameter in self.parameters()]}

    def parameters(self) -> list[Tensor]:
        return [*self.model.parameters(), *self.criterion.parameters()]

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.criterion.load_state_dict(state["criterion"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.call = state["call"]
        for parameter, gradient in zip(self.parameters(), state["gradients"], strict=True):
            parameter.grad = gradient


def attached(outer: Any, every: int = 1, *, capacity: int = 10_000, **options: Any) -> tuple[Training, History]:
    """A training whose criterion has a history."""
    training = Training(outer, **options)
    return training, History(training.criterion, every, capacity=capacity)
