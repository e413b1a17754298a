"""The HuggingFace Trainer under torchrun: two ranks on different data hold one model, one criterion and one log."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import limits
import pytest
import torch
from hf_models import TASKS, bert, texts
from hf_ranks import EVALUATED, OUTERS, RESUMES
from mtl_axes.adapters.huggingface import TaskCollator
from strategies import equal
from torch.nn import functional as F

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes saw."""
    folder = tmp_path_factory.mktemp("ranks")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    paths = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [*launch, str(HERE / "hf_ranks.py"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limits.PROCESS, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", [*OUTERS, "used", "representation", "representation used", "lagged", "lagged used"])
def test_ranks_hold_the_same(ranks: list[dict[str, Any]], case: str) -> None:
    """Model, state and learned weights agree bit for bit, though the ranks saw different rows."""
    first, second = (rank[case] for rank in ranks)
    assert equal(first["model"], second["model"])
    assert equal(first["criterion"], second["criterion"])
    assert first["logs"] == second["logs"]
    assert not torch.equal(first["losses"], second["losses"])
    assert len({row["mtl/weight/score"] for row in first["logs"]}) > 1


def test_logged_losses_are_those_of_all_ranks(ranks: list[dict[str, Any]]) -> None:
    """With weights of 1 they add up to the Trainer's loss, which is the mean over the ranks."""
    for row in ranks[0]["ones"]["logs"]:
        assert row["mtl/loss/sentiment"] + row["mtl/loss/score"] == pytest.approx(row["loss"], rel=1e-5)


def test_evaluation_counts_every_row_once(ranks: list[dict[str, Any]]) -> None:
    """The losses of the tasks are those of the whole set in one process, though the last batches repeat rows."""
    model = bert()
    model.load_state_dict(ranks[0]["gaba"]["model"])
    batch = TaskCollator(TASKS)(texts(EVALUATED, 1))
    with torch.no_grad():
        outputs = model.eval()(batch["input_ids"], batch["attention_mask"])
    sentiment = F.cross_entropy(outputs["sentiment"], batch["labels"]["sentiment"])
    score = F.mse_loss(outputs["score"], batch["labels"]["score"])
    for rank in ranks:
        assert rank["gaba"]["metrics"]["eval_loss_sentiment"] == pytest.approx(float(sentiment), rel=1e-5)
        assert rank["gaba"]["metrics"]["eval_loss_score"] == pytest.approx(float(score), rel=1e-5)


@pytest.mark.skipif(not RESUMES, reason="version 4 of transformers cannot resume under DDP on the CPU")
def test_a_resumed_training_equals_the_uninterrupted_one(ranks: list[dict[str, Any]]) -> None:
    """What rank 0 saved, every rank loads; the end is the same, bit for bit."""
    for rank in ranks:
        assert equal(rank["resumed"]["model"], rank["whole"]["model"])
        assert equal(rank["resumed"]["criterion"], rank["whole"]["criterion"])


def test_looking_for_unused_parameters_changes_nothing(ranks: list[dict[str, Any]]) -> None:
    """The Trainer has DDP look for them by default; without it the run is the same."""
    assert equal(ranks[0]["used"]["model"], ranks[0]["gaba"]["model"])
    assert equal(ranks[0]["used"]["criterion"], ranks[0]["gaba"]["criterion"])


def test_labels_that_ranks_lack_come_together(ranks: list[dict[str, Any]]) -> None:
    """Each rank fills in what its rows lack, in one dtype: predictions go with the labels of every row."""
    rows = texts(16, 1)
    for rank in ranks:
        labels, metrics = rank["sparse"]["labels"], rank["sparse"]["metrics"]
        assert labels["sentiment"] == [-100] * 4 + [row["sentiment"] for row in rows[4:8]] + [-100] * 8
        assert labels["score"][:4] == [0.0, 1.0, 2.0, 3.0]
        assert len(labels["score"]) == 16 and all(math.isnan(label) for label in labels["score"][4:])
        assert metrics["test_loss"] == pytest.approx((metrics["test_loss_score"] + metrics["test_loss_sentiment"]) / 8)
