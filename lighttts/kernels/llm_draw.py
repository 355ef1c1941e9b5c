"""Sampling of the language model as a Triton kernel: what `lighttts.models.sampling` and `rng` compute.

Tokens are equal to those of the torch code but where a draw falls within rounding of the boundary between two.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lighttts.kernels.rng import random_bits, stream_key
from lighttts.models.rng import Stream

_NUCLEUS = stream_key(Stream.NUCLEUS)
_REPETITION = stream_key(Stream.REPETITION)


@triton.jit
def _uniform(seed, counter, STREAM: tl.constexpr):
    """The number of `lighttts.models.rng.uniform`, as float64, for uint64 `seed` and `counter` and a `stream_key`."""
    bits = random_bits(seed, counter, STREAM) >> 41
    return (bits.to(tl.int32).to(tl.float64) + 0.5) * 1.1920928955078125e-07


@triton.jit
def _softmax(value):
    weight = tl.exp(value - tl.max(value, 0))
    return weight / tl.sum(weight, 0)


@triton.jit
def _fall(mass, draw):
    """The place at which `draw` falls when the float64 masses are laid end to end, never one without mass."""
    cumulative = tl.cumsum(mass, 0)
    return tl.sum((cumulative <= tl.max(cumulative, 0) * draw).to(tl.int64), 0)


@triton.jit
def draw(logits, slots, state, drawn, idle,
         COLUMNS: tl.constexpr, INPUT: tl.constexpr, POSITION: tl.constexpr, SEED: tl.constexpr, STEP: tl.constexpr,
         MINIMUM: tl.constexpr, HISTORY: tl.constexpr, WINDOW: tl.constexpr, W: tl.constexpr,
         VOCABULARY: tl.constexpr, V: tl.constexpr, END: tl.constexpr, TASK: tl.constexpr,
         TOP_P: tl.constexpr, TOP_K: tl.constexpr, T: tl.constexpr, REPEATS: tl.constexpr):  # fmt: skip
    """Draws a token for each row and advances its slot's state, but not that of the idle slot. Grid: rows."""
    row = tl.program_id(0)
    slot = tl.load(slots + row)
    mine = state + slot * COLUMNS
    position, step = tl.load(mine + POSITION), tl.load(mine + STEP)
    seed, minimum = tl.load(mine + SEED), tl.load(mine + MINIMUM)
    at = tl.arange(0, W)
    past = tl.load(mine + HISTORY + at, mask=at < WINDOW, other=-1)

    place = tl.arange(0, V)
    value = tl.load(logits + row * VOCABULARY + place, mask=place < VOCABULARY, other=-float("inf")).to(tl.float32)
    value = tl.where((place == END) & (step < minimum), -float("inf"), value)
    # Positive floats order as their bits do; the reversed index below them puts the lower of equals first.
    bits = _softmax(value).to(tl.int32, bitcast=True).to(tl.int64)
    left = tl.where(place < VOCABULARY, (bits << 32) | (V - 1 - place).to(tl.int64), -1)
    rank = tl.arange(0, T)
    top = tl.zeros([T], tl.int64)
    for turn in range(TOP_K):
        best = tl.max(left, 0)
        top = tl.where(rank == turn, best, top)
        left = tl.where(left == best, -1, left)
    tokens = V - 1 - (top & 0xFFFFFFFF)
    mass = (top >> 32).to(tl.int32).to(tl.float32, bitcast=True).to(tl.float64)
    before = tl.cumsum(mass, 0) - mass
    mass = tl.where(before < tl.full([], TOP_P, tl.float64), mass, 0.0)
    numbers, counter = seed.to(tl.uint64), step.to(tl.uint64)
    chosen = _fall(mass, _uniform(numbers, counter, _NUCLEUS))
    token = tl.sum(tl.where(rank == chosen, tokens, 0), 0)

    if tl.sum((past == token).to(tl.int32), 0) >= REPEATS:
        others = _softmax(tl.where(place == token, -float("inf"), value))
        token = _fall(others.to(tl.float64), _uniform(numbers, counter, _REPETITION))

    tl.store(drawn + row, token)
    # All threads have read the state before any of them writes it.
    tl.debug_barrier()
    if slot < idle:
        tl.store(mine + INPUT, token + TASK)
        tl.store(mine + POSITION, position + 1)
        tl.store(mine + STEP, step + 1)
        tl.store(mine + HISTORY + at - 1, past, mask=(at > 0) & (at < WINDOW))
        tl.store(mine + HISTORY + WINDOW - 1, token)
