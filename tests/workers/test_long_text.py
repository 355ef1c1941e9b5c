"""A long text is one stream: its sentences in order, each made while the one before is decoded, with no gap between.

The two stages that make it are stepped here in whatever turns, as two processes would run.
"""

from __future__ import annotations

import itertools
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lighttts.engine.decode import VoicePrompt
from lighttts.transport import wire
from lighttts.workers.decode import DecodeStage
from lighttts.workers.llm import LLMStage
from lighttts.workers.seeds import sentence_seed
from lighttts.workers.stage import Stage
from tests.workers.golden import NO_TOKENS, decode_engine, decoded, generated, give, llm_engine

RANDOM = np.random.default_rng(1)
SENTENCES = [RANDOM.integers(0, 400, size, dtype=np.int32) for size in (30, 15, 25)]
VOICE = VoicePrompt("v", RANDOM.standard_normal(192, dtype=np.float32), NO_TOKENS, np.zeros((0, 80), np.float32))
SEED = 377
"""With it the tiny model makes 66, 94 and 65 tokens of the sentences: each has a first hop, and more."""
LAST = len(SENTENCES) - 1


class Pair:
    """An llm stage and a decode stage with one request, and what the client hears of it."""

    def __init__(self) -> None:
        self.llm: Stage = LLMStage(llm_engine(), epoch=1, capacity=4)
        self.decode: Stage = DecodeStage(decode_engine(), epoch=2, capacity=4)
        self.under_way: deque[wire.Tokens] = deque()
        self.made: list[wire.Tokens] = []
        self.heard: list[wire.Mel] = []
        lengths, ids = tuple(map(len, SENTENCES)), np.concatenate(SENTENCES)
        give(self.llm, wire.GenerateWork("a", 0, SEED, 0, 0, lengths, ids, NO_TOKENS, NO_TOKENS, NO_TOKENS))
        voice = (VOICE.key, VOICE.tokens, VOICE.mel, VOICE.embedding)
        give(self.decode, wire.DecodeWork("a", 0, SEED, 1.0, "mel", "f32", 0, 0, 0, 0, 0, 0, *voice))

    @property
    def over(self) -> bool:
        return bool(self.heard) and self.heard[-1].last

    def generate(self) -> None:
        """One step of the llm stage."""
        if self.llm.busy:
            frames = [result.message for result in self.llm.step()]
            assert all(isinstance(frame, wire.Tokens) for frame in frames)
            self.made += frames
            self.under_way += frames

    def deliver(self) -> None:
        """The decode stage gets the next frame of tokens."""
        if self.under_way:
            give(self.decode, self.under_way.popleft())

    def speak(self) -> None:
        """One step of the decode stage."""
        if self.decode.busy:
            frames = [result.message for result in self.decode.step()]
            assert all(isinstance(frame, wire.Mel) for frame in frames)
            self.heard += frames


def alone(sentence: int) -> np.ndarray:
    """Mel (n, 80) of one sentence with nothing around it."""
    seed = sentence_seed(SEED, sentence)
    tokens = generated(SENTENCES[sentence], NO_TOKENS, NO_TOKENS, seed)
    return decoded(np.array(tokens, np.int32), VOICE, seed, "mel")


ALONE = [alone(sentence) for sentence in range(len(SENTENCES))]
TURNS = (Pair.generate, Pair.deliver, Pair.speak)


@settings(deadline=None, max_examples=8)
@given(st.lists(st.sampled_from(TURNS), max_size=300))
def test_whoever_is_faster_the_stream_is_the_sentences_in_order_without_gap_or_repeat(turns: list) -> None:
    pair = Pair()
    for turn in turns:
        turn(pair)
    while not pair.over:
        for turn in TURNS:
            turn(pair)
    assert [frame.seq for frame in pair.heard] == list(range(len(pair.heard)))
    starts = np.cumsum([0, *(len(frame.mel) for frame in pair.heard)])
    assert [frame.first_frame for frame in pair.heard] == starts[:-1].tolist()
    assert [frame.sentence for frame in pair.heard] == sorted(frame.sentence for frame in pair.heard)
    for sentence, expected in enumerate(ALONE):
        spoken = np.concatenate([frame.mel for frame in pair.heard if frame.sentence == sentence])
        np.testing.assert_allclose(spoken, expected, atol=1e-4)


def test_all_sentences_are_made_while_nothing_of_the_first_is_decoded() -> None:
    pair = Pair()
    while pair.llm.busy:
        pair.generate()
    assert pair.made[-1].last
    assert [frame.sentence for frame in pair.made if frame.final] == list(range(len(SENTENCES)))
    assert pair.heard == []


@pytest.mark.parametrize("sentence", range(LAST))
def test_tokens_of_the_next_sentence_are_under_way_before_the_audio_of_this_one_has_ended(sentence: int) -> None:
    pair = Pair()
    turns = itertools.cycle(TURNS)
    while not any(frame.sentence == sentence and frame.final for frame in pair.made):
        next(turns)(pair)
    while not any(frame.sentence == sentence + 1 for frame in pair.made):
        pair.generate()
    assert 0 < sum(len(frame.mel) for frame in pair.heard if frame.sentence == sentence) < len(ALONE[sentence])


def test_the_first_sentence_is_heard_before_the_last_one_is_made() -> None:
    pair = Pair()
    while not pair.heard:
        for turn in TURNS:
            turn(pair)
    assert pair.heard[0].sentence == 0
    assert not any(frame.last for frame in pair.made)


def test_at_another_speed_each_sentence_is_one_frame() -> None:
    decode = DecodeStage(decode_engine(), epoch=2, capacity=4)
    voice = (VOICE.key, VOICE.tokens, VOICE.mel, VOICE.embedding)
    give(decode, wire.DecodeWork("a", 0, SEED, 1.5, "audio", "f32", 0, 0, 0, 0, 0, 0, *voice))
    heard: list[wire.Audio] = []
    for seq in range(6):
        tokens = np.arange(40, dtype=np.int32)
        give(decode, wire.Tokens("a", 0, 1, seq, seq // 3, final=seq % 3 == 2, last=seq == 5, tokens=tokens))
        while decode.busy:
            heard += [result.message for result in decode.step()]
    assert [(frame.sentence, frame.tokens) for frame in heard] == [(0, 120), (1, 240)]
    assert [frame.first_sample for frame in heard] == [0, len(heard[0].samples)]
