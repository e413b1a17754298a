"""The example for DistributedDataParallel: on two ranks, in one process, and killed on its way."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import limits
import pytest

pytestmark = pytest.mark.slow

EXAMPLE = str(Path(__file__).resolve().parents[2] / "examples" / "ddp_torchrun.py")
TWO_RANKS = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
# DDP keeps gloo's threads beyond destroy_process_group(), and now and then one of them aborts a process that has ended.
ABORTED_AT_EXIT = "terminate called without an active exception"


def printed(*arguments: str) -> list[str]:
    """The lines that a run prints on its standard output."""
    done = subprocess.run(
        [sys.executable, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=limits.PROCESS, check=False
    )
    assert done.returncode == 0 or ABORTED_AT_EXIT in done.stderr, done.stderr
    return done.stdout.splitlines()


def weight_of_rul(line: str) -> float:
    found = re.search(r"weight/rul (\d\.\d+)", line)
    assert found is not None, line
    return float(found[1])


def test_two_ranks_hold_the_same_weights_and_go_on_where_they_stopped(tmp_path: Path) -> None:
    """Two processes train, stop, and train on; the weights move, and are the same on both."""
    checkpoint = ["--checkpoint", str(tmp_path / "ddp.pt")]
    first = printed(*TWO_RANKS, EXAMPLE, *checkpoint, "--epochs", "2")
    second = printed(*TWO_RANKS, EXAMPLE, *checkpoint, "--epochs", "4")
    assert [line.split("   ")[0] for line in (*first[:-1], *second[:-1])] == [f"epoch {epoch}" for epoch in range(4)]
    weights = [weight_of_rul(line) for line in (*first[:-1], *second[:-1])]
    assert weights[0] == 0.5 and len(set(weights)) == 4
    assert first[-1].endswith("the same on 2 of 2 ranks") and second[-1].endswith("the same on 2 of 2 ranks")


def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    """Killed within an epoch and started again, it prints what an uninterrupted run prints."""
    through = printed(EXAMPLE)
    assert len(through) == 9 and through[-1].endswith("the same on 1 of 1 ranks")
    arguments = [sys.executable, EXAMPLE, "--checkpoint", str(tmp_path / "ddp.pt")]
    with subprocess.Popen(arguments, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().rstrip("\n") for _ in range(3)]
        process.kill()
    assert lines == through[:3]
    resumed = printed(*arguments[1:])
    assert 1 < len(resumed) <= 9 - 2, "it should begin after the last epoch that was saved"
    assert resumed == through[-len(resumed) :]
