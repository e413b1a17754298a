"""Trainings that kill themselves at a random step and go on from what their trainer had saved, for every weighting.

The kill falls between a model's forward and its backward, at a step drawn from a seed, and so never into the writing of a
checkpoint: trainers do not all write theirs as a whole or not at all, and a torn one would be their concern.
"""

from __future__ import annotations

import os
import random
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL
from typing import Any

import torch
import torch._dynamo  # an optimizer would import it in every life anew
from killing import save
from strategies import REPRESENTATIVE, quick, snapshot
from torch import nn

from mtl_axes import MultiTaskCriterion, OuterWeighting

# Seven batches in windows of two: four optimizer steps per epoch, so that both an epoch's middle and its end are saved.
EPOCHS, ACCUMULATE, STEPS_PER_EPOCH, SAVED_EVERY, KILLS = 3, 2, 4, 2, 2
STEPS = EPOCHS * STEPS_PER_EPOCH

TRAININGS = {**{outer: (outer, "exact") for outer in REPRESENTATIVE}, "gaba, lagged": ("gaba", "lagged")}
"""Weighting and probe, by the name of the training."""

# Weights that are learned, of epochs, of norms, that want the losses after a step, and that lag: what a trainer can spoil.
SOME = ("uncertainty", "dwa", "gaba", "famo", "gaba, lagged")

Kill = Callable[[MultiTaskCriterion, Callable[[], int]], None]
"""Told the criterion and how to ask for the optimizer steps so far, it prepares the end of the process, if there is one."""

Train = Callable[[str, str, Path, Kill], dict[str, Any]]
"""Trains with a weighting and a probe from the last checkpoint of a folder to the end, and returns the final state."""


def weighting(outer: str) -> OuterWeighting:
    """A weighting that moves; DWA compares epochs, so that their ends count."""
    return quick(outer, **({"window": None} if outer == "dwa" else {}))


def final(model: nn.Module, criterion: MultiTaskCriterion, optimizer: Any) -> dict[str, Any]:
    """All that must not depend on whether there was a kill."""
    return {
        "model": model.state_dict(),
        "criterion": criterion.state_dict(),
        "parameters and buffers of the criterion": snapshot(criterion),
        "optimizer": optimizer.state_dict(),
    }


def main(train: Train) -> None:
    """Run every training once through, and once with its process killed; the body of a script.

    The arguments of the script are a folder, a seed and the names of trainings. Every life is a process forked from this
    one, so that what takes seconds to import is imported once. The final states go to ``final.pt`` in the folder, by name,
    as pairs.
    """
    folder, seed, names = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    torch.set_num_threads(1)
    pairs = {}
    for name in names:
        outer, probe = TRAININGS[name]
        numbers = random.Random(f"{seed} {name}")
        # Not before there is a checkpoint, and not in the last step, which has one call only.
        deaths = [(step, numbers.randint(1, 2)) for step in sorted(numbers.sample(range(SAVED_EVERY, STEPS - 1), KILLS))]
        for part, ends in (("through", [None]), ("killed", [*deaths, None])):
            here = folder / name / part
            here.mkdir(parents=True)
            for death in ends:
                if death is not None:
                    print(f"{name}: killed in call {death[1]} after {death[0]} steps, seed {seed}", flush=True)
                code = _live(train, outer, probe, here, death)
                assert code == (0 if death is None else -SIGKILL), f"{name}, {part}: a life ended with code {code}"
        pairs[name] = [torch.load(folder / name / part / "final.pt", weights_only=True) for part in ("through", "killed")]
    save(pairs, folder / "final.pt")


def _live(train: Train, outer: str, probe: str, folder: Path, death: tuple[int, int] | None) -> int:
    """Train in a process of its own and return its exit code; it may die in the n-th call after some steps."""

    def kill(criterion: MultiTaskCriterion, steps: Callable[[], int]) -> None:
        if death is None:
            return
        calls = 0

        def count(*_: Any) -> None:
            nonlocal calls
            calls += criterion.training and steps() >= death[0]
            if calls == death[1]:
                os.kill(os.getpid(), SIGKILL)

        criterion.register_forward_pre_hook(count)

    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.manual_seed(0)
            save(train(outer, probe, folder, kill), folder / "final.pt")
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            # Nothing of the parent is to run in the child: neither its handlers at exit nor what follows its call.
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
