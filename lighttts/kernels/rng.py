"""The counter-based random bits of `lighttts.models.rng` in Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from lighttts.models.rng import Stream


def stream_key(stream: Stream) -> tl.constexpr:
    """What `lighttts.models.rng` adds to the mixed seed for a stream."""
    return tl.constexpr((stream + 1) * 0xD1B54A32D192ED03 % (1 << 64))


@triton.jit
def _finalise(z):
    """SplitMix64's output function on uint64."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit
def random_bits(seed, counter, STREAM: tl.constexpr):
    """64 random bits for uint64 `seed` and `counter` and a `stream_key`."""
    key = _finalise(_finalise(seed + 0x9E3779B97F4A7C15) + STREAM)
    return _finalise(counter * 0x9E3779B97F4A7C15 + key)
