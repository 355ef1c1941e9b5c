"""Cutting text that is still being written."""

from __future__ import annotations

import asyncio

import pytest

from lighttts.gateway.failures import Refused
from lighttts.gateway.texts import LONGEST, PENDING_MAX, Said, Texts


def taken(*pieces: str, end: bool = True) -> list[str]:
    """All that is taken of a text that comes in these pieces, each looked at before the next."""

    async def run() -> list[str]:
        texts = Texts()
        found: list[str] = []

        async def take_all() -> None:
            while text := await texts.take():
                found.append(text)

        taking = asyncio.create_task(take_all())
        for piece in pieces:
            texts.add(Said(piece))
            # The taker runs until it waits again.
            await asyncio.sleep(0)
        if end:
            texts.add(Said("", end=True))
            await taking
        else:
            taking.cancel()
        return found

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("pieces", "sentences"),
    [
        (("Hello. How are", " you? Fi"), ["Hello.", " How are you?"]),
        (("It costs 3.14 or 2.", "5 dollars"), []),
        (("He said 'No.' And",), ["He said 'No.'"]),
        (("你好。今天", "天气不错！是"), ["你好。", "今天天气不错！"]),
        (("One line\nand",), ["One line\n"]),
        (("One. Two. Three",), ["One. Two."]),
        (("... ", "Well. "), [" Well."]),
        (("word " * (LONGEST // 5 + 1) + "cut",), ["word " * (LONGEST // 5 + 1)]),
        (("x" * (LONGEST + 1),), ["x" * (LONGEST + 1)]),
    ],
)
def test_whole_sentences_are_taken_at_once_and_the_rest_waits(pieces: tuple[str, ...], sentences: list[str]) -> None:
    assert taken(*pieces, end=False) == sentences


def test_a_flush_gives_what_has_come_and_nothing_after_it() -> None:
    async def run() -> tuple[str, str]:
        texts = Texts()
        texts.add(Said("Hello, ", flush=True))
        texts.add(Said("and more. And"))
        first = await texts.take()
        texts.add(Said(" so on", flush=True))
        return first, await texts.take()

    assert asyncio.run(run()) == ("Hello, and more.", " And so on")


def test_the_end_gives_the_rest() -> None:
    assert taken("Hello. How are", " you") == ["Hello.", " How are you"]
    assert taken("Hello. ", " ...") == ["Hello."]
    assert taken() == []


def test_what_waits_is_bounded_and_nothing_follows_the_end() -> None:
    texts = Texts()
    texts.add(Said("x" * PENDING_MAX))
    with pytest.raises(Refused, match="wait to be spoken"):
        texts.add(Said("x"))
    texts.add(Said("", end=True))
    with pytest.raises(Refused, match="follow the end"):
        texts.add(Said("x"))
