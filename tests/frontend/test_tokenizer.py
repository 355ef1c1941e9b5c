"""Text becomes the ids that upstream's tokenizer gives, each of which the language model can embed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lighttts.errors import InvalidInput, ModelError
from lighttts.frontend.marks import marks
from lighttts.frontend.tokenizer import TextTokenizer

from .conftest import GOLDEN

FOLDERS = {version: GOLDEN / f"cosyvoice{version}-tiny" / "CosyVoice-BlankEN" for version in (2, 3)}
UPSTREAM = json.loads((Path(__file__).parent / "data" / "token_ids.json").read_text("utf-8"))
TOKENIZER = TextTokenizer(FOLDERS[2], 2, 600)


@pytest.mark.parametrize("case", UPSTREAM, ids=lambda case: f"{case['version']}: {case['text']!r}")
def test_ids_are_upstreams(case):
    tokenizer = TextTokenizer(FOLDERS[case["version"]], case["version"], 1000)
    assert tokenizer.encode(case["text"]).tolist() == case["ids"]
    assert tokenizer.count(case["text"]) == len(case["ids"])


def test_marks_follow_the_vocabulary_in_upstreams_order():
    tokenizer = TextTokenizer(FOLDERS[3], 3, 1000)
    ids = [tokenizer.encode(mark).tolist() for mark in marks(3)]
    assert ids == [[500 + at] for at in range(281)]
    assert marks(2) == marks(3)[:20]


@settings(deadline=None)
@given(st.text())
def test_any_text_has_ids_within_the_embedding(text):
    ids = TOKENIZER.encode(text)
    assert ids.ndim == 1
    assert ids.dtype == "int32"
    assert bool(len(ids)) == bool(text)
    assert all(0 <= number < 600 for number in ids)


def test_a_mark_beyond_the_embedding_is_refused_by_name():
    tokenizer = TextTokenizer(FOLDERS[3], 3, 600)
    with pytest.raises(InvalidInput, match=r"does not know the mark \[zh\]") as caught:
        tokenizer.encode("[AA1][zh]", "prompt_text")
    assert caught.value.field == "prompt_text"


def test_a_vocabulary_larger_than_the_embedding_is_of_another_model():
    with pytest.raises(ModelError, match="500 entries but the model embeds 499"):
        TextTokenizer(FOLDERS[2], 2, 499)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "content", [None, b"", b"\xff\xfe not json", b"[1, 2]"], ids=["missing", "empty", "binary", "list"]
)
def test_a_missing_or_damaged_file_is_named(model_copy, name, content):
    folder = model_copy(2) / "CosyVoice-BlankEN"
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        TextTokenizer(folder, 2, 600)


def test_merges_that_were_cut_off_are_noticed(model_copy):
    path = model_copy(2) / "CosyVoice-BlankEN" / "merges.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ModelError, match="243 merges for 244 words"):
        TextTokenizer(path.parent, 2, 600)


def test_a_vocabulary_without_every_byte_is_refused_because_text_would_vanish(model_copy):
    folder = model_copy(2) / "CosyVoice-BlankEN"
    vocab = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps({word: number for word, number in vocab.items() if word != "Ń"}))
    with pytest.raises(ModelError, match="lacks 1 of the 256 bytes"):
        TextTokenizer(folder, 2, 600)
