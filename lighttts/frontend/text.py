"""Text of a request -> the sentences to synthesise.

Rules, in order:

1. At most `MAX_CHARACTERS` characters; no lone surrogates (they come from bytes that were not UTF-8).
2. Line and page separators become newlines; other control characters (C0 but tab and newline, DEL, C1) are removed.
3. A text with `<|...|>` marks is passed on as it is, as one sentence.
4. Any other text is made spoken (Mandarin rules if it has a Chinese character, else English) and cut into sentences, as
   `text_normalize` of FunAudioLLM/CosyVoice (`cosyvoice/cli/frontend.py`) does with wetext.
5. A sentence without any letter or number has nothing to speak and is left out. If none is left, the text is refused.

Nothing else is left out but repeated sentence marks, brackets and backticks in Chinese text.
"""

from __future__ import annotations

import re

from lighttts.errors import InvalidInput
from lighttts.frontend import sentences, spoken
from lighttts.frontend.tokenizer import TextTokenizer

MAX_CHARACTERS = 20_000
MAX_SENTENCE_TOKENS = 1024
"""No sentence has more text tokens: a text with marks, which is never cut, is refused beyond it."""

_LINE_ENDS = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f]")
_SURROGATES = re.compile("[\ud800-\udfff]")
_CHINESE = re.compile("[\u4e00-\u9fff]")
_MARK = re.compile(r"<\|[^|]*\|>")
_CHINESE_REPLACEMENTS = {"²": "平方", "³": "立方", ".": "。", " - ": "，", "——": " "}
_CHINESE_OMISSIONS = str.maketrans("", "", "（）【】`")


class TextNormalizer:
    """Rules 1 to 5 with one model's tokenizer, which measures the sentences."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer

    def sentences(self, text: str) -> list[str]:
        """The sentences of `text`, at least one, each with something to speak. Raises `InvalidInput`."""
        text = clean(text, "text")
        if has_marks(text):
            found = [text]
        else:
            chinese = _is_chinese(text)
            found = sentences.split(as_spoken(text), chinese=chinese, count=self._tokenizer.count)
        found = [sentence for sentence in found if is_speakable(sentence)]
        if not found:
            raise InvalidInput(
                "The text has only punctuation and symbols; give words or numbers to speak.", field="text"
            )
        for sentence in found:
            self._check_length(sentence)
        return found

    def prompt(self, text: str) -> str:
        """The transcript of a prompt, made spoken but not cut, as upstream has it. Raises `InvalidInput`."""
        text = clean(text, "prompt_text")
        if not has_marks(text):
            text = as_spoken(text)
        if not is_speakable(text):
            raise InvalidInput(
                "The prompt text has no words; give the words that the prompt audio says.", field="prompt_text"
            )
        return text

    def _check_length(self, sentence: str) -> None:
        tokens = self._tokenizer.count(sentence)
        if tokens > MAX_SENTENCE_TOKENS:
            raise InvalidInput(
                f"A part of the text that cannot be cut has {tokens} tokens where {MAX_SENTENCE_TOKENS} are allowed; "
                "shorten it, or leave out the <|...|> marks so that it can be cut into sentences.",
                field="text",
            )


def clean(text: str, field: str) -> str:
    """`text` after rules 1 and 2, not blank. Raises `InvalidInput` naming `field`."""
    if len(text) > MAX_CHARACTERS:
        raise InvalidInput(
            f"The {field.replace('_', ' ')} has {len(text)} characters where {MAX_CHARACTERS} are allowed; "
            "send it in several requests.",
            field=field,
        )
    if _SURROGATES.search(text):
        raise InvalidInput(f"The {field.replace('_', ' ')} is not valid Unicode; send it as UTF-8.", field=field)
    text = tidy(text)
    if not text.strip():
        raise InvalidInput(f"The {field.replace('_', ' ')} is empty; give words or numbers to speak.", field=field)
    return text


def tidy(text: str) -> str:
    """`text` after rule 2."""
    return _CONTROLS.sub("", _LINE_ENDS.sub("\n", text))


def has_marks(text: str) -> bool:
    """Whether rule 3 is for it."""
    return "<|" in text and "|>" in text


def _is_chinese(text: str) -> bool:
    return _CHINESE.search(text) is not None


def is_speakable(sentence: str) -> bool:
    """Whether rule 5 lets it stand."""
    return any(character.isalnum() for character in _MARK.sub("", sentence))


def as_spoken(text: str) -> str:
    """`text` as rule 4 makes it spoken, not cut."""
    text = text.strip()
    if not _is_chinese(text):
        return spoken.english(text)
    text = _without_blanks(" ".join(spoken.chinese(text).split()))
    for written, said in _CHINESE_REPLACEMENTS.items():
        text = text.replace(written, said)
    return re.sub("[，,、]+$", "。", text.translate(_CHINESE_OMISSIONS))


def _without_blanks(text: str) -> str:
    """`text` with only the spaces that lie between two ASCII characters, which separate foreign words."""
    return re.sub(r"(?<![\x21-\x7f]) | (?![\x21-\x7f])", "", text)
