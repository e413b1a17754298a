"""Trains with the HuggingFace Trainer and its checkpoints; a script that test_killed_trainers.py runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_models import TASKS, bert, texts, trainer_of
from lives import ACCUMULATE, EPOCHS, SAVED_EVERY, STEPS, Kill, final, main, weighting
from mtl_axes.adapters.huggingface import attach

from mtl_axes import compose


def train(outer: str, probe: str, folder: Path, kill: Kill) -> dict[str, Any]:
    criterion = compose(weighting(outer), tasks=TASKS, probe=probe)
    trainer = trainer_of(
        folder,
        bert(dropout=0.1),
        texts(28),
        num_train_epochs=EPOCHS,
        gradient_accumulation_steps=ACCUMULATE,
        save_strategy="steps",
        save_steps=SAVED_EVERY,
        logging_strategy="no",
    )
    attach(trainer, criterion)
    kill(criterion, lambda: trainer.state.global_step)
    trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))
    assert trainer.state.global_step == STEPS
    return final(trainer.model, criterion, trainer.optimizer)


if __name__ == "__main__":
    main(train)
