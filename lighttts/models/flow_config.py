"""Dimensions of a flow, CosyVoice2's or CosyVoice3's, as its yaml says them."""

from __future__ import annotations

from dataclasses import dataclass

from lighttts.errors import ModelError
from lighttts.models.cfm import SolverConfig
from lighttts.models.conformer import EncoderConfig
from lighttts.models.dit import GROUPS, DiTConfig
from lighttts.models.estimator import EstimatorConfig
from lighttts.models.section import Section


def _supported(section: Section, what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise ModelError(
            f"{section.name}: {section.path}.{what} is {found!r}, but the flows that are served have {wanted!r} there; "
            "serve a CosyVoice2 or CosyVoice3 model."
        )


@dataclass(frozen=True)
class FlowConfig:
    """CosyVoice2's. `vocabulary`: speech token ids; `speaker_size`: features of a speaker embedding."""

    vocabulary: int
    speaker_size: int
    encoder: EncoderConfig
    estimator: EstimatorConfig
    solver: SolverConfig

    @property
    def mel(self) -> int:
        """Bins of the mel."""
        return self.estimator.out_channels

    @property
    def chunk(self) -> int:
        """Tokens of a chunk."""
        return self.encoder.chunk

    @property
    def look_ahead(self) -> int:
        """Tokens that a token's frames depend on after it."""
        return self.encoder.look_ahead

    @classmethod
    def read(cls, settings: Section) -> FlowConfig:
        """The flow of a yaml. Raises `ModelError` if it is not a CosyVoice2 flow."""
        flow = settings.section("flow")
        _supported(flow, "class", flow.class_name, "CausalMaskedDiffWithXvec")
        decoder = flow.section("decoder")
        config = cls(
            vocabulary=flow.integer("vocab_size"),
            speaker_size=flow.integer("spk_embed_dim"),
            encoder=_encoder(flow),
            estimator=_estimator(decoder.section("estimator")),
            solver=_solver(flow),
        )
        mel = config.mel
        _supported(flow, "output_size", flow.integer("output_size"), mel)
        _supported(flow, "decoder.estimator.in_channels", config.estimator.in_channels, 4 * mel)
        _supported(flow, "decoder.estimator.static_chunk_size", config.estimator.chunk, 2 * config.encoder.chunk)
        return config


@dataclass(frozen=True)
class DiTFlowConfig:
    """CosyVoice3's. `hidden`: channels between the look-ahead's convolutions; `chunk`, `look_ahead`: tokens."""

    vocabulary: int
    speaker_size: int
    mel: int
    hidden: int
    chunk: int
    look_ahead: int
    estimator: DiTConfig
    solver: SolverConfig

    @classmethod
    def read(cls, settings: Section) -> DiTFlowConfig:
        """The flow of a yaml. Raises `ModelError` if it is not a CosyVoice3 flow."""
        flow = settings.section("flow")
        _supported(flow, "class", flow.class_name, "CausalMaskedDiffWithDiT")
        estimator, layer = _dit(flow.section("decoder").section("estimator")), flow.section("pre_lookahead_layer")
        mel = flow.integer("output_size")
        for section, key in ((flow, "input_size"), (layer, "in_channels")):
            _supported(section, key, section.integer(key), mel)
        _supported(flow, "decoder.estimator.mel_dim", estimator.mel, mel)
        _supported(layer, "pre_lookahead_len", layer.integer("pre_lookahead_len"), flow.integer("pre_lookahead_len"))
        _supported(flow, "decoder.estimator.static_chunk_size % token_mel_ratio", estimator.chunk % 2, 0)
        return cls(
            vocabulary=flow.integer("vocab_size"),
            speaker_size=flow.integer("spk_embed_dim"),
            mel=mel,
            hidden=layer.integer("channels"),
            chunk=estimator.chunk // 2,
            look_ahead=flow.integer("pre_lookahead_len"),
            estimator=estimator,
            solver=_solver(flow),
        )


def _solver(flow: Section) -> SolverConfig:
    _supported(flow, "token_mel_ratio", flow.integer("token_mel_ratio"), 2)
    solver = flow.section("decoder").section("cfm_params").section("content")
    _supported(solver, "t_scheduler", solver.text("t_scheduler"), "cosine")
    return SolverConfig(guidance=solver.number("inference_cfg_rate"))


def _dit(estimator: Section) -> DiTConfig:
    _supported(estimator, "class", estimator.class_name, "DiT")
    mel = estimator.integer("mel_dim")
    for key in ("mu_dim", "spk_dim", "out_channels"):
        _supported(estimator, key, estimator.integer(key), mel)
    config = DiTConfig(
        mel=mel,
        width=estimator.integer("dim"),
        blocks=estimator.integer("depth"),
        heads=estimator.integer("heads"),
        head_size=estimator.integer("dim_head"),
        ff_ratio=estimator.integer("ff_mult"),
        chunk=estimator.integer("static_chunk_size"),
    )
    _supported(estimator, f"dim % {GROUPS}", config.width % GROUPS, 0)
    return config


def _encoder(flow: Section) -> EncoderConfig:
    encoder = flow.section("encoder")
    for flag, wanted in (("normalize_before", True), ("use_cnn_module", False), ("macaron_style", False)):
        _supported(encoder, flag, encoder.flag(flag), wanted)
    for choice, wanted_text in (
        ("input_layer", "linear"),
        ("pos_enc_layer_type", "rel_pos_espnet"),
        ("selfattention_layer_type", "rel_selfattn"),
    ):
        _supported(encoder, choice, encoder.text(choice), wanted_text)
    width = encoder.integer("output_size")
    # Upstream feeds `input_size` features to the up-sampling embedding too, which takes the encoder's own output.
    _supported(encoder, "input_size", encoder.integer("input_size"), width)
    return EncoderConfig(
        input_size=flow.integer("input_size"),
        width=width,
        heads=encoder.integer("attention_heads"),
        hidden=encoder.integer("linear_units"),
        layers=encoder.integer("num_blocks"),
        look_ahead=flow.integer("pre_lookahead_len"),
        chunk=encoder.integer("static_chunk_size"),
        dropout=encoder.number("dropout_rate"),
        positional_dropout=encoder.number("positional_dropout_rate"),
        attention_dropout=encoder.number("attention_dropout_rate"),
    )


def _estimator(estimator: Section) -> EstimatorConfig:
    _supported(estimator, "act_fn", estimator.text("act_fn"), "gelu")
    channels = estimator.integers("channels")
    _supported(estimator, "channels", channels, channels[:1])
    return EstimatorConfig(
        in_channels=estimator.integer("in_channels"),
        out_channels=estimator.integer("out_channels"),
        width=channels[0],
        head_size=estimator.integer("attention_head_dim"),
        heads=estimator.integer("num_heads"),
        blocks=estimator.integer("n_blocks"),
        middle=estimator.integer("num_mid_blocks"),
        chunk=estimator.integer("static_chunk_size"),
        dropout=estimator.number("dropout"),
    )
