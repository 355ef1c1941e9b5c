"""Causal layers and the state that lets them run over a sequence in hops.

A stack of causal convolutions and chunk-masked attention layers needs two things of the frames before a hop: the last
frames each convolution saw (its tail) and every attention layer's keys and values. `StreamState` holds both for one
request; layers never hold any. A layer is given a `Window`: the base class runs a whole padded batch from its start
(training, one-pass inference); `StreamWindow` puts each request's past in front of the new frames.

Requests of different pasts and lengths share a batch: pasts are padded on the left, new frames on the right, so that
the distance between a query and a key is the same number for every row, and a mask hides the padding.

A hop starts where a chunk starts, so a hop sees exactly what one pass with the chunk mask would show it. This is the
"state as an explicit object" of moshi's `modules/streaming.py`, with the state outside the modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TAIL = 2
"""Frames that most causal convolutions need of the past: they have three taps (or five over a signal that repeats each
frame twice)."""


def chunk_mask(past: Tensor, new: Tensor, past_width: int, new_width: int, chunk: int | None) -> Tensor:
    """Which columns each query may look at, bool (batch, 1, new_width or 1, past_width + new_width).

    `past`, `new`: int64 (batch,), frames of each request before the hop (a multiple of `chunk`) and in it. Columns hold
    the past right-aligned in `past_width`, then the new frames. A query sees the valid columns up to the end of its own
    chunk of `chunk` frames; with None, all valid columns. Every query sees at least one column if `new` >= 1.
    """
    columns = torch.arange(-past_width, new_width, device=past.device)
    valid = (columns >= -past[:, None]) & (columns < new[:, None])
    if chunk is None:
        return valid[:, None, None]
    ends = (torch.arange(new_width, device=past.device) // chunk + 1) * chunk
    return (valid[:, None] & (columns < ends[:, None]))[:, None]


class Window:
    """A padded batch run from its first frame to its last, without state.

    `mask`: bool, broadcastable to (rows, heads, new, new), True where a query may look; None hides nothing. `tail`:
    frames that the convolutions of the stack need of the past.
    """

    past = 0

    def __init__(self, mask: Tensor | None, tail: int = TAIL) -> None:
        self.mask = mask
        self.tail = tail

    def positions(self, new: int, device: torch.device) -> Tensor:
        """Where the new frames lie in their sequences, int64 (rows or 1, new)."""
        return torch.arange(new, device=device)[None]

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all columns of attention `layer`, given those of the new frames (rows, new, width)."""
        return keys, values

    def lead(self, first: int, x: Tensor) -> Tensor:
        """`x` (rows, new, channels) with the `tail` frames before it; `first` is where the convolution's tails lie."""
        return F.pad(x, (0, 0, self.tail, 0))

    @classmethod
    def whole(
        cls, lengths: Tensor | None, width: int, chunk: int | None, device: torch.device, tail: int = TAIL
    ) -> Window:
        """The window of a batch padded to `width` frames; `lengths` int64 (rows,), None where nothing is padded."""
        if lengths is None and chunk is None:
            return cls(None, tail)
        new = torch.full((1,), width, device=device) if lengths is None else lengths
        return cls(chunk_mask(torch.zeros_like(new), new, 0, width, chunk), tail)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolution without padding of (rows, frames, channels) with a `nn.Conv1d` weight: frames - taps + 1 are left.

    As one product: a convolution's kernel is chosen by the size of the batch, and a row's last bits with it.
    """
    taps = weight.size(-1)
    frames = x.size(1) - taps + 1
    shifted = torch.cat([x[:, tap : tap + frames] for tap in range(taps)], dim=-1)
    return F.linear(shifted, weight.transpose(1, 2).flatten(1), bias)


class StreamedConvolution(nn.Module):
    """Base of causal convolutions, which a window leads by `tail` frames. `first` is set by `number_layers`."""

    first: int
    in_channels: int
    tail = TAIL


class CausalConv1d(StreamedConvolution):
    """Convolution over (rows, frames, channels) that sees a frame and the `TAIL` frames before it.

    Parameters have `nn.Conv1d`'s names and shapes.
    """

    def __init__(self, in_channels: int, out_channels: int, taps: int = TAIL + 1) -> None:
        super().__init__()
        self.in_channels = in_channels
        like = nn.Conv1d(in_channels, out_channels, taps)
        self.weight = like.weight
        self.bias = like.bias

    def lay_out(self) -> None:
        """Put the weight's taps before its channels in memory, as `convolve` multiplies: it copies them otherwise.

        Shape and values stay. For inference: an optimizer's state has the layout that the weight had before.
        """
        self.weight.data = self.weight.data.transpose(1, 2).contiguous().transpose(1, 2)

    def forward(self, x: Tensor, window: Window) -> Tensor:
        return convolve(window.lead(self.first, x), self.weight, self.bias)


class StreamedAttention(nn.Module):
    """Base of attention layers whose keys and values a window may extend. `layer` is set by `number_layers`."""

    layer: int
    width: int


@dataclass(frozen=True)
class StackShape:
    """What one frame, and one request, of a stack of causal layers leaves behind.

    `passes` times is the stack run over the same frames (solver steps), each time in `rows` versions (guidance halves).
    It has `layers` attention layers of `width` features and convolutions of `channels` input channels altogether, which
    need `tail` frames of the past.
    """

    passes: int
    rows: int
    layers: int
    width: int
    channels: int
    tail: int


def number_layers(*parts: nn.Module, passes: int = 1, rows: int = 1) -> StackShape:
    """Give each streamed layer in the `parts` of one stack its place in the state, and return the state's shape."""
    layers = channels = width = 0
    tail = TAIL
    for module in (module for part in parts for module in part.modules()):
        if isinstance(module, StreamedConvolution):
            assert channels == 0 or module.tail == tail, "the convolutions of a stack share a window's tail"
            module.first, tail = channels, module.tail
            channels += module.in_channels
        elif isinstance(module, StreamedAttention):
            module.layer = layers
            layers += 1
            width = module.width
    return StackShape(passes, rows, layers, width, channels, tail)


@dataclass(frozen=True)
class StreamState:
    """What a stack keeps of the finished frames of one request. Immutable, so it may be shared.

    `length`: finished frames. `tails`: (passes, rows, tail, channels). `chunks`: keys and values of each hop, oldest
    first, each (passes, layers, 2, rows, frames, width). Memory: `length` x passes x layers x 2 x rows x width numbers,
    and the tails.
    """

    length: int
    tails: Tensor
    chunks: tuple[Tensor, ...] = ()

    @classmethod
    def start(cls, shape: StackShape, device: torch.device, dtype: torch.dtype) -> StreamState:
        """The state before the first frame: zeros stand in front of it, as in a padded convolution."""
        return cls(0, torch.zeros(shape.passes, shape.rows, shape.tail, shape.channels, device=device, dtype=dtype))

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.tails, *self.chunks))


class StreamWindow(Window):
    """One pass over the new frames of several requests, each with its past in front.

    `cache`: (layers, 2, rows, past + new, width), the past filled in; `tails`: (rows, tail, channels); `ends`: int64
    (rows, tail, 1), where the last frames of each row lie in its led input; `starts`: int64 (rows, 1), the frames
    before each row's new ones. What the layers leave is in `cache` and `new_tails`.
    """

    def __init__(
        self, mask: Tensor | None, past: int, cache: Tensor, tails: Tensor, ends: Tensor, starts: Tensor
    ) -> None:
        super().__init__(mask, tails.size(1))
        self.past = past
        self.starts = starts
        self.cache = cache
        self.tails = tails
        self.new_tails = torch.empty_like(tails)
        self.ends = ends

    def positions(self, new: int, device: torch.device) -> Tensor:
        return self.starts + torch.arange(new, device=device)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        both = self.cache[layer]
        both[0, :, self.past :] = keys
        both[1, :, self.past :] = values
        return both[0], both[1]

    def lead(self, first: int, x: Tensor) -> Tensor:
        last = first + x.size(-1)
        led = torch.cat([self.tails[..., first:last], x], dim=1)
        self.new_tails[..., first:last] = led.gather(1, self.ends.expand(-1, -1, x.size(-1)))
        return led


class StreamBatch:
    """Several requests that advance together through one stack, by `lengths[i]` >= 1 frames each.

    Row `half * len(states) + i` of a pass is version `half` of request `i`. For each pass: take `window(step)`, run the
    stack, `keep(step, window)`; at the end `advanced()` gives the states. `keeps[i]` False says that nothing follows.
    With `chunk` None attention is not masked by chunks, which is right only from the first frame to the last.
    """

    def __init__(
        self,
        shape: StackShape,
        states: Sequence[StreamState],
        lengths: Sequence[int],
        keeps: Sequence[bool],
        chunk: int | None,
    ) -> None:
        self.shape = shape
        self.states = states
        self.lengths = lengths
        self.past = max(state.length for state in states)
        self.new = max(lengths)
        self.tails = torch.stack([state.tails for state in states], dim=2).flatten(1, 2)
        device = self.tails.device
        new = torch.tensor(lengths, device=device)
        self.even = len(set(lengths)) == 1 and all(state.length == self.past for state in states)
        self.mask: Tensor | None = None
        if not self.even or (chunk is not None and self.new > chunk):
            past = torch.tensor([state.length for state in states], device=device)
            self.mask = chunk_mask(past, new, self.past, self.new, chunk).repeat(shape.rows, 1, 1, 1)
        self.ends = (new[:, None] + torch.arange(shape.tail, device=device)).repeat(shape.rows, 1)[..., None]
        self.starts = torch.tensor([[state.length] for state in states], device=device).repeat(shape.rows, 1)
        self.new_tails = torch.empty_like(self.tails)
        self.kept = [
            self.tails.new_empty(shape.passes, shape.layers, 2, shape.rows, length, shape.width) if keep else None
            for length, keep in zip(lengths, keeps, strict=True)
        ]

    def window(self, step: int) -> StreamWindow:
        shape, columns = self.shape, self.past + self.new
        # Hidden columns are multiplied by a weight of zero, which an uninitialised NaN would survive.
        fresh = self.tails.new_empty if self.even else self.tails.new_zeros
        cache = fresh(shape.layers, 2, shape.rows, len(self.states), columns, shape.width)
        for index, state in enumerate(self.states):
            column = self.past - state.length
            for chunk in state.chunks:
                end = column + chunk.size(-2)
                cache[:, :, :, index, column:end] = chunk[step]
                column = end
        return StreamWindow(self.mask, self.past, cache.flatten(2, 3), self.tails[step], self.ends, self.starts)

    def keep(self, step: int, window: StreamWindow) -> None:
        self.new_tails[step] = window.new_tails
        cache = window.cache.view(*window.cache.shape[:2], self.shape.rows, len(self.states), *window.cache.shape[3:])
        for index, (kept, length) in enumerate(zip(self.kept, self.lengths, strict=True)):
            if kept is not None:
                kept[step] = cache[:, :, :, index, self.past : self.past + length]

    def advanced(self) -> list[StreamState | None]:
        """The state of each request after its frames; None where nothing follows."""
        tails = self.new_tails.view(self.shape.passes, self.shape.rows, len(self.states), *self.new_tails.shape[2:])
        return [
            None if kept is None else StreamState(state.length + length, tails[:, :, i].clone(), (*state.chunks, kept))
            for i, (state, kept, length) in enumerate(zip(self.states, self.kept, self.lengths, strict=True))
        ]
