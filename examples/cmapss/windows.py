"""From engines to what a network sees: split by engine, normalise per operating condition, cut windows.

The honest protocol lives here: validation engines never touch the normaliser or the training windows, and each of them
is shown several times, cut at random like the engines of the test file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .data import Engine
from .errors import InputError
from .metrics import RUL_CAP, health_class

Array = NDArray[np.float64]

WINDOW = 30
SENSORS = (2, 3, 4, 7, 8, 9, 11, 12, 13, 14, 15, 17, 20, 21)
"""Sensors that carry information, numbered from 1 as in the files; the other seven do not change with wear."""
SETTING_SCALE = np.array([42.0, 0.84, 100.0])
SETTING_STEP = np.array([1.0, 0.01, 1.0])
"""Settings that round to the same multiple of these are one operating condition (1000 ft, Mach, degrees)."""
CHANNELS = len(SENSORS) + 3
CUT_RANGE = (0.22, 0.97)
"""Share of its life after which a validation engine is cut."""

ConditionKey = tuple[int, ...]


def conditions(settings: Array) -> list[ConditionKey]:
    """The operating condition of every row: shape (T, 3) to T keys."""
    return [tuple(key) for key in np.rint(settings / SETTING_STEP).astype(np.int64).tolist()]


def split_engines(
    engines: tuple[Engine, ...], seed: int, *, share: float = 0.2
) -> tuple[tuple[Engine, ...], tuple[Engine, ...]]:
    """Engines to fit on and engines to validate on, drawn by seed."""
    if len(engines) < 2:
        raise InputError(
            f"The training file should have at least 2 engines, one of them for validation. Found {len(engines)}. "
            "Use the published file."
        )
    order = np.random.default_rng([seed, 1]).permutation(len(engines))
    held_out = max(1, round(share * len(engines)))
    return tuple(engines[i] for i in sorted(order[held_out:])), tuple(engines[i] for i in sorted(order[:held_out]))


def truncations(engines: tuple[Engine, ...], seed: int, *, times: int = 8) -> tuple[Engine, ...]:
    """Every engine ``times`` times, each cut at a random share of its life."""
    rng = np.random.default_rng([seed, 2])
    return tuple(
        engine.cut(max(1, round(len(engine) * rng.uniform(*CUT_RANGE)))) for engine in engines for _ in range(times)
    )


@dataclass(frozen=True, eq=False)
class Normaliser:
    """Mean and standard deviation of the sensors in every operating condition."""

    statistics: dict[ConditionKey, tuple[Array, Array]]

    @classmethod
    def fit(cls, engines: tuple[Engine, ...]) -> Normaliser:
        """Statistics over all rows of ``engines``."""
        keys = [key for engine in engines for key in conditions(engine.settings)]
        sensors = np.concatenate([engine.sensors for engine in engines])[:, np.array(SENSORS) - 1]
        names, where = np.unique(np.array(keys), axis=0, return_inverse=True)
        statistics = {}
        for index, name in enumerate(names.tolist()):
            rows = sensors[where.reshape(-1) == index]
            deviation = rows.std(axis=0)
            # A sensor that never moves in a condition keeps its units: dividing by its zero would be NaN.
            statistics[tuple(name)] = (rows.mean(axis=0), np.where(deviation > 1e-6, deviation, 1.0))
        return cls(statistics)

    def __call__(self, engine: Engine) -> NDArray[np.float32]:
        """Inputs of an engine, settings first: shape (T, 17)."""
        keys = conditions(engine.settings)
        unknown = sorted(set(keys) - set(self.statistics))
        if unknown:
            shown = ", ".join(str(tuple((np.array(key) * SETTING_STEP).round(2).tolist())) for key in unknown[:3])
            raise InputError(
                f"Engine {engine.number} has operating conditions (altitude, Mach, throttle) that no fitted engine has: "
                f"{shown}. Use train and test files of one subset."
            )
        mean = np.stack([self.statistics[key][0] for key in keys])
        deviation = np.stack([self.statistics[key][1] for key in keys])
        sensors = (engine.sensors[:, np.array(SENSORS) - 1] - mean) / deviation
        return np.concatenate([engine.settings / SETTING_SCALE, sensors], axis=1).astype(np.float32)


def last_window(rows: NDArray[np.float32], length: int = WINDOW) -> NDArray[np.float32]:
    """The last ``length`` rows; a shorter engine is padded in front with its first row, so that no engine is lost."""
    missing = max(0, length - len(rows))
    return np.concatenate([np.repeat(rows[:1], missing, axis=0), rows[-length:]])


@dataclass(frozen=True, eq=False)
class Snapshots:
    """The last window of every engine, with its labels: what a checkpoint is judged on."""

    inputs: NDArray[np.float32]
    rul: Array
    health: NDArray[np.int64]

    @classmethod
    def of(cls, engines: tuple[Engine, ...], normalise: Normaliser) -> Snapshots:
        """One snapshot per engine: inputs (N, 30, 17), capped RUL (N,), health class (N,)."""
        rul = np.minimum([engine.end_rul for engine in engines], RUL_CAP).astype(np.float64)
        return cls(np.stack([last_window(normalise(engine)) for engine in engines]), rul, health_class(rul))


@dataclass(frozen=True, eq=False)
class TrainingWindows:
    """All windows of the training engines, cut on demand from the rows they share.

    ``rows (R, 17)`` are the engines one after the other, ``first (N,)`` is where a window starts, ``rul`` and ``health``
    belong to its last cycle.
    """

    rows: NDArray[np.float32]
    first: NDArray[np.int64]
    rul: NDArray[np.float32]
    health: NDArray[np.int64]

    @classmethod
    def of(cls, engines: tuple[Engine, ...], normalise: Normaliser) -> TrainingWindows:
        """Windows of 30 cycles at every cycle; an engine shorter than that gives one padded window."""
        rows, first, rul = [], [], []
        start = 0
        for engine in engines:
            inputs = normalise(engine)
            inputs = inputs if len(inputs) >= WINDOW else last_window(inputs)
            count = len(inputs) - WINDOW + 1
            rows.append(inputs)
            first.append(start + np.arange(count))
            rul.append(engine.rul[-count:])
            start += len(inputs)
        capped = np.minimum(np.concatenate(rul), RUL_CAP)
        return cls(np.concatenate(rows), np.concatenate(first), capped.astype(np.float32), health_class(capped))

    def __len__(self) -> int:
        return len(self.first)

    def inputs(self, which: NDArray[np.int64]) -> NDArray[np.float32]:
        """Inputs of the windows ``which``: shape (n, 30, 17)."""
        return np.asarray(self.rows[self.first[which][:, None] + np.arange(WINDOW)], dtype=np.float32)
