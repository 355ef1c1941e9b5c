"""Text that comes piece by piece, between who says it and who passes it on."""

from __future__ import annotations

import asyncio

import pytest

from lighttts.gateway.failures import Refused
from lighttts.gateway.texts import PENDING_MAX, Said, Texts


def test_what_comes_meanwhile_is_taken_together_up_to_a_flush() -> None:
    async def run() -> list[Said]:
        texts = Texts()
        for said in (Said("Hel"), Said("lo.", flush=True), Said("How"), Said(" are"), Said(" you?", end=True)):
            texts.add(said)
        return [await texts.take() for _ in range(3)]

    assert asyncio.run(run()) == [Said("Hello.", flush=True), Said("How are you?", end=True), Said("", end=True)]


def test_who_takes_waits_for_more() -> None:
    async def run() -> None:
        texts = Texts()
        taking = asyncio.create_task(texts.take())
        await asyncio.sleep(0)
        assert not taking.done()
        texts.add(Said("more"))
        assert await taking == Said("more")

    asyncio.run(run())


@pytest.mark.parametrize(
    ("pieces", "speakable"),
    [(("Hello",), True), (("... ", "?", "好"), True), (("... ", "\n-"), False), ((), False)],
)
def test_it_begins_with_something_that_can_be_spoken(pieces: tuple[str, ...], speakable: bool) -> None:
    async def run() -> bool:
        texts = Texts()
        begun = asyncio.create_task(texts.begun())
        for piece in pieces:
            assert not begun.done()
            texts.add(Said(piece))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        if not speakable:
            texts.add(Said("", end=True))
        return await begun

    assert asyncio.run(run()) is speakable


def test_what_waits_is_bounded_and_nothing_follows_the_end() -> None:
    async def run() -> None:
        texts = Texts()
        texts.add(Said("x" * PENDING_MAX))
        await texts.take()
        texts.add(Said("x" * PENDING_MAX))
        with pytest.raises(Refused, match="wait to be spoken"):
            texts.add(Said("x"))

    asyncio.run(run())
    texts = Texts()
    texts.add(Said("", end=True))
    with pytest.raises(Refused, match="follow the end"):
        texts.add(Said("x"))
