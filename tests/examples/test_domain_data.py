"""What the programs in examples/domains simulate has the structure that they say it has."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torchmetrics.functional.text import edit_distance

DOMAINS = str(Path(__file__).resolve().parents[2] / "examples" / "domains")


def loaded(name: str) -> Iterator[ModuleType]:
    """The program as a module; the path and the modules that it imports by short names go with it."""
    before = set(sys.modules)
    sys.path.insert(0, DOMAINS)
    yield importlib.import_module(name)
    sys.path.remove(DOMAINS)
    for module in {name, "common"} - before:
        sys.modules.pop(module, None)


@pytest.fixture(scope="module")
def speech() -> Iterator[ModuleType]:
    yield from loaded("speech")


@pytest.fixture(scope="module")
def climate() -> Iterator[ModuleType]:
    yield from loaded("climate")


def test_words_are_as_frequent_as_zipf_says_and_rare_ones_are_spelt_almost_like_frequent_ones(speech: ModuleType) -> None:
    """Counts stay within four standard deviations; one or two edits lead from each rare word to a frequent one."""
    words = speech.utterances(2000, 0)["words"]
    said = words[(words >= 0) & (words != speech.END)]
    share = torch.tensor(speech.ZIPF) / sum(speech.ZIPF)
    spread = (len(said) * share * (1 - share)).sqrt()
    assert ((torch.bincount(said, minlength=speech.END) - len(said) * share).abs() < 4 * spread).all()
    assert len({tuple(spelling) for spelling in speech.LEXICON}) == len(speech.LEXICON)
    for rare in speech.LEXICON[speech.RARE :]:
        assert min(speech.mistakes(frequent, rare)[0] for frequent in speech.LEXICON[: speech.RARE]) <= 2


def test_utterances_hold_their_words_phonemes_and_frames(speech: ModuleType) -> None:
    """Phonemes are those of the words, take 2 to 5 frames each, and are louder than the silence after them."""
    data = speech.utterances(200, 1)
    for words, phonemes, frames, sound in zip(
        *(data[name] for name in ("words", "phonemes", "frames", "sound")), strict=True
    ):
        said = words[: int((words == speech.END).nonzero())]
        assert (words[len(said) + 1 :] == -100).all() and 1 <= len(said) <= speech.MOST
        spelt = [sound for word in said.tolist() for sound in speech.LEXICON[word]]
        assert phonemes[: len(spelt)].tolist() == spelt and not phonemes[len(spelt) :].any()
        assert 2 * len(spelt) <= frames <= 5 * len(spelt)
        if frames + 1 < len(sound):
            assert sound[: int(frames)].amax(1).mean() > sound[int(frames) + 1 :].mean() + 1


def test_speakers_differ_and_noise_differs(speech: ModuleType) -> None:
    """The first frame of one word, over its speakers, varies by more than the noise, and by it in every band."""
    data = speech.utterances(2000, 0)
    first = data["sound"][data["words"][:, 0] == 1, 0]  # "me": a nasal
    deviation = first.std(0)
    assert deviation.min() > 0.3 and deviation.max() > 0.6


def test_each_seed_has_data_of_its_own(speech: ModuleType, climate: ModuleType) -> None:
    """A seed gives the same data again, another one gives others."""
    for make, key in ((speech.utterances.__wrapped__, "sound"), (climate.days.__wrapped__, "rain")):
        data = make(5, 3)[key]
        assert torch.equal(make(5, 3)[key], data)
        other = make(5, 4)[key]
        assert other.shape != data.shape or not torch.equal(other, data)


def test_mistakes_are_an_edit_distance_and_count_what_is_missed_of_rare_words(speech: ModuleType) -> None:
    """The distance is torchmetrics'; a rare word is missed when it is left out or replaced, not when one is added."""
    draw = random.Random(0)
    for _ in range(100):
        said, meant = (draw.choices(range(speech.END), k=draw.randint(1, 6)) for _ in range(2))
        strings = ["".join(chr(65 + word) for word in words) for words in (said, meant)]
        assert speech.mistakes(said, meant)[0] == int(edit_distance(*strings))
    rare = speech.RARE
    assert speech.mistakes([0, rare], [0, rare]) == (0, 0)
    assert speech.mistakes([0, 1], [0, rare]) == (1, 1)
    assert speech.mistakes([0], [0, rare]) == (1, 1)
    assert speech.mistakes([0, rare], [0]) == (1, 0)
    assert speech.mistakes([rare, 1], [1, rare]) == (2, 0)  # of two alignments the one that finds the rare word


def test_rain_is_mostly_zero_heavy_tailed_and_falls_where_the_wind_climbs(climate: ModuleType) -> None:
    """Most cells are dry; of the wet ones the top thousandth is far out; the west of a ridge is wetter than its east."""
    rain, height = climate.days(200, 0)["rain"], climate.terrain()
    wet = rain[rain > 0]
    assert 0.5 < (rain == 0).float().mean() < 0.85
    assert wet.quantile(0.999) > 10 * wet.mean()
    east, _ = climate.slopes(height)
    assert rain[:, east > 0.1].mean() > 1.5 * rain[:, east < -0.1].mean()  # the wind is mostly from the west


def test_temperature_falls_with_height_and_wind_follows_the_pressure_gradient(climate: ModuleType) -> None:
    """6.5 K per km but for the cold pools of valleys; over the sea 9 m/s per hPa and cell, over ridges more."""
    data, height = climate.days(200, 0), climate.terrain()
    anomaly = data["temperature"] - data["temperature"].mean((1, 2), keepdim=True)
    slope = (anomaly.mean(0) * (height - height.mean())).sum() / (height - height.mean()).square().sum()
    assert -7.5 < slope < -5.5
    gradient = torch.hypot(*climate.slopes(data["pressure"]))
    sea = height == 0
    assert sea.float().mean() > 0.1
    torch.testing.assert_close(data["wind"][:, sea], 9 * gradient[:, sea])
    assert (data["wind"][:, height > 1.5] > 9 * gradient[:, height > 1.5]).all()


def test_pressure_is_smooth_and_the_coarse_model_sees_means(climate: ModuleType) -> None:
    """Neighbouring cells have almost the same pressure; a coarse cell is the mean of 4 x 4 fine ones."""
    data = climate.days(20, 0)
    pressure = data["pressure"] - data["pressure"].mean((1, 2), keepdim=True)
    for one, next_ in ((pressure[:, 1:], pressure[:, :-1]), (pressure[..., 1:], pressure[..., :-1])):
        assert torch.corrcoef(torch.stack([one.flatten(), next_.flatten()]))[0, 1] > 0.98
    coarse = climate.coarser(data)
    assert coarse.shape == (20, 4, climate.CELLS // climate.FACTOR, climate.CELLS // climate.FACTOR)
    torch.testing.assert_close(coarse[3, 1, 2, 5], data["rain"][3, 8:12, 20:24].mean())


def test_a_downscaled_day_has_no_negative_rain_and_none_where_none_is_near(climate: ModuleType) -> None:
    """Rain and wind are factors of the interpolated fields."""
    coarse = climate.coarser(climate.days(20, 0))
    found = climate.Downscaler().eval()(coarse)
    near = climate.finer(coarse)[:, 1]
    assert (near == 0).any() and (found["rain"][near == 0] == 0).all()
    assert (found["rain"] >= 0).all() and (found["wind"] >= 0).all()
