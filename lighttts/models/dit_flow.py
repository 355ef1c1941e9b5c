"""CosyVoice3's flow.

Parts and parameter names are those of CosyVoice's `flow/flow.py` (`CausalMaskedDiffWithDiT`): no encoder but a
look-ahead convolution over the tokens, each of which then stands for two frames, and a diffusion transformer as
estimator.
"""

from __future__ import annotations

from torch import Tensor, nn

from lighttts.models.cfm import CausalConditionalCFM
from lighttts.models.conformer import LookAhead
from lighttts.models.dit import DiT
from lighttts.models.flow_base import Flow
from lighttts.models.flow_config import DiTFlowConfig
from lighttts.models.streaming import StackShape, Window, number_layers


class CausalMaskedDiffWithDiT(Flow):
    config: DiTFlowConfig
    decoder: CausalConditionalCFM[DiT]

    def __init__(self, config: DiTFlowConfig) -> None:
        super().__init__()
        self.config = config
        self.input_embedding = nn.Embedding(config.vocabulary, config.mel)
        self.spk_embed_affine_layer = nn.Linear(config.speaker_size, config.mel)
        self.pre_lookahead_layer = LookAhead(config.mel, config.hidden, config.look_ahead)
        self.token_shape = number_layers(self.pre_lookahead_layer)
        self.decoder = CausalConditionalCFM(DiT(config.estimator), config.mel, config.solver)

    @property
    def encoder_stacks(self) -> tuple[tuple[StackShape, int], ...]:
        return ((self.token_shape, 1),)

    def features(self, tokens: Tensor, known: Tensor, *windows: Window) -> Tensor:
        embedded = self.input_embedding(tokens.clamp(min=0)) * known[..., None]
        ahead: Tensor = self.pre_lookahead_layer(embedded, *windows)
        return ahead.repeat_interleave(2, dim=1)
