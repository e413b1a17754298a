"""Trains with the plain loop and with checkpoints of one's own; a script that test_killed_trainers.py runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from killing import save
from lives import ACCUMULATE, EPOCHS, SAVED_EVERY, STEPS_PER_EPOCH, Kill, final, main, weighting
from mtl_axes.adapters.loop import Loop
from strategies import model_for
from test_loop import KINDS, adamw, batches, decaying

from mtl_axes import compose


def train(outer: str, probe: str, folder: Path, kill: Kill) -> dict[str, Any]:
    file = folder / "checkpoint.pt"
    criterion = compose(weighting(outer), "failure_biased", tasks=list(KINDS), accumulate=ACCUMULATE, probe=probe)

    def parts() -> dict[str, Any]:
        return {"model": loop.model, "criterion": criterion, "optimizer": loop.optimizer, "scheduler": loop.scheduler}

    def save_all(loop: Loop) -> None:
        save({"step": loop.step, **{name: part.state_dict() for name, part in parts().items()}}, file)

    def after_step(loop: Loop) -> None:
        # The last step of an epoch is saved with the end of the epoch, which the criterion is told of.
        if loop.step % SAVED_EVERY == 0 and loop.step % STEPS_PER_EPOCH:
            save_all(loop)

    loop = Loop(model_for(KINDS), criterion, adamw, scheduler=decaying, after_step=after_step, progress=False)
    if file.exists():
        checkpoint = torch.load(file, weights_only=True)
        for name, part in parts().items():
            part.load_state_dict(checkpoint[name])
        loop.step = checkpoint["step"]
    kill(criterion, lambda: loop.step)
    for epoch in range(loop.step // STEPS_PER_EPOCH, EPOCHS):
        loop.run(batches()[ACCUMULATE * (loop.step - epoch * STEPS_PER_EPOCH) :])
        save_all(loop)
    return final(loop.model, criterion, loop.optimizer)


if __name__ == "__main__":
    main(train)
