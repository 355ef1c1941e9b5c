"""The paged decode engine gives each request what the model's own streaming gives it, however little memory it has."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from lighttts.engine.decode_paged import CROWD, GATHER, LARGEST_HOP, PagedDecodeEngine
from lighttts.engine.decode_stream import VoicePrompt
from lighttts.engine.decode_track import NEAR_DRY_S
from lighttts.engine.flow_pages import RESERVED
from lighttts.errors import ConfigError, InternalError, InvalidInput, Overloaded
from tests.engine.test_decode_engine import (
    REQUESTS,
    Request,
    alone,
    both_versions,
    distance,
    drain,
    joined,
    models,
    voice,
)

SLOTS = 8
PLENTY = RESERVED + 60


class Clock:
    """Stands still unless it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def new_engine(pages: int = PLENTY, clock: Clock | None = None, version: int = 2) -> PagedDecodeEngine:
    return PagedDecodeEngine(*models(version), max_streams=16, slots=SLOTS, pages=pages, clock=clock or Clock())


def expect_alone(request: Request, steps: list, key: int) -> None:
    mel, audio = joined(steps, key)
    assert np.abs(mel - alone(request)[0]).max() < 1e-4
    assert distance(audio, alone(request)[1]) < 5e-3


@both_versions
@settings(max_examples=6, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    requests=st.lists(REQUESTS, min_size=2, max_size=5),
    cancelled=st.sets(st.integers(0, 4), max_size=2),
    portions=st.lists(st.integers(1, 90), min_size=1, max_size=6),
    pages=st.sampled_from([RESERVED + 10, PLENTY]),
    data=st.data(),
)
def test_requests_get_what_they_would_get_alone(version, requests, cancelled, portions, pages, data):
    """They join, are fed and are cancelled in any order; ten pages are too few for two of them."""
    requests = [replace(request, version=version) for request in requests]
    clock = Clock()
    engine, steps = new_engine(pages, clock, version), []
    fed = dict.fromkeys(range(len(requests)), -1)
    turn = 0
    while fed:
        key = data.draw(st.sampled_from(sorted(fed)), label="next")
        request, portion = requests[key], portions[turn % len(portions)]
        turn += 1
        if fed[key] < 0:
            request.open(engine, key)
            fed[key] = 0
        end = fed[key] + portion
        engine.feed(key, request.tokens[fed[key] : end], end >= request.count)
        fed[key] = end
        for _ in range(data.draw(st.integers(0, 12), label="steps")):
            clock.now += 0.05
            steps += engine.step()
        if key in cancelled:
            engine.close(key)
        if end >= request.count or key in cancelled:
            del fed[key]
    steps += drain(engine)
    assert engine.streams == 0
    assert engine.free_slots == SLOTS
    for key, request in enumerate(requests):
        if key not in cancelled:
            expect_alone(request, steps, key)


def test_a_past_that_is_given_up_is_computed_again():
    engine = new_engine(RESERVED + 9)
    requests = [Request(40, 0, 130, seed=1), Request(10, 90, 130, seed=2)]
    steps = []
    for key, request in enumerate(requests):
        request.open(engine, key)
        engine.feed(key, request.tokens[:95], False)
        steps += drain(engine)
    assert engine.free_pages == 0
    for key, request in enumerate(requests):
        engine.feed(key, request.tokens[95:], True)
    steps += drain(engine)
    for key, request in enumerate(requests):
        expect_alone(request, steps, key)


def test_the_pages_of_a_prompt_are_shared_and_kept():
    engine = new_engine()
    before = engine.free_pages
    for key in range(3):
        Request(57, 0, 24, seed=key).open(engine, key)
        engine.feed(key, Request(57, 0, 24).tokens[:5], False)
    Request(57, 0, 40).open(engine, 3)
    engine.feed(3, Request(57, 0, 40).tokens, True)
    drain(engine)
    assert engine.free_pages == before - 2
    for key in range(3):
        engine.close(key)
    assert engine.free_pages == before - 2


def test_every_page_is_free_after_a_cancel_in_mid_hop():
    engine = new_engine()
    before = engine.free_pages
    Request(10, 0, 60).open(engine, 0)
    engine.feed(0, Request(10, 0, 60).tokens, True)
    engine.step()
    assert (engine.free_pages < before, engine.free_slots < SLOTS) == (True, True)
    assert engine.close(0)
    assert not engine.close(0)
    assert (engine.free_pages, engine.free_slots, engine.busy) == (before, SLOTS, False)


@pytest.mark.parametrize(("elapsed", "first"), [(0.0, "new"), (3.0, "old")])
def test_a_stream_about_to_run_dry_goes_before_a_first_chunk_and_one_with_audio_in_hand_after(elapsed, first):
    clock = Clock()
    engine = new_engine(RESERVED + LARGEST_HOP, clock)
    old, new = Request(0, 0, 100), Request(0, 90, 30)
    old.open(engine, "old")
    engine.feed("old", old.tokens[:80], False)
    heard = drain(engine)
    assert sum(len(step.audio) for step in heard) / 24000 > NEAR_DRY_S
    clock.now += elapsed
    engine.feed("old", old.tokens[80:], True)
    new.open(engine, "new")
    engine.feed("new", new.tokens, True)
    assert drain(engine)[0].key == first


def test_a_crowd_lets_those_that_come_join_together():
    engine = PagedDecodeEngine(*models(), max_streams=200, slots=64, pages=RESERVED + 200, clock=Clock())
    numbers = count()

    def come() -> None:
        key, request = next(numbers), Request(0, 0, 25)
        request.open(engine, key)
        engine.feed(key, request.tokens, True)

    while engine.free_slots > 64 - CROWD:
        come()
        come()
        engine.step()
    for _ in range(GATHER):
        come()
        engine.step()
    ended = []
    while engine.busy:
        ended += [steps] if (steps := engine.step()) else []
    assert len(ended[-1]) > 1


def test_what_cannot_be_served_is_refused():
    engine = new_engine(RESERVED + LARGEST_HOP)
    with pytest.raises(InternalError):
        engine.feed(0, np.zeros(1, np.int32), False)
    Request(10, 0, 10).open(engine, 0)
    with pytest.raises(InternalError):
        Request(10, 0, 10).open(engine, 0)
    engine.feed(0, np.zeros(25 * LARGEST_HOP - 10, np.int32), False)
    with pytest.raises(InvalidInput, match="split the text"):
        engine.feed(0, np.zeros(1, np.int32), True)
    for key in range(1, 16):
        Request(10, 0, 10).open(engine, key)
    with pytest.raises(Overloaded):
        Request(10, 0, 10).open(engine, 16)


def test_a_prompt_longer_than_the_pages_is_refused():
    known = voice(40)
    tokens = np.zeros(25 * LARGEST_HOP - 24, np.int32)
    long = VoicePrompt("long", known.embedding, tokens, np.zeros((2 * len(tokens), 80), np.float32))
    with pytest.raises(InvalidInput, match="prompt"):
        new_engine(RESERVED + LARGEST_HOP).open(0, long, seed=1)


@pytest.mark.parametrize(("pages", "slots", "what"), [(LARGEST_HOP, SLOTS, "cache_gb"), (PLENTY, SLOTS - 1, "batch")])
def test_too_little_for_one_hop_is_a_mistake_of_configuration(pages, slots, what):
    with pytest.raises(ConfigError, match=what):
        PagedDecodeEngine(*models(), max_streams=1, slots=slots, pages=pages)


def test_a_forgotten_voice_gives_its_pages_back():
    engine = new_engine()
    request = Request(prompt=57, first=0, count=130)
    request.open(engine, 0)
    engine.feed(0, request.tokens, True)
    drain(engine)
    kept = engine.free_pages
    engine.forget_voice("never heard of")
    assert engine.free_pages == kept
    engine.forget_voice(voice(57).key)
    assert engine.free_pages == PLENTY - RESERVED


def test_a_voice_that_is_forgotten_while_its_prompt_is_computed_goes_after_it():
    engine = new_engine()
    request = Request(prompt=57, first=0, count=130)
    request.open(engine, 0)
    engine.feed(0, request.tokens, True)
    engine.step()
    engine.close(0)
    engine.forget_voice(voice(57).key)
    drain(engine)
    other = Request(prompt=0, first=0, count=30)
    other.open(engine, 1)
    engine.feed(1, other.tokens, True)
    drain(engine)
    assert engine.free_pages == PLENTY - RESERVED
