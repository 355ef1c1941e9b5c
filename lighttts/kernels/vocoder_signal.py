"""What surrounds the vocoder's convolutions as Triton kernels: excitation, its spectra, audio from spectra.

Each is the operation of that name in `lighttts.engine.vocoder_ops`, or a part of it. `frames`, `held`, `first` and
`seed` are columns of one matrix of integers, `numbers` of them a row. Programs beyond a row's end do nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lighttts.kernels.rng import random_bits, stream_key
from lighttts.models.rng import Stream

_NOISE = stream_key(Stream.VOCODER_NOISE)
_TURNS = tl.constexpr(0.15915494309189535)
"""Turns of a radian."""


@triton.jit
def half_turn_sine(u):
    """sin(pi u) to 1e-7, for |u| up to 1/2."""
    s = u * u
    p = 0.07722012894930723 * s - 0.598045174120621
    p = p * s + 2.5500313772803977
    p = p * s - 5.167706878926398
    p = p * s + 3.141592580044727
    return u * p


@triton.jit
def sine_squared(half_turns):
    """sin(pi x)^2 of any number."""
    sine = half_turn_sine(half_turns - tl.floor(half_turns + 0.5))
    return sine * sine


@triton.jit
def sine(turns):
    """sin(2 pi x) of any number."""
    u = 2 * (turns - tl.floor(turns + 0.5))
    u = tl.where(u > 0.5, 1 - u, u)
    return half_turn_sine(tl.where(u < -0.5, -1 - u, u))


@triton.jit
def _uniform(bits):
    """`lighttts.models.rng.uniform` of 64 random bits."""
    return ((bits >> 41).to(tl.int32).to(tl.float32) + 0.5) * 1.1920928955078125e-07


@triton.jit
def _tanh(x):
    falling = tl.exp(-2 * tl.abs(x))
    return tl.where(x < 0, -1.0, 1.0) * (1 - falling) / (1 + falling)


@triton.jit
def _normal(seed, counter):
    """`lighttts.models.rng.normal` of the vocoder's noise, for uint64 `seed` and `counter`."""
    bits = random_bits(seed, counter, _NOISE)
    high = _uniform(bits)
    low = ((bits & 0x7FFFFF).to(tl.int32).to(tl.float32) + 0.5) * 1.1920928955078125e-07
    return (1 - 2 * sine_squared(low)) * tl.sqrt(-2.0 * tl.log(high))


@triton.jit
def bend(hidden, bias, frames, numbers, longest, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """ELU of `hidden` (rows, CHANNELS, frames) + `bias` in its place, zero beyond each row's end.

    Grid: blocks of numbers, rows. All of a row is written: the convolution that reads it knows no end.
    """
    row, at = tl.program_id(1), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < CHANNELS * longest
    exists = inside & (at % longest < tl.load(frames + row * numbers).to(tl.int32))
    cells = hidden + row * (CHANNELS * longest) + at
    value = tl.load(cells, exists, other=0) + tl.load(bias + at // longest, exists, other=0)
    value = tl.where(value > 0, value, tl.exp(value) - 1)
    tl.store(cells, tl.where(exists, value, 0.0), inside)


@triton.jit
def read_pitch(hidden, weight, bias, frames, f0, numbers, longest,
               CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """|`weight` . `hidden` (rows, CHANNELS, frames) + `bias`|. Grid: blocks of frames, rows."""
    row, block = tl.program_id(1), tl.program_id(0)
    if block * BLOCK >= tl.load(frames + row * numbers).to(tl.int32):
        return
    at, channel = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, BLOCK_C)
    sums = tl.zeros((BLOCK_C, BLOCK), tl.float32)
    for begin in range(0, CHANNELS, BLOCK_C):
        known = begin + channel < CHANNELS
        cells = hidden + (row * CHANNELS + begin + channel[:, None]) * longest + at[None, :]
        value = tl.load(cells, known[:, None] & (at < longest)[None, :], other=0)
        sums += value * tl.load(weight + begin + channel, known, other=0)[:, None]
    tl.store(f0 + row * longest + at, tl.abs(tl.sum(sums, 0) + tl.load(bias)), at < longest)


@triton.jit
def sum_phases(f0, frames, held, start, rates, cycles, end, numbers, longest, sample_rate, share,
               FRAME: tl.constexpr, UNHEARD: tl.constexpr, T: tl.constexpr):  # fmt: skip
    """Cycles a sample, and cycles within the frames modulo 1, of a row's harmonic; and at its end less UNHEARD frames.

    `share`: where in a frame, 0.5 for its centre, 1 for its end. Grid: rows, harmonics + 1. Outputs (rows,
    harmonics + 1, frames) float32 and (rows, harmonics + 1) float64.
    """
    row, order = tl.program_id(0), tl.program_id(1)
    count = tl.load(frames + row * numbers).to(tl.int32)
    if count == 0:
        return
    at = tl.arange(0, T)
    # Beyond the end the last frame's pitch goes on.
    pitch = tl.load(f0 + row * longest + tl.minimum(at, count - 1))
    rate = tl.div_rn(pitch * (order + 1).to(tl.float32), sample_rate)
    rate = rate - tl.floor(rate)
    step = rate.to(tl.float64) * FRAME
    sums = tl.cumsum(step, 0)
    onset = tl.load(held + row * numbers).to(tl.int32)
    known = tl.sum(tl.where(at == onset, sums - share * step, 0.0), 0)
    harmonic = row * tl.num_programs(1) + order
    centres = sums + (tl.load(start + harmonic) - known)
    tl.store(rates + harmonic * longest + at, rate, at < longest)
    tl.store(cycles + harmonic * longest + at, (centres - tl.floor(centres)).to(tl.float32), at < longest)
    last = tl.sum(tl.where(at == count - 1 - UNHEARD, centres + (1 - share) * step, 0.0), 0)
    tl.store(end + harmonic, last - tl.floor(last))


@triton.jit
def excite(f0, rates, cycles, merge, frames, held, first, seed, kept, source, numbers, longest,
           voiced_above, voiced_noise, unvoiced_noise,
           FRAME: tl.constexpr, HARMONICS: tl.constexpr, HELD: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Harmonics, noise and their merging to one excitation. Grid: blocks of samples, rows.

    `merge`: each harmonic's weight times its amplitude, the weights' norm, the bias. `kept` (rows, HELD) goes first in
    rows that hold something back.
    """
    row, block = tl.program_id(1), tl.program_id(0)
    count = tl.load(frames + row * numbers).to(tl.int32)
    if block * BLOCK >= count * FRAME:
        return
    sample = block * BLOCK + tl.arange(0, BLOCK)
    inside = sample < count * FRAME
    at = tl.minimum(sample // FRAME, count - 1)
    after = tl.minimum(at + 1, count - 1)
    offset = (sample % FRAME).to(tl.float32) + (0.5 - FRAME / 2)
    early, late = tl.minimum(offset, 0.0), tl.maximum(offset, 0.0)
    voiced = tl.load(f0 + row * longest + at) > voiced_above
    merged = tl.zeros((BLOCK,), tl.float32)
    for order in tl.static_range(HARMONICS + 1):
        harmonic = (row * (HARMONICS + 1) + order) * longest
        turns = tl.load(cycles + harmonic + at)
        turns += tl.load(rates + harmonic + at) * early + tl.load(rates + harmonic + after) * late
        merged += tl.load(merge + order) * sine(turns)
    number = (tl.load(first + row * numbers) * FRAME + sample).to(tl.uint64)
    noise = _normal(tl.load(seed + row * numbers).to(tl.uint64, bitcast=True), number)
    spread = tl.where(voiced, voiced_noise, unvoiced_noise) * tl.load(merge + HARMONICS + 1)
    made = _tanh(tl.where(voiced, merged, 0.0) + noise * spread + tl.load(merge + HARMONICS + 2))
    again = sample < tl.load(held + row * numbers).to(tl.int32) * FRAME
    made = tl.where(again, tl.load(kept + row * HELD + sample, again, other=0), made)
    tl.store(source + row * longest * FRAME + sample, made, inside)


@triton.jit
def excite_stepped(f0, cycles, merge, frames, held, first, seed, kept, source, numbers, longest,
                   voiced_above, voiced_noise, unvoiced_noise,
                   FRAME: tl.constexpr, HARMONICS: tl.constexpr, HELD: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """As `excite`, for a phase that stands still within a frame, and a uniform number for each harmonic and sample."""
    row, block = tl.program_id(1), tl.program_id(0)
    count = tl.load(frames + row * numbers).to(tl.int32)
    if block * BLOCK >= count * FRAME:
        return
    sample = block * BLOCK + tl.arange(0, BLOCK)
    inside = sample < count * FRAME
    at = tl.minimum(sample // FRAME, count - 1)
    merged, noise = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    key = tl.load(seed + row * numbers).to(tl.uint64, bitcast=True)
    number = (tl.load(first + row * numbers) * FRAME + sample).to(tl.uint64) * (HARMONICS + 1)
    for order in tl.static_range(HARMONICS + 1):
        weight = tl.load(merge + order)
        merged += weight * sine(tl.load(cycles + (row * (HARMONICS + 1) + order) * longest + at))
        noise += weight * _uniform(random_bits(key, number + order, _NOISE))
    voiced = tl.load(f0 + row * longest + at) > voiced_above
    spread = tl.where(voiced, voiced_noise, unvoiced_noise)
    made = _tanh(tl.where(voiced, merged, 0.0) + noise * spread + tl.load(merge + HARMONICS + 2))
    again = sample < tl.load(held + row * numbers).to(tl.int32) * FRAME
    made = tl.where(again, tl.load(kept + row * HELD + sample, again, other=0), made)
    tl.store(source + row * longest * FRAME + sample, made, inside)


@triton.jit
def analyse(source, basis, frames, spectra, numbers, samples, length, before, FRAME: tl.constexpr, HOP: tl.constexpr,
            SIZE: tl.constexpr, WIDTH: tl.constexpr, SPARE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Spectra (rows, `length`, WIDTH), the first centred at position `before`. Grid: blocks of positions, rows.

    `source` (rows, `samples`) is mirrored at both ends. `basis` (SIZE, WIDTH). What is less than SPARE positions beyond
    a row's end, or before its beginning, is zero.
    """
    row, block = tl.program_id(1), tl.program_id(0)
    count = tl.load(frames + row * numbers).to(tl.int32)
    end = count * FRAME
    centres = end // HOP
    if (count == 0) | (block * BLOCK > before + centres + SPARE):
        return
    position = block * BLOCK + tl.arange(0, BLOCK)
    centre = position - before
    exists = (centre >= 0) & (centre <= centres)
    column = tl.arange(0, WIDTH)
    sums = tl.zeros((BLOCK, WIDTH), tl.float32)
    for tap in tl.static_range(SIZE):
        sample = tl.abs(centre * HOP + (tap - SIZE // 2))
        sample = tl.where(sample >= end, 2 * (end - 1) - sample, sample)
        signal = tl.load(source + row * samples + sample, exists, other=0)
        sums += signal[:, None] * tl.load(basis + tap * WIDTH + column)[None, :]
    tl.store(spectra + (row * length + position[:, None]) * WIDTH + column[None, :], sums, (position < length)[:, None])


@triton.jit
def synthesise(layer, real, imaginary, energy, fades, old, frames, held, audio, numbers, samples, largest, limit,
               FRAME: tl.constexpr, HOP: tl.constexpr, BINS: tl.constexpr, OVERLAPS: tl.constexpr, HELD: tl.constexpr,
               WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Audio (rows, `samples`) from log magnitudes and phases, and its cross-fade. Grid: blocks of hops, rows.

    `layer` (rows, `samples` / HOP + 1, 2 x BINS). A sample is under the windows of OVERLAPS spectra, whose bases `real`
    and `imaginary` (BINS, OVERLAPS x HOP) and whose `energy` (OVERLAPS x HOP,) is. `fades` (2, HELD): in, then out.
    """
    row, block = tl.program_id(1), tl.program_id(0)
    count = tl.load(frames + row * numbers).to(tl.int32)
    centres = count * FRAME // HOP
    if block * BLOCK >= centres:
        return
    group = block * BLOCK + tl.arange(0, BLOCK)
    column, bin = tl.arange(0, HOP), tl.arange(0, WIDTH)
    sums = tl.zeros((BLOCK, HOP), tl.float32)
    weight = tl.zeros((BLOCK, HOP), tl.float32)
    for turn in tl.static_range(OVERLAPS):
        centre = group + (OVERLAPS // 2 - turn)
        exists = (centre >= 0) & (centre <= centres)
        cells = layer + (row * (samples // HOP + 1) + centre[:, None]) * (2 * BINS) + bin[None, :]
        known = exists[:, None] & (bin < BINS)[None, :]
        magnitude = tl.minimum(tl.exp(tl.load(cells, known, other=-float("inf"))), largest)
        phase = sine(tl.load(cells + BINS, known, other=0) * _TURNS)
        # The phase is a sine, hence at most a radian.
        up = magnitude * (1 - 2 * sine_squared(phase * _TURNS))
        side = magnitude * half_turn_sine(phase * (2 * _TURNS))
        place = bin[:, None] * (OVERLAPS * HOP) + turn * HOP + column[None, :]
        cosines = tl.load(real + place, (bin < BINS)[:, None], other=0)
        sines = tl.load(imaginary + place, (bin < BINS)[:, None], other=0)
        sums += tl.sum(up[:, :, None] * cosines[None, :, :] + side[:, :, None] * sines[None, :, :], 1)
        weight += tl.where(exists[:, None], tl.load(energy + turn * HOP + column)[None, :], 0.0)
    sample = group[:, None] * HOP + column[None, :]
    made = tl.minimum(tl.maximum(sums / tl.maximum(weight, 1e-8), -limit), limit)
    if HELD > 0:
        again = sample < tl.load(held + row * numbers).to(tl.int32) * FRAME
        fade_in = tl.load(fades + sample, again, other=1)
        fade_out = tl.load(fades + HELD + sample, again, other=0)
        made = made * fade_in + tl.load(old + row * HELD + sample, again, other=0) * fade_out
    tl.store(audio + row * samples + sample, made, (group < centres)[:, None])


@triton.jit
def hold(source, audio, mel, frames, kept, numbers, samples, longest,
         FRAME: tl.constexpr, KEPT: tl.constexpr, EXCITED: tl.constexpr, FADED: tl.constexpr, BINS: tl.constexpr,
         BLOCK: tl.constexpr):  # fmt: skip
    """Of the last KEPT frames the first EXCITED ones' source, the first FADED ones' audio, and the mel, side by side.

    Grid: blocks of numbers, rows. Of a row with fewer frames all are kept; what follows them is whatever was there.
    """
    row, block = tl.program_id(1), tl.program_id(0)
    count = tl.load(frames + row * numbers).to(tl.int32)
    width: tl.constexpr = (EXCITED + FADED) * FRAME + KEPT * BINS
    at = block * BLOCK + tl.arange(0, BLOCK)
    begin = tl.maximum(count - KEPT, 0)
    sample = begin * FRAME + at
    value = tl.load(source + row * samples + sample, (at < EXCITED * FRAME) & (sample < samples), other=0)
    sample -= EXCITED * FRAME
    sounds = (at >= EXCITED * FRAME) & (at < (EXCITED + FADED) * FRAME) & (sample < samples)
    value += tl.load(audio + row * samples + sample, sounds, other=0)
    number = begin * BINS + at - (EXCITED + FADED) * FRAME
    seen = (at >= (EXCITED + FADED) * FRAME) & (at < width) & (number < longest * BINS)
    value += tl.load(mel + row * longest * BINS + number, seen, other=0)
    tl.store(kept + row * width + at, value, at < width)
