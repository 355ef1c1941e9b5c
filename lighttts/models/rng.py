"""Counter-based random numbers: every number is a pure function of (seed, counter, stream).

A stateful generator ties a number to how many were drawn before it, hence to the batch, the worker and the hop
boundaries. Here request `seed`, position `counter` and purpose `stream` name the number, so a resumed or moved request
continues with the numbers it would have had. The generator is SplitMix64 (Steele, Lea, Flood: "Fast Splittable
Pseudorandom Number Generators", OOPSLA 2014; finaliser: Stafford's variant 13), which visits its states by counter.

Only integer tensor operations decide the bits: `uniform` is bit-equal on CPU and CUDA; `normal` passes them through
`log` and `cos`, which differ between devices in the last place. Nothing here reads a value back to the host, so all of
it can be captured in a CUDA graph.
"""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from torch import Tensor


class Stream(IntEnum):
    """What a request's numbers are drawn for. Two purposes never share a stream."""

    NUCLEUS = 0
    REPETITION = 1
    VOCODER_PHASE = 2
    VOCODER_NOISE = 3


def _signed(value: int) -> int:
    """The int64 that has the bits of the unsigned 64-bit `value`."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)
_STREAM_STEP = _signed(0xD1B54A32D192ED03)

_MANTISSA = 23
"""Bits of a uniform number: with the half step that keeps it off 0, float32 holds 23 exactly and so never reaches 1."""


def _xor_shift(z: Tensor, bits: int) -> Tensor:
    """z ^= z >>> bits, in place. int64 shifts arithmetically: the mask drops the copies of the sign."""
    return z.bitwise_xor_((z >> bits).bitwise_and_((1 << (64 - bits)) - 1))


def _finalise(z: Tensor) -> Tensor:
    """SplitMix64's output function on int64 bits, in place."""
    _xor_shift(z, 30).mul_(_MIX_1)
    _xor_shift(z, 27).mul_(_MIX_2)
    return _xor_shift(z, 31)


def _bits(seed: Tensor, counter: Tensor, stream: int) -> Tensor:
    """64 random bits (int64) for each element of the broadcast of `seed` and `counter`."""
    # The seed is mixed before the stream is added and again after it, so that neighbouring seeds, or a seed and a
    # stream that add up to the same, do not start SplitMix64 at neighbouring states.
    key = _finalise(_finalise(seed.long() + _GAMMA).add_(_signed((stream + 1) * _STREAM_STEP & (1 << 64) - 1)))
    return _finalise(counter.long() * _GAMMA + key)


def _to_unit(bits: Tensor) -> Tensor:
    """Low 23 bits as float32 in the open interval (0, 1). Works in place on `bits`."""
    return bits.bitwise_and_((1 << _MANTISSA) - 1).float().add_(0.5).mul_(2.0**-_MANTISSA)


def uniform(seed: Tensor, counter: Tensor, stream: int) -> Tensor:
    """Uniform float32 numbers in the open interval (0, 1), 23 bits each.

    `seed` and `counter` are integer tensors on one device that broadcast against each other; the result has their
    broadcast shape. `stream` is a `Stream`, 0 or more.
    """
    return _to_unit(_bits(seed, counter, stream).bitwise_right_shift_(64 - _MANTISSA))


def normal(seed: Tensor, counter: Tensor, stream: int) -> Tensor:
    """Standard normal float32 numbers (Box and Muller 1958), cut off at 5.8 by the resolution of the uniform ones.

    Arguments and shape as in `uniform`; the numbers are independent of `uniform`'s only on another stream.
    """
    bits = _bits(seed, counter, stream)
    radius = _to_unit(bits >> (64 - _MANTISSA)).log_().mul_(-2.0).sqrt_()
    return torch.cos(_to_unit(bits).mul_(2.0 * math.pi)).mul_(radius)
