"""The keeper of voices: answers in order, keeps recordings in memory, spares a store that fails."""

from __future__ import annotations

import queue
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighttts.broker.voice_keeper import LINGER_S, WAITING, Recordings, VoiceKeeper
from lighttts.broker.voice_questions import Answer, AskVoices, Find, ListAll, Put, Question, Remove, Voiced
from lighttts.broker.voice_records import VoiceRecord
from lighttts.broker.voice_store import Shelves
from lighttts.errors import InvalidInput, Overloaded, Unavailable, UnknownVoice
from tests.broker.shelf import ROOM, Shelf
from tests.broker.stores import WAIT_S, metric
from tests.broker.test_voice_stores import WAV, voice


class CountingShelf(Shelf):
    """Counts how often a recording is fetched; `trouble` is raised instead of any answer."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched = self.asked = 0
        self.trouble: Exception | None = None

    def shelves(self, owner: str) -> Shelves:
        self.asked += 1
        if self.trouble:
            raise self.trouble
        return super().shelves(owner)

    def recording(self, voice: VoiceRecord) -> bytes:
        self.fetched += 1
        return super().recording(voice)


class Rig:
    """A keeper before a shelf."""

    def __init__(self, cache: int = 1000) -> None:
        self.shelf = CountingShelf()
        self.answers: queue.Queue[tuple[int, Answer]] = queue.Queue()
        self.keeper = VoiceKeeper(self.shelf, ROOM, cache, 60.0, lambda *answer: self.answers.put(answer))

    def ask(self, question: Question) -> Answer:
        self.keeper.ask(AskVoices(1, question))
        return self.answers.get(timeout=WAIT_S)[1]


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.keeper.close(WAIT_S)


FIND = Find("me", "mine", recording=True)


def test_a_recording_is_fetched_once_and_its_voice_looked_for_each_time(rig: Rig) -> None:
    rig.shelf.kept[voice().id] = (voice(), WAV)
    before = metric("light_tts_cache_lookups_total", cache_type="recording", result="hit")
    for _ in range(3):
        assert rig.ask(FIND) == Voiced((voice(),), WAV)
    assert (rig.shelf.fetched, rig.shelf.asked) == (1, 3)
    assert metric("light_tts_cache_lookups_total", cache_type="recording", result="hit") == before + 2


def test_one_that_was_just_added_needs_no_fetching(rig: Rig) -> None:
    rig.ask(Put(voice(), WAV, over=False))
    assert rig.ask(FIND) == Voiced((voice(),), WAV)
    assert rig.shelf.fetched == 0


def test_what_is_removed_elsewhere_is_not_found_though_its_recording_is_in_memory(rig: Rig) -> None:
    rig.ask(Put(voice(), WAV, over=False))
    rig.shelf.kept.clear()
    assert isinstance(rig.ask(FIND), UnknownVoice)


def test_a_removal_takes_the_recording_out_of_memory(rig: Rig) -> None:
    rig.ask(Put(voice(), WAV, over=False))
    rig.ask(Remove("me", "mine"))
    assert rig.keeper._recordings.size == 0


def test_a_lost_recording_is_told(rig: Rig) -> None:
    rig.shelf.kept[voice().id] = (voice(), b"")
    answer = rig.ask(FIND)
    assert isinstance(answer, InvalidInput)
    assert "add the voice again" in answer.text


def test_a_store_that_fails_is_left_alone_for_a_while(rig: Rig) -> None:
    rig.shelf.trouble = Unavailable("away")
    answers = [rig.ask(ListAll("me")) for _ in range(5)]
    assert all(isinstance(answer, Unavailable) and answer.retryable for answer in answers)
    assert rig.shelf.asked == 2


def test_a_defect_is_an_answer_too(rig: Rig) -> None:
    rig.shelf.trouble = KeyError("surprise")
    assert rig.ask(ListAll("me")).code == "internal"  # type: ignore[union-attr]
    rig.shelf.trouble = None
    assert rig.ask(ListAll("me")) == Voiced(())


def test_what_waits_is_bounded(rig: Rig) -> None:
    for number in range(50 * WAITING):
        rig.keeper.ask(AskVoices(number, ListAll("me")))
    answers = [rig.answers.get(timeout=WAIT_S)[1] for _ in range(50 * WAITING)]
    assert any(isinstance(answer, Overloaded) for answer in answers)


def test_a_recording_whose_voice_nobody_asks_for_leaves_memory() -> None:
    now = [0.0]
    kept = Recordings(100, lambda: now[0])
    kept.put("a", b"aa")
    kept.put("b", b"bb")
    now[0] = LINGER_S
    assert kept.get("b") == b"bb"
    now[0] += 1
    kept.expire()
    assert kept.get("a") is None
    assert kept.get("b") == b"bb"


@given(st.integers(0, 50), st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 30))))
def test_recordings_in_memory_never_exceed_the_bound(limit: int, puts: list[tuple[str, int]]) -> None:
    kept = Recordings(limit)
    for digest, size in puts:
        kept.put(digest, bytes(size))
        held = [content for content in map(kept.get, "abcd") if content is not None]
        assert kept.size == sum(map(len, held)) <= limit
