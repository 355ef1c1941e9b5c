"""CosyVoice2's flow, and the loader of any.

Parts and parameter names are those of CosyVoice's `flow/flow.py` (`CausalMaskedDiffWithXvec`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lighttts.errors import ModelError
from lighttts.models.cfm import CausalConditionalCFM
from lighttts.models.conformer import UpsampleConformerEncoder
from lighttts.models.directory import ModelDirectory
from lighttts.models.dit_flow import CausalMaskedDiffWithDiT
from lighttts.models.estimator import CausalConditionalDecoder
from lighttts.models.flow_base import Flow, FlowHop, FlowResult, FlowState
from lighttts.models.flow_config import DiTFlowConfig, FlowConfig
from lighttts.models.streaming import CausalConv1d, StackShape, Window
from lighttts.models.weights import load_into

__all__ = ["CausalMaskedDiffWithXvec", "Flow", "FlowHop", "FlowResult", "FlowState", "build_flow", "load_flow"]


class CausalMaskedDiffWithXvec(Flow):
    """A conformer encoder that doubles the rate, and a U-Net as estimator.

    For training: `encode` and `speaker` give what `decoder.estimator` is conditioned on; nothing in them stops a
    gradient.
    """

    config: FlowConfig
    decoder: CausalConditionalCFM[CausalConditionalDecoder]

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        self.input_embedding = nn.Embedding(config.vocabulary, config.encoder.input_size)
        self.spk_embed_affine_layer = nn.Linear(config.speaker_size, config.mel)
        self.encoder = UpsampleConformerEncoder(config.encoder)
        self.encoder_proj = nn.Linear(config.encoder.width, config.mel)
        estimator = CausalConditionalDecoder(config.estimator)
        self.decoder = CausalConditionalCFM(estimator, config.mel, config.solver)

    @property
    def encoder_stacks(self) -> tuple[tuple[StackShape, int], ...]:
        return (self.encoder.token_shape, 1), (self.encoder.frame_shape, 2)

    def encode(self, tokens: Tensor, lengths: Tensor | None = None, *, chunked: bool) -> Tensor:
        """Frame features (rows, 2 tokens, mel) of whole sequences `tokens` int64 (rows, tokens), padded on the right.

        `lengths`: int64 (rows,), None where nothing is padded; `chunked` masks attention by chunks as streaming does.
        """
        rows, width = tokens.shape
        config = self.config.encoder
        known = torch.ones(rows, width, dtype=torch.bool, device=tokens.device)
        if lengths is not None:
            known = torch.arange(width, device=tokens.device) < lengths[:, None]
        chunk = config.chunk if chunked else None
        token_window = Window.whole(lengths, width, chunk, tokens.device)
        frames = None if lengths is None else 2 * lengths
        frame_window = Window.whole(frames, 2 * width, chunk and 2 * chunk, tokens.device)
        padded = F.pad(tokens, (0, config.look_ahead))
        known = F.pad(known, (0, config.look_ahead))
        return self.features(padded, known, token_window, frame_window)

    def features(self, tokens: Tensor, known: Tensor, *windows: Window) -> Tensor:
        embedded = self.input_embedding(tokens.clamp(min=0))
        out: Tensor = self.encoder_proj(self.encoder(embedded, known, *windows))
        return out


def build_flow(directory: ModelDirectory) -> Flow:
    """The flow that a directory's yaml describes, with fresh parameters. Raises `ModelError`."""
    settings = directory.settings
    name = settings.section("flow").class_name
    if name == "CausalMaskedDiffWithDiT":
        return CausalMaskedDiffWithDiT(DiTFlowConfig.read(settings))
    if name == "CausalMaskedDiffWithXvec":
        return CausalMaskedDiffWithXvec(FlowConfig.read(settings))
    raise ModelError(
        f"{settings.name}: flow is a {name or 'plain mapping'}; a model with CausalMaskedDiffWithXvec or "
        "CausalMaskedDiffWithDiT is needed."
    )


def load_flow(
    directory: ModelDirectory, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Flow:
    """The flow of a model directory, ready for inference. Raises `ModelError`.

    `dtype` is that of the layers and caches; noise, times and the solver's sum stay in float32.
    """
    model = build_flow(directory)
    load_into(model, directory.load_weights("flow.pt"), str(directory.path("flow.pt")))
    for module in model.modules():
        if isinstance(module, CausalConv1d):
            module.lay_out()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.requires_grad_(False).eval().to(device)
