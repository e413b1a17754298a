"""Speech: one encoder, a CTC head that spells phonemes, and an attention decoder that writes words, of which some are rare.

Spectrograms are synthesised: an ARPABET lexicon, drawn by Zipf's law; formants (of vowels after Peterson and Barney, 1952)
that glide into each other; phonemes of 2 to 5 frames; speakers with vocal tracts and spectral tilts of their own; noise. The
rarest words differ from frequent ones in one or two sounds, so that the decoder may prefer what it has often read.
Outer axis: GABA, because nats per phoneme and nats per word pull the encoder with different strengths at different times,
which toolkits answer with a constant. Inner axis: logit adjustment by the frequencies of the words, for rare ones.
"""

from __future__ import annotations

import random
from functools import lru_cache

import common
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d, ctc_loss
from torch.nn.utils.rnn import pad_sequence

from mtl_axes import MultiTaskCriterion

# Three spectral peaks in Hz and a level: formants of vowels and sonorants, noise of other consonants. The first is silence.
PEAKS = """- 500 1500 2500 0; iy 270 2290 3010 1; ih 390 1990 2550 1; eh 530 1840 2480 1; ae 660 1720 2410 1;
ah 640 1190 2390 1; aa 730 1090 2440 1; ao 570 840 2410 1; uh 440 1020 2240 1; uw 300 870 2240 1; er 490 1350 1690 1;
m 250 1000 2200 .7; n 250 1600 2600 .7; l 360 1100 2900 .8; r 350 1100 1500 .8; b 200 800 2300 .4; d 200 1750 2900 .4;
p 700 1200 2600 .3; t 2600 3800 4800 .4; k 1400 1900 2700 .4; f 2500 4500 6500 .3; s 4500 5500 6800 .6"""
WORDS = """it ih t; me m iy; but b ah t; do d uw; can k ae n; see s iy; in ih n; not n aa t; look l uh k; at ae t; her er;
tell t eh l; feel f iy l; put p uh t; room r uw m; call k ao l; need n iy d; book b uh k; talk t ao k; last l ae s t;
food f uw d; bird b er d; keep k iy p; form f ao r m; sip s ih p; tool t uw l; fill f ih l; pet p eh t; ram r ae m;
cull k ah l; knit n ih t; buck b ah k; tuck t ah k; lust l ah s t; mood m uw d; bard b aa r d"""
SOUNDS, *_ = zip(*(row.split() for row in PEAKS.split(";")), strict=True)
LEXICON = [[SOUNDS.index(sound) for sound in row.split()[1:]] for row in WORDS.split(";")]  # most frequent first
ZIPF = [1 / rank for rank in range(1, len(LEXICON) + 1)]
END, BEGIN, MOST, RARE = len(LEXICON), len(LEXICON) + 1, 4, 24  # marks, words of an utterance, and the first rare word
BANDS, TRAIN, TEST, BATCH = 24, 2400, 600, 32
COUNTS = [share / sum(ZIPF) * (1 + MOST) / 2 for share in ZIPF] + [1.0]  # of words and END in an utterance, on average
OUTER = {"equal": "fixed", "gaba": {"name": "gaba", "beta": 0.95, "warmup": 10}}
INNER = {"plain": {"words": "cross_entropy"}, "adjusted": {"words": {"name": "logit_adjusted", "prior": COUNTS}}}


@lru_cache(maxsize=2)
def utterances(number: int, seed: int) -> dict[str, Tensor]:
    """Return spectrograms (N, T, BANDS), their frames (N,), words with END, padded by -100, and phonemes, padded by 0."""
    draw, noise = random.Random(seed), torch.Generator().manual_seed(seed)
    said = [draw.choices(range(END), ZIPF, k=draw.randint(1, MOST)) for _ in range(number)]
    spelt = [[sound for word in row for sound in LEXICON[word]] for row in said]
    held = [[sound for sound in row for _ in range(draw.randint(2, 5))] for row in spelt]
    tensors = ([torch.tensor(row) for row in rows] for rows in (held, [[*row, END] for row in said], spelt))
    sounds, words, phonemes = (pad_sequence(rows, True, value) for rows, value in zip(tensors, (0, -100, 0), strict=True))
    peaks = torch.tensor([[float(value) for value in row.split()[1:]] for row in PEAKS.split(";")])[sounds]
    peaks = avg_pool1d(peaks.transpose(1, 2), 3, 1, 1, count_include_pad=False).transpose(1, 2)  # coarticulation
    places = (1 + peaks[..., :3] * (1 + 0.1 * torch.randn(number, 1, 1, generator=noise)) / 700).log() * (BANDS / 2.5)  # mel
    energy = (-0.4 * (torch.arange(BANDS) - places[..., None]).square()).exp().sum(-2) * peaks[..., 3:]
    tilt = 0.3 * torch.randn(number, 1, 1, generator=noise) * torch.linspace(-1, 1, BANDS)
    sound = (energy + 0.1).log() + tilt + 0.4 * torch.randn(energy.shape, generator=noise)
    return {"sound": sound, "frames": torch.tensor([*map(len, held)]), "words": words, "phonemes": phonemes}


class Recogniser(nn.Module):
    """An encoder of convolutions, a CTC head, and a GRU over the words so far that attends to the encoder's frames."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.BatchNorm1d(BANDS), nn.Conv1d(BANDS, width, 5, padding=2))
        deeper = [nn.Conv1d(width, width, 5, padding=2 * step, dilation=step) for step in (1, 2, 4)]
        self.blocks = nn.ModuleList(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(width), layer) for layer in deeper)
        self.spell = nn.Linear(width, len(SOUNDS))  # 0 is CTC's blank
        nn.init.constant_(self.spell.bias[:1], -2.0)  # else it would say nothing but blanks for long
        self.embed, self.decoder = nn.Embedding(BEGIN + 1, width), nn.GRU(width, width, batch_first=True)
        self.key, self.write = nn.Linear(width, width), nn.Linear(2 * width, END + 1)

    def encode(self, sound: Tensor) -> Tensor:
        """Return the frames (N, T, width) that both heads read."""
        frames = self.first(sound.transpose(1, 2))
        for block in self.blocks:
            frames = frames + block(frames)
        return frames.transpose(1, 2).relu()

    def decode(self, frames: Tensor, lengths: Tensor, before: Tensor) -> Tensor:
        """Return logits (N, words, U) of the words after each of ``before`` (N, U)."""
        query = self.decoder(self.embed(before))[0]
        places, width = torch.arange(frames.shape[1]), query.shape[-1]
        angles = places[:, None] / (3 * 1.5 ** torch.arange(width // 2))
        keys = self.key(frames + 0.3 * torch.cat([angles.sin(), angles.cos()], 1))
        scores = (query @ keys.transpose(1, 2) / width**0.5).masked_fill((places >= lengths[:, None])[:, None], -torch.inf)
        return self.write(torch.cat([query, scores.softmax(-1) @ frames], -1)).transpose(1, 2)


def mistakes(said: list[int], meant: list[int]) -> tuple[int, int]:
    """Return the edit distance of two sequences, and how many rare words of ``meant`` an alignment of it has to miss."""
    row = [(count, 0) for count in range(len(said) + 1)]
    for item in meant:
        missed = (1, int(item >= RARE))
        above, row = row, [(row[0][0] + 1, row[0][1] + missed[1])]
        for index, heard in enumerate(said):
            ways = ((above[index], (0, 0) if heard == item else missed), (above[index + 1], missed), (row[index], (1, 0)))
            row.append(min((way[0] + cost[0], way[1] + cost[1]) for way, cost in ways))
    return row[-1]


def scores(words: list[list[int]], phonemes: list[list[int]], data: dict[str, Tensor]) -> dict[str, float]:
    """Return the error rates of rare words, of all words, and of phonemes."""
    meant = [row[: row.index(END)] for row in data["words"].tolist()]
    spelt = [row[row > 0].tolist() for row in data["phonemes"]]
    wrong, missed = (sum(counts) for counts in zip(*map(mistakes, words, meant), strict=True))
    rare = int((data["words"][data["words"] < END] >= RARE).sum())
    per = sum(mistakes(*pair)[0] for pair in zip(phonemes, spelt, strict=True)) / sum(map(len, spelt))
    return {"rare_wer": missed / rare, "wer": wrong / sum(map(len, meant)), "per": per}


def train(criterion: MultiTaskCriterion, seed: int, steps: int) -> dict[str, float]:
    """Train on utterances of many speakers; return the error rates of greedy decoding on utterances of others."""
    torch.manual_seed(seed)
    data, model = utterances(TRAIN, seed), Recogniser()
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(TRAIN, (BATCH,))
        batch = {name: value[chosen] for name, value in data.items()}
        frames = model.encode(batch["sound"][:, : int(batch["frames"].max())])
        before = torch.cat([torch.full((BATCH, 1), BEGIN), batch["words"][:, :-1].clamp(min=0)], 1)
        logits = model.decode(frames, batch["frames"], before)
        spelling = model.spell(frames).log_softmax(-1).transpose(0, 1)
        ctc = ctc_loss(spelling, batch["phonemes"], batch["frames"], (batch["phonemes"] > 0).sum(1))  # per phoneme
        loss = criterion({"words": logits}, {"words": batch["words"]}, extra={"ctc": ctc})
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval().requires_grad_(False)
    test, words = utterances(TEST, 1_000 + seed), torch.full((TEST, 1), BEGIN)
    frames = model.encode(test["sound"])
    for _ in range(MOST + 1):
        words = torch.cat([words, model.decode(frames, test["frames"], words)[:, :, -1:].argmax(1)], 1)
    best = torch.where(torch.arange(frames.shape[1]) < test["frames"][:, None], model.spell(frames).argmax(-1), 0)
    said = [[*row, END][: [*row, END].index(END)] for row in words[:, 1:].tolist()]
    return scores(said, [[sound for sound in row.unique_consecutive().tolist() if sound] for row in best], test)


def trivial(seed: int) -> dict[str, float]:
    """Return the error rates of the most frequent word as the transcript of every utterance."""
    return scores([[0]] * TEST, [LEXICON[0]] * TEST, utterances(TEST, 1_000 + seed))


if __name__ == "__main__":
    title = "Speech: does GABA, or a decoder adjusted for word frequencies, help with rare words?"
    cells = {"outer": OUTER, "inner": INNER, "metrics": {"rare_wer": "min", "wer": "min", "per": "min"}}
    options = {"tasks": ["words", "ctc"], "missing": "ignore", "probe": "representation"}
    common.main(title, train, trivial, **cells, compose=options, steps=300, quick_steps=30)
