"""Typed access to a model's yaml: a missing or wrong value is reported with its file and key."""

from __future__ import annotations

import math

from lighttts.errors import ModelError
from lighttts.models.spec import CLASS, Plain


class Section:
    """One mapping of a spec with typed access; a missing or wrong value raises `ModelError` naming file and key."""

    def __init__(self, data: Plain, name: str, path: str = "") -> None:
        """`name` is the yaml's name, `path` the dotted keys that lead to `data` in it."""
        if not isinstance(data, dict):
            raise ModelError(f"{name}: {path or 'the file'} is not a mapping; restore the published file.")
        self.data = data
        self.name = name
        self.path = path

    def _value(self, key: str, kind: str) -> Plain:
        if key not in self.data:
            raise ModelError(f"{self.name} lacks {self._full(key)} ({kind}); restore the published file.")
        return self.data[key]

    def _full(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def _wrong(self, key: str, kind: str) -> ModelError:
        return ModelError(f"{self.name}: {self._full(key)} is not {kind}; restore the published file.")

    @property
    def class_name(self) -> str:
        """Last part of the class name of a tagged mapping ("Qwen2LM"), "" if it has no tag."""
        name = self.data.get(CLASS, "")
        return name.rpartition(".")[2] if isinstance(name, str) else ""

    def __contains__(self, key: str) -> bool:
        return key in self.data

    def section(self, key: str) -> Section:
        return Section(self._value(key, "a mapping"), self.name, self._full(key))

    def integer(self, key: str, *, least: int = 1) -> int:
        value = self._value(key, "a whole number")
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self._wrong(key, f"a whole number of at least {least}")
        return value

    def number(self, key: str) -> float:
        value = self._value(key, "a number")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._wrong(key, "a number")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self._value(key, "true or false")
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def text(self, key: str) -> str:
        value = self._value(key, "a text")
        if not isinstance(value, str):
            raise self._wrong(key, "a text")
        return value

    def integers(self, key: str, *, least: int = 1) -> list[int]:
        value = self._value(key, "a list of whole numbers")
        if not isinstance(value, list):
            raise self._wrong(key, "a list of whole numbers")
        numbers = [item for item in value if isinstance(item, int) and not isinstance(item, bool) and item >= least]
        if len(numbers) != len(value):
            raise self._wrong(key, f"a list of whole numbers of at least {least}")
        return numbers
