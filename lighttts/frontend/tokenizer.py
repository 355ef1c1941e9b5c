"""The text tokenizer of a model: Qwen2's byte-level BPE with CosyVoice's marks added.

Built on `tokenizers` directly: importing `transformers` for the same ids takes a second of every cold start.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from lighttts.errors import InvalidInput, ModelError
from lighttts.frontend.marks import marks

# Qwen2's split into words, single digits, punctuation and white space (Qwen2 tokenizer of huggingface/transformers).
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MAX_FILE_BYTES = 64 << 20


class TextTokenizer:
    """Text -> ids of the language model's text embedding. Safe to share between threads."""

    def __init__(self, folder: Path, version: int, embedding_size: int) -> None:
        """Reads `vocab.json`, `merges.txt` and `tokenizer_config.json` of `folder`, a model's `CosyVoice-BlankEN`.

        `version` 2 or 3 selects the marks; `embedding_size` is the number of ids that the language model can embed.
        Raises `ModelError` if a file is missing or damaged, if the vocabulary outgrows the embedding, or if it lacks a
        byte, without which some text would vanish.
        """
        self._size = embedding_size
        configured = _configured(folder / "tokenizer_config.json")
        self._tokenizer = _byte_level_bpe(folder)
        _check_merges(folder, self._tokenizer, configured)
        words = self._tokenizer.get_vocab_size()
        if words > embedding_size:
            raise ModelError(
                f"{folder / 'vocab.json'} has {words} entries but the model embeds {embedding_size}; "
                "the two are not of one model: restore the published files."
            )
        added = [*configured, *marks(version)]
        self._tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in added])

    def encode(self, text: str, field: str = "text") -> npt.NDArray[np.int32]:
        """Ids of `text`: (n,) int32, each below the embedding size.

        A mark that lies outside the model's embedding raises `InvalidInput` for `field`: the model never learned it.
        """
        encoding = self._tokenizer.encode(text)
        ids = np.asarray(encoding.ids, np.int32)
        if ids.size and ids.max() >= self._size:
            mark = encoding.tokens[int(ids.argmax())]
            raise InvalidInput(f"This model does not know the mark {mark}; leave it out of the text.", field=field)
        return ids

    def count(self, text: str) -> int:
        """Number of ids of `text`."""
        return len(self._tokenizer.encode(text).ids)


def _byte_level_bpe(folder: Path) -> Tokenizer:
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    for path in (vocab, merges):
        _check_size(path)
    try:
        tokenizer = Tokenizer(BPE.from_file(str(vocab), str(merges)))
    except Exception as error:  # `tokenizers` raises bare Exception for whatever is wrong with a file
        raise ModelError(f"{vocab} and merges.txt are no BPE vocabulary ({error}); restore both.") from error
    missing = [byte for byte in pre_tokenizers.ByteLevel.alphabet() if tokenizer.token_to_id(byte) is None]
    if missing:
        raise ModelError(f"{vocab} lacks {len(missing)} of the 256 bytes, so text would be lost; restore the file.")
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def _check_merges(folder: Path, tokenizer: Tokenizer, special: list[str]) -> None:
    """Every word longer than a byte comes of a merge: fewer merges than that mean a file that was cut off."""
    merges = folder / "merges.txt"
    lines = [line for line in merges.read_text("utf-8").split("\n") if line and not line.startswith("#version")]
    merged = tokenizer.get_vocab_size() - 256 - sum(tokenizer.token_to_id(token) is not None for token in special)
    if len(lines) < merged:
        raise ModelError(f"{merges} has {len(lines)} merges for {merged} words of vocab.json; restore both files.")


def _configured(path: Path) -> list[str]:
    """Special tokens that the tokenizer's own configuration adds, in the order of their ids."""
    _check_size(path)
    try:
        config = json.loads(path.read_text("utf-8"))
        decoder = config.get("added_tokens_decoder", {})
        return [str(decoder[key]["content"]) for key in sorted(decoder, key=int)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} is no tokenizer configuration; restore the published file.") from error


def _check_size(path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); restore the published file.") from error
    if size > _MAX_FILE_BYTES:
        raise ModelError(f"{path} is larger than {_MAX_FILE_BYTES} bytes; restore the published file.")
