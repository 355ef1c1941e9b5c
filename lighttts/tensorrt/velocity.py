"""The estimator's velocity through an exported graph, in LightTTS' layout: (rows, frames, channels)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lighttts.errors import InternalError
from lighttts.models.streaming import TAIL
from lighttts.tensorrt.builder import Profile
from lighttts.tensorrt.export import VELOCITY, EstimatorShape
from lighttts.tensorrt.session import Session


class Velocity(NamedTuple):
    """`velocity`: (rows, time, mel); `keys_values`: (layers, 2, rows, time, width); `tails`: (rows, TAIL, channels).

    The state is that of the call's frames only; all are of the graph's dtype.
    """

    velocity: Tensor
    keys_values: Tensor
    tails: Tensor


class CachedVelocity:
    """The estimator with the state of each row given and returned (`lighttts.tensorrt.export` says what it means)."""

    def __init__(self, session: Session, shape: EstimatorShape, dtype: torch.dtype, profile: Profile) -> None:
        self.shape, self.dtype, self.profile = shape, dtype, profile
        self._session = session

    def velocity(
        self,
        x: Tensor,
        mu: Tensor,
        speaker: Tensor,
        prompt: Tensor,
        t: Tensor,
        mask: Tensor,
        past_keys_values: Tensor,
        tails: Tensor,
    ) -> Velocity:
        """One evaluation, at each row's own time.

        `x`, `mu`, `prompt`: (rows, time, mel), `speaker`: (rows, mel), `t`: (rows,), `mask`: (rows, past + time), True
        or 1 where a column is a frame of the row; `past_keys_values`: (layers, 2, rows, past, width), aligned to the
        right; `tails`: (rows, TAIL, channels). Any float dtype, on the session's device. Raises `InternalError` for
        sizes that the profile does not hold (`profile.holds` tells) or that do not fit each other.
        """
        rows, time = x.shape[:2]
        past = past_keys_values.size(3)
        self._check(rows, time, past, mask, past_keys_values, tails)
        inputs = {
            "x": self._channels_first(x),
            "mask": mask.to(self.dtype)[:, None].contiguous(),
            "mu": self._channels_first(mu),
            "t": t.float().contiguous(),
            "spks": speaker.to(self.dtype).contiguous(),
            "cond": self._channels_first(prompt),
            "tails": tails.to(self.dtype).contiguous(),
        }
        pairs = past_keys_values.to(self.dtype).contiguous().flatten(0, 1).unbind()
        inputs.update(zip(self.shape.pairs("past"), pairs, strict=True))
        out = inputs["x"].new_empty(rows, self.shape.mel, time)
        new = out.new_empty(self.shape.layers, 2, rows, time, self.shape.width)
        new_tails = torch.empty_like(inputs["tails"])
        outputs = {VELOCITY: out, "new_tails": new_tails}
        outputs.update(zip(self.shape.pairs("new"), new.flatten(0, 1).unbind(), strict=True))
        self._session.run(inputs, outputs)
        return Velocity(out.mT, new, new_tails)

    def empty_past(self, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Keys and values, and tails, of rows before their first frame."""
        shape = self.shape
        past = torch.zeros(shape.layers, 2, rows, 0, shape.width, device=device, dtype=self.dtype)
        return past, torch.zeros(rows, TAIL, shape.channels, device=device, dtype=self.dtype)

    def _channels_first(self, frames: Tensor) -> Tensor:
        return frames.to(self.dtype).mT.contiguous()

    def _check(self, rows: int, time: int, past: int, mask: Tensor, cache: Tensor, tails: Tensor) -> None:
        shape = self.shape
        if not self.profile.holds(rows, time, past):
            raise InternalError(f"{rows} rows of {time} frames after {past} are not in the engine's {self.profile}")
        given = tuple(mask.shape), tuple(cache.shape), tuple(tails.shape)
        wanted = (
            (rows, past + time),
            (shape.layers, 2, rows, past, shape.width),
            (rows, TAIL, shape.channels),
        )
        if given != wanted:
            raise InternalError(f"mask, keys and values, and tails have the shapes {given} where {wanted} are wanted")


class WholeVelocity:
    """The estimator of a graph without state, upstream's published one: whole sequences, attention not masked."""

    def __init__(self, session: Session, rows: int | None, profile: Profile) -> None:
        """`rows`: the batch of the graph, which is then the only one it takes; None: any the profile holds."""
        self.profile = profile
        self._session, self._rows = session, rows

    def holds(self, rows: int, time: int) -> bool:
        """Whether `velocity` takes sequences of these sizes."""
        return self.profile.holds(self._rows or rows, time, 0)

    def velocity(self, x: Tensor, mu: Tensor, speaker: Tensor, prompt: Tensor, t: Tensor, mask: Tensor) -> Tensor:
        """(rows, time, mel) float32. `mask`: (rows, time), True or 1 where a frame is real, padding on the right.

        The other arguments are those of `CachedVelocity.velocity`. Rows beyond the graph's batch run in turns, an
        incomplete turn with its last row repeated. Raises `InternalError` for sizes that the profile does not hold.
        """
        inputs = {
            "x": x.float().mT.contiguous(),
            "mask": mask.float()[:, None].contiguous(),
            "mu": mu.float().mT.contiguous(),
            "t": t.float().contiguous(),
            "spks": speaker.float().contiguous(),
            "cond": prompt.float().mT.contiguous(),
        }
        if not self.holds(*x.shape[:2]):
            raise InternalError(f"{len(x)} rows of {x.size(1)} frames are not in the engine's {self.profile}")
        rows = self._rows or len(x)
        turns = [self._turn(inputs, range(first, first + rows), len(x)) for first in range(0, len(x), rows)]
        return torch.cat(turns)[: len(x)].mT

    def _turn(self, inputs: dict[str, Tensor], rows: range, count: int) -> Tensor:
        if rows.stop > count:
            index = torch.tensor(rows, device=inputs["x"].device).clamp(max=count - 1)
            given = {name: tensor[index] for name, tensor in inputs.items()}
        else:
            given = {name: tensor[rows.start : rows.stop] for name, tensor in inputs.items()}
        out = torch.empty_like(given["x"])
        self._session.run(given, {VELOCITY: out})
        return out
