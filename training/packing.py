"""Documents for the language model: sentences as text and speech tokens, joined, and packed into rows of equal length.

One sequence form is upstream's ``[sos, text, task, speech]`` of one to three sentences in a row, whose texts come
first; it is also the form of a prompt with its text. The other is the streaming form of CosyVoice2 (Du et al. 2024),
5 text tokens then 15 speech tokens in turn, after which the model asks for more text with a fill token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.corpus import Corpus
from training.store import FRAME, Store

SAMPLES_A_TOKEN = 960
IGNORED = -100
BLOCK_TEXT, BLOCK_SPEECH = 5, 15
GROUP_SHARES = (0.55, 0.27, 0.18)  # documents of one, two, three sentences
GROUP_TEXT = 130  # most text tokens of a joined document
OWN_SPLIT = 0.75  # share of single sentences split as the tokenizer splits them

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """Where ids lie in the one embedding table: text, then sos and task, then speech with its three special ids."""

    text: int
    speech: int

    @property
    def sos(self) -> int:
        return self.text

    @property
    def task(self) -> int:
        return self.text + 1

    @property
    def first_speech(self) -> int:
        return self.text + 2

    @property
    def end(self) -> int:
        """Speech-local id of the end."""
        return self.speech

    @property
    def fill(self) -> int:
        """Speech-local id that asks for more text."""
        return self.speech + 2

    @property
    def size(self) -> int:
        return self.text + 2 + self.speech + 3


def _starts(counts: Ints) -> Ints:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def spread(counts: Ints) -> tuple[Ints, Ints]:
    """For runs of these lengths: which run each element is in, and its place there."""
    run = np.repeat(np.arange(len(counts)), counts)
    return run, np.arange(int(counts.sum())) - np.repeat(_starts(counts)[:-1], counts)


@dataclass(frozen=True)
class Spoken:
    """Sentences with their speech tokens; ``owner[k]`` says for each speech token which text token of its sentence, in
    segmentation k, is being spoken."""

    text: tuple[NDArray[np.int32], ...]
    texts: tuple[Ints, ...]
    speech: NDArray[np.int32]
    speeches: Ints
    owner: tuple[NDArray[np.int32], ...]

    def __len__(self) -> int:
        return len(self.speeches)

    @staticmethod
    def join(parts: list[Spoken]) -> Spoken:
        kinds = range(len(parts[0].text))
        return Spoken(
            text=tuple(np.concatenate([p.text[k] for p in parts]) for k in kinds),
            texts=tuple(np.concatenate([p.texts[k] for p in parts]) for k in kinds),
            speech=np.concatenate([p.speech for p in parts]),
            speeches=np.concatenate([p.speeches for p in parts]),
            owner=tuple(np.concatenate([p.owner[k] for p in parts]) for k in kinds),
        )


def align(corpus: Corpus, store: Store, token: NDArray[np.int16], tokens: Ints) -> Spoken:
    """A tokenised part of a store together with its text; see `Spoken`."""
    texts, owned = [], []
    phones = np.diff(store.phone_start)
    end = _starts(store.frames.astype(np.int64)) * (FRAME / SAMPLES_A_TOKEN)  # in speech tokens, over the whole part
    utterance, slot = spread(tokens)
    base = end[store.phone_start[:-1]]
    counts = []
    for ids, places, sizes in zip(corpus.token, corpus.place, corpus.tokens, strict=True):
        starts = _starts(sizes)
        count = sizes[store.sentence]
        which, inside = spread(count)
        source = starts[store.sentence][which] + inside
        place = np.minimum(places[source], phones[which])
        begin = np.interp(store.phone_start[which] + place, np.arange(len(end)), end)
        first = _starts(count)
        found = np.searchsorted(begin, base[utterance] + slot + 0.5, side="right") - 1
        owned.append(np.clip(found - first[utterance], 0, count[utterance] - 1).astype(np.int32))
        texts.append(ids[source].astype(np.int32))
        counts.append(count)
    return Spoken(tuple(texts), tuple(counts), token.astype(np.int32), tokens, tuple(owned))


@dataclass(frozen=True)
class Documents:
    """Flat documents: ids in the layout, label (speech-local id to predict, or -100), guide (place in the document of
    the text token to look at, or -100), and lengths."""

    ids: NDArray[np.int32]
    label: NDArray[np.int32]
    guide: NDArray[np.int32]
    lengths: Ints


def _groups(speeches: Ints, texts: Ints, longest: int, rng: np.random.Generator) -> Ints:
    """Group number of each sentence in turn, so that no group is too long."""
    sizes = rng.choice(len(GROUP_SHARES), len(texts), p=GROUP_SHARES) + 1
    group = np.repeat(np.arange(len(sizes)), sizes)[: len(texts)]
    total = np.bincount(group, texts)
    length = np.bincount(group, texts + speeches) + 2
    apart = ((total > GROUP_TEXT) | (length > longest))[group]
    fresh = np.concatenate([[True], (group[1:] != group[:-1]) | apart[1:]])
    return np.cumsum(fresh) - 1


def joined(spoken: Spoken, chosen: Ints, layout: Layout, longest: int, rng: np.random.Generator) -> Documents:
    """Documents ``[sos, texts, task, speeches]`` of the chosen sentences, in their order."""
    follows = rng.random(len(chosen)) >= OWN_SPLIT
    counts = np.stack([t[chosen] for t in spoken.texts])
    group = _groups(spoken.speeches[chosen], counts.max(0), longest, rng)
    later = np.concatenate([[False], group[1:] == group[:-1]])
    kind = np.where(later, rng.random(len(chosen)) < 0.8, follows).astype(np.int64)
    text_size, speech_size = counts[kind, np.arange(len(chosen))], spoken.speeches[chosen]
    groups = int(group[-1]) + 1
    text_total = np.bincount(group, text_size, groups).astype(np.int64)
    lengths = 2 + text_total + np.bincount(group, speech_size, groups).astype(np.int64)
    begin = _starts(lengths)[:-1]
    text_at = 1 + _within(text_size, group)
    speech_at = 2 + text_total[group] + _within(speech_size, group)
    total = int(lengths.sum())
    ids = np.full(total, layout.sos, np.int32)
    label, guide = np.full(total, IGNORED, np.int32), np.full(total, IGNORED, np.int32)
    ids[begin + 1 + text_total] = layout.task
    for k in range(len(spoken.text)):
        mine = np.flatnonzero(kind == k)
        run, inside = spread(text_size[mine])
        source = _starts(spoken.texts[k])[chosen[mine]][run] + inside
        ids[(begin[group[mine]] + text_at[mine])[run] + inside] = spoken.text[k][source]
        run, inside = spread(speech_size[mine])
        source = _starts(spoken.speeches)[chosen[mine]][run] + inside
        target = (begin[group[mine]] + speech_at[mine])[run] + inside
        ids[target] = spoken.speech[source] + layout.first_speech
        label[target - 1] = spoken.speech[source]
        guide[target - 1] = text_at[mine][run] + spoken.owner[k][source]
    label[begin + lengths - 1] = layout.end
    guide[begin + lengths - 1] = text_total
    return Documents(ids, label, guide, lengths)


def _within(size: Ints, group: Ints) -> Ints:
    """Offset of each item within its group, items laid one after the other."""
    ends = np.cumsum(size)
    first = np.concatenate([[0], np.flatnonzero(np.diff(group)) + 1])
    begin = ends - size
    inside: Ints = begin - begin[first][group]
    return inside


def interleaved(spoken: Spoken, chosen: Ints, layout: Layout) -> Documents:
    """Documents in blocks of 5 text and 15 speech tokens; sentences with too little speech for their text are left
    out."""
    parts: list[tuple[Ints, Ints, Ints]] = []
    text_from, speech_from = _starts(spoken.texts[0]), _starts(spoken.speeches)
    for i in chosen:
        text = spoken.text[0][text_from[i] : text_from[i + 1]].astype(np.int64)
        speech = spoken.speech[speech_from[i] : speech_from[i + 1]].astype(np.int64)
        owner = spoken.owner[0][speech_from[i] : speech_from[i + 1]].astype(np.int64)
        if len(speech) > len(text) * BLOCK_SPEECH // BLOCK_TEXT:
            parts.append(_interleave(text, speech, owner, layout))
    if not parts:
        empty = np.zeros(0, np.int32)
        return Documents(empty, empty, empty, np.zeros(0, np.int64))
    ids, label, guide = (np.concatenate(column).astype(np.int32) for column in zip(*parts, strict=True))
    return Documents(ids, label, guide, np.array([len(p[0]) for p in parts], np.int64))


def _interleave(text: Ints, speech: Ints, owner: Ints, layout: Layout) -> tuple[Ints, Ints, Ints]:
    blocks = len(text) // BLOCK_TEXT
    period = BLOCK_TEXT + BLOCK_SPEECH
    t, s = np.arange(len(text)), np.arange(len(speech))
    text_at = 1 + t + t // BLOCK_TEXT * BLOCK_SPEECH
    rest = 1 + blocks * period + len(text) % BLOCK_TEXT  # where the task mark goes
    early = s < blocks * BLOCK_SPEECH
    speech_at = np.where(early, 1 + s // BLOCK_SPEECH * period + BLOCK_TEXT + s % BLOCK_SPEECH, 0)
    speech_at[~early] = rest + 1 + np.arange((~early).sum())
    ids = np.full(2 + len(text) + len(speech), layout.sos)
    label, guide = np.full(len(ids), IGNORED), np.full(len(ids), IGNORED)
    ids[text_at], ids[rest], ids[speech_at] = text, layout.task, speech + layout.first_speech
    label[speech_at - 1] = speech
    target = text_at[owner]
    guide[speech_at - 1] = np.where(target < speech_at, target, IGNORED)
    label[period * (1 + np.arange(blocks))] = layout.fill
    label[-1] = layout.end
    return ids, label, guide


@dataclass(frozen=True)
class Rows:
    """Packed rows, all [rows, length]: ids, label and guide as in `Documents` (guide counted from the row's start),
    position within the document, and the document's number in the row (padding is a document of its own)."""

    ids: NDArray[np.int32]
    label: NDArray[np.int32]
    guide: NDArray[np.int32]
    position: NDArray[np.int32]
    document: NDArray[np.int32]


def pack(documents: list[Documents], length: int, layout: Layout, rng: np.random.Generator) -> Rows:
    """Shuffle documents and lay them in rows one after the other; those longer than a row are left out."""
    sizes = np.concatenate([d.lengths for d in documents])
    ids, label, guide = (np.concatenate([getattr(d, name) for d in documents]) for name in ("ids", "label", "guide"))
    start = _starts(sizes)[:-1]
    order = rng.permutation(len(sizes))
    order = order[sizes[order] <= length]
    row, offset, number = _lay(sizes[order], length)
    rows = int(row[-1]) + 1
    run, inside = spread(sizes[order])
    source, target = start[order][run] + inside, (row * length + offset)[run] + inside
    packed = Rows(
        ids=np.full((rows, length), layout.sos, np.int32),
        label=np.full((rows, length), IGNORED, np.int32),
        guide=np.full((rows, length), IGNORED, np.int32),
        position=np.zeros((rows, length), np.int32),
        document=np.full((rows, length), -1, np.int32),
    )
    packed.ids.reshape(-1)[target] = ids[source]
    packed.label.reshape(-1)[target] = label[source]
    moved = guide[source]
    packed.guide.reshape(-1)[target] = np.where(moved >= 0, moved + offset[run], IGNORED)
    packed.position.reshape(-1)[target] = inside
    packed.document.reshape(-1)[target] = number[run]
    return packed


def _lay(sizes: Ints, length: int) -> tuple[Ints, Ints, Ints]:
    """Row, offset in the row and number in the row of each document, filling one row after the other."""
    rows, offsets, numbers = (np.empty(len(sizes), np.int64) for _ in range(3))
    row = offset = number = 0
    for i, size in enumerate(sizes.tolist()):
        if offset + size > length:
            row, offset, number = row + 1, 0, 0
        rows[i], offsets[i], numbers[i] = row, offset, number
        offset, number = offset + size, number + 1
    return rows, offsets, numbers


def epoch(
    spoken: Spoken, layout: Layout, length: int, interleaved_share: float, most: int, rng: np.random.Generator
) -> Rows:
    """Rows with at most ``most`` sentences drawn without repetition, a share of them interleaved."""
    order = rng.permutation(len(spoken))[:most]
    cut = int(len(order) * interleaved_share)
    documents = [joined(spoken, order[cut:], layout, length, rng)]
    if cut:
        documents.append(interleaved(spoken, order[:cut], layout))
    return pack(documents, length, layout, rng)
