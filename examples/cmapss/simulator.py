"""A simulated turbofan fleet, written in the C-MAPSS file format.

Wear of an engine is a random walk with drift in the logarithm, and the engine fails when wear reaches 1: its life
emerges. A sensor is its base value in the operating condition, moved by wear times a drift per sensor, with an offset
per engine and noise per cycle. The numbers were read off the real files; the fleet shows the pipeline and the imbalance
of gradients, not which method wins.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .data import check_subset, file_names

Array = NDArray[np.float64]

FORMATS = ("%d", "%d", "%.4f", "%.4f", "%.1f", *["%.2f"] * 14, "%.4f", "%.2f", "%d", "%d", "%.2f", "%.2f", "%.4f")

CONDITIONS = np.array(
    [[0, 0, 100], [10, 0.25, 100], [20, 0.7, 100], [25, 0.62, 60], [35, 0.84, 100], [42, 0.84, 100]], dtype=np.float64
)
"""Altitude in 1000 ft, Mach number, throttle resolver angle in degrees."""
CONDITION_SHARES = (0.15, 0.15, 0.15, 0.15, 0.15, 0.25)

# fmt: off
BASES = np.array([
    [518.67, 642.35, 1586.7, 1402.5, 14.62, 21.61, 553.97, 2388.06, 9055.5, 1.3, 47.35, 521.92, 2388.06, 8137, 8.417, 0.03,
     392.3, 2388, 100, 38.94, 23.36],
    [489.05, 604.6, 1498.5, 1305.5, 10.52, 15.49, 394.7, 2318.89, 8777.8, 1.26, 45.31, 371.8, 2388.09, 8130.3, 8.638, 0.03,
     368.8, 2319, 100, 28.61, 17.16],
    [491.19, 607.3, 1482.3, 1248.1, 9.35, 13.65, 334.8, 2323.94, 8722.4, 1.08, 44.28, 315.2, 2388.07, 8060.8, 9.206, 0.02,
     364.5, 2324, 100, 24.53, 14.71],
    [462.54, 536.7, 1259.9, 1046, 7.05, 9.03, 175.6, 1915.33, 8009.4, 0.94, 36.65, 164.7, 2028.23, 7873.7, 10.882, 0.02,
     306.6, 1915, 84.93, 14.3, 8.58],
    [449.44, 555.5, 1363.7, 1126.5, 5.48, 8, 194.6, 2222.94, 8349.2, 1.02, 41.83, 183.2, 2388.03, 8067.1, 9.306, 0.02,
     333.4, 2223, 100, 14.87, 8.92],
    [445, 549.5, 1351.2, 1122.6, 3.91, 5.71, 138.8, 2211.9, 8320.1, 1.02, 41.98, 130.6, 2387.97, 8083.8, 9.353, 0.02,
     330.2, 2212, 100, 10.62, 6.37],
])
"""Sensor values s1..s21 of a new engine in each condition."""
DRIFTS = 0.01 * np.array([
    [0, 0.2, 0.95, 1.83, 0, 0, -0.43, 0.012, 0.36, 0, 1.65, -0.39, 0.012, 0.25, 1.17, 0, 1.01, 0, 0, -1.2, -1.2],
    [0, 0.2, 0.95, 1.83, 0, 0.06, 0.45, -0.012, 0.36, 0, 1.65, 0.4, -0.012, 0.25, -0.6, 0, 1.01, 0, 0, -1.2, -1.2],
])
"""Relative change of s1..s21 at failure: compressor fault, fan fault (the second is a guess, not a fit)."""
NOISE = np.array([
    0, 0.37, 4.5, 5.6, 0, 0.002, 0.6, 0.055, 8.2, 0, 0.165, 0.48, 0.055, 7.9, 0.026, 0, 1.1, 0, 0, 0.125, 0.078,
])
"""Standard deviation of s1..s21 at sea level."""
# fmt: on

CORE_SPEEDS = (8, 13)
"""Columns of s9 and s14, whose drift differs from engine to engine, also in sign."""
LIFE = (128, 545)


@dataclass(frozen=True)
class SimulatedFleet:
    """How to simulate: subset (which conditions and faults), engines per file, seed."""

    subset: str = "FD002"
    train_engines: int = 60
    test_engines: int = 60
    seed: int = 2008

    def write(self, folder: Path) -> None:
        """Write the three files of the subset, each replaced in one step."""
        rng = np.random.default_rng([self.seed, int(check_subset(self.subset)[-1])])
        train = [self._engine(number + 1, rng) for number in range(self.train_engines)]
        whole = [self._engine(number + 1, rng) for number in range(self.test_engines)]
        shown = [max(2, round(len(rows) * rng.uniform(0.22, 0.97))) for rows in whole]
        ruls = [len(rows) - cycles for rows, cycles in zip(whole, shown, strict=True)]
        texts = (
            _text(np.concatenate(train)),
            _text(np.concatenate([rows[:cycles] for rows, cycles in zip(whole, shown, strict=True)])),
            "".join(f"{rul} \n" for rul in ruls),
        )
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in zip(file_names(self.subset), texts, strict=True):
            part = folder / f".{name}.{os.getpid()}"
            part.write_text(text, encoding="ascii", newline="\n")
            part.replace(folder / name)

    def _engine(self, number: int, rng: np.random.Generator) -> Array:
        """All rows of one engine from new to failure: shape (life, 26)."""
        wear = _wear(rng)
        cycles = len(wear)
        many_conditions = self.subset in ("FD002", "FD004")
        two_faults = self.subset in ("FD003", "FD004")
        if many_conditions:
            condition = rng.choice(len(CONDITIONS), size=cycles, p=CONDITION_SHARES)
            settings = CONDITIONS[condition] + rng.uniform((-0.002, 0, 0), (0.008, 0.002, 0), size=(cycles, 3))
            settings[condition == 0] = (
                rng.uniform(0, (0.003, 0.002, 0), size=(int((condition == 0).sum()), 3)) + CONDITIONS[0]
            )
        else:
            condition = np.zeros(cycles, dtype=np.int64)
            settings = CONDITIONS[0] + rng.normal(size=(cycles, 3)) * (0.0022, 0.0003, 0)
        drift = DRIFTS[rng.integers(2) if two_faults else 0].copy()
        drift[list(CORE_SPEEDS)] += rng.uniform(-0.0045, 0.0045, size=2)
        drift *= np.exp(0.12 * rng.normal(size=drift.shape))
        base = BASES[condition]
        offset = 0.35 * NOISE * rng.normal(size=NOISE.shape)
        noise = NOISE * rng.normal(size=base.shape) * np.sqrt(base / BASES[0])
        sensors = base * (1 + wear[:, None] * drift) + offset + noise
        return np.column_stack([np.full(cycles, number), np.arange(1, cycles + 1), settings, sensors])


def _wear(rng: np.random.Generator) -> Array:
    """Wear per cycle up to failure at 1; engines outside the lives that the real fleets show are drawn again."""
    while True:
        growth = rng.lognormal(np.log(0.0205), 0.15)
        start = rng.normal(np.log(0.018), 0.45)
        log_wear = start + np.cumsum(growth + 0.02 * rng.normal(size=LIFE[1] + 1))
        failed = np.flatnonzero(log_wear >= 0)
        if failed.size and LIFE[0] <= failed[0] + 1 <= LIFE[1]:
            return np.asarray(np.exp(log_wear[: failed[0] + 1]))


def _text(rows: Array) -> str:
    # Whole columns at once: np.savetxt formats row by row and is several times slower.
    columns = []
    for form, column in zip(FORMATS, rows.T, strict=True):
        columns.append(np.char.mod(form, np.rint(column).astype(np.int64) if form == "%d" else column).tolist())
    return "".join(" ".join(row) + "  \n" for row in zip(*columns, strict=True))
