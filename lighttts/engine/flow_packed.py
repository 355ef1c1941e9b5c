"""Which packed estimator goes with a flow's."""

from __future__ import annotations

from typing import Any, Protocol, cast

from torch import Tensor

from lighttts.engine.flow_dit import PackedDiT
from lighttts.engine.flow_estimator import PackedEstimator
from lighttts.engine.flow_ops import FlowOps
from lighttts.engine.flow_pages import Blocks, PagePool
from lighttts.models.cfm import CausalConditionalCFM
from lighttts.models.dit import DiT
from lighttts.models.estimator import CausalConditionalDecoder


class Packed(Protocol):
    def velocity(self, x: Tensor, blocks: Blocks) -> Tensor:
        """(rows, frames, mel) from (rows, frames, 4 mel): the mel so far, features, speaker and prompt side by side."""


def pack(decoder: CausalConditionalCFM[Any], pool: PagePool, ops: FlowOps) -> Packed:
    """The estimator of `decoder` on any chunks, each at its own solver step, with their pasts in `pool`."""
    if isinstance(decoder.estimator, DiT):
        return PackedDiT(cast(CausalConditionalCFM[DiT], decoder), pool, ops)
    return PackedEstimator(cast(CausalConditionalCFM[CausalConditionalDecoder], decoder), pool, ops)
