"""Other speakers out of the one the teacher has: mild shifts of pitch and formants, timing changed by the pitch factor.

Pitch is moved by resampling, which moves the formants as much; the formants are then put where they should be by
warping the spectral envelope (a liftered cepstrum) of each frame. Factors of 0.85 to 1.08 keep the speech intelligible.

``python -m training.warp --store DATA --out WARPED`` writes one part a speaker, each from another part of DATA, so that
the speakers' sentences differ too.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.features import Resample
from training.store import FRAME, SAMPLE_RATE, Store, Utterance, part_names, write_part

PITCHES = (0.86, 0.90, 0.94, 1.0, 1.07)
FORMANTS = (0.86, 0.90, 0.95, 1.0, 1.05)
SPEAKERS = tuple((p, f) for p, f in product(PITCHES, FORMANTS) if (p, f) != (1.0, 1.0))
UNIT = 64  # pitch factors are rounded to 1/64 so that resampling is by small integers
FFT, HOP, LIFTER = (
    1024,
    256,
    56,
)  # a cepstrum of 56 samples (2.3 ms) is the envelope: shorter than any pitch period here


def warp(audio: Tensor, pitch: float, formant: float) -> Tensor:
    """Audio [N] float32, 24 kHz -> [about N / pitch], its pitch times `pitch` and its formants times `formant`."""
    down = round(UNIT * pitch)
    audio = Resample(UNIT, down).to(audio.device)(audio[None])[0]
    ratio = formant * UNIT / down
    window = torch.hann_window(FFT, device=audio.device)
    spectrum = torch.stft(audio, FFT, HOP, window=window, return_complex=True)
    envelope = _envelope(spectrum.abs())
    bins = torch.arange(envelope.shape[0], device=audio.device) / ratio
    below = bins.floor().long().clamp(max=envelope.shape[0] - 2)
    share = (bins - below).clamp(0, 1)[:, None]
    moved = torch.lerp(envelope[below], envelope[below + 1], share)
    return torch.istft(spectrum * torch.exp(moved - envelope), FFT, HOP, window=window, length=len(audio))


def _envelope(magnitude: Tensor) -> Tensor:
    """Smooth log-magnitude over frequency, [bins, frames]: the cepstrum cut off above `LIFTER`."""
    cepstrum = torch.fft.irfft(torch.log(magnitude + 1e-5), dim=0)
    cepstrum[LIFTER + 1 : -LIFTER] = 0
    smooth: Tensor = torch.fft.rfft(cepstrum, dim=0).real
    return smooth


def warp_utterance(pcm: Tensor, f0: np.ndarray, sentence: int, pitch: float, formant: float) -> Utterance:
    """A warped copy for the store. Phonemes and their durations are not kept: one phoneme 0 spans the utterance."""
    audio = warp(pcm.float() / 32768.0, pitch, formant)
    frames = len(audio) // FRAME
    quantised = (audio[: frames * FRAME].clamp(-1, 1) * 32767).round().to(torch.int16).cpu().numpy()
    source = (np.arange(frames) * len(f0) / max(frames, 1)).astype(np.int64)
    contour = (f0[source].astype(np.float32) * pitch).astype(np.float16)
    return Utterance(sentence, quantised, np.zeros(1, np.uint8), np.array([frames], np.uint16), contour)


def speaker_name(pitch: float, formant: float) -> str:
    return f"p{round(pitch * 100):03d}-f{round(formant * 100):03d}"


def warp_part(store: Store, minutes: float, pitch: float, formant: float, device: torch.device) -> list[Utterance]:
    """The first `minutes` of a part, warped."""
    pcm = torch.from_numpy(store.pcm()).to(device)
    chosen = np.flatnonzero(store.start[1:] <= minutes * 60 * SAMPLE_RATE)
    return [
        warp_utterance(
            pcm[int(store.start[i]) : int(store.start[i + 1])],
            store.f0_of(int(i)),
            int(store.sentence[i]),
            pitch,
            formant,
        )
        for i in chosen
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30.0, help="of each speaker")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    names = part_names(arguments.store)
    for k, (pitch, formant) in enumerate(SPEAKERS):
        part = Store.open(arguments.store, [names[k % len(names)]])
        utterances = warp_part(part, arguments.minutes, pitch, formant, torch.device(arguments.device))
        write_part(arguments.out, speaker_name(pitch, formant), utterances)


if __name__ == "__main__":
    main()
