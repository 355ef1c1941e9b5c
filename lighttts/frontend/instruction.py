"""What a language model is told about how to speak: prompt text that ends with a mark, `<|endofprompt|>`.

As `inference_instruct2` of FunAudioLLM/CosyVoice takes it, except that the caller need not know the mark, nor the
sentence with which CosyVoice3 was trained to begin every instruction.
"""

from __future__ import annotations

import numpy as np

from lighttts.errors import InvalidInput, ModelError
from lighttts.frontend.marks import END_OF_PROMPT
from lighttts.frontend.prompt import Int32
from lighttts.frontend.text import clean
from lighttts.frontend.tokenizer import TextTokenizer

_PREAMBLE = "You are a helpful assistant."


class Instructions:
    """Instructions for CosyVoice `version` (2 or 3) in the ids of its tokenizer."""

    def __init__(self, tokenizer: TextTokenizer, version: int) -> None:
        """Raises `ModelError` if the model needs an instruction and cannot embed one."""
        self._tokenizer = tokenizer
        self._preamble = "" if version == 2 else _PREAMBLE
        self.plain = np.zeros(0, np.int32)
        """What goes before a text without instruction (n,): nothing for CosyVoice2, upstream's own for CosyVoice3."""
        if self._preamble:
            try:
                self.plain = tokenizer.encode(self._preamble + END_OF_PROMPT)
            except InvalidInput as error:
                raise ModelError(
                    f"The model cannot embed {END_OF_PROMPT}, which CosyVoice3 needs; restore the model."
                ) from error

    def encode(self, instruct: str) -> Int32:
        """Ids (n,) of `instruct`, with the mark at its end whether it has it or not. Raises `InvalidInput`."""
        words = clean(instruct, "instruct").strip().removesuffix(END_OF_PROMPT).strip()
        if not words or END_OF_PROMPT in words:
            raise InvalidInput(
                f"An instruction is words, with {END_OF_PROMPT} at their end or nowhere.", field="instruct"
            )
        if self._preamble and not words.startswith(self._preamble):
            words = f"{self._preamble} {words}"
        return self._tokenizer.encode(words + END_OF_PROMPT, "instruct")

    def lead(self, prompt_text: Int32) -> int:
        """How many of these ids are an instruction that CosyVoice3 is trained to have before all else; 0 for 2."""
        if not self.plain.size:
            return 0
        return int(np.max(np.flatnonzero(prompt_text == self.plain[-1]), initial=-1)) + 1

    def needed(self, prompt_text: Int32, sentences: list[Int32]) -> bool:
        """Whether the model is to be given `plain`: nothing in these ids of prompt and sentences is an instruction."""
        if not self.plain.size:
            return False
        end = self.plain[-1]
        return not (np.any(prompt_text == end) or all(np.any(ids == end) for ids in sentences))
