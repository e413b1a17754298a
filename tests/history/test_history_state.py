"""A history in the state of its criterion: one history per run, bit for bit, in whatever order things are made."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from recording import Training, attached
from strategies import equal
from torch import nn

from mtl_axes.history import History

GABA = {"name": "gaba", "warmup": 2, "beta": 0.5, "floor": 0.2}
CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any], int]] = {
    "plain": (GABA, {}, {}, 10),
    "in mid-window": (GABA, {"accumulate": 3}, {}, 10),
    "at the end of a window": (GABA, {"accumulate": 3}, {}, 9),
    "lagged": (GABA, {"probe": "lagged"}, {}, 10),
    "learned, in mid-window": ("uncertainty", {"accumulate": 2}, {}, 9),
    "between two rows": (GABA, {"probe": {"name": "exact", "rotate": True}}, {"every": 4}, 11),
    "thinned": ("upgrad", {"every": 3}, {"capacity": 4}, 13),
    "one block": ("fixed", {}, {}, 64),
}
cases = pytest.mark.parametrize("case", CASES)
orders = pytest.mark.parametrize("order", ["attached first", "loaded first"])


def through_a_file(state: Any) -> Any:
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=True)


@orders
@cases
def test_a_resumed_run_has_the_history_of_the_whole_one(case: str, order: str) -> None:
    """Saved, read with weights_only=True, loaded into a fresh criterion before or after its history is made, and gone on
    with: columns and state equal those of the uninterrupted run bit for bit, and so does what it logs next, which is of the
    windows since."""
    outer, options, kept, saved_after = CASES[case]
    whole = Training(outer, **options)
    expected = History(whole.criterion, **kept)
    whole.advance(saved_after, skip=(6,))
    state = through_a_file(whole.saved())
    resumed = Training(outer, **options)
    history = History(resumed.criterion, **kept) if order == "attached first" else None
    resumed.load(state)
    history = history or History(resumed.criterion, **kept)
    assert history.columns() == expected.columns()
    whole.criterion.log_dict()
    for training in (whole, resumed):
        training.advance(12, skip=(saved_after + 3,))
    assert history.columns() == expected.columns()
    logged = whole.criterion.log_dict()
    assert logged.keys() >= {"loss/rul", "weight/rul", "skipped"}
    assert resumed.criterion.log_dict() == logged
    assert equal(resumed.criterion.state_dict(), whole.criterion.state_dict())
    steps = history.columns()["step"]
    assert steps == sorted(set(steps))


def test_a_state_loads_with_and_without_a_history() -> None:
    """A state with a history loads into a criterion without one, which trains on; one without loads into a criterion with
    one, which begins anew; also as a part of another module, strictly."""
    recorded, history = attached(GABA)
    recorded.advance(5)
    plain = Training(GABA)
    plain.load(recorded.saved())
    plain.advance(2)
    assert not any("history" in name for name in plain.criterion.state_dict())
    late = History(plain.criterion)
    plain.advance(1)
    assert late.columns()["step"] == [1, 2, 3, 4, 5, 8]
    other = Training(GABA).advance(3)
    recorded.load(other.saved())
    assert len(history) == 0
    recorded.advance(1)
    assert history.columns()["step"] == [4]
    for source, target in ((recorded, Training(GABA)), (other, attached(GABA)[0])):
        around = nn.ModuleDict({"criterion": target.criterion})
        assert not any(around.load_state_dict(nn.ModuleDict({"criterion": source.criterion}).state_dict()))


def test_going_back_to_a_checkpoint_leaves_no_rows_of_the_run_that_was_left() -> None:
    """A history that has gone on after the checkpoint it loads has its rows once each, those of the new way."""
    training, history = attached(GABA)
    training.advance(4)
    state = training.saved()
    training.advance(3)
    left = history.columns()
    training.load(state)
    training.call += 10
    training.advance(3)
    columns = history.columns()
    assert columns["step"] == [1, 2, 3, 4, 5, 6, 7]
    assert columns["loss/rul"][:4] == left["loss/rul"][:4] and columns["loss/rul"][4:] != left["loss/rul"][4:]


def test_another_every_and_a_smaller_capacity_keep_what_was_recorded() -> None:
    """Rows that were saved stay, at most as many as there is room for; new ones come as the new options say."""
    training, _ = attached("fixed")
    training.advance(6)
    sparse, history = attached("fixed", 4)
    sparse.load(training.saved())
    sparse.advance(8)
    assert history.columns()["step"] == [1, 2, 3, 4, 5, 6, 9, 13, 14]
    small, narrow = attached("fixed", capacity=3)
    small.load(training.saved())
    assert narrow.columns()["step"] == [1, 5, 6]


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies_have_a_history_of_their_own(way: str) -> None:
    """A copied or pickled criterion has the rows so far, and goes on alone."""
    training, history = attached("upgrad", 2, accumulate=2)
    training.advance(7)
    criterion = training.criterion
    twin = copy.deepcopy(criterion) if way == "deepcopy" else pickle.loads(pickle.dumps(criterion))
    assert twin.history.columns() == history.columns()
    own = training.criterion
    training.criterion = twin
    training.advance(4)
    training.criterion = own
    assert len(twin.history) > len(history)
    assert type(twin.history) is History


def test_a_state_is_no_part_of_a_later_step() -> None:
    """What state_dict() returned stays as it was while the run goes on."""
    training, _ = attached("upgrad", capacity=8, every=1)
    training.advance(5)
    state = training.criterion.state_dict()["history._extra_state"]
    before = copy.deepcopy(state)
    training.advance(20)
    assert equal(state, before)


def test_a_history_read_in_inference_mode_goes_on() -> None:
    """Columns that were read within inference_mode() leave nothing behind that a later step could not add to."""
    training, history = attached(GABA, capacity=6)
    training.advance(4)
    with torch.inference_mode():
        assert len(history.columns()["step"]) == 4
        training.criterion.state_dict()
    training.advance(9)
    assert history.columns()["step"] == [1, 5, 9, 13]


def test_it_follows_the_dtype_of_the_run() -> None:
    """A run that goes on in float64 keeps its rows, and records in float64."""
    training, history = attached("fixed", kinds=dict.fromkeys(("a", "b"), "regression"))
    training.advance(2)
    training.model.double()
    value = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    training.criterion.combine({"a": value * 1, "b": value * 2})
    columns = history.columns()
    assert columns["loss/a"][2] == 0.1 and len(columns["loss/a"]) == 3
