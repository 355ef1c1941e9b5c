"""Every convolution of the HiFT vocoder as one operation, and that operation in plain torch.

Tensors are (planes, rows, positions, channels): channels last, as tensor cores want them, and residual blocks that run
side by side in planes of their own. A row has a true end; nothing beyond it is ever read as other than zero, so a row
in a batch of longer ones gets the audio it would get alone. Some kinds of layer become plain convolutions here:

- a transposed convolution of rate r makes position r q + p from the inputs around q: `up` packs it as a convolution to
  r x outputs channels, whose result is the finer sequence once viewed so;
- columns repeated r times and then convolved (`lighttts.models.causal_hift.Upsampling`) likewise;
- a convolution with stride f over 2 f taps reads two blocks of f positions: `down` packs it as a convolution of two
  taps over f x inputs channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lighttts.models.causal_hift import Upsampling
from lighttts.models.conv_past import LedConv1d


@dataclass(frozen=True)
class Span:
    """Positions that exist of a row of n mel frames: `per` x n + `more`."""

    per: int
    more: int = 0

    def ends(self, frames: Tensor) -> Tensor:
        return frames * self.per + self.more


@dataclass(frozen=True)
class Taps:
    """Where one plane's taps lie: `count` of them, `dilation` positions apart, the first at `first` (0: itself)."""

    count: int
    dilation: int
    first: int

    @property
    def last(self) -> int:
        return self.first + (self.count - 1) * self.dilation


@dataclass(frozen=True)
class Convolution:
    """A convolution a plane. `weight`: (taps of all planes, inputs, outputs); `bias`: float32 (planes, outputs)."""

    weight: Tensor
    bias: Tensor
    taps: tuple[Taps, ...]

    @classmethod
    def beside(cls, convolutions: Iterable[nn.Module], dtype: torch.dtype) -> Convolution:
        """Convolutions of equal channels, which keep their input's length, each on a plane of its own."""
        weights, biases, taps = [], [], []
        for conv in convolutions:
            weight, bias, dilation, lead = _parts(conv)
            weights.append(weight.permute(2, 1, 0))
            biases.append(bias)
            taps.append(Taps(weight.size(2), dilation, -lead))
        return cls(torch.cat(weights).to(dtype).contiguous(), torch.stack(biases).float(), tuple(taps))

    @classmethod
    def up(cls, conv: nn.Module, dtype: torch.dtype) -> Convolution:
        return cls._repeated(conv, dtype) if isinstance(conv, Upsampling) else cls._transposed(conv, dtype)

    @classmethod
    def _repeated(cls, conv: Upsampling, dtype: torch.dtype) -> Convolution:
        """The taps that read the same of the repeated inputs add up to one."""
        (outputs, inputs, count), rate = conv.weight.shape, conv.rate
        reach = math.ceil((count - 1) / rate)
        weight = conv.weight.new_zeros(reach + 1, inputs, rate, outputs)
        for phase in range(rate):
            for tap in range(count):
                weight[reach + (phase - (count - 1) + tap) // rate, :, phase] += conv.weight[:, :, tap].T
        bias = conv.get_parameter("bias").float().repeat(1, rate)
        return cls(weight.flatten(2).to(dtype), bias, (Taps(reach + 1, 1, -reach),))

    @classmethod
    def _transposed(cls, conv: nn.Module, dtype: torch.dtype) -> Convolution:
        assert isinstance(conv, nn.ConvTranspose1d)
        assert conv.bias is not None
        padding = conv.padding[0]
        assert isinstance(padding, int)
        (count,), (rate,) = conv.kernel_size, conv.stride
        reach = max((count - 1 - padding) // rate, (padding + rate - 1) // rate)
        weight = conv.weight.new_zeros(2 * reach + 1, conv.in_channels, rate, conv.out_channels)
        for tap in range(2 * reach + 1):
            for phase in range(rate):
                source = phase + padding + rate * (reach - tap)
                if 0 <= source < count:
                    weight[tap, :, phase] = conv.weight[:, :, source]
        bias = conv.bias.float().repeat(1, rate)
        return cls(weight.flatten(2).to(dtype), bias, (Taps(2 * reach + 1, 1, -reach),))

    @classmethod
    def down(cls, conv: nn.Module, inputs: int, dtype: torch.dtype) -> Convolution:
        """From `inputs` channels a position, those beyond the layer's own being zero. See `lead_of`."""
        weight, bias, _, _ = _parts(conv)
        factor = _stride(conv)
        weight = F.pad(weight.permute(2, 1, 0), (0, 0, 0, inputs - weight.size(1)))
        taps = Taps(weight.size(0) // factor, 1, 0)
        return cls(weight.reshape(taps.count, factor * inputs, -1).to(dtype).contiguous(), bias.float()[None], (taps,))

    @property
    def outputs(self) -> int:
        return self.weight.size(2)


def lead_of(conv: nn.Module) -> int:
    """Zeros that stand before the input of `conv`."""
    return _parts(conv)[3]


def _parts(conv: nn.Module) -> tuple[Tensor, Tensor, int, int]:
    """Weight, bias, dilation and zeros in front of a convolution of either vocoder."""
    if isinstance(conv, LedConv1d):
        lead = conv.reach if conv.zeros is None else conv.zeros
        return conv.weight, conv.get_parameter("bias"), conv.dilation, lead
    assert isinstance(conv, nn.Conv1d)
    padding = conv.padding[0]
    assert isinstance(padding, int)
    return conv.weight, conv.get_parameter("bias"), conv.dilation[0], padding


def _stride(conv: nn.Module) -> int:
    if isinstance(conv, LedConv1d):
        return conv.stride
    assert isinstance(conv, nn.Conv1d)
    return conv.stride[0]


@dataclass(frozen=True)
class Finish:
    """What is done to the sums of a convolution, in this order, in float32.

    `residual` is added, of each plane its own, and need not be kept. With `total` the planes are then averaged to one.
    `beside` (1, rows, positions, channels), never with `total`, is added `shift` positions later than it lies, with its
    second position mirrored to the front: position t takes |t - `shift`|. `slope`: leaky ReLU. The result is made as
    `dtype` if there is one. `alphas` (snakes x planes, channels): Snakes of the result, one plane each, in the
    convolution's dtype.
    """

    residual: Tensor | None = None
    total: bool = False
    beside: Tensor | None = None
    shift: int = 0
    slope: float | None = None
    dtype: torch.dtype | None = None
    alphas: Tensor | None = None


class Made(NamedTuple):
    """What a convolution made: its result, and the Snakes of it, of what `Finish` asks for."""

    value: Tensor | None
    snaked: Tensor | None


def snake(x: Tensor, alphas: Tensor) -> Tensor:
    """x + sin(alpha x)^2 / alpha of (planes, rows, positions, channels) for alphas (planes or more, channels)."""
    alpha = alphas[:, None, None]
    return x + torch.sin(x * alpha).square() / (alpha + 1e-9)


def convolve(x: Tensor, layer: Convolution, frames: Tensor, span: Span, positions: int, finish: Finish) -> Made:
    """Tensors of (planes, rows, `positions`, outputs); `span` of them exists, what follows is zero.

    `x` must be zero beyond its own end. `frames`: mel frames of each row.
    """
    planes, begin = [], 0
    for plane, taps in enumerate(layer.taps):
        weight = layer.weight[begin : begin + taps.count].permute(2, 1, 0)
        begin += taps.count
        padding = (-taps.first, positions - 1 + taps.last - (x.size(2) - 1))
        padded = F.pad(x[plane].transpose(1, 2), padding)
        made = F.conv1d(padded, weight, dilation=taps.dilation).transpose(1, 2).float()
        planes.append(made + layer.bias[plane])
    value = torch.stack(planes)
    if finish.residual is not None:
        value = value + finish.residual
    if finish.total:
        value = value.mean(0, keepdim=True)
    at = torch.arange(positions, device=x.device)
    if finish.beside is not None:
        value = value + finish.beside[:, :, (at - finish.shift).abs()]
    if finish.slope is not None:
        value = F.leaky_relu(value, finish.slope)
    value = value.where((at < span.ends(frames)[:, None])[..., None], 0.0)
    snaked = None if finish.alphas is None else snake(value, finish.alphas).to(x.dtype)
    return Made(None if finish.dtype is None else value.to(finish.dtype), snaked)
