"""Field types of wire messages: how one value is packed, and how a received value is checked.

A message class annotates each field as ``Annotated[python type, codec]``. Scalars stand in the msgpack body; arrays
and blobs travel as raw payload frames, in field order, with only dtype and shape in the body. Every `unpack` checks
type and range and raises `ValueError` with the reason; `wire.decode` makes it a `ProtocolError` that names the field.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import numpy as np
import numpy.typing as npt

Buffer = bytes | memoryview
FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]


class Codec(Protocol):
    """Packs a field's value into the body (and payload frames), and checks and unpacks a received one."""

    def pack(self, value: Any, payloads: list[Buffer]) -> object: ...

    def unpack(self, raw: object, payloads: Iterator[Buffer]) -> Any: ...


@dataclass(frozen=True)
class Text:
    """UTF-8 string of `low` to `high` bytes."""

    high: int
    low: int = 0

    def pack(self, value: str, payloads: list[Buffer]) -> object:
        return self._checked(value)

    def unpack(self, raw: object, payloads: Iterator[Buffer]) -> str:
        if type(raw) is not str:
            raise ValueError(f"must be a string, not {type(raw).__name__}")
        return self._checked(raw)

    def _checked(self, value: str) -> str:
        size = len(value) if value.isascii() else len(value.encode())
        if not self.low <= size <= self.high:
            raise ValueError(f"must have {self.low} to {self.high} bytes, has {size}")
        return value


@dataclass(frozen=True)
class OneOf:
    """One of a fixed set of strings."""

    values: tuple[str, ...]

    def pack(self, value: str, payloads: list[Buffer]) -> object:
        return self._checked(value)

    def unpack(self, raw: object, payloads: Iterator[Buffer]) -> str:
        return self._checked(raw)

    def _checked(self, value: object) -> str:
        if type(value) is not str or value not in self.values:
            raise ValueError(f"must be one of {', '.join(self.values)}")
        return value


@dataclass(frozen=True)
class Int:
    """Integer in `low`..`high`."""

    low: int
    high: int

    def pack(self, value: int, payloads: list[Buffer]) -> object:
        return self._checked(int(value))

    def unpack(self, raw: object, payloads: Iterator[Buffer]) -> int:
        if type(raw) is not int:
            raise ValueError(f"must be an integer, not {type(raw).__name__}")
        return self._checked(raw)

    def _checked(self, value: int) -> int:
        if not self.low <= value <= self.high:
            raise ValueError(f"must be {self.low} to {self.high}, is {value}")
        return value


@dataclass(frozen=True)
class Float:
    """Finite float in `low`..`high`; integers are accepted."""

    low: float
    high: float

    def pack(self, value: float, payloads: list[Buffer]) -> object:
        return self._checked(float(value))

    def unpack(self, raw: object, payloads: Iterator[Buffer]) -> float:
        if type(raw) is not float and type(raw) is not int:
            raise ValueError(f"must be a number, not {type(raw).__name__}")
        return self._checked(raw)

    def _checked(self, value: float) -> float:
        if not self.low <= value <= self.high or math.isnan(value):
            raise ValueError(f"must be {self.low} to {self.high}, is {value}")
        return float(value)


@dataclass(frozen=True)
class Bool:
    """True or false."""

    def pack(self, value: bool, payloads: list[Buffer]) -> object:
        return bool(value)

    def unpack(self, raw: object, payloads: Iterator[Buffer]) -> bool:
        if type(raw) is not bool:
            raise ValueError(f"must be true or false, not {type(raw).__name__}")
        return raw


@dataclass(frozen=True)
class Many:
    """Tuple of at most `high` values of one scalar codec."""

    item: Codec
    high: int

    def pack(self, value: Sequence[object], payloads: list[Buffer]) -> object:
        self._check_length(len(value))
        return [self.item.pack(v, payloads) for v in value]

    def unpack(self, raw: object, payloads: Iterator[Buffer]) -> tuple[object, ...]:
        if type(raw) is not list:
            raise ValueError(f"must be an array, not {type(raw).__name__}")
        self._check_length(len(raw))
        return tuple(self.item.unpack(v, payloads) for v in raw)

    def _check_length(self, length: int) -> None:
        if length > self.high:
            raise ValueError(f"must have at most {self.high} entries, has {length}")


@dataclass(frozen=True)
class Record:
    """A nested row of scalars: `make(*values)` on receipt, a tuple-like on sending."""

    fields: tuple[Codec, ...]
    make: Callable[..., tuple[object, ...]]

    def pack(self, value: Sequence[object], payloads: list[Buffer]) -> object:
        return [codec.pack(v, payloads) for codec, v in zip(self.fields, value, strict=True)]

    def unpack(self, raw: object, payloads: Iterator[Buffer]) -> tuple[object, ...]:
        if type(raw) is not list or len(raw) != len(self.fields):
            raise ValueError(f"must be an array of {len(self.fields)} fields")
        return self.make(*(codec.unpack(v, payloads) for codec, v in zip(self.fields, raw, strict=True)))


_DTYPES: dict[str, np.dtype[Any]] = {
    "i4": np.dtype("<i4"),
    "i2": np.dtype("<i2"),
    "f2": np.dtype("<f2"),
    "f4": np.dtype("<f4"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Array:
    """Little-endian array of one of `dtypes`, shape (rows,) or (rows, `columns`), as a payload frame.

    In the body: ``[dtype, rows]``. A received array is a read-only view of the frame: nothing is copied.
    """

    dtypes: tuple[str, ...]
    high: int
    columns: int = 0

    def pack(self, value: npt.NDArray[Any], payloads: list[Buffer]) -> object:
        name = _NAMES.get(value.dtype)
        shape = (len(value), self.columns) if self.columns else (len(value),)
        if name not in self.dtypes or value.shape != shape or len(value) > self.high:
            raise ValueError(f"cannot send an array of {value.dtype} {value.shape}")
        payloads.append(np.ascontiguousarray(value).data.cast("B") if value.size else b"")
        return [name, len(value)]

    def unpack(self, raw: object, payloads: Iterator[Buffer]) -> npt.NDArray[Any]:
        if type(raw) is not list or len(raw) != 2:
            raise ValueError("must be [dtype, rows]")
        name, rows = raw
        if type(name) is not str or name not in self.dtypes:
            raise ValueError(f"must have dtype {' or '.join(self.dtypes)}")
        if type(rows) is not int or not 0 <= rows <= self.high:
            raise ValueError(f"must have 0 to {self.high} rows")
        frame = _next_payload(payloads)
        dtype = _DTYPES[name]
        width = self.columns or 1
        if len(frame) != rows * width * dtype.itemsize:
            raise ValueError(f"payload has {len(frame)} bytes, its description says {rows * width * dtype.itemsize}")
        flat: npt.NDArray[Any] = np.frombuffer(frame, dtype)
        return flat.reshape(rows, self.columns) if self.columns else flat


@dataclass(frozen=True)
class Blob:
    """At most `high` raw bytes, as a payload frame; the body holds their number."""

    high: int

    def pack(self, value: Buffer, payloads: list[Buffer]) -> object:
        if len(value) > self.high:
            raise ValueError(f"must have at most {self.high} bytes, has {len(value)}")
        payloads.append(value)
        return len(value)

    def unpack(self, raw: object, payloads: Iterator[Buffer]) -> bytes:
        frame = _next_payload(payloads)
        if type(raw) is not int or raw != len(frame) or raw > self.high:
            raise ValueError(f"payload has {len(frame)} bytes, its description says {raw} (limit {self.high})")
        return bytes(frame)


def _next_payload(payloads: Iterator[Buffer]) -> Buffer:
    frame = next(payloads, None)
    if frame is None:
        raise ValueError("its payload frame is missing")
    return frame


U16 = Annotated[int, Int(0, 2**16 - 1)]
U32 = Annotated[int, Int(0, 2**32 - 1)]
U63 = Annotated[int, Int(0, 2**63 - 1)]
Flag = Annotated[bool, Bool()]
