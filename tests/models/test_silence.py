"""Of silent tokens in a row the first five are spoken, as upstream's CosyVoice3 does it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighttts.models.directory import ModelDirectory
from lighttts.models.silence import LONGEST, Pauses, silent_tokens

GOLDEN = Path(__file__).parents[1] / "golden"
SILENT = silent_tokens(ModelDirectory.open(GOLDEN / "cosyvoice3-tiny"))
QUIET, LOUD = 28, 30

speech = st.lists(st.lists(st.sampled_from([1, 2, QUIET, 2323, 0, 3, LOUD, 6560]), max_size=30), max_size=4)


def spoken(pauses: Pauses, tokens: list[int], *, final: bool = False) -> list[int]:
    return pauses.spoken(np.array(tokens, np.int32), final).tolist()


def whole(sentence: list[int]) -> list[int]:
    """Each token together with the five before it: one that ends six silent ones is passed over."""
    return [
        token
        for index, token in enumerate(sentence)
        if index < LONGEST or not SILENT.issuperset(sentence[index - LONGEST : index + 1])
    ]


def test_cosyvoice3_has_silent_tokens_and_cosyvoice2_none() -> None:
    assert sorted(SILENT) == [1, 2, 28, 29, 55, 248, 494, 2241, 2242, 2322, 2323]
    assert silent_tokens(ModelDirectory.open(GOLDEN / "cosyvoice2-tiny")) == frozenset()


@pytest.mark.parametrize(("made", "left"), [(0, 0), (4, 4), (5, 5), (6, 5), (90, 5)])
def test_what_exceeds_five_in_a_row_is_passed_over(made: int, left: int) -> None:
    sentence = [LOUD, *[QUIET] * made, LOUD]
    assert spoken(Pauses(SILENT), sentence, final=True) == [LOUD, *[QUIET] * left, LOUD]


def test_silent_tokens_of_all_kinds_make_one_row() -> None:
    row = [1, 2, 28, 29, 55, 248, 494, 2241, 2242, 2322, 2323]
    assert spoken(Pauses(SILENT), row) == row[:5]


def test_any_other_token_begins_a_new_count() -> None:
    sentence = [*[QUIET] * 5, LOUD, *[QUIET] * 6]
    assert spoken(Pauses(SILENT), sentence) == sentence[:-1]


def test_every_sentence_begins_a_new_count() -> None:
    pauses = Pauses(SILENT)
    assert spoken(pauses, [QUIET] * 9, final=True) == [QUIET] * 5
    assert spoken(pauses, [QUIET] * 9, final=True) == [QUIET] * 5


def test_where_no_token_is_silent_all_are_spoken() -> None:
    assert spoken(Pauses(frozenset()), [QUIET] * 90) == [QUIET] * 90


@given(speech, st.lists(st.integers(0, 30), max_size=8))
def test_how_tokens_are_cut_makes_no_difference(sentences: list[list[int]], cuts: list[int]) -> None:
    pauses = Pauses(SILENT)
    for sentence in sentences:
        edges = [0, *sorted(min(cut, len(sentence)) for cut in cuts), len(sentence)]
        parts = [sentence[begin:end] for begin, end in pairwise(edges)]
        heard: list[int] = []
        for number, part in enumerate(parts, 1):
            heard += spoken(pauses, part, final=number == len(parts))
        assert heard == whole(sentence)
