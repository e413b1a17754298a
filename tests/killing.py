"""Killing a training process at random moments and starting it again, until it has trained to its end.

A script that is tested in this way is called with a folder and further arguments. It goes on from the checkpoint that it
finds there, prints a line of any text after each step of training, and ends with code 0 when all steps are done. Its
checkpoints go through :func:`save`, so that a kill during the writing leaves the checkpoint before it.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import limits
import torch

TESTS = Path(__file__).resolve().parent


def save(state: Any, file: Path) -> None:
    """Write a checkpoint that is there as a whole or not at all."""
    unfinished = file.with_suffix(".unfinished")
    torch.save(state, unfinished)
    os.replace(unfinished, file)


def start(script: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a script, in which warnings are errors and the modules of the tests are found; its output is piped."""
    paths = [str(script.parent), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-W", "error", str(script), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def train_through_kills(script: Path, folder: Path, *arguments: str, kills: int, steps: int, seed: int = 0) -> None:
    """Run a script to its end, killing it with SIGKILL in its first lives.

    Args:
        script: path of the script.
        folder: of its checkpoints, its first argument.
        arguments: its further arguments.
        kills: number of lives that end early.
        steps: lines that the script prints when nothing kills it.
        seed: of the moments: after which line of a life, and how long after it. They are printed.
    """
    moments = random.Random(seed)
    for life in range(kills + 1):
        process = start(script, str(folder), *arguments)
        watchdog = threading.Timer(limits.PROCESS, process.kill)
        watchdog.start()
        last, delay = moments.randint(1, max(1, steps // (kills + 2))), moments.uniform(0.0, 0.05)
        killed = False
        assert process.stdout is not None
        with process.stdout as lines:
            for line, _ in enumerate(lines, start=1):
                if life < kills and line == last:
                    time.sleep(delay)
                    process.kill()
                    killed = True
                    print(f"killed in life {life}, {delay:.3f} s after its line {line}, seed {seed}")
                    break
        code = process.wait()
        watchdog.cancel()
        assert killed == (life < kills) and (killed or code == 0), f"life {life} ended by itself with code {code}"
        assert not killed or code < 0, f"life {life} was over before it was killed"
