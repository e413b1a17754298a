"""Trains with Accelerate and its save_state; a script that test_killed_trainers.py runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lives import ACCUMULATE, EPOCHS, SAVED_EVERY, STEPS, STEPS_PER_EPOCH, Kill, final, main
from test_accelerate import BATCHES, Run


def train(outer: str, probe: str, folder: Path, kill: Kill) -> dict[str, Any]:
    run = Run(outer, accelerator={"gradient_accumulation_steps": ACCUMULATE}, probe=probe)
    step = max((int(path.name) for path in folder.iterdir()), default=0)
    if step:
        run.accelerator.load_state(folder / str(step))
    kill(run.criterion, lambda: step)
    # The kill sits in a hook. Without train() the first call after a hook was registered would not reuse gradients.
    run.criterion.train()
    for _ in range(step // STEPS_PER_EPOCH, EPOCHS):
        done = ACCUMULATE * (step % STEPS_PER_EPOCH)
        rest = run.accelerator.skip_first_batches(run.batches, done) if done else run.batches
        for number, batch in enumerate(rest, done + 1):
            run.batch(*batch)
            if number == BATCHES:
                run.criterion.end_epoch()
            if run.accelerator.sync_gradients:
                step += 1
                if step % SAVED_EVERY == 0:
                    run.accelerator.save_state(folder / str(step))
    assert step == STEPS
    return final(run.accelerator.unwrap_model(run.model), run.criterion, run.optimizer)


if __name__ == "__main__":
    main(train)
