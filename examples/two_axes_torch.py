"""The four cells of ``two_axes_numpy.py`` through the library, and then on a model with real gradient norms.

First the same predictions, health loss and norms are fed to the four criteria, which gives the same eight numbers. Then a
dual-head model (30 shared, 7 and 21 private parameters) provides its own norms. There the norms of C and D differ, because
the weighting sees the gradient of the *shaped* loss: the axes are chosen independently, their effects are not independent.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from mtl_axes import MultiTaskCriterion, Probe, compose
from mtl_axes.probes import Measurement, Tape
from mtl_axes.signals import Need

sys.path.insert(0, str(Path(__file__).parent))
import two_axes_numpy as reference

GABA = {"name": "gaba", "beta": 0.0, "floor": 0.0, "warmup": 0}  # the closed form only: no memory, no floor
CELLS = {
    "A": ("fixed", "mse"),
    "B": ("fixed", "failure_biased"),
    "C": (GABA, "mse"),
    "D": (GABA, "failure_biased"),
}


class GivenNorms(Probe):
    """A probe that reports given norms. A third party's probe needs no more than this."""

    def __init__(self, norms: Tensor) -> None:
        super().__init__()
        self.norms = norms

    def measure(self, tape: Tape, need: Need) -> Measurement:
        """Return the given norms, whatever the graph."""
        return Measurement(self.norms, None, (True,) * len(tape.names))


class DualHead(nn.Module):
    """A shared layer of 30 parameters, a head for RUL with 7, and one for three health states with 21."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 6)
        self.rul_head = nn.Linear(6, 1)
        self.health_head = nn.Linear(6, 3)

    def forward(self, sensors: Tensor) -> dict[str, Tensor]:
        """Return RUL in cycles, (N,), and health logits, (N, 3)."""
        shared = torch.relu(self.trunk(sensors))
        return {"rul": 50 + 40 * self.rul_head(shared).squeeze(-1), "health": self.health_head(shared)}


def cells_of_given_numbers() -> dict[str, float]:
    """Return the numbers of the numpy example, computed by the library from the same inputs."""
    rul, health = torch.from_numpy(reference.RUL), torch.tensor(reference.L_HEALTH, dtype=torch.float64)
    values: dict[str, float] = {}
    for cell, (outer, inner) in CELLS.items():
        criterion = compose(outer, inner, probe=GivenNorms(torch.from_numpy(reference.NORMS)))
        prediction = torch.from_numpy(reference.RUL_HAT).requires_grad_()
        total = criterion({"rul": prediction}, {"rul": rul}, extra={"health": health})
        values[cell] = total.item()
        assert criterion.report is not None
        values["L_WMSE" if inner == "failure_biased" else "L_MSE"] = criterion.report.losses[0].item()
        if outer == GABA:
            values["lambda_rul"], values["lambda_health"] = criterion.report.weights.tolist()
    return values


def cells_of_a_model() -> dict[str, MultiTaskCriterion]:
    """Return the four criteria after one call on the same forward pass of a model."""
    torch.manual_seed(0)
    model = DualHead()
    rul = torch.from_numpy(reference.RUL).float()
    health = 2 - (rul > 30).long() - (rul > 80).long()  # 0 above 80 cycles, 1 from 30 to 80, 2 at 30 and below
    outputs = model(torch.randn(len(rul), 4))
    criteria = {}
    for cell, (outer, inner) in CELLS.items():
        criteria[cell] = compose(outer, inner)
        criteria[cell](outputs, {"rul": rul, "health": health})
    return criteria


if __name__ == "__main__":
    print("Fed with the numbers of two_axes_numpy.py:\n")
    print(reference.table(cells_of_given_numbers()))
    print("\nOn a dual-head model (30 + 7 + 21 parameters), one step, its own norms:\n")
    print("cell      L_rul   L_health   norm_rul   norm_health   lambda_rul   lambda_health")
    for cell, criterion in cells_of_a_model().items():
        report = criterion.report
        assert report is not None
        losses, weights = report.losses.tolist(), report.weights.tolist()
        norms = "         -             -"
        if report.norms is not None:
            norms = "{:10.2f} {:13.5f}".format(*report.norms.tolist())
        print(f"{cell}    {losses[0]:9.2f} {losses[1]:10.4f} {norms} {weights[0]:12.6f} {weights[1]:15.6f}")
    print("\nA and B measure nothing: fixed weights need no gradient. C and D differ in norm_rul, hence in lambda.")
