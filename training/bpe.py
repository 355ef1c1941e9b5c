"""The text tokenizer: a byte-level BPE in Qwen2's file layout, trained on the normalised corpus (Sennrich et al.
2016)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

# How Qwen2 cuts text into words before merging.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END_OF_TEXT = "<|endoftext|>"


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )


def train_bpe(texts: list[str], folder: Path, vocabulary: int) -> None:
    """Write vocab.json, merges.txt and tokenizer_config.json of a tokenizer with ``vocabulary`` entries."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.model.save(str(folder))
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "model_max_length": 32768,
        "add_prefix_space": False,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "bos_token": None,
        "errors": "replace",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "added_tokens_decoder": {
            str(tokenizer.get_vocab_size()): {
                "content": END_OF_TEXT,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
        },
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Encoded:
    """Sentences as tokens: ids (flat uint16), place of each token's first letter (flat float32), counts (n,)."""

    token: NDArray[np.uint16]
    place: NDArray[np.float32]
    tokens: NDArray[np.int64]


class Encoder:
    """Encodes with the tokenizer in ``folder``. ``spaced`` texts begin with a space, as a sentence does that follows
    another. With ``dropout`` merges are skipped at random, so that rare splits are learnt too (BPE-dropout, Provilkov
    et al. 2020)."""

    def __init__(self, folder: Path, *, spaced: bool = False, dropout: float | None = None) -> None:
        model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"), dropout=dropout)
        self._tokenizer = Tokenizer(model)
        self._tokenizer.pre_tokenizer = _pre_tokenizer()
        self._space = " " if spaced else ""

    def encode(self, texts: list[str], places: list[NDArray[np.float32]]) -> Encoded:
        """``places[i]`` holds a position for each character of ``texts[i]`` and one for its end."""
        tokens, starts = [], []
        encodings = self._tokenizer.encode_batch([self._space + text for text in texts])
        for encoding, text, place in zip(encodings, texts, places, strict=True):
            first = np.array([begin for begin, _ in encoding.offsets]) - len(self._space)
            first += np.array([i < 0 or text[i : i + 1] == " " for i in first])
            tokens.append(np.array(encoding.ids, np.uint16))
            starts.append(place[np.minimum(first, len(place) - 1)])
        counts = np.array([len(t) for t in tokens], np.int64)
        return Encoded(np.concatenate(tokens), np.concatenate(starts).astype(np.float32), counts)
