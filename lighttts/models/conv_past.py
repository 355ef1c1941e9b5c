"""What causal convolutions over (rows, channels, time) saw last, so that a signal can be given to them in pieces."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Past:
    """The ends of what each layer of a stack was given before, in the order in which the layers ask.

    A stack must ask in the same order for each piece. What the next piece needs is in `kept`.
    """

    def __init__(self, tails: Sequence[Tensor] | None = None) -> None:
        """`tails`: what was `kept` of the piece before, each (rows, channels, time); None for the first piece."""
        self.begun = tails is not None
        self.kept: list[Tensor] = []
        self._tails = iter(tails or ())

    def lead(self, x: Tensor, tail: int, zeros: int | None = None) -> Tensor:
        """`x` (rows, channels, time) with the `tail` columns before it: at first `zeros` zeros, by default as many."""
        before = x.new_zeros(*x.shape[:-1], tail if zeros is None else zeros) if not self.begun else next(self._tails)
        led = torch.cat([before, x], dim=-1)
        self.kept.append(led[..., max(0, led.size(-1) - tail) :])
        return led

    def recall(self, initial: Tensor) -> Tensor:
        """What was handed to `kept` at this place in the piece before, or `initial`."""
        return next(self._tails) if self.begun else initial


class LedConv1d(nn.Module):
    """Convolution without look-ahead over (rows, channels, time), led by what it saw last.

    Parameters have `nn.Conv1d`'s names and shapes. `zeros` stand before the first piece, by default as many as the taps
    reach back.
    """

    def __init__(
        self, inputs: int, outputs: int, taps: int, *, dilation: int = 1, stride: int = 1, zeros: int | None = None
    ) -> None:
        super().__init__()
        like = nn.Conv1d(inputs, outputs, taps)
        self.weight, self.bias = like.weight, like.bias
        self.dilation, self.stride, self.zeros = dilation, stride, zeros
        self.reach = (taps - 1) * dilation + 1 - stride

    def forward(self, x: Tensor, past: Past) -> Tensor:
        led = past.lead(x, self.reach, self.zeros) if self.reach else x
        return F.conv1d(led, self.weight, self.bias, stride=self.stride, dilation=self.dilation)
