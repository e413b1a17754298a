"""A study in one process: what a run gets, what is kept of it, what is repeated, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import training
from training import Own

from mtl_axes import MultiTaskCriterion, compose, create
from mtl_axes.errors import DataError, MtlAxesError, OptionError, StudyError
from mtl_axes.history import History
from mtl_axes.study import Outcome, Results, Run, Study
from mtl_axes.study.levels import label, mean_ends, tuned

TASKS = {"tasks": ["a", "b"]}
quiet = {"progress": False}


def small(out: Path, **options: Any) -> Study:
    given: dict[str, Any] = {"outer": ["fixed"], "inner": ["mse"], "seeds": 2, "metrics": {"rmse": "min"}, "compose": TASKS}
    return Study(**{**given, "out": out, **options})


def figures(results: Results) -> list[tuple[str, str, int, dict[str, float]]]:
    return [(run.outer, run.inner, run.seed, dict(run.metrics)) for run in results.runs]


def test_a_study_trains_every_pair_with_every_seed_and_keeps_what_was_measured(tmp_path: Path) -> None:
    """Every cell and seed has one run with metrics, history and predictions, and the folder gives all of it back."""
    returned: list[Outcome] = []

    def train(criterion: MultiTaskCriterion, seed: int) -> Outcome:
        returned.append(training.train(criterion, seed))
        return returned[-1]

    study = small(tmp_path, outer=["fixed", {"name": "gaba", "warmup": 2}], inner=["mse", "huber"], title="Two axes")
    results = study.run(train, **quiet)
    assert [run[:3] for run in figures(results)] == [
        (outer, inner, seed) for seed in (0, 1) for outer in ("fixed", "gaba(warmup=2)") for inner in ("mse", "huber")
    ]
    assert not results.failures and results.reference == ("fixed", "mse")
    assert results.about["title"] == "Two axes" and results.about["versions"]["torch"] == torch.__version__
    for run in results.runs:
        assert run.seconds > 0 and all(map(math.isfinite, run.metrics.values()))
        assert run.history["step"] == list(range(1, training.STEPS + 1)) and len(run.history["weight/a"]) == training.STEPS
        assert len(run.predictions["a"]["predicted"]) == len(run.predictions["a"]["true"]) == 64
        assert run.config["criterion"]["outer"]["name"] == run.outer.split("(")[0]
    for run, outcome in zip(Results.load(tmp_path).runs, returned, strict=True):
        assert run.metrics == {name: float(value) for name, value in outcome.metrics.items()}
        assert outcome.predictions is not None
        predicted, true = outcome.predictions["a"]
        assert run.predictions == {"a": {"predicted": predicted.tolist(), "true": true}}
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()], "no half-written file may stay"


def test_runs_are_seeded_and_have_a_criterion_of_their_own(tmp_path: Path) -> None:
    """Cells of one seed draw the same numbers from torch, NumPy and random, other seeds others; no criterion comes twice."""
    seen = []

    def train(criterion: MultiTaskCriterion, seed: int) -> dict[str, float]:
        seen.append(criterion)
        return training.draw(criterion, seed)

    results = small(tmp_path, outer=["fixed", "rlw"], metrics={}).run(train, **quiet)
    (one, two), (three, _) = ([dict(run.metrics) for run in results.runs if run.seed == seed] for seed in (0, 1))
    assert one == two and not set(one.values()) & set(three.values())
    assert len({id(criterion) for criterion in seen}) == 4 and len({id(criterion.outer) for criterion in seen}) == 4


def test_a_weighting_that_is_given_as_an_object_is_copied_for_each_run(tmp_path: Path) -> None:
    """Neither a run nor the next one changes the object: the second run is that of its seed alone with a new object."""
    weighting = create("outer", "gaba", warmup=0, beta=0.5)
    results = small(tmp_path / "two", outer=[weighting, Own(power=2.0)], seeds=2).run(training.train, **quiet)
    assert not weighting.bound and results.outer == ("gaba(beta=0.5, warmup=0)", "Own(power=2.0)")
    assert results.runs[1].history["weight/a"] == [2.0] * training.STEPS
    assert [run.config["criterion"]["outer"].get("name") for run in results.runs] == ["gaba", None] * 2
    fresh = create("outer", "gaba", warmup=0, beta=0.5)
    (alone,) = small(tmp_path / "one", outer=[fresh], seeds=[1]).run(training.train, **quiet).runs
    second = results.runs[2]
    assert (second.seed, second.metrics, second.history) == (1, alone.metrics, alone.history)


def test_finished_runs_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there stays; a further seed or level trains what is new alone; an unregistered strategy is known again."""
    monkeypatch.setenv("COUNT", str(tmp_path / "count"))
    trained = lambda: (tmp_path / "count").read_text().split()  # noqa: E731
    outer: list[Any] = [Own(how=training.train)]
    small(tmp_path / "x", outer=outer).run(training.counting, **quiet)
    small(tmp_path / "x", outer=[Own(how=training.train)]).run(partial(training.counting), **quiet)
    assert trained() == ["0", "1"]
    small(tmp_path / "x", outer=outer, seeds=[0, 1, 7]).run(training.counting, **quiet)
    assert trained() == ["0", "1", "7"]
    results = small(tmp_path / "x", outer=[*outer, "gaba"], seeds=[1]).run(training.counting, **quiet)
    assert trained() == ["0", "1", "7", "1"] and len(results.runs) == 2


def test_what_partial_binds_is_a_part_of_the_function(tmp_path: Path) -> None:
    """Other numbers are trained again, as another configuration would be; the same ones are not, in whatever order."""
    trained = []

    def train(criterion: MultiTaskCriterion, seed: int, *, lr: float, name: str, data: Any = None) -> dict[str, float]:
        trained.append(lr)
        return {"rmse": lr}

    def run(function: Any) -> set[float]:
        return {run.metrics["rmse"] for run in small(tmp_path, seeds=1).run(function, **quiet).runs}

    assert run(partial(train, lr=0.1, name="x", data=object())) == {0.1}
    assert run(partial(train, lr=0.2, name="x")) == {0.2}
    assert run(partial(train, name="x", lr=0.2, data=object())) == {0.2}
    assert run(partial(partial(train, name="x"), lr=0.1)) == {0.1}
    assert trained == [0.1, 0.2]


@pytest.mark.parametrize(
    "changed", [{"config": {"lr": 0.1}}, {"compose": {**TASKS, "every": 2}}, {"inner": {"mse": {"name": "huber"}}}]
)
def test_a_run_of_another_configuration_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    """Other config, options or strategy under the same label: trained again, and the first study's runs stay."""
    monkeypatch.setenv("COUNT", str(tmp_path / "count"))
    for options in ({}, changed, {}):
        small(tmp_path / "x", seeds=1, **options).run(training.counting, **quiet)
    assert (tmp_path / "count").read_text().split() == ["0", "0"]
    assert len(list((tmp_path / "x" / "runs").iterdir())) == 2


def test_another_version_or_training_function_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(tmp_path, seeds=1).run(training.repaired, **quiet)
    before = {path.name for path in (tmp_path / "runs").iterdir()}
    monkeypatch.setattr("mtl_axes.study.grid._VERSIONS", {"mtl_axes": "0.0", "torch": "0.0"})
    assert len(small(tmp_path, seeds=1).run(training.repaired, **quiet).runs) == 1
    small(tmp_path, seeds=1).run(training.slow, **quiet)
    assert len({path.name for path in (tmp_path / "runs").iterdir()} - before) == 2


@pytest.mark.parametrize("damage", [lambda text: text[: len(text) // 2], lambda text: "", lambda text: "[]"])
def test_a_half_written_run_is_not_counted_and_trained_again(tmp_path: Path, damage: Callable[[str], str]) -> None:
    whole = figures(small(tmp_path).run(training.train, **quiet))
    path = sorted((tmp_path / "runs").iterdir())[0]
    path.write_text(damage(path.read_text()))
    assert len(Results.load(tmp_path).runs) == 1
    assert figures(small(tmp_path).run(training.train, **quiet)) == whole


def test_a_failing_run_is_recorded_and_repeated_only_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Type, message and the innermost frames are kept, the other runs go on, and a repaired function needs retry=True."""
    study = small(tmp_path, seeds=3)
    results = study.run(training.fragile, **quiet)
    assert [run.seed for run in results.runs] == [0, 2]
    (failure,) = results.failures
    assert failure.seed == 1 and failure.error is not None and not failure.metrics
    lines = failure.error.splitlines()
    assert lines[:2] == ["ValueError: no data", "at all"]
    assert lines[-1].strip().startswith("training.py:") and 'raise ValueError("no data' in lines[-1]
    assert len(study.run(training.repaired).failures) == 1
    said = capsys.readouterr()
    assert "1 of 3 runs failed before and are not repeated; `retry=True` trains them again." in said.err and said.out == ""
    results = study.run(training.repaired, retry=True)
    assert len(results.runs) == 3 and not results.failures
    said = capsys.readouterr()
    assert "2 of 3 runs were finished before and are not repeated" in said.err and "1/1" in said.err and said.out == ""


def test_progress_shows_failures_as_they_happen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small(tmp_path, seeds=3).run(training.fragile)
    said = capsys.readouterr().err
    assert "fixed x mse, seed 1 failed: ValueError: no data" in said and "3/3" in said
    small(tmp_path, seeds=3).run(training.fragile, retry=True, progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_training_function_that_ends_the_program_ends_its_run_alone(tmp_path: Path) -> None:
    results = small(tmp_path, seeds=3).run(training.leaving, **quiet)
    assert [run.seed for run in results.runs] == [0, 2]
    assert results.failures[0].error is not None and results.failures[0].error.startswith("SystemExit: enough")


def test_a_failure_never_takes_the_place_of_a_finished_run(tmp_path: Path) -> None:
    """Two processes on one folder: one has finished the run, the other fails at it later."""
    study = small(tmp_path, seeds=[1])
    job = study._job(("fixed", "mse"), 1, training.fragile)
    finished = Run("fixed", "mse", 1, {"rmse": 1.0}, config=job.config)
    job.save(finished)
    job.save(job.failed("too late"))
    kept = job.load()
    assert kept is not None and kept.metrics == {"rmse": 1.0}
    assert job.run(training.fragile).error is None, "a run that another process has finished is not trained"


def test_a_file_that_holds_another_run_does_not_count(tmp_path: Path) -> None:
    """Whatever its name says: the configuration, the seed and the labels inside decide."""
    job = small(tmp_path, seeds=[1])._job(("fixed", "mse"), 1, training.train)
    good = Run("fixed", "mse", 1, {"rmse": 1.0}, config=job.config)
    for other in ({"config": {**job.config, "study": {"lr": 0.1}}}, {"seed": 2}, {"inner": "huber"}):
        job.save(replace(good, **other))
        assert job.load() is None
    job.save(good)
    assert job.load() is not None
    assert replace(job, metrics=("rmse", "mae")).load() is None, "a metric that the study asks for now was not measured"


# What a training function may return


def returning(value: Any) -> Callable[..., Any]:
    return lambda criterion, seed: value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "should return a mapping from metrics to numbers, or an Outcome. Found None."),
        (3.0, "Found 3.0."),
        ({}, "returned no rmse (its metrics: none). Return every metric that the study names."),
        ({"mae": 1.0}, "returned no rmse (its metrics: mae)."),
        ({"rmse": "3.5"}, "The metric `rmse` should be a number. Found '3.5'."),
        ({"rmse": torch.zeros(2)}, "The metric `rmse` should be a number. Found tensor"),
        ({"rmse": None}, "The metric `rmse` should be a number. Found None."),
        (Outcome({"rmse": 1.0}, history=[1.0]), "The history of an Outcome should be a History, or lists"),
        (Outcome({"rmse": 1.0}, history={"step": [1, 2], "loss/a": [1.0]}), "one length. Found step 2, loss/a 1."),
        (Outcome({"rmse": 1.0}, predictions={"a": ([1.0], [1.0, 2.0])}), "`a` has 1 predictions but 2 true values."),
        (Outcome({"rmse": 1.0}, predictions={"a": torch.zeros(2, 3, 3)}), "The predictions of `a` should be"),
    ],
)
def test_what_a_study_cannot_use_stops_it_at_the_first_run(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(StudyError) as caught:
        small(tmp_path).run(returning(value), **quiet)
    assert message in str(caught.value) and str(caught.value).endswith("It was called for fixed x mse, seed 0.")
    assert not Results.load(tmp_path).failures


def test_what_a_study_cannot_use_is_a_failure_once_a_run_has_finished(tmp_path: Path) -> None:
    """After hours of good runs one that forgets a metric does not end the study."""
    results = small(tmp_path, seeds=3).run(lambda criterion, seed: {"rmse": 1.0} if seed != 1 else {}, **quiet)
    assert [run.seed for run in results.runs] == [0, 2]
    assert "returned no rmse" in str(results.failures[0].error)


def test_options_of_the_criterion_count_also_where_a_strategy_has_no_name(tmp_path: Path) -> None:
    """A finished run with other options is not taken for the same run."""
    for options in ({}, {"missing": "ignore"}, {"sync": None}, {"missing": "ignore"}):
        small(tmp_path, outer=[Own()], seeds=1, compose={**TASKS, **options}).run(training.train, **quiet)
    assert len(list((tmp_path / "runs").iterdir())) == 3


def test_failed_runs_do_not_count_as_finished_ones(tmp_path: Path) -> None:
    """A function that raised first and now forgets a metric stops the study."""
    small(tmp_path, seeds=[1]).run(training.fragile, **quiet)
    with pytest.raises(StudyError, match="returned no rmse"):
        small(tmp_path, seeds=[1]).run(returning({}), retry=True, **quiet)


def test_numbers_of_every_kind_are_metrics(tmp_path: Path) -> None:
    """0-dim tensors, also with a graph, arrays' scalars, ints and bools; a value that is not finite is one, too."""
    import numpy as np

    given = {"rmse": torch.tensor(1.5, requires_grad=True), "b": np.float32(2.0), "c": 3, "d": True, "e": math.inf}
    (run,) = small(tmp_path, seeds=1).run(returning(given), **quiet).runs
    assert run.metrics == {"rmse": 1.5, "b": 2.0, "c": 3.0, "d": 1.0, "e": math.inf}


def test_predictions_are_kept_by_value(tmp_path: Path) -> None:
    """A tensor and a list of one length, each as numbers under its own name."""
    given = Outcome({"rmse": 1.0}, predictions={"a": (torch.tensor([1.0, 2.0]), [3.0, 4.0])})
    (run,) = small(tmp_path, seeds=1).run(returning(given), **quiet).runs
    assert run.predictions == {"a": {"predicted": [1.0, 2.0], "true": [3.0, 4.0]}}


def test_a_history_of_the_training_function_takes_the_place_of_the_study_s(tmp_path: Path) -> None:
    """Columns as they are; a History of another criterion, as one whose place of measurement must be named; one of the
    criterion that is passed in, returned or not."""

    def train(criterion: MultiTaskCriterion, seed: int) -> Outcome | Mapping[str, float]:
        if seed == 0:
            return Outcome({"rmse": 1.0}, history={"step": (1, 2), "weight/a": [None, 0.5]})
        own = compose(**criterion.config()) if seed == 1 else criterion
        history = History(own, every=2)
        if seed == 2:
            with pytest.raises(OptionError, match="This criterion already has a History"):
                History(own)
        metrics = training.train(own, seed).metrics
        return Outcome(metrics, history) if seed == 1 else metrics

    columns, *mine = small(tmp_path, seeds=3).run(train, **quiet).runs
    assert columns.history == {"step": [1.0, 2.0], "weight/a": [None, 0.5]}
    assert [run.history["step"][:6] for run in mine] == [[1, 3, 5, 7, 9, 11]] * 2


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_threads_are_those_of_each_run_and_of_nothing_else(tmp_path: Path, workers: int) -> None:
    """In each run torch has as many threads as were asked for, one if nobody asked; afterwards as many as before."""
    before = torch.get_num_threads()
    for options, expected in (({"threads": before + 1}, before + 1), ({}, 1)):
        results = small(tmp_path / str(expected)).run(training.threads, workers=workers, **options, **quiet)
        assert [run.metrics["rmse"] for run in results.runs] == [expected] * 2
        assert torch.get_num_threads() == before


def test_threads_are_given_back_where_a_study_stops(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    with pytest.raises(StudyError, match="returned no rmse"):
        small(tmp_path).run(returning({}), threads=before + 1, **quiet)
    assert torch.get_num_threads() == before


# Constants


def test_equal_weights_are_the_reference_where_they_are_a_baseline(tmp_path: Path) -> None:
    results = small(tmp_path, outer=["gaba"], baselines=["equal"]).run(training.train, **quiet)
    assert results.outer == ("equal", "gaba") and results.reference == ("equal", "mse")
    assert {weight for run in results.runs if run.outer == "equal" for weight in run.history["weight/a"]} == {0.5}
    assert results.constants == ("equal",) and results.baselines == ()


def test_constants_that_are_not_trained_yet_are_none(tmp_path: Path) -> None:
    """A study that was stopped before its second part reports what was trained, and its best constant is among that."""
    study, done = small(tmp_path, outer=["fixed", "gaba"], baselines=["ended"]), []

    def train(criterion: MultiTaskCriterion, seed: int) -> Outcome:
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(seed)
        return training.train(criterion, seed)

    with pytest.raises(KeyboardInterrupt):
        study.run(train, **quiet)
    results = study.results()
    assert results.constants == ("fixed",) and results.best_constant("rmse") == "fixed"
    assert "constant where gaba ended" in results.outer
    assert "constant where gaba ended" not in " ".join(results.verdict())


def test_equal_weights_that_are_a_level_are_not_trained_twice(tmp_path: Path) -> None:
    """Whatever they are called, they are the baseline, with every inner level that the cells have."""
    outer = {"gaba": "gaba", "even": {"name": "fixed"}, "uneven": {"name": "fixed", "weights": {"a": 0.2, "b": 0.8}}}
    study = small(tmp_path, outer=outer, inner=["mse", "mae"], baselines=["equal"], cells=[("gaba", "mae")])
    results = study.run(training.train, **quiet)
    assert results.outer == ("gaba", "even", "uneven") and results.reference == ("even", "mae")
    assert results.cells == [("gaba", "mae"), ("even", "mae")]
    assert results.constants == ("even",) and results.baselines == ()


def test_the_constant_where_a_weighting_ended_is_its_mean_end_over_the_seeds(tmp_path: Path) -> None:
    """For each inner shape its own, from the last tenth of its steps; constants have none; resuming repeats none."""
    outer = {"fixed": "fixed", "gaba": {"name": "gaba", "warmup": 0, "beta": 0.8}}
    study = small(tmp_path, outer=outer, inner=["mse", "mae"], baselines=["ended"])
    results = study.run(training.train, **quiet)
    assert results.outer == ("fixed", "gaba", "constant where gaba ended")
    ends = {}
    for inner in ("mse", "mae"):
        adaptive = [run for run in results.runs if run.cell == ("gaba", inner)]
        mean = sum(run.history["weight/a"][-1] for run in adaptive) / 2  # type: ignore[misc]
        constant = [run for run in results.runs if run.cell == ("constant where gaba ended", inner)]
        assert [run.seed for run in constant] == [0, 1]
        weights = constant[0].config["criterion"]["outer"]["weights"]
        assert weights["a"] == pytest.approx(mean, rel=1e-3) and float(f"{weights['a']:.4g}") == weights["a"]
        assert constant[0].history["weight/a"] == pytest.approx([weights["a"]] * training.STEPS)
        ends[inner] = weights["a"]
    assert ends["mse"] != ends["mae"]
    assert results.constants == ("fixed", "constant where gaba ended")
    assert results.baselines == ("constant where gaba ended",)
    names = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    again = study.run(training.train, **quiet)
    assert figures(again) == figures(results)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()} == names


def test_the_end_of_a_run_is_the_mean_over_its_last_tenth() -> None:
    """Of 30 steps the last three, of those in which there is a weight; of fewer than ten the last."""
    steps = [float(step) for step in range(30)]
    history = {"step": steps, "weight/a": steps, "weight/b": [None, *steps[:29]], "loss/a": steps, "weight/c": [None] * 30}
    assert mean_ends(Run("gaba", "mse", 0, history=history)) == {"a": 28.0, "b": 27.5}
    assert mean_ends(Run("gaba", "mse", 0, history={"weight/a": [0.5, 0.25]})) == {"a": 0.25}


def test_constants_where_a_weighting_ended_are_trained_anew_when_seeds_are_added(tmp_path: Path) -> None:
    """With a third seed the mean end is another one, and the runs of all three seeds have it."""

    def weights(seeds: int) -> list[dict[str, float]]:
        study = small(tmp_path, outer=[{"name": "gaba", "warmup": 0, "beta": 0.8}], baselines=["ended"], seeds=seeds)
        runs = [run for run in study.run(training.train, **quiet).runs if run.outer.startswith("constant where")]
        assert [run.seed for run in runs] == list(range(seeds))
        for run in runs:
            constant = run.config["criterion"]["outer"]["weights"]["a"]
            assert run.history["weight/a"] == pytest.approx([constant] * training.STEPS)
        return [run.config["criterion"]["outer"]["weights"] for run in runs]

    two, three = weights(2), weights(3)
    assert two == [two[0]] * 2 and three == [three[0]] * 3
    assert two[0] != three[0]


@pytest.mark.parametrize(("direction", "sign"), [("min", 1.0), ("max", -1.0)])
def test_the_tuned_constant_is_chosen_on_the_other_seeds(tmp_path: Path, direction: Any, sign: float) -> None:
    """Each seed takes the constant that was best on the others, and its figure is that of this constant with this seed."""
    table = {  # rmse of the constants by seed: each is the best of one seed
        "equal": (5.0, 5.0, 5.0),
        "a times 0.01": (0.0, 9.0, 9.0),
        "a times 0.1": (9.0, 1.0, 2.0),
        "a times 10": (8.0, 8.0, 0.0),
        "a times 100": (7.0, 7.0, 7.0),
    }
    by_weights = {json.dumps(level["weights"]): name for name, level in tuned(["a", "b"]).items()}

    def train(criterion: MultiTaskCriterion, seed: int) -> dict[str, float]:
        options = criterion.outer.options()
        name = "equal" if options.get("weights") is None else by_weights[json.dumps(options["weights"])]
        return {"mae": 1.0, "rmse": sign * table[name][seed] if "beta" not in options else -100.0 * sign}

    metrics = {"mae": None, "rmse": direction}
    study = small(tmp_path, outer=["gaba"], seeds=3, baselines=["equal", "tuned"], metrics=metrics)
    results = study.run(train, **quiet)
    assert results.outer == ("equal", "gaba", *[*table][1:], "tuned constant")
    rows = [run for run in results.runs if run.outer == "tuned constant"]
    # Best means of the others: 1.5 for seed 0, 4 for seed 1, 4.5 for seed 2.
    assert [(run.seed, run.config["chosen"], sign * run.metrics["rmse"]) for run in rows] == [
        (0, "a times 0.1", 9.0), (1, "a times 10", 8.0), (2, "a times 0.01", 9.0),
    ]  # fmt: skip
    assert results.constants == ("equal", *[*table][1:], "tuned constant")
    assert results.baselines == results.constants[1:]
    assert figures(study.run(train, **quiet)) == figures(results)
    assert len(list((tmp_path / "runs").iterdir())) == 6 * 3 + 3


def test_one_seed_leaves_no_others_to_tune_on(tmp_path: Path) -> None:
    results = small(tmp_path, outer=["gaba"], seeds=1, baselines=["tuned"]).run(training.train, **quiet)
    assert "tuned constant" not in {run.outer for run in results.runs} and len(results.runs) == 5


def test_a_constant_that_fails_leaves_the_tuned_one_in_place(tmp_path: Path) -> None:
    """It is not chosen, and the choice among the others has all seeds; where the chosen one fails, so does the tuned one."""
    values = {0.01 / 1.01: 4.0, 0.1 / 1.1: 3.0, 10 / 11: 2.0}

    def train(criterion: MultiTaskCriterion, seed: int) -> dict[str, float]:
        value = values.get((criterion.outer.options().get("weights") or {}).get("a", 0.0))
        if value is None or (value == 2.0 and seed == 1):
            raise FloatingPointError("diverged")
        return {"rmse": value + seed}

    results = small(tmp_path, outer=["gaba"], seeds=3, baselines=["tuned"]).run(train, **quiet)
    rows = {run.seed: run.config["chosen"] for run in results.runs if run.outer == "tuned constant"}
    failed = {run.seed: run.config["chosen"] for run in results.failures if run.outer == "tuned constant"}
    assert rows == {0: "a times 0.1", 2: "a times 0.1"} and failed == {1: "a times 10"}
    assert "a times 100" in results.constants and "a times 100" not in {
        effect.label for effect in results.against_constants("rmse")
    }


def test_weights_that_nobody_recorded_are_missed(tmp_path: Path) -> None:
    """A function that trains another criterion than it is given leaves no weights to end at, and the study says so."""

    def train(criterion: MultiTaskCriterion, seed: int) -> dict[str, float]:
        return {"rmse": float(seed)}

    with pytest.warns(UserWarning, match='The histories of gaba x mse hold no weights, so the baseline "ended"'):
        results = small(tmp_path, outer=["gaba"], baselines=["ended"]).run(train, **quiet)
    assert results.cells == [("gaba", "mse")]


@pytest.mark.parametrize("text", ["{}", "[]", '{"runs": 1}', "{"])
def test_another_file_of_that_name_is_no_study(tmp_path: Path, text: str) -> None:
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(DataError, match=r"holds no readable study\.json \("):
        Results.load(tmp_path)


def test_more_tasks_are_tuned_one_at_a_time() -> None:
    levels = tuned(["a", "b", "c"])
    assert [*levels] == ["a times 0.1", "a times 10", "b times 0.1", "b times 10", "c times 0.1", "c times 10"]
    assert levels["b times 10"]["weights"] == pytest.approx({"a": 1 / 12, "b": 10 / 12, "c": 1 / 12})
    assert all(sum(level["weights"].values()) == pytest.approx(1) for level in levels.values())


# Labels and cells


@pytest.mark.parametrize(
    ("axis", "level", "expected"),
    [
        ("outer", "gaba", "gaba"),
        ("outer", {"name": "gaba", "beta": 0.9}, "gaba(beta=0.9)"),
        ("outer", {"name": "ema", "base": {"name": "mgda"}, "beta": 0.5}, "ema(base=mgda, beta=0.5)"),
        ("inner", {"rul": "huber", "state": {"name": "focal", "gamma": 1.5}}, "rul: huber, state: focal(gamma=1.5)"),
    ],
)
def test_labels_are_short(axis: Any, level: Any, expected: str) -> None:
    assert label(axis, level) == expected


def test_labels_of_objects_leave_defaults_out() -> None:
    assert label("outer", create("outer", "gaba", floor=0.1)) == "gaba(floor=0.1)"
    assert label("outer", create("outer", "ema", base="inverse_norm")).startswith("ema(base=inverse_norm")
    assert label("inner", create("inner", "huber")) == "huber"


def test_only_the_cells_that_were_asked_for_are_trained(tmp_path: Path) -> None:
    """Baselines come with the inner levels of these cells."""
    study = small(
        tmp_path,
        outer=["dwa", "gaba", "gradnorm"],
        inner=["mse", "huber", "mae"],
        seeds=1,
        cells=[("gaba", "huber"), ("dwa", "mse")],
        baselines=["equal"],
        reference=("gaba", "huber"),
    )
    results = study.run(training.train, **quiet)
    assert results.cells == [("equal", "mse"), ("equal", "huber"), ("dwa", "mse"), ("gaba", "huber")]


# What is refused before the first run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outer": "gaba"}, "`outer` should be a list of levels, or a mapping from labels to levels. Found 'gaba'."),
        ({"inner": {"name": "huber"}}, "`inner` should be a list of levels"),
        ({"outer": []}, "`outer` has no levels. Pass at least one."),
        ({"outer": ["gaba", {"name": "gaba"}]}, "`outer` has several levels labelled gaba. Pass a mapping"),
        ({"seeds": 0}, r"distinct whole numbers in \[0, 2\^32\). Found 0."),
        ({"seeds": [1, 1]}, r"Found \[1, 1\]."),
        ({"seeds": [-1]}, r"Found \[-1\]."),
        ({"seeds": [2**32]}, "Found"),
        ({"seeds": True}, "Found True."),
        ({"seeds": 2.0}, "Found 2.0."),
        ({"seeds": "01"}, "Found '01'."),
        ({"metrics": ["rmse"]}, "`metrics` should be a mapping"),
        ({"metrics": {"rmse": "low"}}, "The direction of the metric `rmse` should be"),
        ({"baselines": "equal"}, "`baselines` should be a list with some of"),
        ({"baselines": ["best"]}, r"Found \['best'\]."),
        ({"baselines": ["tuned"], "compose": {}}, r"two named tasks and a metric with a direction. Found tasks \[\]"),
        ({"baselines": ["tuned"], "metrics": {}}, r"and metrics {}."),
        ({"baselines": ["equal"], "outer": ["equal"]}, "have the labels of baselines: equal."),
        (
            {"baselines": ["ended"], "outer": {"dwa": "dwa", "constant where dwa ended": "fixed"}},
            "have the labels of baselines: constant where dwa ended.",
        ),
        ({"reference": ("gaba", "mse")}, r"`reference` should be one of the study's cells: \('fixed', 'mse'\)."),
        ({"cells": [("fixed", "huber")]}, r"Found \('fixed', 'huber'\)."),
        ({"reference": 3}, "`reference` should be one of the study's cells: .* Found 3."),
        ({"cells": []}, "`cells` is empty"),
        ({"cells": [3]}, "`cells` should hold pairs of a label of `outer` .* Found 3."),
        (
            {"compose": {"shared": None}},
            "`compose` cannot hold shared: .* build another criterion",
        ),
        ({"config": {"data": {1, 2}}}, "`config` should be plain data"),
    ],
)
def test_options_are_checked_before_the_first_run(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        small(tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outer": ["fixed", "gabba"]}, "cannot build the cell gabba x mse: .*gaba"),
        ({"inner": ["mse", {"name": "huber", "delta": -1}]}, r"cannot build the cell fixed x huber\(delta=-1\): .*delta"),
        (
            {"outer": ["uncertainty"], "compose": {}},
            r'Pass tasks=\[...\].* the names of the tasks as `compose={"tasks": \[...\]}`',
        ),
        ({"outer": ["dwa"], "inner": ["gaussian_nll"]}, "cannot build the cell dwa x gaussian_nll"),
        ({"compose": {**TASKS, "evry": 2}}, "evry"),
    ],
)
def test_every_criterion_is_built_before_the_first_run(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        small(tmp_path, **options)


@pytest.mark.parametrize("options", [{"workers": 0}, {"workers": 1.5}, {"threads": 0}])
def test_options_of_a_run_are_checked(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(MtlAxesError, match="should be an integer in"):
        small(tmp_path).run(training.train, **options)


@pytest.mark.parametrize("train", [None, lambda criterion: {}, lambda criterion, seed, loader: {}, Own])
def test_what_cannot_be_called_with_a_criterion_and_a_seed_is_no_training_function(tmp_path: Path, train: Any) -> None:
    with pytest.raises(StudyError, match="`train` should be a function of a criterion and a seed"):
        small(tmp_path).run(train, **quiet)
    assert not (tmp_path / "study.json").exists()
    for good in (lambda criterion, seed, loader=None: {"rmse": 1.0}, lambda *given: {"rmse": 1.0}, partial(max, key=len)):
        small(tmp_path, seeds=1).run(good, **quiet)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match=r"The folder `.*` cannot be written \("):
        small(tmp_path / "file" / "x").run(training.train, **quiet)
