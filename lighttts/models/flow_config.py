"""Dimensions of CosyVoice2's flow, as its yaml says them."""

from __future__ import annotations

from dataclasses import dataclass

from lighttts.errors import ModelError
from lighttts.models.cfm import SolverConfig
from lighttts.models.conformer import EncoderConfig
from lighttts.models.estimator import EstimatorConfig
from lighttts.models.section import Section


def _supported(section: Section, what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise ModelError(
            f"{section.name}: {section.path}.{what} is {found!r}, but CosyVoice2 flows have {wanted!r} there; "
            "serve a CosyVoice2 model."
        )


@dataclass(frozen=True)
class FlowConfig:
    """`vocabulary`: speech token ids; `speaker_size`: features of a speaker embedding."""

    vocabulary: int
    speaker_size: int
    encoder: EncoderConfig
    estimator: EstimatorConfig
    solver: SolverConfig

    @classmethod
    def read(cls, settings: Section) -> FlowConfig:
        """The flow of a yaml. Raises `ModelError` if it is not a CosyVoice2 flow."""
        flow = settings.section("flow")
        _supported(flow, "class", flow.class_name, "CausalMaskedDiffWithXvec")
        _supported(flow, "token_mel_ratio", flow.integer("token_mel_ratio"), 2)
        decoder = flow.section("decoder")
        solver = decoder.section("cfm_params").section("content")
        _supported(solver, "t_scheduler", solver.text("t_scheduler"), "cosine")
        config = cls(
            vocabulary=flow.integer("vocab_size"),
            speaker_size=flow.integer("spk_embed_dim"),
            encoder=_encoder(flow),
            estimator=_estimator(decoder.section("estimator")),
            solver=SolverConfig(guidance=solver.number("inference_cfg_rate")),
        )
        mel = config.estimator.out_channels
        _supported(flow, "output_size", flow.integer("output_size"), mel)
        _supported(flow, "decoder.estimator.in_channels", config.estimator.in_channels, 4 * mel)
        _supported(flow, "decoder.estimator.static_chunk_size", config.estimator.chunk, 2 * config.encoder.chunk)
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
