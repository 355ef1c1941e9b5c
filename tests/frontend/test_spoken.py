"""Written forms become words, whatever the grammars refuse."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lighttts.frontend.spoken import chinese, english

WORDS = ("harbour", "lemon", "quietly", "marble", "Window")
NOISE = st.text(alphabet="0123456789$%&#@[](){}<>~\\\"'!?.,;:-+*/=^_`²½١中é|\n", max_size=8)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("see [5] and pay [$3.50] now", "see [five] and pay [three point five dollars] now"),
        ("Mr. Lee's #1", "Mister Lee's number one"),
        ("2 cats\n\nand 3 dogs", "two cats and three dogs"),
        ("42", "forty two"),
        ("x² and y³", "x squared and y cubed"),
        ("١٢٣ or ①", "one hundred and twenty three or one"),
    ],
)
def test_tokens_that_the_grammar_refuses_are_spoken_piece_by_piece(written, said):
    assert english(written) == said


def test_numbers_alone_are_spoken_in_english():
    assert english("2024") == "twenty twenty four"


def test_chinese_numbers_are_spoken_in_mandarin_and_latin_words_kept():
    assert chinese("我有2只猫 and a dog") == "我有两只猫 and a dog"


def test_a_text_of_several_chunks_is_spoken_like_its_sentences():
    sentence = "The bill of $12.40 came on 2024-05-01 to room 101. "
    assert english(sentence * 40) == " ".join([english(sentence)] * 40)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(WORDS), NOISE), min_size=1, max_size=12))
def test_no_word_is_lost_and_no_digit_is_left(tokens):
    said = english(" ".join(f"{word} {noise}" for word, noise in tokens))
    position = 0
    for word, _ in tokens:
        position = said.find(word, position) + len(word)
        assert position >= len(word), f"{word} is missing in {said!r}"
    assert not any(character.isdigit() for character in said)
