"""Bad input is refused in words, before ten seconds are spent on it; and the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from advised import Clock, Engine, engine_batches
from torch import nn

from mtl_axes import compose, create
from mtl_axes.advise import advise
from mtl_axes.cli import main
from mtl_axes.errors import DataError, MtlAxesError, OptionError, UnknownNameError


class Uncopied(Engine):
    """A model that refuses to be copied."""

    def __deepcopy__(self, memo: object) -> Uncopied:
        raise RuntimeError("only once")


BAD: dict[str, tuple[Callable[[], object], type[MtlAxesError], str]] = {
    "criterion": (lambda: advise("gaba", Engine(), engine_batches()), DataError, "needs a criterion first. Found str"),
    "model": (lambda: advise(compose(), 3, engine_batches()), DataError, "needs a model, or a function.*Found int"),
    "copy": (
        lambda: advise(compose(), Uncopied(), engine_batches()),
        DataError,
        "cannot be copied.*only once.*lambda batch",
    ),
    "no batches": (lambda: advise(compose(), Engine(), []), DataError, "got no batch. Pass a loader"),
    "no iterable": (lambda: advise(compose(), Engine(), 7), DataError, "should be iterable.*Found int"),
    "batch": (
        lambda: advise(compose(), Engine(), [{"x": torch.zeros(3)}]),
        DataError,
        r"pair \(inputs, targets\). Found dict. Pass a function",
    ),
    "step": (
        lambda: advise(compose(), lambda batch: batch[0], engine_batches()),
        DataError,
        r"step should return \(outputs, targets\).*Found Tensor",
    ),
    "step options": (
        lambda: advise(compose(), lambda batch: (Engine()(batch[0]), batch[1], {"msk": None}), engine_batches()),
        DataError,
        "options among mask, sample_weight, extra.*Found a tuple of 3: dict, dict, dict",
    ),
    "seconds": (
        lambda: advise(compose(), Engine(), engine_batches(), seconds=0),
        OptionError,
        "`seconds` should be a number",
    ),
    "steps": (lambda: advise(compose(), Engine(), engine_batches(), steps=0), OptionError, "`steps` should be an integer"),
    "candidate name": (
        lambda: advise(compose(), Engine(), engine_batches(), candidates=["gabba"]),
        UnknownNameError,
        "Did you mean.*gaba",
    ),
    "candidate object": (
        lambda: advise(compose(), Engine(), engine_batches(), candidates=[create("outer", "gaba")]),
        OptionError,
        r"should hold names.*Found GABA",
    ),
    "candidates": (
        lambda: advise(compose(), Engine(), engine_batches(), candidates="gaba"),
        OptionError,
        "should be a list of weightings. Found candidates='gaba'",
    ),
    "primary": (
        lambda: advise(compose(), Engine(), engine_batches(), primary="helth", candidates=[]),
        UnknownNameError,
        r"one of the tasks \['rul', 'health'\]. Found 'helth'. Did you mean 'health'",
    ),
    "targets": (
        lambda: advise(compose(tasks=["rul", "speed"]), Engine(), engine_batches()),
        DataError,
        r"should belong to one of the tasks \['rul', 'speed'\]",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told_in_words(name: str) -> None:
    """The error says what is required, what was found, and where it helps what to do."""
    call, error, words = BAD[name]
    with pytest.raises(error, match=words):
        call()


def test_masks_and_extra_losses_of_a_step() -> None:
    """A step may hand over the other arguments of the criterion's call."""
    model = Engine()

    def step(batch: Any) -> Any:
        outputs = model(batch[0])
        half = torch.arange(16) < 8
        return outputs, batch[1], {"mask": {"rul": half}, "extra": {"size": model.trunk[0].weight.square().mean()}}

    torch.manual_seed(0)
    found = advise(compose(tasks=["rul", "health", "size"]), step, engine_batches(), candidates=["gaba"], seconds=30)
    assert found.tasks == ("rul", "health", "size")
    assert found.losses[2].kind is None
    first = engine_batches()[0][1]["rul"]
    torch.manual_seed(0)
    prediction = model(engine_batches()[0][0])["rul"]
    assert found.losses[0].values[0] == pytest.approx((prediction - first)[:8].square().mean().item(), rel=1e-5)
    known = torch.cat([targets["rul"][:8] for _, targets in engine_batches()])
    assert found.losses[0].target_range == (known.min().item(), known.max().item())
    assert found.costs[0].problem is None


PROGRAM = """
import torch
from torch import nn
from mtl_axes import compose

weight = nn.Parameter(torch.ones(3))

def prepared():
    def step(batch):
        return {"a": (weight * batch).sum(), "b": (weight * batch * torch.tensor([1.0, 2.0, 0.5])).sum()}
    return compose(tasks=["a", "b"]), step, [torch.rand(3) + 1 for _ in range(5)]

def wrong():
    return 3
"""


def test_the_command_line(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``mtl-axes advise module:function`` prints the advice, draws it, and says in words what is wrong."""
    monkeypatch.setattr(clock, "tick", 0.005)
    (tmp_path / "advised_program.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    assert main(["advise", "advised_program:prepared", "--seconds", "1.5", "--picture", "advice.png"]) == 0
    assert "Recommendation [equal]" in capsys.readouterr().out
    assert (tmp_path / "advice.png").exists()
    assert main(["advise", "advised_program:prepared", "--primary", "c", "--seconds", "1"]) == 2
    assert "Found 'c'" in capsys.readouterr().err
    for picture in ("advice.xyz", "no_folder/advice.png"):
        assert main(["advise", "advised_program:prepared", "--seconds", "0.5", "--picture", picture]) == 2
        out, err = capsys.readouterr()
        assert out.startswith("Advice on"), "what was measured is told all the same"
        assert "The picture could not be drawn" in err
    assert main(["advise", "advised_program:nothing"]) == 2
    assert "has no attribute 'nothing'" in capsys.readouterr().err
    assert main(["advise", "no_such_program_of_mine:f"]) == 2
    assert "No module named" in capsys.readouterr().err
    assert main(["advise", "advised_program:wrong"]) == 2
    assert "Found int" in capsys.readouterr().err


def test_modules_in_a_container_are_seen(tmp_path: Path) -> None:
    """Statistics of a batch norm that is called through a closure come back, though no model was handed over."""
    norm = nn.BatchNorm1d(4)
    heads = nn.Linear(4, 2)

    def step(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        z = heads(norm(batch)).square().mean(0)
        return {"a": z[0], "b": z[1]}

    before = {name: value.clone() for name, value in norm.state_dict().items()}
    advise(compose(tasks=["a", "b"]), step, [torch.randn(8, 4) for _ in range(3)], candidates=["gaba"], seconds=30)
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in [*norm.parameters(), *heads.parameters()])


def test_outputs_alone_are_told_from_losses() -> None:
    """A step that forgets the targets learns what to return; arguments in the wrong order are named without a repr."""
    model, batches = Engine(), engine_batches()
    with pytest.raises(DataError, match=r"return \(outputs, targets\)"):
        advise(compose(), lambda batch: model(batch[0]), batches)
    with pytest.raises(DataError, match=r"criterion first\. Found Engine\. Pass what compose\(\) returned\.$"):
        advise(model, compose(), batches)  # type: ignore[arg-type]


def test_a_task_that_never_has_a_label_is_not_called_computed_elsewhere() -> None:
    """Its kind is not known, which is what the text says."""
    batches = [(sensors, {**targets, "health": None}) for sensors, targets in engine_batches()]
    text = str(
        advise(compose("gaba", {"rul": "mse", "health": "cross_entropy"}), Engine(), batches, candidates=[], seconds=1)
    )
    assert "no label seen" in text
    assert "computed elsewhere" not in text
