"""Answers in one message take no more memory than there is for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighttts.gateway.failures import Refused
from lighttts.gateway.rpc.room import Room
from lighttts.gateway.rpc.speech import Speech


def test_an_answer_that_becomes_too_long_is_refused_with_the_call_that_has_no_bound():
    with Room(longest=2 << 20, whole=9 << 20).shelf() as shelf:
        shelf.put(bytes(2 << 20))
        with pytest.raises(Refused, match="more than 2 MiB of audio: use SynthesizeStream") as caught:
            shelf.put(b"x")
    assert (caught.value.failure.status, caught.value.failure.field) == (413, "text")


def test_while_others_are_not_taken_there_is_no_room_and_afterwards_there_is():
    room = Room(longest=10, whole=15)
    with room.shelf() as stuck:
        stuck.put(bytes(10))
        with room.shelf() as shelf, pytest.raises(Refused, match="try again later") as caught:
            shelf.put(bytes(6))
        assert (caught.value.failure.status, caught.value.failure.code) == (503, "overloaded")
        with room.shelf() as shelf:
            shelf.put(bytes(5))
    with room.shelf() as one, room.shelf() as other:
        one.put(bytes(10))
        other.put(bytes(5))


@given(st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=9))
def test_whatever_is_made_and_refused_all_room_comes_back(answers):
    room = Room(longest=12, whole=12)
    for pieces in answers:
        try:
            with room.shelf() as shelf:
                for length in pieces:
                    shelf.put(bytes(length))
        except Refused:
            assert sum(pieces) > 12
        else:
            assert len(shelf.content) == sum(pieces)
    with room.shelf() as shelf:
        shelf.put(bytes(12))


class Caller:
    """A call of Synthesize, the speaker it is asked of, who lets everybody in, and the synthesis: one chunk."""

    request_id, tokens, key, deadline = "r", 25, None, None

    def __init__(self, samples: int) -> None:
        self.notes: dict[str, object] = {}
        self.sent: list[Any] = []
        self._samples = samples

    async def request(self) -> Any:
        return Speech(None, self).service.kinds["SynthesizeRequest"](text="Hello.")

    @contextmanager
    def admitted(self, key: object) -> Iterator[None]:
        yield

    @contextmanager
    def asked(self, wish: object) -> Iterator[Caller]:
        yield self

    async def sample_rate(self) -> int:
        return 24_000

    async def __aiter__(self) -> AsyncIterator[np.ndarray]:
        yield np.zeros(self._samples, np.int16)


@pytest.mark.parametrize(("samples", "fits"), [(50, True), (51, False)])
def test_an_answer_in_one_message_lies_there_until_it_is_sent(samples: int, fits: bool) -> None:
    caller = Caller(samples)
    speech = Speech(None, caller)
    speech._room = room = Room(longest=100, whole=100)
    left: list[int] = []

    async def send(message: Any) -> None:
        left.append(room._left)
        caller.sent.append(message)

    caller.send = send
    if fits:
        asyncio.run(speech._synthesize(caller))
        assert len(caller.sent[0].content) == 100
        assert left == [0]
    else:
        with pytest.raises(Refused, match="use SynthesizeStream"):
            asyncio.run(speech._synthesize(caller))
        assert not caller.sent
    assert room._left == 100
