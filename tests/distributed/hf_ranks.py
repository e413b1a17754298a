"""What each rank does in the test of the HuggingFace Trainer under torchrun: it trains, and writes down what it saw."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from hf_models import TASKS, bert, texts, trainer_of
from mtl_axes.adapters.huggingface import attach
from strategies import quick, snapshot

from mtl_axes import compose

OUTERS = ("dwa", "famo", "gaba", "gradnorm", "uncertainty")
# Version 4 loads the optimizer to a device "cpu:0" under DDP on the CPU, which torch does not know.
RESUMES = int(transformers.__version__.split(".")[0]) >= 5
EVALUATED = 9  # no multiple of two batches of 4: the last ones repeat the first rows


def run(folder: Path, outer: Any, *, resume: str | None = None, probe: str = "exact", **options: Any) -> dict[str, Any]:
    """Train two epochs, and return what was seen and what is left."""
    arguments: dict[str, Any] = {
        "num_train_epochs": 2,
        "gradient_accumulation_steps": 2,
        "ddp_backend": "gloo",
        **options,
    }
    model = bert()
    outer = quick(outer) if isinstance(outer, str) else outer
    criterion = compose(outer, tasks=TASKS, probe=probe)
    trainer = trainer_of(folder, model, texts(40), eval_dataset=texts(EVALUATED, 1), **arguments)
    attach(trainer, criterion).train(resume_from_checkpoint=resume)
    return {
        "criterion": {name: value for name, value in snapshot(criterion).items() if isinstance(value, torch.Tensor)},
        "model": {name: value.clone() for name, value in model.state_dict().items()},
        "losses": criterion.report.losses,
        "logs": [row for row in trainer.state.log_history if "loss" in row],
        "metrics": trainer.evaluate(),
    }


def sparse(folder: Path) -> dict[str, Any]:
    """Predict rows of which each rank lacks other labels: rank 0 has integer scores, rank 1 none, and later none has any."""
    rows: list[dict[str, Any]] = texts(16, 1)
    for number, row in enumerate(rows):
        row["sentiment"] = row["sentiment"] if 4 <= number < 8 else None
        row["score"] = number if number < 4 else None
    shapes = {"sentiment": "cross_entropy", "score": "mse"}
    criterion = compose("uncertainty", shapes, tasks=TASKS, missing="ignore")
    trainer = attach(trainer_of(folder, bert(), rows, ddp_backend="gloo"), criterion)
    found = trainer.predict(rows)
    return {"labels": {task: label.tolist() for task, label in found.label_ids.items()}, "metrics": found.metrics}


def main(folder: Path) -> None:
    """Run all cases of this rank."""
    torch.set_num_threads(1)
    result: dict[str, Any] = {outer: run(folder / "out", outer) for outer in OUTERS}
    result["ones"] = run(folder / "out", {"name": "fixed", "weights": [1.0, 1.0]})
    result["used"] = run(folder / "out", "gaba", ddp_find_unused_parameters=False)
    for probe in ("representation", "lagged"):
        result[probe] = run(folder / "out", "gaba", probe=probe)
        result[f"{probe} used"] = run(folder / "out", "gaba", probe=probe, ddp_find_unused_parameters=False)
    result["whole"] = run(folder / "saved", "uncertainty", save_strategy="steps", save_steps=4)
    if RESUMES:
        result["resumed"] = run(folder / "saved", "uncertainty", resume=str(folder / "saved" / "checkpoint-4"))
    result["sparse"] = sparse(folder / "out")
    torch.save(result, folder / f"rank{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
