"""Text that comes in pieces: its sentences and ids depend on the text alone, and come as soon as they are certain."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lighttts.frontend.live import LiveText
from lighttts.frontend.text import as_spoken
from lighttts.frontend.tokenizer import TextTokenizer

METHODS = ("sentences", "interleaved")
STORY = (
    "Once upon a time there was a mill, and beside it a house. In it lived 3 brothers who owned $25 and a cat! "
    "“What shall we do?” asked the eldest. The mill stood on St. James street, no. 7, since 1850.\nNobody knew why. "
    "They sold 12 kg of flour a day; that was enough... until winter came, and the river froze (as it does here) for "
    "weeks and weeks, so that no wheel turned, no grain was brought and nobody came by any more from over the hills."
)
CHINESE = "你好，世界。今天天气真好！我们去公园散步吧，好不好？他有5公斤苹果，价格是20元。“真的吗？”她说。"


@pytest.fixture(scope="module")
def live(tokenizer: TextTokenizer) -> LiveText:
    return LiveText(tokenizer)


def written(live: LiveText, pieces: list[str], method: str, end: bool = True) -> list[list[int]]:
    """The sentences' ids as whoever keeps what is not done with puts them together; nothing told is ever taken back."""
    done: list[list[int]] = []
    begun: list[int] = []
    text = ""
    for index, piece in enumerate([*pieces, ""] if end else pieces):
        text += piece
        got = live.encode(text, method, flush=end and index == len(pieces))
        sentences = [ids.tolist() for ids in got.sentences]
        if begun:
            assert sentences[0][: len(begun)] == begun
        whole = sentences if got.whole else sentences[:-1]
        done += whole
        begun = [] if got.whole else sentences[-1]
        text = text.encode()[got.used :].decode()
    return done if end else [*done, begun]


def cut(text: str, places: list[int]) -> list[str]:
    bounds = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    return [text[a:b] for a, b in pairwise(bounds)]


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.one_of(
        st.sampled_from([STORY, CHINESE, STORY + CHINESE]),
        st.lists(st.sampled_from([*STORY.split(), *CHINESE, "\n", "a", "...", "x" * 300, "é", "<b>", "ok?"])).map(
            " ".join
        ),
        st.text(alphabet="ab1.,!? \n\r\t中。，”\"'$é<|>-", max_size=80),
    ),
    places=st.lists(st.integers(0, 700), max_size=30),
    method=st.sampled_from(METHODS),
)
@example(STORY, list(range(0, 700, 5)), "interleaved")
@example(CHINESE, list(range(0, 700, 5)), "interleaved")
@example(STORY, list(range(0, 700, 5)), "sentences")
def test_ids_depend_on_the_text_alone(live: LiveText, text: str, places: list[int], method: str) -> None:
    assert written(live, cut(text, places), method) == written(live, [text], method)


@pytest.mark.parametrize("method", METHODS)
def test_ids_are_those_of_the_whole_spoken_text(live: LiveText, tokenizer: TextTokenizer, method: str) -> None:
    text = "The quick brown fox jumps over the lazy dog, and they had 25 apples between them."
    assert written(live, cut(text, [*range(90)]), method) == [tokenizer.encode(as_spoken(text)).tolist()]


def test_chinese_ids_are_those_of_the_whole_spoken_text(live: LiveText, tokenizer: TextTokenizer) -> None:
    text = "我们去公园散步吧，好不好呀，今天天气真好"
    assert written(live, [*text], "interleaved") == [tokenizer.encode(as_spoken(text) + "。").tolist()]


def test_words_are_certain_as_soon_as_the_next_one_is_whole(live: LiveText, tokenizer: TextTokenizer) -> None:
    def begun(text: str) -> str:
        (ids,) = written(live, [*text], "interleaved", end=False)
        return next(words for words in _prefixes(text) if tokenizer.encode(words).tolist() == ids)

    assert begun("The quick brow") == "The"
    assert begun("The quick brown ") == "The quick"
    assert begun("They had 25 apples bet") == "They"
    assert begun("They had 25 apples between all of th") == "They had twenty five apples between all"
    assert begun("-- ... ") == ""


def _prefixes(text: str) -> list[str]:
    words = text.replace("25", "twenty five").split()
    return ["", *(" ".join(words[:count]) for count in range(1, len(words) + 1))]


def test_sentence_by_sentence_each_is_given_once_it_is_whole(live: LiveText, tokenizer: TextTokenizer) -> None:
    def check(text: str, *expected: str) -> None:
        found = [ids for ids in written(live, [text], "sentences", end=False) if ids]
        assert found == [tokenizer.encode(sentence).tolist() for sentence in expected]

    check("Hello there.")
    check("Hello there. ", "Hello there.")
    check("Hello there. How are you?\nFine", "Hello there.", "How are you?")
    check("No title\nDr. Who is here. ", "No title.", "doctor Who is here.")
    check("今天天气真好！我", "今天天气真好！")
    check("He said “Go away!” and ", "He said “Go away!”")


@pytest.mark.parametrize("method", METHODS)
def test_a_text_without_marks_is_cut_where_it_is_too_long(live: LiveText, method: str) -> None:
    words = written(live, ["word " * 1000], method)
    assert len(words) > 4
    assert len({len(sentence) for sentence in words[:-1]}) == 1
    assert len(written(live, ["x1" * 5000], method)) > 4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("text", ["", "  \n", "...", "-- !? \n\n."])
def test_what_has_nothing_to_speak_is_no_sentence(live: LiveText, method: str, text: str) -> None:
    got = live.encode(text, method, flush=True)
    assert (got.sentences, got.used) == ((), len(text.encode()))
