"""The operations of a vocoder pass on a GPU, as Triton kernels: `lighttts.engine.vocoder_ops` says what they do.

What lies beyond a row's end is whatever was there; nothing reads it.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor, nn
from torch.nn import functional as F

from lighttts.engine.vocoder_causal import CausalPitch
from lighttts.engine.vocoder_holding import Holding
from lighttts.engine.vocoder_layers import Convolution, Finish, Made, Span
from lighttts.engine.vocoder_ops import SPECTRUM, Margins, Passed, Rows
from lighttts.kernels import vocoder_layers, vocoder_signal
from lighttts.models.causal_hift import CausalHiFTGenerator
from lighttts.models.f0 import without_tf32
from lighttts.models.hift import Generator
from lighttts.models.hift_layers import MAX_MAGNITUDE
from lighttts.models.hift_stream import fades

_SAMPLES = 1024
"""Samples of a program that makes excitation, or numbers of one that copies."""
_FRAMES = 16
"""Frames of a program that reads the pitch."""
_POSITIONS = 64
"""Spectra, or hops of audio, of a program."""


class TritonOps:
    """`VocoderOps` of either vocoder on a GPU, with CosyVoice2's pitch and excitation.

    `tf32`: what float32 convolutions round their factors to.
    """

    def __init__(self, model: Generator, *, tf32: bool = True) -> None:
        source, fourier = model.m_source, model.fourier
        self._config = model.config
        self._holding = Holding.of(model)
        self._tf32 = tf32
        self._pitch_layers = [layer for layer in model.f0_predictor.condnet if isinstance(layer, nn.Conv1d)]
        self._classifier = model.f0_predictor.classifier
        weight = source.l_linear.weight[0]
        self._merge = torch.cat([weight * source.config.amplitude, weight.norm()[None], source.l_linear.bias]).float()
        size, bins = fourier.size, fourier.size // 2 + 1
        self._analysis = torch.zeros(size, SPECTRUM, device=model.device)
        self._analysis[:, : size + 2] = fourier.analysis[:, 0].T
        self._real, self._imaginary = fourier.synthesis[:, 0].split(bins)
        self._energy = fourier.energy.flatten()
        self._fades = torch.stack(fades(self._holding.unheard * source.config.frame, model.device)).float()

    def pitch(self, rows: Rows) -> Tensor:
        (count, longest, _), numbers = rows.mel.shape, rows.frames.stride(0)
        hidden = rows.mel.transpose(1, 2)
        with without_tf32():
            for layer in self._pitch_layers:
                hidden = F.conv1d(hidden, layer.weight, padding=layer.padding[0]).contiguous()
                channels = hidden.size(1)
                vocoder_signal.bend[triton.cdiv(channels * longest, _SAMPLES), count](
                    hidden, layer.bias, rows.frames, numbers, longest, CHANNELS=channels, BLOCK=_SAMPLES
                )
        f0 = hidden.new_empty(count, longest)
        vocoder_signal.read_pitch[triton.cdiv(longest, _FRAMES), count](
            hidden, self._classifier.weight, self._classifier.bias, rows.frames, f0, numbers, longest,
            CHANNELS=channels, BLOCK_C=64, BLOCK=_FRAMES,
        )  # fmt: skip
        return f0

    def excite(self, rows: Rows, f0: Tensor) -> tuple[Tensor, Tensor]:
        source, longest, numbers = self._config.source, f0.size(1), rows.frames.stride(0)
        rates, cycles, end = self._phases(rows, f0, 0.5, 0)
        made = f0.new_empty(len(f0), longest * source.frame)
        vocoder_signal.excite[triton.cdiv(made.size(1), _SAMPLES), len(f0)](
            f0, rates, cycles, self._merge, rows.frames, rows.held, rows.first, rows.seed, rows.source, made,
            numbers, longest, source.voiced_above, source.noise, source.amplitude / 3,
            FRAME=source.frame, HARMONICS=source.harmonics, HELD=rows.source.size(1), BLOCK=_SAMPLES,
        )  # fmt: skip
        return made, end

    def _phases(self, rows: Rows, f0: Tensor, share: float, unheard: int) -> tuple[Tensor, Tensor, Tensor]:
        """Cycles a sample, cycles within frames, and at the end: see `vocoder_signal.sum_phases`."""
        source, (count, longest) = self._config.source, f0.shape
        rates = f0.new_empty(count, source.harmonics + 1, longest)
        cycles, end = torch.empty_like(rates), torch.empty_like(rows.phase)
        vocoder_signal.sum_phases[count, source.harmonics + 1](
            f0, rows.frames, rows.held, rows.phase, rates, cycles, end, rows.frames.stride(0), longest,
            float(source.sample_rate), share,
            FRAME=source.frame, UNHEARD=unheard, T=triton.next_power_of_2(longest),
        )  # fmt: skip
        return rates, cycles, end

    def analyse(self, source: Tensor, frames: Tensor, margins: Margins, dtype: torch.dtype) -> Tensor:
        (count, samples), hop = source.shape, self._config.fourier_hop
        length = margins.before + samples // hop + 1 + margins.after
        spectra = source.new_empty(count, length, SPECTRUM, dtype=dtype)
        vocoder_signal.analyse[triton.cdiv(length, _POSITIONS), count](
            source, self._analysis, frames, spectra, frames.stride(0), samples, length, margins.before,
            FRAME=self._config.source.frame, HOP=hop, SIZE=self._config.fourier_size, WIDTH=SPECTRUM,
            SPARE=margins.after, BLOCK=_POSITIONS,
        )  # fmt: skip
        return spectra

    def convolve(
        self, x: Tensor, layer: Convolution, frames: Tensor, span: Span, positions: int, finish: Finish
    ) -> Made:
        return vocoder_layers.convolve(x, layer, frames, span, positions, finish, tf32=self._tf32)

    def synthesise(self, rows: Rows, source: Tensor, phase: Tensor, layer: Tensor) -> Passed:
        config, holding, (count, samples) = self._config, self._holding, source.shape
        frame, hop, bins = config.source.frame, config.fourier_hop, config.fourier_size // 2 + 1
        audio, numbers = torch.empty_like(source), rows.frames.stride(0)
        vocoder_signal.synthesise[triton.cdiv(samples // hop, _POSITIONS), count](
            layer, self._real, self._imaginary, self._energy, self._fades, rows.audio, rows.frames, rows.held, audio,
            numbers, samples, MAX_MAGNITUDE, config.limit,
            FRAME=frame, HOP=hop, BINS=bins, OVERLAPS=config.fourier_size // hop, HELD=rows.audio.size(1),
            WIDTH=triton.next_power_of_2(bins), BLOCK=_POSITIONS,
        )  # fmt: skip
        mels = holding.frames * rows.mel.size(2)
        kept = source.new_empty(count, (holding.excited + holding.faded) * frame + mels)
        vocoder_signal.hold[triton.cdiv(kept.size(1), _SAMPLES), count](
            source, audio, rows.mel, rows.frames, kept, numbers, samples, rows.mel.size(1),
            FRAME=frame, KEPT=holding.frames, EXCITED=holding.excited, FADED=holding.faded, BINS=rows.mel.size(2),
            BLOCK=_SAMPLES,
        )  # fmt: skip
        return Passed(audio, kept, phase)


class CausalTritonOps(TritonOps):
    """`VocoderOps` of CosyVoice3's vocoder on a GPU."""

    def __init__(self, model: CausalHiFTGenerator, *, tf32: bool = True) -> None:
        super().__init__(model, tf32=tf32)
        self._pitch = CausalPitch(model.f0_predictor)

    def pitch(self, rows: Rows) -> Tensor:
        return self._pitch(rows.mel)

    def excite(self, rows: Rows, f0: Tensor) -> tuple[Tensor, Tensor]:
        source, longest, numbers = self._config.source, f0.size(1), rows.frames.stride(0)
        _, cycles, end = self._phases(rows, f0, 1.0, self._holding.unheard)
        made = f0.new_empty(len(f0), longest * source.frame)
        # The noise is merged with the bare weights, of which the kernel has `amplitude` times as much.
        vocoder_signal.excite_stepped[triton.cdiv(made.size(1), _SAMPLES), len(f0)](
            f0, cycles, self._merge, rows.frames, rows.held, rows.first, rows.seed, rows.source, made,
            numbers, longest, source.voiced_above, source.noise / source.amplitude, 1 / 3,
            FRAME=source.frame, HARMONICS=source.harmonics, HELD=rows.source.size(1), BLOCK=_SAMPLES,
        )  # fmt: skip
        return made, end
