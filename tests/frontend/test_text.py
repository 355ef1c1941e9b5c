"""A request's text gives the sentences that upstream's front end gives, or one clear refusal."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lighttts.errors import InvalidInput
from lighttts.frontend.text import MAX_CHARACTERS, MAX_SENTENCE_TOKENS, TextNormalizer
from lighttts.frontend.tokenizer import TextTokenizer

from .conftest import GOLDEN

CASES = json.loads((GOLDEN / "frontend" / "text_normalize.json").read_text("utf-8"))
TOKENIZER = TextTokenizer(GOLDEN / "cosyvoice2-tiny" / "CosyVoice-BlankEN", 2, 600)
NORMALIZER = TextNormalizer(TOKENIZER)
ANY_TEXT = st.one_of(
    st.text(max_size=60),
    st.text(alphabet=st.characters(exclude_categories=()), max_size=30),
    st.text(alphabet="a1 .?\"“”'$%[]<|>中。，（）-—\\\n²", max_size=60),
)


@pytest.mark.parametrize("case", [case for case in CASES if case["sentences"]], ids=lambda case: case["text"][:30])
def test_sentences_are_upstreams(case):
    assert NORMALIZER.sentences(case["text"]) == case["sentences"]


@pytest.mark.parametrize("text", [case["text"] for case in CASES if not case["sentences"]] + ["😀 ✓", "<|en|>", "。、"])
def test_text_with_nothing_to_speak_is_refused(text):
    with pytest.raises(InvalidInput, match="only punctuation") as caught:
        NORMALIZER.sentences(text)
    assert caught.value.field == "text"


@pytest.mark.parametrize("text", ["", " \t\n", "\u3000\u2028", "\x00\x1b\x7f\x9f"])
def test_blank_text_is_refused(text):
    with pytest.raises(InvalidInput, match="text is empty"):
        NORMALIZER.sentences(text)


def test_text_over_the_limit_is_refused_naming_the_limit():
    with pytest.raises(InvalidInput, match=f"{MAX_CHARACTERS + 1} characters where {MAX_CHARACTERS} are allowed"):
        NORMALIZER.sentences("a" * (MAX_CHARACTERS + 1))


def test_text_of_the_limit_is_taken():
    assert sum(len(sentence) for sentence in NORMALIZER.sentences("a" * MAX_CHARACTERS)) >= MAX_CHARACTERS


def test_lone_surrogates_are_refused():
    with pytest.raises(InvalidInput, match="not valid Unicode"):
        NORMALIZER.sentences(b"caf\xe9".decode("utf-8", "surrogateescape"))


def test_control_characters_are_removed_and_line_ends_separate_words():
    assert NORMALIZER.sentences("a\x00b\x1b c\x7f\x9fd\r\ne\x85f\tg") == ["ab cd e f g."]


def test_line_ends_separate_foreign_words_in_chinese_text():
    assert NORMALIZER.sentences("今天\nhello\nworld\n好") == ["今天hello world好。"]


def test_marked_text_is_passed_on_whole():
    text = "You are a helpful assistant.<|endofprompt|>Pay $5. Now (really)!"
    assert NORMALIZER.sentences(text) == [text]


def test_marked_text_too_long_for_one_sentence_is_refused():
    with pytest.raises(InvalidInput, match=f"{MAX_SENTENCE_TOKENS} are allowed"):
        NORMALIZER.sentences("<|en|>" + "7" * (MAX_SENTENCE_TOKENS + 1))


def test_a_prompt_text_is_made_spoken_but_not_cut():
    assert NORMALIZER.prompt("  Pay $5. Now. " + "Go on. " * 90).startswith("Pay five dollars. Now. Go on. Go on.")
    assert NORMALIZER.prompt("我有2只猫，") == "我有两只猫。"


@pytest.mark.parametrize("text", ["...", "\x00", "a" * (MAX_CHARACTERS + 1), "\ud800"])
def test_a_bad_prompt_text_is_refused_by_its_name(text):
    with pytest.raises(InvalidInput, match="prompt text") as caught:
        NORMALIZER.prompt(text)
    assert caught.value.field == "prompt_text"


@settings(deadline=None, max_examples=300)
@given(ANY_TEXT)
@example('."')
@example("中 ")
@example(" 中")
@example('"中1"')
@example("<||>")
@example('}:c6<~?"?>.')
def test_any_text_is_refused_or_gives_sentences_with_ids_in_range(text):
    try:
        sentences = NORMALIZER.sentences(text)
    except InvalidInput:
        return
    assert sentences
    for sentence in sentences:
        ids = TOKENIZER.encode(sentence)
        assert 0 < len(ids) <= MAX_SENTENCE_TOKENS
        assert ids.max() < 600
        assert any(character.isalnum() for character in sentence)
