"""The C-MAPSS example as a user runs it: the whole study, its files, protocols, and what it says."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import limits
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import cmapss_grace
from cmapss.data import load_fleet
from cmapss.methods import CONTROL, GRID, Cell, choose_cells, parse_method, parse_strategy
from cmapss.model import TwoHeads, WeightAverage
from cmapss.report import floored_from, gaba_floor, in_words, table
from cmapss.runs import Run, runs_of
from cmapss.simulator import SimulatedFleet
from cmapss.train import Recipe, Training, batches, prepare, train_run
from cmapss.windows import CHANNELS

from mtl_axes.study import Results
from mtl_axes.study import Run as KeptRun

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "cmapss_grace.py"
HEADER = "cell,outer,inner,subset,seed,rmse,nasa,health_accuracy,lambda_rul,lambda_health,seconds"
TINY = ("--quick", "--steps", "8")


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def without_seconds(folder: Path) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows(folder)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted tiny study in this process."""
    folder = tmp_path_factory.mktemp("whole")
    assert cmapss_grace.main([*TINY, "--workers", "1", "--out", str(folder)]) == 0
    return folder


def test_a_study_leaves_a_table_pictures_and_one_file_per_run(whole: Path) -> None:
    assert (whole / "results.csv").read_text().splitlines()[0] == HEADER
    assert [row["cell"] for row in rows(whole)] == ["A", "B", "C", "D", "control"]
    for row in rows(whole):
        assert row["subset"] == "sim-FD002" and row["seed"] == "0"
        assert 0 < float(row["rmse"]) < 125 and float(row["nasa"]) > 0 and 0 <= float(row["health_accuracy"]) <= 1
        assert float(row["lambda_rul"]) + float(row["lambda_health"]) == pytest.approx(1, abs=1e-5)
        assert float(row["seconds"]) > 0
    control = rows(whole)[-1]
    assert float(control["lambda_rul"]) == pytest.approx(0.05 / 1.05, abs=1e-6)
    for name in ("lambdas.png", "gradient_norms.png", "predictions.png", "grid.png"):
        assert (whole / name).read_bytes().startswith(b"\x89PNG") and (whole / name).stat().st_size > 20_000
    page = (whole / "report.html").read_text()
    assert "GRACE on C-MAPSS" in page and "constant at GABA" in page
    assert len(list((whole / "runs").iterdir())) == 5
    assert not [path for path in whole.rglob(".*") if path.is_file()], "no half-written file may stay"


def test_two_workers_in_spawned_processes_give_the_same_results(whole: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), *TINY, "--workers", "2", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=limits.PROCESS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert without_seconds(tmp_path) == without_seconds(whole)
    for part in (
        "cell",
        "ridge on window means",
        "Verdict",
        "1 seed; differences are taken within each seed",
        "report.html",
        "Gradients in cell A",
        "GABA in cell D",
        "Control: D",
        "simulated",
    ):
        assert part in done.stdout
    assert "5/5" in done.stderr, "a progress bar over all runs"


def test_a_study_that_is_given_again_repeats_nothing(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also after a file was cut off, which is trained again."""
    (tmp_path / "runs").mkdir()
    for at, path in enumerate(sorted((whole / "runs").iterdir())):
        text = path.read_text()
        (tmp_path / "runs" / path.name).write_text(text[: len(text) // 2] if at == 1 else text)
    assert cmapss_grace.main([*TINY, "--workers", "1", "--out", str(tmp_path)]) == 0
    assert "4 of 5 runs were finished before and are not repeated" in capsys.readouterr().err
    assert without_seconds(tmp_path) == without_seconds(whole)


def test_an_interrupt_keeps_finished_runs_and_says_how_to_go_on(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE), "--quick", "--steps", "60", "--workers", "2", "--out", str(tmp_path)]
    # A shell starts what it puts in the background deaf to interrupts, and so would be the study that such tests start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + limits.PROCESS
    while not list(tmp_path.glob("runs/*.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=limits.PROCESS)
    assert process.returncode == 130
    assert "interrupted: finished runs are kept" in said and "Traceback" not in said
    assert 1 <= len(Results.load(tmp_path).runs) < 5


def test_finished_runs_of_another_configuration_do_not_count(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    for path in (whole / "runs").iterdir():
        (tmp_path / "runs" / path.name).write_bytes(path.read_bytes())
    common = ["--quick", "--workers", "1", "--out", str(tmp_path), "--methods", "fixed:mse"]
    for other in (["--steps", "9"], ["--steps", "8", "--protocol", "published"], ["--steps", "8", "--subset", "FD001"]):
        assert cmapss_grace.main([*common, *other]) == 0
        assert "finished before" not in capsys.readouterr().err
        assert len(rows(tmp_path)) == 1
    assert cmapss_grace.main([*common, "--steps", "8"]) == 0
    assert "1 of 1 runs were finished before" in capsys.readouterr().err
    assert without_seconds(tmp_path) == without_seconds(whole)[:1]


def test_the_published_protocol_says_that_it_chooses_on_the_test_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*TINY, "--workers", "1", "--out", str(tmp_path), "--protocol", "published", "--methods", "fixed:mse"]
    assert cmapss_grace.main(arguments) == 0
    said = capsys.readouterr().out
    assert said.count("the checkpoint (and ridge's strength) is chosen on the test set, as the method's source does") == 2
    assert "optimistic" in said and "held out" not in said
    (run,) = runs_of(Results.load(tmp_path), GRID).values()
    assert run.rmse == pytest.approx(min(error for _, error in run.selection)), "the best test RMSE is the one reported"


def test_other_methods_with_options_are_compared_with_cell_a(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = ["gaba(beta=0.5, warmup=2):huber(delta=5.0)", "uncertainty:mse", "dwa:mae", "gaba:failure_biased"]
    assert cmapss_grace.main([*TINY, "--workers", "1", "--out", str(tmp_path), "--methods", *methods]) == 0
    assert [row["cell"] for row in rows(tmp_path)] == ["A", *methods[:3], "D"]
    assert not (tmp_path / "grid.png").exists()
    assert "uncertainty:mse" in capsys.readouterr().out
    learned = rows(tmp_path)[2]
    assert float(learned["lambda_rul"]) != 0.5, "the weighting's parameters must have been in the optimizer"


def test_further_constants_are_in_the_verdict_and_not_in_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--methods", "gaba:mse", "--seeds", "0", "1", "--baselines", "tuned", "ended"]
    assert cmapss_grace.main([*TINY, "--steps", "3", "--workers", "1", "--out", str(tmp_path), *arguments]) == 0
    assert [row["cell"] for row in rows(tmp_path)] == ["A", "C"] * 2
    said = capsys.readouterr().out
    assert "and constants: RUL at 0.01, 0.1, 10 and 100 times" in said
    assert "against the best constant (tuned constant" in said and "against the constants where they ended" in said
    weights = [run.history["weight/rul"][-1] for run in Results.load(tmp_path).runs if run.outer == "rul times 0.1"]
    assert weights == pytest.approx([1 / 11] * 2)


def test_a_run_that_diverges_is_named_and_the_others_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diverging = "fixed(weights={'rul': 1e38, 'health': 1e38}):mse"
    arguments = [*TINY, "--workers", "1", "--out", str(tmp_path), "--methods", diverging, "fixed:mae"]
    assert cmapss_grace.main(arguments) == 1
    said = capsys.readouterr()
    outer, inner = diverging.rsplit(":", 1)
    assert f"failed: {outer} x {inner}, seed 0: RunError: no evaluation gave finite predictions" in said.err
    assert [row["cell"] for row in rows(tmp_path)] == ["A", "fixed:mae"]


# Parts


def test_methods_are_written_like_calls() -> None:
    assert parse_strategy("gaba(beta=0.9, floor=0)") == {"name": "gaba", "beta": 0.9, "floor": 0}
    assert parse_method("fixed(weights={'rul': 1, 'health': 2}):mse").outer == "fixed(weights={'rul': 1, 'health': 2})"
    assert parse_method("gaba:failure_biased") is GRID[3]
    assert choose_cells(["gaba:mse", "gaba:mse"]) == [GRID[0], GRID[2]]
    assert [cell.name for cell in choose_cells(None)] == ["A", "B", "C", "D", "control"]


def test_the_control_is_a_constant_at_gaba_s_floor() -> None:
    weights = parse_strategy(CONTROL.outer)["weights"]
    assert weights == {"rul": 0.05 / 1.05, "health": 1 / 1.05}
    assert CONTROL.inner == "failure_biased"


def test_the_network_is_small_and_starts_at_the_mean_rul() -> None:
    torch.manual_seed(0)
    model = TwoHeads(17, mean_rul=85.0, rul_scale=Recipe(1).rul_scale, dropout=Recipe(1).dropout).eval()
    assert 55_000 < sum(parameter.numel() for parameter in model.parameters()) < 65_000
    outputs = model(torch.randn(5, 30, 17))
    assert outputs["rul"].shape == (5,) and outputs["health"].shape == (5, 3)
    assert (outputs["rul"] - 85).abs().max() < Recipe(1).rul_scale
    assert not any(isinstance(part, torch.nn.Dropout) for part in model.trunk.funnel)


def test_the_ruler_measures_what_autograd_measures() -> None:
    """Norms in the pictures are those of each task's own loss on the trunk's parameters."""
    torch.manual_seed(0)
    model = TwoHeads(4, mean_rul=85.0, rul_scale=1.0, dropout=0.0)
    targets = {"rul": torch.tensor([10.0, 60.0, 90.0]), "health": torch.tensor([2, 1, 0])}
    outputs = model(torch.randn(3, 30, 4))
    ruler = Cell("ruler", "gaba(warmup=0)", "failure_biased").criterion()
    ruler(outputs, targets)
    weight = 1 + (1 - targets["rul"] / 125).clamp(0, 1)
    losses = [
        (weight * (outputs["rul"] - targets["rul"]) ** 2).mean(),
        torch.nn.functional.cross_entropy(outputs["health"], targets["health"]),
    ]
    for at, loss in enumerate(losses):
        gradients = torch.autograd.grad(loss, list(model.trunk.parameters()), retain_graph=True)
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        assert ruler.report is not None and ruler.report.norms is not None
        torch.testing.assert_close(ruler.report.norms[at], norm, rtol=1e-4, atol=0)


def test_the_norms_of_a_run_begin_with_those_of_its_first_batch(tmp_path: Path) -> None:
    """What train_run records at its first step is what autograd gives on the same seed's model and batch."""
    SimulatedFleet("FD001", train_engines=4, test_engines=3).write(tmp_path)
    prepared, recipe = prepare(load_fleet(tmp_path, "FD001"), 1, "honest"), Recipe(steps=2, evaluations=1)
    made = train_run(GRID[1].criterion(), 1, prepared, recipe)
    torch.manual_seed(1)
    windows = prepared.train
    mean_rul = float(windows.rul.mean())
    model = TwoHeads(CHANNELS, mean_rul=mean_rul, rul_scale=recipe.rul_scale, dropout=recipe.dropout)
    which = next(batches(windows, recipe, 1))[0]
    rul, health = torch.from_numpy(windows.rul[which]), torch.from_numpy(windows.health[which])
    outputs = model(torch.from_numpy(windows.inputs(which)))
    weight = 1 + (1 - rul / 125).clamp(0, 1)
    losses = [
        (weight * (outputs["rul"] - rul) ** 2).mean(),
        torch.nn.functional.cross_entropy(outputs["health"], health),
    ]
    assert made.norm_steps == [0]
    assert made.losses[0] == pytest.approx([loss.item() for loss in losses], rel=1e-5)
    for loss, found in zip(losses, made.norms[0], strict=True):
        gradients = torch.autograd.grad(loss, list(model.trunk.parameters()), retain_graph=True)
        assert found == pytest.approx(torch.cat([gradient.flatten() for gradient in gradients]).norm().item(), rel=1e-4)


def test_the_weight_average_follows_the_model_slower_and_slower() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    average = WeightAverage(model, decay=0.25)
    torch.nn.init.ones_(model.weight)
    average.update(model)
    assert average.averages["weight"].item() == pytest.approx(1 - 2 / 11)
    for _ in range(5):
        before = average.averages["weight"].item()
        average.update(model)
    assert 1 - average.averages["weight"].item() == pytest.approx(0.25 * (1 - before))


def test_the_tested_checkpoint_is_the_chosen_one_and_not_the_last(tmp_path: Path) -> None:
    """Selecting on the test engines makes it visible: the reported RMSE is the lowest of the selection, reached earlier."""
    SimulatedFleet("FD001", train_engines=4, test_engines=6).write(tmp_path)
    prepared = prepare(load_fleet(tmp_path, "FD001"), 0, "published")
    recipe = Recipe(steps=40, learning_rate=0.05, average=0.0, evaluations=10)
    earlier = 0
    for seed in range(6):  # where a run is best depends on the machine's arithmetic; that one of six ends past it does not
        torch.manual_seed(seed)
        run = train_run(GRID[0].criterion(), seed, prepared, recipe)
        errors = dict(run.selection)
        assert errors[run.chosen_step] == min(errors.values())
        assert run.rmse == pytest.approx(errors[run.chosen_step])
        earlier += run.chosen_step < 40 and errors[40] > errors[run.chosen_step]
        if earlier:
            break
    assert earlier


def make_run(rmse: float, nasa: float, weights: list[list[float]]) -> Run:
    return Run(rmse, nasa, 0.8, 1.0, [1.0], [1.0], weights, weights, [0], [[500.0, 1.0]], [(1, 1.0)])


def test_the_table_pairs_differences_by_seed() -> None:
    bound = [0.05 / 1.05, 1 / 1.05]
    runs = {
        (GRID[0], 0): make_run(15.0, 500.0, [[0.5, 0.5]]),
        (GRID[0], 1): make_run(17.0, 700.0, [[0.5, 0.5]]),
        (GRID[3], 0): make_run(14.0, 450.0, [[0.5, 0.5], bound]),
        (GRID[3], 1): make_run(15.0, 710.0, [[0.5, 0.5], bound]),
        (CONTROL, 0): make_run(14.5, 440.0, [bound]),
        (CONTROL, 1): make_run(14.5, 720.0, [bound]),
    }
    weak, strong = {"rmse": 20.0, "nasa": 900.0}, {"rmse": 16.0, "nasa": 300.0}
    ridge = [{"weak": weak, "strong": strong}] * 2
    lines = table(runs, ridge).splitlines()
    assert "16.00 ± 1.41" in lines[2] and "600 ± 141" in lines[2]
    assert "-1.50 ± 0.71" in lines[3] and "-20 ± 42" in lines[3]
    words = " ".join(in_words(runs, ridge))
    assert "500 times" in words
    assert (
        "D sits at its floor at the end of all 2 runs: lambda_rul = 0.0476 (lowest possible 0.0476), lambda_health = 0.9524"
        in words
    )
    assert "RMSE 0.00 ± 0.71 (lower in 1 of 2 seeds), NASA 0 ± 14 (lower in 1 of 2 seeds)" in words
    assert "a lower mean than the better linear model (strong): RMSE D, control; NASA no cell" in words


def test_the_floor_is_only_claimed_where_the_weights_stay_on_it() -> None:
    bound = [0.05 / 1.05, 1 / 1.05]
    assert floored_from(make_run(1, 1, [[0.5, 0.5], bound, bound]), 0.05) == 1
    assert floored_from(make_run(1, 1, [bound, [0.5, 0.5]]), 0.05) is None
    assert gaba_floor(GRID[0]) is None and gaba_floor(parse_method("gaba(floor=0.1):mse")) == 0.1
    words = " ".join(
        in_words({(GRID[2], 0): make_run(1, 1, [[0.4, 0.6], [0.3, 0.7]])}, [{"ridge": {"rmse": 1.0, "nasa": 1.0}}])
    )
    assert "has not reached its floor after 2 steps: lambda_rul = 0.3000" in words
    assert "The tested checkpoints are of step 1 on average, when lambda_health was 0.6000." in words


def test_a_run_is_the_same_after_it_was_kept(tmp_path: Path) -> None:
    """What a study keeps of a run gives it back: the pictures draw what was measured."""
    SimulatedFleet("FD001", train_engines=4, test_engines=3).write(tmp_path)
    training = Training(load_fleet(tmp_path, "FD001"), "honest", Recipe(steps=25, evaluations=3))
    made = train_run(GRID[2].criterion(), 0, training.prepared(0), training.recipe)
    outcome = made.outcome()
    assert outcome.predictions is not None and isinstance(outcome.history, dict)
    predicted, true = outcome.predictions["rul"]
    kept = KeptRun("gaba", "mse", 0, outcome.metrics, outcome.history, {"rul": {"predicted": predicted, "true": true}})
    again = Run.of(replace(KeptRun.from_json(kept.to_json()), seconds=made.seconds))
    assert asdict(again) == asdict(made)
    assert made.norm_steps == [0, 20] and [step for step, _ in made.selection] == [9, 17, 25]
