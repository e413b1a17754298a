"""The benchmarks run, and compare like with like. Nothing here looks at a time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

if not hasattr(torch.nn.utils, "get_total_norm"):
    pytest.skip("the benchmarks need torch >= 2.6", allow_module_level=True)

try:
    from benchmarks.__main__ import PARTS, main
except SystemExit as missing:  # what the command itself says where its extra is not installed
    pytest.skip(str(missing), allow_module_level=True)

from benchmarks import gpu, history, memory, objects, ranks, steps
from benchmarks.methods import PLAIN, Run, methods, quiet, row
from benchmarks.models import Workload, cnn_bilstm, large_transformer, mlp, transformer
from benchmarks.profiling import peak_bytes
from benchmarks.timing import Block, Spread, ratios

pytestmark = pytest.mark.slow

SMALL = {"batch": 16, "width": 16, "depth": 2}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of the quick form of every part."""
    folder = tmp_path_factory.mktemp("results")
    threads = torch.get_num_threads()
    assert main(["--quick", "--out", str(folder), "--machine", "somewhere"]) == 0
    assert torch.get_num_threads() == 1
    torch.set_num_threads(threads)
    return folder


@pytest.mark.parametrize("part", [part for part in PARTS if part != "gpu"])
def test_every_part_leaves_its_numbers_and_its_tables(out: Path, part: str) -> None:
    """The quick form of every part writes JSON with positive numbers, and a table of them."""
    result = json.loads((out / f"{part}.json").read_text())
    assert result["machine"] == "somewhere"
    found = result["found"]
    records = found if isinstance(found, list) else found["rows"]
    assert records
    for record in records:
        values = [value for key in ("wall", "cpu", "ratio", "us", "median") for value in _flat(record.get(key))]
        assert values and all(value >= 0 for value in values)
    assert f"<!-- {part}: somewhere" in (out / "tables.md").read_text()


def test_the_report_is_rebuilt_from_the_numbers(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--only report` prints the same tables and draws the picture again."""
    page = (out / "tables.md").read_text()
    (out / "cost.png").unlink()
    assert main(["--only", "report", "--out", str(out)]) == 0
    assert (out / "cost.png").stat().st_size > 10_000
    assert (out / "tables.md").read_text() == page
    assert page in capsys.readouterr().out


def test_wrong_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A part that does not exist, no rounds, and publishing what means nothing are refused, each by what was found."""
    for wrong, found in (
        (["--only", "steps,coffee"], "coffee"),
        (["--rounds", "0"], "0"),
        (["--quick", "--publish"], "--quick"),
    ):
        with pytest.raises(SystemExit):
            main(wrong)
        assert found in capsys.readouterr().err


@pytest.mark.parametrize("workload", [mlp(3, **SMALL), mlp(2, heavy=True, **SMALL)], ids=["light", "heavy"])
@pytest.mark.parametrize("name", ["fixed", "Constant"])
def test_constants_train_the_same_model(workload: Workload, name: str) -> None:
    """The plain sum, `fixed` and TorchJD's Constant lead to the same parameters."""
    _assert_same_model(_trained(PLAIN, workload), _trained(name, workload))


@pytest.mark.parametrize("name", ["gaba: exact", "gaba: exact, no reuse"])
def test_the_naive_form_is_the_same_gaba(name: str) -> None:
    """GABA by hand and GABA with exact norms, however they are computed, lead to the same parameters."""
    workload = mlp(4, **SMALL)
    _assert_same_model(_trained("gaba: naive", workload), _trained(name, workload))


@pytest.mark.parametrize("weighting", ["UPGrad", "MGDA"])
@pytest.mark.parametrize("form", ["default", "tuned"])
@pytest.mark.parametrize(
    "make", [lambda: mlp(4, **SMALL), lambda: cnn_bilstm(batch=4), lambda: transformer(batch=2, layers=1)]
)
def test_both_libraries_have_the_same_gradient(make: Any, form: str, weighting: str) -> None:
    """Rows of a duel leave the same gradient in the trunk."""
    workload = make()
    ours, theirs = row(weighting).build(workload), row(f"{weighting}, {form}").build(workload)
    with quiet():
        ours.backward()
        theirs.backward()
    for mine, other in zip(ours.shared, theirs.shared, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-6)


def test_every_method_trains_a_copy() -> None:
    """No method touches the model of the workload, and every one moves all of its own parameters."""
    workload = mlp(2, **SMALL)
    before = [parameter.clone() for parameter in workload.model.parameters()]
    for method in methods():
        with quiet():
            run = method.build(workload)
            run()
        moved = zip(run.model.parameters(), workload.model.parameters(), before, strict=True)
        for mine, template, original in moved:
            assert torch.equal(template, original), method.name
            assert not torch.equal(mine, original), method.name
            assert mine.grad is None


def test_rows_have_names_of_their_own() -> None:
    """No two rows share a name, and the denominator is one of them."""
    names = [method.name for method in methods()]
    assert len(set(names)) == len(names) and names[0] == PLAIN


def test_peak_bytes_are_those_of_the_allocator() -> None:
    """The peak of a call with known tensors is the most that was alive at once, temporaries included."""

    def call() -> torch.Tensor:
        one, two = torch.empty(100_000), torch.empty(200_000)
        del one
        return two.sum() + torch.empty(50_000).sum()

    assert 4 * 300_000 <= peak_bytes(call, torch.device("cpu")) <= 4 * 300_000 + 1024
    large = torch.zeros(100_000)
    assert peak_bytes(lambda: large.logsumexp(0), torch.device("cpu")) >= 4 * 100_000  # its result is one number


def test_peaks_are_over_the_plain_sum() -> None:
    """A method that keeps K gradients has a higher peak than the plain sum, whose ratio is one."""
    workload = mlp(4, batch=4, width=64)
    peaks = {record["method"]: record["ratio"] for record in memory.run([(workload, [row(PLAIN), row("gaba: exact")])])}
    assert peaks[PLAIN] == 1 and peaks["gaba: exact"] > 2


def test_ratios_are_taken_within_a_round() -> None:
    """A round that is slow for all changes no ratio, and the spread is over the rounds."""
    rounds = [{"a": Block(2.0 * load, 1.0), "b": Block(1.0 * load, 1.0)} for load in (1.0, 50.0, 3.0)]
    wall, cpu = ratios(rounds, "a", "b")
    assert wall == Spread(2.0, 2.0, 2.0) and cpu == Spread(1.0, 1.0, 1.0)
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(2.0, 3.0, 4.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)


def test_duels_are_between_the_libraries() -> None:
    """Every Gramian weighting meets both forms of TorchJD, and nothing else."""
    chosen = [method for method in methods() if method.family == "gramian" or method.name == PLAIN]
    _, duels = steps.run(mlp(2, **SMALL), chosen, rounds=1, period=1)
    assert sorted((duel["mathematics"], duel["rival"]) for duel in duels) == [
        (name, f"{name}, {form}") for name in ("MGDA", "UPGrad") for form in ("default", "tuned")
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device, so the part would run")
def test_without_a_gpu_its_part_is_left_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Without a CUDA device the part says so and leaves no numbers."""
    assert gpu.run(methods(), rounds=1) is None
    assert main(["--only", "gpu", "--quick", "--out", str(tmp_path)]) == 0
    assert "no CUDA device" in capsys.readouterr().out
    assert not (tmp_path / "gpu.json").exists()


def test_the_large_model_is_large_and_trains_in_bfloat16() -> None:
    """The transformer for the GPU has at least 100 million parameters; a small one of its kind makes a step in bf16."""
    with torch.device("meta"):
        assert large_transformer(device="meta").parameters >= 100_000_000
    workload = large_transformer(batch=2, width=64, layers=1, tokens=8, device="cpu")
    narrow, wide = workload.forward(workload.model)[1]["state"], workload.model(workload.inputs)["state"]
    assert 0 < (narrow - wide).abs().max() < 0.05
    for name in (PLAIN, "gaba: exact", "gaba: lagged", "UPGrad, tuned"):
        run = row(name).build(workload)
        run()
        assert all(torch.isfinite(parameter).all() for parameter in run.model.parameters())


def test_histories_are_timed(capsys: pytest.CaptureFixture[str]) -> None:
    """Every weighting has a row, beside the one that shows the noise."""
    threads = torch.get_num_threads()
    assert history.main(["--quick"]) == 0
    torch.set_num_threads(threads)
    rows = [line.split(" | ")[2:4] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [name for name, _ in rows] == ["noise", *history.OUTER]
    assert all(float(ratio) > 0 for _, ratio in rows)


def test_calls_beside_many_objects_are_timed(capsys: pytest.CaptureFixture[str]) -> None:
    """Every probe has a row."""
    threads = torch.get_num_threads()
    assert objects.main(["--quick"]) == 0
    torch.set_num_threads(threads)
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0].removeprefix("| ") for row in rows] == list(objects.PROBES)
    assert all(float(row[1]) > 0 for row in rows)


def test_ranks_are_simulated_and_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The noise of a mean of norms is 1 without noise, grows with the ranks, and both tables are printed."""
    ranks.draw(few := ranks.noise((2, 16), (8,), draws=3), tmp_path / "noise.png")
    assert (tmp_path / "noise.png").stat().st_size > 0
    pure = len(ranks.TASKS) - 1
    two, sixteen = (row["ratios"] for row in few)
    assert 1 < two[pure] < 2**0.5 + 0.5 < sixteen[pure] < 16**0.5 + 2 and sixteen[0] < sixteen[1] < sixteen[pure]
    assert ranks.main(["--quick"]) == 0
    printed = capsys.readouterr().out
    assert "error of a weight" in printed and "| gaba exact, gradients |" in printed and "| plain weighted sum |" in printed


def _flat(value: Any) -> list[float]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _trained(name: str, workload: Workload) -> Run:
    run = row(name).build(workload)
    for _ in range(5):
        run()
    return run


def _assert_same_model(one: Run, other: Run) -> None:
    for mine, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
