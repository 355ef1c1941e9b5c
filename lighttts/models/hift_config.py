"""Dimensions of the HiFT vocoder, as the yaml says them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lighttts.errors import ModelError
from lighttts.models.section import Section
from lighttts.models.source import SourceConfig
from lighttts.models.spec import Plain

Block = tuple[int, tuple[int, ...]]
"""Taps and dilations of a residual block."""

_PREDICTORS = {"HiFTGenerator": "ConvRNNF0Predictor", "CausalHiFTGenerator": "CausalConvRNNF0Predictor"}
"""The vocoders that are served, each with what predicts its pitch."""


@dataclass(frozen=True)
class HiFTConfig:
    """`bins`: of the mel; `channels`: of the first layer, halved by each stage; `slope`: of the leaky ReLUs.

    Stage i up-samples by `rates[i]` with `up_taps[i]` taps and merges the excitation through `source_blocks[i]`; all
    `blocks` follow each stage. Spectra of `fourier_size` samples each `fourier_hop`. Audio is cut off at `limit`.
    `look_ahead`: mel frames to come that the first layer of a causal vocoder sees, CosyVoice3's; None for CosyVoice2's.
    """

    source: SourceConfig
    bins: int
    channels: int
    rates: tuple[int, ...]
    up_taps: tuple[int, ...]
    blocks: tuple[Block, ...]
    source_blocks: tuple[Block, ...]
    fourier_size: int
    fourier_hop: int
    f0_channels: int
    slope: float
    limit: float
    look_ahead: int | None

    @property
    def causal(self) -> bool:
        """Whether it is CosyVoice3's."""
        return self.look_ahead is not None

    @classmethod
    def read(cls, settings: Section) -> HiFTConfig:
        """The vocoder of a yaml. Raises `ModelError` if it is none of those that are served, at 24 kHz."""
        hift = settings.section("hift")
        predictor = _PREDICTORS.get(hift.class_name)
        if predictor is None or hift.integer("sampling_rate") != 24_000:
            known = " or ".join(_PREDICTORS)
            raise ModelError(f"{hift.name}: hift is no {known} at 24000 Hz; serve a CosyVoice2 or CosyVoice3 model.")
        if hift.section("f0_predictor").class_name != predictor:
            raise ModelError(f"{hift.name}: hift.f0_predictor is no {predictor}; restore the published file.")
        rates = tuple(hift.integers("upsample_rates"))
        fourier = hift.section("istft_params")
        config = cls(
            source=_source(hift, math.prod(rates) * fourier.integer("hop_len")),
            bins=hift.integer("in_channels"),
            channels=hift.integer("base_channels"),
            rates=rates,
            up_taps=tuple(hift.integers("upsample_kernel_sizes")),
            blocks=_blocks(hift, "resblock"),
            source_blocks=_blocks(hift, "source_resblock"),
            fourier_size=fourier.integer("n_fft"),
            fourier_hop=fourier.integer("hop_len"),
            f0_channels=hift.section("f0_predictor").integer("cond_channels"),
            slope=hift.number("lrelu_slope"),
            limit=hift.number("audio_limit"),
            look_ahead=hift.integer("conv_pre_look_right") if hift.class_name == "CausalHiFTGenerator" else None,
        )
        if not len(rates) == len(config.up_taps) == len(config.source_blocks):
            raise ModelError(f"{hift.name}: hift lists differ in length; restore the published file.")
        return config


def _source(hift: Section, frame: int) -> SourceConfig:
    return SourceConfig(
        sample_rate=hift.integer("sampling_rate"),
        frame=frame,
        harmonics=hift.integer("nb_harmonics", least=0),
        amplitude=hift.number("nsf_alpha"),
        noise=hift.number("nsf_sigma"),
        voiced_above=hift.number("nsf_voiced_threshold"),
    )


def _blocks(hift: Section, prefix: str) -> tuple[Block, ...]:
    taps = hift.integers(f"{prefix}_kernel_sizes")
    rows: Plain = hift.data.get(f"{prefix}_dilation_sizes")
    dilations = [_dilations(row) for row in rows] if isinstance(rows, list) else []
    if len(dilations) != len(taps) or not all(dilations):
        raise ModelError(f"{hift.name}: hift.{prefix}_dilation_sizes does not fit its kernel sizes; restore the file.")
    return tuple(zip(taps, dilations, strict=True))


def _dilations(row: Plain) -> tuple[int, ...]:
    numbers = row if isinstance(row, list) else []
    return tuple(number for number in numbers if isinstance(number, int) and number > 0)
