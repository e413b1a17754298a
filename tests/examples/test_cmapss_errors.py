"""What the C-MAPSS example says about files and options that it cannot use: one message, no traceback, exit code 2."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import cmapss_grace
from cmapss.simulator import SimulatedFleet

Run = Callable[..., str]

SMALL = ("--quick", "--steps", "1", "--workers", "1")
"""So that input which is wrongly accepted fails its test soon."""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    SimulatedFleet("FD001", train_engines=3, test_engines=3).write(folder)
    return folder


@pytest.fixture
def files(good: Path, tmp_path: Path) -> Path:
    """A copy of a good folder, to be damaged."""
    folder = tmp_path / "files"
    folder.mkdir()
    for path in good.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the example, check that it ends with code 2 and one ``error:``, and return what it said."""

    def run(*arguments: object) -> str:
        try:
            code = cmapss_grace.main([*SMALL, *map(str, arguments), "--out", str(tmp_path / "out")])
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        assert code == 2
        assert said.err.count("error:") == 1 and "Traceback" not in said.err
        assert not (tmp_path / "out" / "results.csv").exists()
        return said.err

    return run


def damage(path: Path, line: int, change: Callable[[str], str]) -> None:
    lines = path.read_text().splitlines(keepends=True)
    lines[line - 1] = change(lines[line - 1])
    path.write_text("".join(lines))


def test_missing_folder(refused: Run, tmp_path: Path) -> None:
    said = refused("--data", tmp_path / "nowhere", "--subset", "FD001")
    assert f"There is no file or folder `{tmp_path / 'nowhere'}`. Pass a folder or a zip" in said
    assert "or leave `--data` out" in said


def test_folder_without_the_files(refused: Run, files: Path) -> None:
    (files / "RUL_FD001.txt").unlink()
    assert "lacks RUL_FD001.txt. Point `--data` at" in refused("--data", files, "--subset", "FD001")


def test_zip_without_the_files(refused: Run, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("train_FD001.txt", "1")
    said = refused("--data", tmp_path / "other.zip", "--subset", "FD001")
    assert "The zip" in said and "lacks test_FD001.txt, RUL_FD001.txt." in said


def test_file_that_is_no_zip(refused: Run, tmp_path: Path) -> None:
    (tmp_path / "half.zip").write_bytes(b"PK\x03\x04 half a download")
    assert "is not a readable zip" in refused("--data", tmp_path / "half.zip", "--subset", "FD001")


def test_wrong_number_of_columns(refused: Run, files: Path) -> None:
    damage(files / "train_FD001.txt", 7, lambda line: line.rstrip() + " 1.5\n")
    said = refused("--data", files, "--subset", "FD001")
    assert "`train_FD001.txt` line 7 should have 26 columns" in said and "Found 27: a damaged or foreign row" in said


def test_truncated_last_row(refused: Run, files: Path) -> None:
    path = files / "test_FD001.txt"
    text = path.read_text()
    count = len(text.splitlines())
    path.write_text(text[: text.rstrip().rindex("\n") + 40])
    said = refused("--data", files, "--subset", "FD001")
    assert f"`test_FD001.txt` line {count} should have 26 columns" in said and "the file may be cut off" in said


@pytest.mark.parametrize("token", ["n/a", "nan", "inf", "518,67"])
def test_something_that_is_not_a_number(refused: Run, files: Path, token: str) -> None:
    damage(files / "train_FD001.txt", 3, lambda line: line.replace("518.67", token))
    said = refused("--data", files, "--subset", "FD001")
    assert f"`train_FD001.txt` line 3 column 6 should be a finite number. Found `{token}`." in said


def test_a_lost_row(refused: Run, files: Path) -> None:
    damage(files / "train_FD001.txt", 5, lambda line: "")
    said = refused("--data", files, "--subset", "FD001")
    assert "`train_FD001.txt` line 5 should be cycle 5 of engine 1. Found cycle 6" in said


def test_an_engine_listed_twice(refused: Run, files: Path) -> None:
    path = files / "train_FD001.txt"
    text = path.read_text()
    path.write_text(text + text.splitlines(keepends=True)[0])
    assert "`train_FD001.txt` lists engine 1 again at line" in refused("--data", files, "--subset", "FD001")


@pytest.mark.parametrize("name", ["train_FD001.txt", "RUL_FD001.txt"])
def test_an_empty_file(refused: Run, files: Path, name: str) -> None:
    (files / name).write_text("")
    said = refused("--data", files, "--subset", "FD001")
    assert name in said and ("is empty" in said or "Found 0 lines" in said)


def test_rul_file_of_another_length(refused: Run, files: Path) -> None:
    with (files / "RUL_FD001.txt").open("a") as rul:
        rul.write("55 \n")
    said = refused("--data", files, "--subset", "FD001")
    assert "should have one line per test engine (3 engines in `test_FD001.txt`). Found 4 lines" in said


@pytest.mark.parametrize("token", ["12.5", "-3", "many", "1 2"])
def test_rul_that_is_no_number_of_cycles(refused: Run, files: Path, token: str) -> None:
    damage(files / "RUL_FD001.txt", 2, lambda line: token + "\n")
    said = refused("--data", files, "--subset", "FD001")
    assert f"`RUL_FD001.txt` line 2 should be one whole number of cycles, 0 or more. Found `{token}`" in said


def test_test_engines_in_a_condition_never_trained_on(refused: Run, files: Path) -> None:
    damage(files / "test_FD001.txt", 2, lambda line: " ".join(["1", "2", "35.0", "0.84", *line.split()[4:]]) + "\n")
    said = refused("--data", files, "--subset", "FD001")
    assert "Engine 1 has operating conditions" in said and "that no fitted engine has: (35.0, 0.84, 100.0)" in said


def test_unknown_subset_names_the_near_one(refused: Run) -> None:
    said = refused("--subset", "fd01")
    assert "should be one of FD001, FD002, FD003, FD004. Found `fd01`. Did you mean `FD001`?" in said


def test_unknown_method_shows_the_library_s_own_words(refused: Run) -> None:
    said = refused("--methods", "gabba:mse")
    assert "The method `gabba:mse` cannot be used here." in said and "gaba" in said


def test_wrong_option_of_a_method_shows_the_library_s_own_words(refused: Run) -> None:
    assert "floor" in refused("--methods", "gaba(floor=0.7):mse")


def test_shape_that_does_not_fit_the_network_is_found_before_training(refused: Run) -> None:
    assert "The method `fixed:quantile(q=[0.1, 0.9])` cannot" in refused("--methods", "fixed:quantile(q=[0.1, 0.9])")


@pytest.mark.parametrize("method", ["gaba", "gaba:mse:mae", ":"])
def test_method_that_is_no_pair(refused: Run, method: str) -> None:
    said = refused("--methods", method)
    assert "A method" in said and "should be written" in said and f"Found `{'' if method == ':' else method}`" in said


@pytest.mark.parametrize("text", ["gaba(0.9)", "gaba(beta=open('x'))", "gaba(beta=", "1 + 1"])
def test_method_options_are_plain_named_values(refused: Run, text: str) -> None:
    assert "should be written" in refused("--methods", f"{text}:mse")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--steps", "0"), "argument --steps: should be a whole number, 1 or more. Found `0`."),
        (("--steps", "many"), "argument --steps: should be a whole number, 1 or more. Found `many`."),
        (("--seeds", "1", "-2"), "argument --seeds: should be a whole number, 0 or more. Found `-2`."),
        (("--workers", "0"), "argument --workers: should be a whole number, 1 or more. Found `0`."),
        (("--seeds", "1", "1"), "`--seeds` should name every seed once. Found 1 1."),
        (("--protocol", "lenient"), "argument --protocol: invalid choice"),
    ],
)
def test_option_values(refused: Run, arguments: tuple[str, ...], message: str) -> None:
    assert message in refused(*arguments)


def test_out_that_cannot_be_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cmapss_grace.main(["--quick", "--out", str(tmp_path / "file" / "out")]) == 2
    assert "cannot be written (" in capsys.readouterr().err
