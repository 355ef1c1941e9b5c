"""Streaming vocoder: mel in hops to audio in hops.

The convolutions of CosyVoice2's HiFT look to both sides, so a hop's last frames are computed without what follows them.
As upstream's `token2wav` does, those `OVERLAP` frames are held back, computed again with the next hop, and cross-faded
with a Hamming window; the excitation of the frames held back is kept, so that both versions ring on the same source.
CosyVoice3's are causal: what they saw last is kept, and there is nothing to fade. A request's state is a value of its
own; the model holds none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from lighttts.models.causal_hift import CausalHiFTGenerator
from lighttts.models.conv_past import Past
from lighttts.models.hift import Generator, HiFTGenerator
from lighttts.models.rng import Stream, normal, uniform
from lighttts.models.source import Onset

OVERLAP = 8
"""Mel frames held back at the end of a hop."""


@dataclass(frozen=True)
class VocoderState:
    """What is held back of one request by CosyVoice2's vocoder. Immutable.

    `mel`: (OVERLAP, bins); `source`, `audio`: (OVERLAP x samples a frame,); `phase`: (harmonics + 1,) float64, where
    the excitation stopped; `first`: frame of the request that `mel` starts with.
    `lighttts.engine.vocoder_holding` has one of CosyVoice3's too.
    """

    mel: Tensor
    source: Tensor
    audio: Tensor
    phase: Tensor
    first: int


@dataclass(frozen=True)
class CausalVocoderState:
    """What CosyVoice3's vocoder keeps of one request. Immutable.

    `tails`: as `lighttts.models.conv_past.Past` has them, without the rows; `pitched`: frames whose pitch is known.
    """

    tails: tuple[Tensor, ...]
    pitched: int


State: TypeAlias = VocoderState | CausalVocoderState


@dataclass(frozen=True)
class VocoderHop:
    """New mel frames of one request, `mel` (frames, bins): at least 2, and more than are held back unless `final`.

    `seed` keys the noise of the excitation, whose phase goes on from hop to hop. With None there is no noise:
    upstream's vocoder with its random numbers set to zero, for comparison with it. CosyVoice2's phase then starts anew
    with each hop, and the two weights of its cross-fade add up to 1.08; otherwise they are scaled to add up to 1.
    """

    state: State | None
    mel: Tensor
    final: bool
    seed: int | None

    @property
    def held(self) -> VocoderState | None:
        """What is held back of the hop before as frames, to be computed again."""
        return self.state if isinstance(self.state, VocoderState) else None


@dataclass(frozen=True)
class VocoderResult:
    """`audio`: float32 (samples,), the samples that follow those of the last hop. `state` is None after the last."""

    audio: Tensor
    state: State | None


def vocode(model: Generator, hops: Sequence[VocoderHop]) -> list[VocoderResult]:
    """Audio of each hop, in the order of `hops`.

    Hops of one length are computed together. Different lengths are not padded to one: the convolutions would carry
    the padding into the audio. On a CPU each hop is computed alone: a batch is slower there, as it leaves the caches.
    """
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    alone = model.device.type == "cpu"
    for index, hop in enumerate(hops):
        kind = hop.state is None, hop.final, hop.seed is None
        groups[hop.mel.size(0), kind, index if alone else 0].append(index)
    results: dict[int, VocoderResult] = {}
    for members in groups.values():
        even = [hops[index] for index in members]
        made = _vocode_causal(model, even) if isinstance(model, CausalHiFTGenerator) else _vocode_even(model, even)
        results.update(zip(members, made, strict=True))
    return [results[index] for index in range(len(hops))]


def _vocode_causal(model: CausalHiFTGenerator, hops: Sequence[VocoderHop]) -> list[VocoderResult]:
    states = [hop.state for hop in hops if isinstance(hop.state, CausalVocoderState)]
    assert all(hop.held is None for hop in hops)
    past = Past([torch.stack(tails) for tails in zip(*(state.tails for state in states), strict=True)] or None)
    mel, final = torch.stack([hop.mel for hop in hops]), hops[0].final
    f0 = model.pitch(mel, past, final=final)
    firsts = [state.pitched for state in states] or [0] * len(hops)
    phase = torch.zeros(len(hops), model.config.source.harmonics + 1, 1, dtype=torch.float64, device=f0.device)
    seeds = [hop.seed for hop in hops if hop.seed is not None]
    noise = _harmonic_noise(model, f0, seeds, firsts) if seeds else None
    source, phase = model.m_source.follow(f0, noise, past.recall(phase))
    past.kept.append(phase)
    audio = model.decode(mel, source, past, final=final)
    if final:
        return [VocoderResult(audio[row], None) for row in range(len(hops))]
    results = []
    for row, first in enumerate(firsts):
        tails = tuple(tail[row].clone() for tail in past.kept)
        results.append(VocoderResult(audio[row], CausalVocoderState(tails, first + f0.size(1))))
    return results


def _harmonic_noise(model: CausalHiFTGenerator, f0: Tensor, seeds: Sequence[int], firsts: Sequence[int]) -> Tensor:
    """One number from 0 to 1 for each harmonic and sample of each row (rows, harmonics + 1, samples)."""
    samples, harmonics = f0.size(1) * model.config.source.frame, model.config.source.harmonics + 1
    keys = torch.tensor([as_int64(seed) for seed in seeds], device=f0.device)[:, None, None]
    starts = torch.tensor(firsts, device=f0.device)[:, None, None] * model.config.source.frame
    numbers = starts + torch.arange(samples, device=f0.device)
    return uniform(keys, numbers * harmonics + torch.arange(harmonics, device=f0.device)[:, None], Stream.VOCODER_NOISE)


def _vocode_even(model: HiFTGenerator, hops: Sequence[VocoderHop]) -> list[VocoderResult]:
    states = [hop.held for hop in hops if hop.held is not None]
    mel = torch.stack([hop.mel for hop in hops])
    if states:
        mel = torch.cat([torch.stack([state.mel for state in states]), mel], dim=1)
    f0 = model.pitch(mel)
    source, phases = _excite(model, f0, hops, states)
    audio = model.decode(mel, source)
    held = OVERLAP * model.config.source.frame
    if states:
        faded = cross_fade(torch.stack([state.audio for state in states]), audio[:, :held], hops[0].seed is not None)
        audio = torch.cat([faded, audio[:, held:]], dim=1)
    results = []
    for row, hop in enumerate(hops):
        if hop.final:
            results.append(VocoderResult(audio[row], None))
            continue
        state = VocoderState(
            mel=mel[row, -OVERLAP:].clone(),
            source=source[row, -held:].clone(),
            audio=audio[row, -held:].clone(),
            phase=phases[row].clone(),
            first=_first(hop) + mel.size(1) - OVERLAP,
        )
        results.append(VocoderResult(audio[row, :-held], state))
    return results


def _first(hop: VocoderHop) -> int:
    return 0 if hop.held is None else hop.held.first


def _excite(
    model: HiFTGenerator, f0: Tensor, hops: Sequence[VocoderHop], states: Sequence[VocoderState]
) -> tuple[Tensor, Tensor]:
    """Excitation (rows, samples), what was held back first, and its last phase (rows, harmonics + 1)."""
    phases = torch.zeros(len(hops), model.config.source.harmonics + 1, dtype=torch.float64, device=f0.device)
    seeds = [hop.seed for hop in hops if hop.seed is not None]
    if seeds:
        if states:
            phases = torch.stack([state.phase for state in states])
        onset = Onset(phases, OVERLAP if states else 0)
        source, phases = model.m_source.onwards(f0, _noise(model, f0, seeds, [_first(hop) for hop in hops]), onset)
    else:
        source = model.m_source(f0, None)
    if states:
        held = torch.stack([state.source for state in states])
        source = torch.cat([held, source[:, held.size(1) :]], dim=1)
    return source, phases


def _noise(model: HiFTGenerator, f0: Tensor, seeds: Sequence[int], firsts: Sequence[int]) -> Tensor:
    """The noise of each row's samples (rows, samples), numbered from the request's first sample."""
    frame = model.config.source.frame
    keys = torch.tensor([as_int64(seed) for seed in seeds], device=f0.device)[:, None]
    starts = torch.tensor(firsts, device=f0.device)[:, None] * frame
    return normal(keys, starts + torch.arange(f0.size(1) * frame, device=f0.device), Stream.VOCODER_NOISE)


def as_int64(seed: int) -> int:
    """The int64 that has the bits of a seed of up to 64 bits."""
    seed &= (1 << 64) - 1
    return seed - (1 << 64) if seed >= 1 << 63 else seed


def cross_fade(old: Tensor, new: Tensor, level: bool) -> Tensor:
    """`old` fading out under `new` fading in: halves of a Hamming window, with `level` scaled to add up to 1."""
    fade_in, fade_out = fades(new.size(1), new.device, level)
    return new * fade_in.to(new.dtype) + old * fade_out.to(new.dtype)


def fades(samples: int, device: torch.device, level: bool = True) -> tuple[Tensor, Tensor]:
    """The weights (samples,) in float64 of what fades in and of what fades out."""
    window = torch.hamming_window(2 * samples, periodic=False, dtype=torch.float64, device=device)
    fade_in, fade_out = window.chunk(2)
    total = fade_in + fade_out if level else torch.ones_like(fade_in)
    return fade_in / total, fade_out / total
