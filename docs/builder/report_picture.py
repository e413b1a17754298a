"""Draws the picture of docs/report.md: ``python docs/builder/report_picture.py``.

It runs a study of three weightings and three shapes on a simulated fleet of engines, in about a minute on two cores, and
takes a screenshot of the top of its report, with playwright and Chromium. Given a report and a picture, it draws that one:

    python docs/builder/report_picture.py runs/fd001/report.html docs/images/cmapss_fd001_report.png
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from browser import photograph
from torch import nn

from mtl_axes import Study
from mtl_axes.criterion import MultiTaskCriterion
from mtl_axes.study.jobs import Outcome

TARGET = Path(__file__).parents[1] / "images" / "report.png"
SIZE = (1280, 1560)
LIFE = 125.0


class Engine(nn.Module):
    """A trunk that two heads share."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh())
        self.rul, self.health = nn.Linear(24, 1), nn.Linear(24, 3)

    def forward(self, sensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the remaining life in cycles and the logits of the health state."""
        shared = self.trunk(sensors)
        return {"rul": LIFE * self.rul(shared).squeeze(-1), "health": self.health(shared)}


def fleet(samples: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return noisy sensors that depend on wear, and the targets; few engines are near their end."""
    life = LIFE * torch.rand(samples, generator=generator) ** 0.5
    wear = (1 - life / LIFE)[:, None]
    sensors = torch.cat([wear**power for power in (1, 2, 4, 8)] * 2, 1)
    noisy = sensors + 0.15 * torch.randn(sensors.shape, generator=generator)
    return noisy, {"rul": life, "health": (life < 80).long() + (life < 30).long()}


def train(criterion: MultiTaskCriterion, seed: int) -> Outcome:
    """Train an engine model for 400 steps, and measure it on unseen engines."""
    generator = torch.Generator().manual_seed(seed)
    (sensors, targets), (unseen, truth) = fleet(1024, generator), fleet(1024, generator)
    model = Engine()
    optimizer = torch.optim.Adam([{"params": model.parameters()}, *criterion.param_groups()], lr=5e-3)
    for _ in range(400):
        picked = torch.randint(len(sensors), (64,), generator=generator)
        loss = criterion(model(sensors[picked]), {task: target[picked] for task, target in targets.items()})
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        predicted = model(unseen)
    late = predicted["rul"] - truth["rul"]
    classes = predicted["health"].argmax(1)
    return Outcome(
        {
            "rmse": late.square().mean().sqrt().item(),
            "rmse near the end": late[truth["rul"] < 30].square().mean().sqrt().item(),
            "accuracy": (classes == truth["health"]).double().mean().item(),
        },
        predictions={"rul": (predicted["rul"], truth["rul"]), "health": (classes.double(), truth["health"].double())},
    )


def hold_gaba(view: Any) -> None:
    """Choose the last cell of GABA, hold the weighting, and wait for the cell's curves."""
    row = view.locator("tr", has=view.get_by_role("rowheader", name="gaba", exact=True))
    row.locator("[role=gridcell]").last.click()
    view.get_by_role("button", name="Same outer").click()
    view.wait_for_selector("#series svg")
    view.evaluate("window.scrollTo(0, 0)")


def main() -> None:
    """Run the study, write its report, take the screenshot."""
    if len(sys.argv) > 1:
        page, target = (Path(name).resolve() for name in sys.argv[1:])
        photograph(page, target, SIZE, hold_gaba)
        return
    with tempfile.TemporaryDirectory() as name:
        study = Study(
            outer={"equal": "fixed", "uncertainty": "uncertainty", "gaba": {"name": "gaba", "warmup": 20}},
            inner={
                "mse": {"rul": "mse", "health": "cross_entropy"},
                "huber": {"rul": {"name": "huber", "delta": 10.0}, "health": "cross_entropy"},
                "failure_biased": {"rul": "failure_biased", "health": "cross_entropy"},
            },
            seeds=5,
            out=name,
            metrics={"rmse": "min", "rmse near the end": "min", "accuracy": "max"},
            title="Remaining life of a simulated fleet",
        )
        study.run(train)
        photograph(study.report(), TARGET, SIZE, hold_gaba)


if __name__ == "__main__":
    main()
