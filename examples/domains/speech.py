"""Speech: one encoder, a CTC head that spells phonemes and an attention decoder that writes words, some of them rare.

    python examples/domains/speech.py            # 2 x 2 cells, 3 seeds; --quick: does it run?

Spectrograms are synthesised: a lexicon of 36 words with ARPABET spellings, drawn by Zipf's law; formants (those of the vowels
after Peterson and Barney, 1952) that glide into each other; phonemes of 2 to 5 frames; a vocal tract and a spectral tilt for
each speaker; noise. The rarest words differ from frequent ones in one or two sounds, as rare words do.

Outer: the CTC loss is large at first and falls early, the decoder's falls late. GradNorm balances such rates of training.
Inner: logit adjustment of the decoder by the prior of the words aims at the same recall for rare words as for frequent ones.
"""

from __future__ import annotations

import random
from functools import partial

import common
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d, ctc_loss, log_softmax

# Three spectral peaks in Hz and a level: formants of vowels and sonorants, bursts and frication of the other consonants.
_SOUNDS = """iy 270 2290 3010 1; ih 390 1990 2550 1; eh 530 1840 2480 1; ae 660 1720 2410 1; ah 640 1190 2390 1;
aa 730 1090 2440 1; ao 570 840 2410 1; uh 440 1020 2240 1; uw 300 870 2240 1; er 490 1350 1690 1; m 250 1000 2200 .7;
n 250 1600 2600 .7; l 360 1100 2900 .8; r 350 1100 1500 .8; b 200 800 2300 .4; d 200 1750 2900 .4; p 700 1200 2600 .3;
t 2600 3800 4800 .4; k 1400 1900 2700 .4; f 2500 4500 6500 .3; s 4500 5500 6800 .6; sh 2300 3000 4000 .6"""
PHONEMES = {row.split()[0]: [float(value) for value in row.split()[1:]] for row in _SOUNDS.split(";")}
_WORDS = """it ih t; me m iy; but b ah t; do d uw; can k ae n; see s iy; in ih n; not n aa t; look l uh k; at ae t;
her er; tell t eh l; feel f iy l; put p uh t; room r uw m; call k ao l; need n iy d; book b uh k; talk t ao k; last l ae s t;
food f uw d; bird b er d; ship sh ih p; short sh ao r t; sip s ih p; tool t uw l; fill f ih l; pet p eh t; ram r ae m;
cull k ah l; knit n ih t; buck b ah k; tuck t ah k; lust l ah s t; mood m uw d; bard b aa r d"""
SILENCE = [500.0, 1500.0, 2500.0, 0.0]
LEXICON = {row.split()[0]: row.split()[1:] for row in _WORDS.split(";")}  # most frequent first
NAMES, SOUNDS = list(LEXICON), list(PHONEMES)
ZIPF = [1 / rank for rank in range(1, len(LEXICON) + 1)]
RARE = frozenset(range(24, len(LEXICON)))
END, BEGIN, MOST = len(LEXICON), len(LEXICON) + 1, 4  # the words of an utterance end with END
BANDS, TRAIN, TEST, BATCH = 24, 2400, 600, 32


def utterances(count: int, generator: random.Random) -> tuple[Tensor, Tensor, list[list[int]], list[list[int]]]:
    """Return spectrograms (count, T, BANDS), their lengths (count,), and the words and phonemes (from 1 on) of each."""
    words = [generator.choices(range(END), ZIPF, k=generator.randint(1, MOST)) for _ in range(count)]
    spelt = [[SOUNDS.index(sound) for word in said for sound in LEXICON[NAMES[word]]] for said in words]
    held = [[sound for sound in sounds for _ in range(generator.randint(2, 5))] for sounds in spelt]
    lengths = torch.tensor([len(frames) for frames in held])
    longest = int(lengths.max())
    sounding = torch.tensor([frames + [len(SOUNDS)] * (longest - len(frames)) for frames in held])
    peaks = torch.tensor([*PHONEMES.values(), SILENCE])[sounding].transpose(1, 2)
    peaks = avg_pool1d(peaks, 3, stride=1, padding=1, count_include_pad=False).transpose(1, 2)  # coarticulation
    noise = torch.Generator().manual_seed(generator.getrandbits(32))
    tract = 1 + 0.1 * torch.randn(count, 1, 1, generator=noise)
    mel = (1 + peaks[..., :3] * tract / 700).log() * (BANDS / 2.5)
    bands = torch.arange(BANDS)
    energy = (-0.5 * (bands - mel.unsqueeze(-1)).square() / 1.2).exp().sum(-2) * peaks[..., 3:]
    tilt = 0.3 * torch.randn(count, 1, 1, generator=noise) * torch.linspace(-1, 1, BANDS)
    sound = (energy + 0.1).log() + tilt + 0.4 * torch.randn(energy.shape, generator=noise)
    return sound, lengths, words, [[sound + 1 for sound in sounds] for sounds in spelt]


class Recogniser(nn.Module):
    """An encoder of convolutions, a CTC head, and a GRU over the words so far that attends to the encoder's frames."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.BatchNorm1d(BANDS), nn.Conv1d(BANDS, width, 5, padding=2))
        convolve = partial(nn.Conv1d, width, width, 5)
        blocks = [(nn.ReLU(), nn.BatchNorm1d(width), convolve(padding=2 * step, dilation=step)) for step in (1, 2, 4)]
        self.blocks = nn.ModuleList(nn.Sequential(*block) for block in blocks)
        self.spell = nn.Linear(width, len(PHONEMES) + 1)  # 0 is CTC's blank
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
    """Return the edit distance of two sequences, and how many rare words of ``meant`` are not found in it."""
    row = [(count, 0) for count in range(len(said) + 1)]
    for item in meant:
        missed = (1, int(item in RARE))
        above, row = row, [(row[0][0] + 1, row[0][1] + missed[1])]
        for index, heard in enumerate(said):
            wrong = (0, 0) if heard == item else missed
            ways = ((above[index], wrong), (above[index + 1], missed), (row[index], (1, 0)))
            row.append(min((way[0] + cost[0], way[1] + cost[1]) for way, cost in ways))
    return row[-1]


def scores(written: list[list[int]], spelt: list[list[int]], words: list[list[int]], sounds: list[list[int]]) -> dict[str, float]:
    """Return the error rates of words, of rare words, and of phonemes."""
    wrong = [mistakes(said, meant) for said, meant in zip(written, words, strict=True)]
    unspelt = sum(mistakes(said, meant)[0] for said, meant in zip(spelt, sounds, strict=True))
    rare = sum(word in RARE for meant in words for word in meant)
    return {
        "word error rate": sum(pair[0] for pair in wrong) / sum(map(len, words)),
        "rare word error rate": sum(pair[1] for pair in wrong) / rare,
        "phoneme error rate": unspelt / sum(map(len, sounds)),
    }


def train(criterion: nn.Module, seed: int, *, steps: int) -> dict[str, float]:
    """Return the error rates on utterances of other speakers after ``steps`` steps."""
    sound, lengths, words, sounds = utterances(TRAIN, random.Random(seed))
    after = torch.full((TRAIN, MOST + 1), END)
    for row, said in zip(after, words, strict=True):
        row[: len(said)] = torch.tensor(said)
    before = torch.cat([torch.full((TRAIN, 1), BEGIN), after[:, :-1]], 1)
    written = torch.arange(MOST + 1) <= torch.tensor([len(said) for said in words])[:, None]
    torch.manual_seed(seed)
    model = Recogniser()
    optimizer = torch.optim.Adam([{"params": model.parameters()}, *criterion.param_groups()], lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for _ in range(steps):
        batch = torch.randint(TRAIN, (BATCH,))
        frames = model.encode(sound[batch][:, : int(lengths[batch].max())])
        logits = model.decode(frames, lengths[batch], before[batch])
        spelt = [torch.tensor(sounds[index]) for index in batch.tolist()]
        log_probs = log_softmax(model.spell(frames), -1).transpose(0, 1)
        ctc = ctc_loss(log_probs, torch.cat(spelt), lengths[batch], torch.tensor([len(one) for one in spelt]))  # per phoneme
        loss = criterion({"words": logits}, {"words": after[batch]}, mask={"words": written[batch]}, extra={"ctc": ctc})
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    return evaluate(model, seed)


@torch.no_grad()
def evaluate(model: Recogniser, seed: int) -> dict[str, float]:
    """Return the error rates of greedy decoding on new utterances."""
    sound, lengths, words, sounds = utterances(TEST, random.Random(1_000 + seed))
    frames = model.eval().encode(sound)
    said = torch.full((TEST, 1), BEGIN)
    for _ in range(MOST + 1):
        said = torch.cat([said, model.decode(frames, lengths, said)[:, :, -1:].argmax(1)], 1)
    written = [(row[: row.index(END)] if END in row else row) for row in said[:, 1:].tolist()]
    best = [row[:length].unique_consecutive().tolist() for row, length in zip(model.spell(frames).argmax(-1), lengths, strict=True)]
    return scores(written, [[sound for sound in row if sound] for row in best], words, sounds)


def trivial(seed: int) -> dict[str, float]:
    """Return the error rates of the most frequent word, said as often as utterances have words on average."""
    _, _, words, sounds = utterances(TEST, random.Random(1_000 + seed))
    return scores([[0] * 3] * TEST, [[SOUNDS.index(s) + 1 for s in LEXICON[NAMES[0]]] * 3] * TEST, words, sounds)
