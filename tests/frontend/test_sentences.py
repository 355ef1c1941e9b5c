"""Spoken text is cut at sentence marks into pieces of a length that the language model speaks well."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lighttts.frontend.sentences import ENOUGH, LONG, LONGEST, SHORT, split

MARKS = re.compile('[.?!;:。？！；：、"”]')
PROSE = st.text(alphabet='ab 中文,，、.?!;:。？！"”', max_size=800)


def words(count: int) -> str:
    return " ".join(["word"] * count)


def split_words(text: str) -> list[str]:
    """English sentences with a word, not a token, as the unit of length."""
    return split(text, chinese=False, count=lambda piece: len(piece.split()))


def test_sentences_are_joined_until_they_are_long_enough():
    text = f"{words(30)}. {words(31)}. {words(30)}. {words(30)}."
    assert [len(sentence.split()) for sentence in split_words(text)] == [61, 60]


def test_a_short_last_sentence_joins_the_one_before():
    text = f"{words(70)}. {words(SHORT - 1)}."
    assert len(split_words(text)) == 1
    assert len(split_words(f"{words(70)}. {words(SHORT)}.")) == 2


def test_chinese_length_is_in_characters():
    text = ("字" * 40 + "。") * 4
    assert [len(sentence) for sentence in split(text, chinese=True, count=lambda _: 0)] == [82, 82]


@pytest.mark.parametrize(("chinese", "mark"), [(True, "。"), (False, ".")])
def test_a_missing_last_mark_is_added(chinese, mark):
    assert split("x", chinese=chinese, count=len) == ["x" + mark]


def test_a_closing_quote_stays_with_its_sentence():
    first, second = split_words(f'{words(70)}!" {words(70)}')
    assert first.endswith('word!"')
    assert second.endswith("word.")


def test_repeated_marks_keep_only_the_first():
    assert split_words("Wait... what?!") == ["Wait. what?"]


@pytest.mark.parametrize("text", ["", ".", "...", '."', '!?"'])
def test_marks_alone_are_no_sentence(text):
    assert split(text, chinese=False, count=len) == []


def test_a_long_stretch_is_cut_at_commas_before_spaces():
    text = f"{words(65)}, {words(65)}, {words(65)}."
    assert [sentence.strip()[-5:] for sentence in split_words(text)] == ["word,", "word,", "word."]


def test_a_long_stretch_without_commas_is_cut_at_spaces():
    assert [len(sentence.split()) for sentence in split_words(words(LONGEST + 80))] == [LONG, LONG, LONG]


def test_a_long_stretch_without_spaces_is_cut_anywhere():
    assert split("x" * 200, chinese=False, count=len) == ["x" * 80, "x" * 80, "x" * 40 + "."]


@settings(deadline=None)
@given(PROSE, st.booleans())
def test_nothing_but_marks_is_lost_and_order_is_kept(text, chinese):
    joined = "".join(split(text, chinese=chinese, count=len))
    assert MARKS.sub("", joined) == MARKS.sub("", text)


@settings(deadline=None)
@given(PROSE, st.booleans())
def test_no_sentence_outgrows_the_bound(text, chinese):
    assert all(0 < len(piece) <= ENOUGH + LONGEST + SHORT for piece in split(text, chinese=chinese, count=len))
