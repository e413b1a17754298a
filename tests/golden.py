"""Frozen losses and gradients of inner shapes, in files beside the oracles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "oracles"


def load(name: str) -> dict[str, Any]:
    """The file of that name: notes, inputs by name, and cases by name."""
    return json.loads((FOLDER / name).read_text())


def golden_inputs(golden: dict[str, Any], case: str) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """The prediction, a leaf in float64, the target, and what a case expects. Classes are integers, other targets floats."""
    expected = golden["cases"][case]
    inputs = golden["inputs"][expected["inputs"]]
    prediction = torch.tensor(inputs["prediction"], dtype=torch.float64, requires_grad=True)
    classes = expected["inputs"] in ("multiclass", "ordinal")
    return prediction, torch.tensor(inputs["target"], dtype=torch.int64 if classes else torch.float64), expected
