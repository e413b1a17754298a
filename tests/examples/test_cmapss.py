"""The C-MAPSS example up to the network: files, simulated fleet, split, normaliser, windows, metrics, ridge."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from cmapss.data import Engine, Fleet, load_fleet
from cmapss.metrics import Ridge, accuracy, health_class, nasa_score, rmse
from cmapss.simulator import BASES, CONDITIONS, LIFE, SimulatedFleet
from cmapss.train import prepare
from cmapss.windows import (
    SENSORS,
    WINDOW,
    Normaliser,
    Snapshots,
    TrainingWindows,
    conditions,
    last_window,
    split_engines,
    truncations,
)

ROOT = Path(__file__).resolve().parents[2]
REAL = Path(os.environ.get("MTL_AXES_CMAPSS", ROOT.parent / "shared" / "data" / "cmapss"))
needs_real_files = pytest.mark.skipif(
    not REAL.is_dir(), reason="the real C-MAPSS files are not here; set MTL_AXES_CMAPSS to their folder"
)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated")
    SimulatedFleet("FD002", train_engines=12, test_engines=15).write(folder)
    return folder


@pytest.fixture(scope="module")
def fleet(simulated: Path) -> Fleet:
    return load_fleet(simulated, "FD002")


# The simulated fleet


def test_the_same_seed_writes_the_same_files_and_another_seed_others(tmp_path: Path) -> None:
    texts = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        SimulatedFleet("FD004", train_engines=3, test_engines=3, seed=seed).write(tmp_path / name)
        texts.append([path.read_bytes() for path in sorted((tmp_path / name).iterdir())])
    assert texts[0] == texts[1]
    assert all(one != other for one, other in zip(texts[0][1:], texts[2][1:], strict=True))


def test_simulated_rows_have_the_columns_decimals_and_blanks_of_the_real_files(simulated: Path) -> None:
    decimals = [0, 0, 4, 4, 1, *[2] * 14, 4, 2, 0, 0, 2, 2, 4]
    for name in ("train_FD002.txt", "test_FD002.txt"):
        text = (simulated / name).read_text(encoding="ascii")
        assert text.endswith("  \n") and "\r" not in text
        for line in text.splitlines():
            assert line.endswith("  ") and not line.endswith("   ")
            assert [len(token.partition(".")[2]) for token in line.split(" ")[:-2]] == decimals
    assert all(line[:-1].isdigit() and line[-1] == " " for line in (simulated / "RUL_FD002.txt").read_text().splitlines())


@needs_real_files
def test_real_rows_have_the_same_columns_and_blanks() -> None:
    """What the simulator imitates is really so; trailing zeros are kept, so the decimals can be read off."""
    with (REAL / "train_FD001.txt").open() as lines:
        line = next(lines).rstrip("\n")
    assert line.endswith("  ") and len(line.split()) == 26
    assert [len(token.partition(".")[2]) for token in line.split()] == [0, 0, 4, 4, 1, *[2] * 14, 4, 2, 0, 0, 2, 2, 4]


def test_a_simulated_fleet_survives_the_way_through_its_files(fleet: Fleet) -> None:
    assert [engine.number for engine in fleet.train] == list(range(1, 13))
    assert [engine.number for engine in fleet.test] == list(range(1, 16))
    assert all(LIFE[0] <= len(engine) <= LIFE[1] and engine.end_rul == 0 for engine in fleet.train)
    assert all(LIFE[0] <= len(engine) + engine.end_rul <= LIFE[1] for engine in fleet.test)
    assert all(0.2 < len(engine) / (len(engine) + engine.end_rul) < 0.98 for engine in fleet.test)


def test_simulated_settings_round_to_the_six_conditions(fleet: Fleet) -> None:
    found = {key for engine in fleet.train for key in conditions(engine.settings)}
    assert found == {(int(a), round(100 * m), int(t)) for a, m, t in CONDITIONS}


def test_simulated_sensors_start_at_their_base_and_drift_towards_failure(tmp_path: Path) -> None:
    SimulatedFleet("FD001", train_engines=20, test_engines=2).write(tmp_path)
    engines = load_fleet(tmp_path, "FD001").train
    fresh = np.mean([engine.sensors[:5].mean(axis=0) for engine in engines], axis=0)
    worn = np.mean([engine.sensors[-3:].mean(axis=0) for engine in engines], axis=0)
    np.testing.assert_allclose(fresh, BASES[0], rtol=3e-3, atol=0.02)
    change = (worn / fresh - 1)[[3, 10, 6, 19]] * 100
    np.testing.assert_allclose(change, [1.83, 1.65, -0.43, -1.2], rtol=0.25)


# The real files


@pytest.mark.slow
@needs_real_files
@pytest.mark.parametrize(
    ("subset", "train_rows", "test_rows", "train_engines", "test_engines", "lives", "beyond_cap", "short"),
    [
        ("FD001", 20631, 13096, 100, 100, (128, 362), 11, 0),
        ("FD002", 53759, 33991, 260, 259, (128, 378), 57, 6),
        ("FD003", 24720, 16596, 100, 100, (145, 525), 15, 0),
        ("FD004", 61249, 41214, 249, 248, (128, 543), 67, 11),
    ],
)
def test_the_real_files_have_the_known_counts(
    subset: str,
    train_rows: int,
    test_rows: int,
    train_engines: int,
    test_engines: int,
    lives: tuple[int, int],
    beyond_cap: int,
    short: int,
) -> None:
    fleet = load_fleet(REAL, subset)
    assert (sum(map(len, fleet.train)), sum(map(len, fleet.test))) == (train_rows, test_rows)
    assert (len(fleet.train), len(fleet.test)) == (train_engines, test_engines)
    assert (min(map(len, fleet.train)), max(map(len, fleet.train))) == lives
    assert sum(engine.end_rul > 125 for engine in fleet.test) == beyond_cap
    assert sum(len(engine) < WINDOW for engine in fleet.test) == short
    normalise = Normaliser.fit(fleet.train)
    assert len(normalise.statistics) == (6 if subset in ("FD002", "FD004") else 1)
    snapshots = Snapshots.of(fleet.test, normalise)
    assert snapshots.inputs.shape == (test_engines, WINDOW, len(SENSORS) + 3), "no test engine may be lost"
    assert np.isfinite(snapshots.inputs).all()
    assert len(TrainingWindows.of(fleet.train, normalise)) == train_rows - train_engines * (WINDOW - 1)


@needs_real_files
def test_a_zip_and_a_zip_in_a_zip_give_the_same_fleet_as_the_folder(tmp_path: Path) -> None:
    plain, nested = tmp_path / "CMAPSSData.zip", tmp_path / "repository.zip"
    with zipfile.ZipFile(plain, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("train_FD001.txt", "test_FD001.txt", "RUL_FD001.txt"):
            archive.write(REAL / name, f"CMAPSSData/{name}")
    with zipfile.ZipFile(nested, "w") as archive:
        archive.write(plain, "6. Turbofan/CMAPSSData.zip")
    digests = {load_fleet(source, "FD001").digest for source in (REAL, plain, nested)}
    assert len(digests) == 1


# Split, normaliser, windows


def test_validation_engines_are_disjoint_from_those_fitted_on_and_drawn_by_seed(fleet: Fleet) -> None:
    fit, held_out = split_engines(fleet.train, 0)
    numbers = [engine.number for engine in (*fit, *held_out)]
    assert sorted(numbers) == list(range(1, 13)) and len(held_out) == 2
    assert split_engines(fleet.train, 0)[1] == held_out
    assert any(split_engines(fleet.train, seed)[1] != held_out for seed in (1, 2))


def test_validation_engines_do_not_reach_the_normaliser_or_the_training_windows(fleet: Fleet) -> None:
    """Replacing what the validation engines measured changes nothing that is fitted; replacing a fitted engine does."""

    def fitted(engines: tuple[Engine, ...]) -> tuple[Normaliser, TrainingWindows]:
        fit, _ = split_engines(engines, 3)
        normalise = Normaliser.fit(fit)
        return normalise, TrainingWindows.of(fit, normalise)

    def spoiled(numbers: set[int]) -> tuple[Engine, ...]:
        return tuple(
            Engine(e.number, e.settings, e.sensors * 7 + 3, e.end_rul) if e.number in numbers else e for e in fleet.train
        )

    fit, held_out = split_engines(fleet.train, 3)
    before, windows = fitted(fleet.train)
    after, same_windows = fitted(spoiled({engine.number for engine in held_out}))
    assert before.statistics.keys() == after.statistics.keys()
    for key, (mean, deviation) in before.statistics.items():
        np.testing.assert_array_equal(mean, after.statistics[key][0])
        np.testing.assert_array_equal(deviation, after.statistics[key][1])
    np.testing.assert_array_equal(windows.rows, same_windows.rows)
    changed, _ = fitted(spoiled({fit[0].number}))
    assert any((changed.statistics[key][0] != before.statistics[key][0]).any() for key in before.statistics)


def test_the_honest_protocol_keeps_validation_and_test_engines_out_of_what_is_fitted(fleet: Fleet) -> None:
    """Through the door that the study uses: only training engines reach the windows, only held-out ones the selection."""

    def spoil(engines: tuple[Engine, ...]) -> tuple[Engine, ...]:
        return tuple(Engine(e.number, e.settings, e.sensors * 7 + 3, e.end_rul) for e in engines)

    fit, held_out = split_engines(fleet.train, 3)
    honest = prepare(fleet, 3, "honest")
    assert len(honest.train) == sum(len(engine) - WINDOW + 1 for engine in fit)
    assert len(honest.selection.rul) == 8 * len(held_out) and len(honest.test.rul) == len(fleet.test)

    other_validation = tuple(spoil((e,))[0] if e in held_out else e for e in fleet.train)
    changed = prepare(Fleet("FD002", other_validation, fleet.test, ""), 3, "honest")
    np.testing.assert_array_equal(changed.train.rows, honest.train.rows)
    np.testing.assert_array_equal(changed.test.inputs, honest.test.inputs)
    assert (changed.selection.inputs != honest.selection.inputs).any()

    changed = prepare(Fleet("FD002", fleet.train, spoil(fleet.test), ""), 3, "honest")
    np.testing.assert_array_equal(changed.train.rows, honest.train.rows)
    np.testing.assert_array_equal(changed.selection.inputs, honest.selection.inputs)

    published = prepare(fleet, 3, "published")
    assert published.selection is published.test, "the published protocol selects on the test engines"
    assert len(published.train) == sum(len(engine) - WINDOW + 1 for engine in fleet.train)


def test_the_normaliser_standardises_every_condition_by_itself(fleet: Fleet) -> None:
    normalise = Normaliser.fit(fleet.train)
    inputs = np.concatenate([normalise(engine) for engine in fleet.train]).astype(np.float64)
    keys = np.array([hash(key) for engine in fleet.train for key in conditions(engine.settings)])
    for key in np.unique(keys):
        np.testing.assert_allclose(inputs[keys == key, 3:].mean(axis=0), 0, atol=1e-5)
        spread = inputs[keys == key, 3:].std(axis=0)
        assert ((abs(spread - 1) < 1e-4) | (spread < 1e-6)).all()


def test_truncated_engines_keep_their_true_rul(fleet: Fleet) -> None:
    seen = truncations(fleet.train[:2], 5, times=4)
    assert [engine.number for engine in seen] == [1] * 4 + [2] * 4
    for engine in seen:
        whole = fleet.train[engine.number - 1]
        assert len(engine) + engine.end_rul == len(whole) and 0.2 < len(engine) / len(whole) < 0.98
        np.testing.assert_array_equal(engine.rul, whole.rul[: len(engine)])
    assert len({len(engine) for engine in seen}) > 2


def test_a_short_engine_is_padded_in_front_with_its_first_row() -> None:
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    window = last_window(rows, 5)
    np.testing.assert_array_equal(window[:, 0], [0, 0, 0, 2, 4])
    np.testing.assert_array_equal(last_window(rows, 2), rows[1:])


def test_windows_end_at_the_cycle_whose_rul_they_carry(fleet: Fleet) -> None:
    normalise = Normaliser.fit(fleet.train)
    windows = TrainingWindows.of(fleet.train, normalise)
    assert len(windows) == sum(len(engine) - WINDOW + 1 for engine in fleet.train)
    second = len(fleet.train[0]) - WINDOW + 1
    engine = fleet.train[1]
    inputs = windows.inputs(np.array([second, second + 7]))
    np.testing.assert_array_equal(inputs[0], normalise(engine)[:WINDOW])
    np.testing.assert_array_equal(inputs[1], normalise(engine)[7 : 7 + WINDOW])
    assert windows.rul[second + 7] == min(125, len(engine) - WINDOW - 7)
    assert windows.rul[second - 1] == 0 and windows.rul.max() == 125


# Metrics


def test_nasa_score_by_hand() -> None:
    """Thirteen cycles early and ten cycles late both cost e - 1."""
    true = np.array([50.0, 50.0, 50.0])
    assert nasa_score(np.array([37.0, 60.0, 50.0]), true) == pytest.approx(2 * (np.e - 1))
    assert nasa_score(np.array([60.0, 50.0, 50.0]), true) > nasa_score(np.array([40.0, 50.0, 50.0]), true)


def test_rmse_and_accuracy_by_hand() -> None:
    assert rmse(np.array([3.0, 0.0]), np.array([0.0, 4.0])) == pytest.approx(np.sqrt(12.5))
    assert accuracy(np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2])) == 0.75


def test_health_classes_at_their_edges() -> None:
    assert health_class(np.array([125.0, 81.0, 80.0, 31.0, 30.0, 0.0])).tolist() == [0, 0, 1, 1, 2, 2]


def test_ridge_finds_a_linear_relation_and_shrinks_with_its_strength() -> None:
    rng = np.random.default_rng(0)
    means = np.column_stack([rng.normal(size=(200, 3)), np.ones(200)])
    rul = 60 + means[:, :3] @ [5.0, -3.0, 0.0]
    np.testing.assert_allclose(Ridge(means, rul, strength=1e-9)(means), rul, atol=1e-5)
    strong = Ridge(means, rul, strength=1e6)(means)
    np.testing.assert_allclose(strong, rul.mean(), atol=1e-3)
