"""Trains every weighting, and GABA with every probe, side by side; the script that test_killing.py kills."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from killing import save
from strategies import PROBES, REPRESENTATIVE, batch_for, model_for, quick
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from mtl_axes import compose

KINDS = {"rul": "regression", "health": "multiclass"}
CALLS, EPOCH, SAVED_EVERY = 25, 7, 3


class Dropping(nn.Module):
    """A model whose result depends on the random number generator."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.dropout = model_for(KINDS), nn.Dropout(0.2)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        return self.net(self.dropout(inputs))


class Run:
    """One training: model, criterion, Adam, and a GradScaler where it is in float16."""

    def __init__(self, outer: str, accumulate: int, *, half: bool = False, **options: Any) -> None:
        self.accumulate, self.half = accumulate, half
        self.model = Dropping()
        self.criterion = compose(quick(outer), "failure_biased", tasks=list(KINDS), accumulate=accumulate, **options)
        groups = [{"params": list(self.model.parameters())}, *self.criterion.param_groups(lr=0.05)]
        self.optimizer = torch.optim.Adam(groups, lr=1e-2)
        # Twice the scale after every second step: it overflows now and then, and steps are skipped.
        self.scaler = GradScaler("cpu", init_scale=2.0**14, growth_interval=2, enabled=half)

    def loss(self, number: int) -> Tensor:
        inputs, targets = batch_for(KINDS, seed=number, scale=20.0)
        here = {name: None if number % 7 == 4 and name == "health" else target for name, target in targets.items()}
        with torch.autocast("cpu", dtype=torch.float16, enabled=self.half):
            outputs = self.model(inputs)
        return self.criterion(outputs, here)

    def call(self, number: int) -> None:
        self.scaler.scale(self.loss(number) / self.accumulate).backward()
        if (number + 1) % self.accumulate == 0:
            before = self.scaler.get_scale()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()
            self.criterion.step(skipped=self.scaler.get_scale() < before)
            if self.criterion.outer.wants_after_step:
                with torch.no_grad(), self.criterion.after_step():
                    for again in range(number + 1 - self.accumulate, number + 1):
                        self.loss(again)
        if (number + 1) % EPOCH == 0:
            self.criterion.end_epoch()

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "criterion": self.criterion, "optimizer": self.optimizer, "scaler": self.scaler}

    def parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def state(self) -> dict[str, Any]:
        """All that a user saves, and the gradients of a window that is not complete."""
        saved = {name: part.state_dict() for name, part in self.parts().items()}
        return {**saved, "gradients": [parameter.grad for parameter in self.parameters()]}

    def load(self, state: dict[str, Any]) -> None:
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        for parameter, gradient in zip(self.parameters(), state["gradients"], strict=True):
            parameter.grad = gradient


def runs() -> dict[str, Run]:
    found = {}
    for accumulate in (1, 2):
        for outer in REPRESENTATIVE:
            found[f"{outer}, accumulate={accumulate}"] = Run(outer, accumulate)
        for probe, options in PROBES.items():
            if probe == "exact":
                continue  # as GABA has it above
            found[f"gaba, {probe}, accumulate={accumulate}"] = Run("gaba", accumulate, **options)
        for probe in ("exact", "lagged"):
            found[f"gaba, {probe}, float16, accumulate={accumulate}"] = Run("gaba", accumulate, half=True, probe=probe)
    return found


def train(folder: Path) -> dict[str, Any]:
    """Train to the end from the checkpoint of a folder, or from the beginning, and return the final states."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    file, start, training = folder / "checkpoint.pt", 0, runs()
    if file.exists():
        checkpoint = torch.load(file, weights_only=True)
        start = checkpoint["call"]
        for name, run in training.items():
            run.load(checkpoint["runs"][name])
        torch.set_rng_state(checkpoint["generator"])
    for number in range(start, CALLS):
        for run in training.values():
            run.call(number)
        if (number + 1) % SAVED_EVERY == 0:
            states = {name: run.state() for name, run in training.items()}
            save({"call": number + 1, "runs": states, "generator": torch.get_rng_state()}, file)
        print(number, flush=True)
    return {name: run.state() for name, run in training.items()}


if __name__ == "__main__":
    save(train(Path(sys.argv[1])), Path(sys.argv[1]) / "final.pt")
