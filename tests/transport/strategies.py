"""Hypothesis strategies for every field type, and so for every message in the registry."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from lighttts.transport.schema import Array, Blob, Bool, Codec, Float, Int, Many, OneOf, Record, Text
from lighttts.transport.wire import REGISTRY, Message

_DTYPES = {"i4": np.int32, "i2": np.int16, "f2": np.float16, "f4": np.float32}
_MOST = 6
"""Rows, entries and bytes a generated field has at most: enough for every branch, quick to make."""


def values(codec: Codec) -> st.SearchStrategy[object]:
    """Values that `codec` must carry."""
    match codec:
        case Text(high=high, low=low):
            text = st.text(min_size=low, max_size=_MOST)
            return text.filter(lambda value: low <= len(value.encode()) <= high)
        case OneOf(values=allowed):
            return st.sampled_from(allowed)
        case Int(low=low, high=high):
            return st.integers(low, high)
        case Float(low=low, high=high):
            return st.floats(low, high, allow_nan=False)
        case Bool():
            return st.booleans()
        case Many(item=item):
            return st.lists(values(item), max_size=_MOST).map(tuple)
        case Record(fields=fields, make=make):
            return st.tuples(*map(values, fields)).map(lambda row: make(*row))
        case Array():
            return st.sampled_from(codec.dtypes).flatmap(lambda dtype: _arrays(dtype, codec.columns))
        case Blob():
            return st.binary(max_size=_MOST)
    raise TypeError(f"no strategy for {codec}")


def _arrays(dtype: str, columns: int) -> st.SearchStrategy[np.ndarray]:
    """Arrays of any bit patterns: not-a-number travels like any other."""
    shape = (-1, columns) if columns else (-1,)
    size = np.dtype(_DTYPES[dtype]).itemsize * max(1, columns)

    def make(rows: int, seed: int) -> np.ndarray:
        content = np.random.default_rng(seed).bytes(rows * size)
        return np.frombuffer(content, _DTYPES[dtype]).reshape(shape if rows else (0, columns) if columns else (0,))

    return st.builds(make, st.integers(0, _MOST), st.integers(0, 2**32))


def of(cls: type[Message]) -> st.SearchStrategy[Message]:
    """Messages of one class."""
    return st.builds(cls, **{name: values(codec) for name, codec in cls.FIELDS})


def messages() -> st.SearchStrategy[Message]:
    """Messages of every class."""
    return st.sampled_from(sorted(REGISTRY)).flatmap(lambda tag: of(REGISTRY[tag]))
