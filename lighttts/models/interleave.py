"""How a language model takes text that is still being written: blocks of text and of speech by turns."""

from __future__ import annotations

from typing import NamedTuple

from lighttts.errors import ModelError
from lighttts.models.directory import ModelDirectory


class Mix(NamedTuple):
    """Tokens of a block: so many of `text`, then so many of `speech`."""

    text: int = 5
    speech: int = 15


def read_mix(directory: ModelDirectory) -> Mix | None:
    """The yaml's `llm.mix_ratio`; None if it has none: the model does not know such blocks. Raises `ModelError`."""
    llm = directory.settings.section("llm")
    if "mix_ratio" not in llm:
        return None
    numbers = llm.integers("mix_ratio")
    if len(numbers) != len(Mix._fields):
        raise ModelError(f"{llm.name}: {llm.path}.mix_ratio is not two numbers; restore the published file.")
    return Mix(*numbers)
