"""Trains with Lightning and its checkpoints; a script that test_killed_trainers.py runs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Checkpoint
from lives import ACCUMULATE, EPOCHS, SAVED_EVERY, STEPS, Kill, final, main, weighting
from test_lightning import KINDS, Net, fit, trainer_for

from mtl_axes import compose

for message in (r".*isinstance\(treespec, LeafSpec\)", ".*does not have many workers"):
    warnings.filterwarnings("ignore", message)


class Saving(Checkpoint):
    """Saves in the middle of an epoch and at its end.

    Not ``ModelCheckpoint(every_n_train_steps=2)``. Where gradients accumulate it saves again after the first batch of a
    resumed run, without that batch's gradients. And Lightning trains for an epoch too many, with any loss, when it goes on
    for the second time from a checkpoint of the last batch of an epoch.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == ACCUMULATE * SAVED_EVERY:
            self.on_train_epoch_end(trainer)

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def train(outer: str, probe: str, folder: Path, kill: Kill) -> dict[str, Any]:
    module = Net(compose(weighting(outer), "failure_biased", tasks=list(KINDS), probe=probe))
    trainer = trainer_for(Saving(folder), max_epochs=EPOCHS, accumulate_grad_batches=ACCUMULATE, enable_checkpointing=True)
    kill(module.criterion, lambda: trainer.global_step)
    last = max(folder.glob("*.ckpt"), key=lambda path: int(path.stem), default=None)
    fit(module, trainer, ckpt_path=last, weights_only=True)
    assert trainer.global_step == STEPS
    return final(module, module.criterion, trainer.optimizers[0])


if __name__ == "__main__":
    main(train)
