"""Answers in one message take no more memory than there is for them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighttts.gateway.failures import Refused
from lighttts.gateway.rpc.room import Room


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
