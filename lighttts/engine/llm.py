"""Continuous batching of the language model: requests join and leave between steps.

Pure and synchronous: a worker's thread calls `LLMEngine.step` and gets the tokens made. A request's tokens are a
function of its job (text, prompt, seed, tokens already made) and of the batch around it in no way:

- Random numbers are keyed by (seed, token index), whoever else is drawn for.
- On a CPU (`lighttts.engine.llm_alone`) the shape of every operation depends on the request alone, so its logits are
  equal bit for bit to those of a solo run in a process with as many threads.
- On CUDA (`lighttts.engine.llm_batched`) the number of rows of a step depends on how many requests run, so logits may
  differ in the last bits from those of a solo run. There a step is launched before the ids of the step before are
  read: a request whose end has not been read yet runs along once more, and what it draws is dropped.

A request whose text is still being written (`LiveJob`) takes its text in blocks (`lighttts.engine.interleave`). While
text is lacking it rests in its slot and takes part in no step; then what comes is prefilled behind what is there. Its
tokens do not depend on when its text comes.

A resumed request (`done_tokens`) continues with the random numbers it would have had. Its context is prefilled instead
of decoded token by token, so its logits agree with those of the uninterrupted run up to rounding: another token is
drawn only where a draw falls within rounding of the boundary between two tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lighttts.engine.interleave import Interleave
from lighttts.engine.llm_alone import AloneSteps
from lighttts.engine.llm_batched import BatchedSteps
from lighttts.engine.llm_jobs import GenerateJob, LiveJob, TokenStep
from lighttts.engine.llm_requests import NOTHING, Request, Requests, check_ids
from lighttts.engine.llm_steps import Drawn, Piece, Steps
from lighttts.models.interleave import Mix
from lighttts.models.llm import SpeechLM

__all__ = ["GenerateJob", "LLMEngine", "LiveJob", "TokenStep"]

PREFILL_TOKENS = 1024
"""Default bound on the positions prefilled in one step."""


class _Flight(NamedTuple):
    """A launched step: of each request its turn and the position of its input."""

    requests: list[Request]
    turns: list[int]
    positions: list[int]
    drawn: Drawn


class LLMEngine:
    def __init__(
        self,
        model: SpeechLM,
        *,
        slots: int,
        max_length: int,
        prefill_tokens: int = PREFILL_TOKENS,
        mix: Mix | None = None,
    ) -> None:
        """`slots` requests run at once, each of at most `max_length` positions, of prompt and speech together.

        A step prefills waiting requests up to `prefill_tokens` positions in all. If the first has more, it is prefilled
        whole on a CPU, and in several steps on a GPU. `mix`: the blocks of live requests, upstream's if not given.
        """
        self.model = model
        self._vocabulary = model.vocabulary
        self._requests = Requests(model, max_length, mix or Mix())
        self._waiting: deque[Request] = deque()
        self._growing: deque[Request] = deque()
        """Live ones in a slot whose next stretch is to be prefilled."""
        self._active: dict[int, Request] = {}
        self._live: dict[Hashable, Request] = {}
        """All live ones, with and without a slot."""
        self._free = sorted(range(slots), reverse=True)
        self._partly: Request | None = None
        self._flights: deque[_Flight] = deque()
        with torch.inference_mode():
            self._steps = _steps(model, slots, max_length, prefill_tokens)
        self._prefill_tokens = min(prefill_tokens, self._steps.longest)

    @property
    def active(self) -> int:
        """Requests that hold a slot."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def free_slots(self) -> int:
        return len(self._free)

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        if self._flights or self._next():
            return True
        return any(request.ready for request in self._active.values())

    def add(self, job: GenerateJob) -> None:
        """Queue a job. Raises `InvalidInput` if it can never run, `ValueError` if its key is in use."""
        self._check_key(job.key)
        self._waiting.append(self._requests.ordinary(job))

    def open(self, job: LiveJob) -> None:
        """Take in a job whose text is to be fed. Raises as `add` does."""
        self._check_key(job.key)
        self._live[job.key] = self._requests.live(job)

    def feed(self, key: Hashable, text: npt.NDArray[np.int32], *, last: bool) -> None:
        """More text ids of an open job; with `last` there are no others. Raises `InvalidInput`, `KeyError` if there is
        no such job, `ValueError` after its last ids."""
        check_ids(text, self._vocabulary.text, "text")
        request = self._live[key]
        assert request.live
        request.live.feed(text, last=last)
        if request.live.resting:
            self._grow(request)

    def cancel(self, key: Hashable) -> bool:
        """Forget a request and free its slot at once; False if there is none with the key."""
        for request in (*self._live.values(), *self._waiting, *self._active.values()):
            if request.key == key:
                self._drop(request)
                return True
        return False

    def _check_key(self, key: Hashable) -> None:
        if key in self._live or any(request.key == key for request in (*self._waiting, *self._active.values())):
            raise ValueError(f"a request with the key {key!r} is already in the engine")

    @torch.inference_mode()
    def step(self) -> list[TokenStep]:
        """Admit waiting requests, then make one token for each active one. Order of admission is order of arrival.

        On a GPU the tokens are those of the step launched by the call before.
        """
        steps = self._admit()
        ready = sorted((request for request in self._active.values() if request.ready), key=lambda each: each.slot)
        if ready:
            positions = [each.position for each in ready]
            drawn = self._steps.decode([(each.slot, each.position) for each in ready])
            self._flights.append(_Flight(ready, [each.turn for each in ready], positions, drawn))
        for request in ready:
            request.position += 1
            request.launched += 1
        ahead = self._steps.lag if ready else 0
        while len(self._flights) > ahead:
            steps += self._land(self._flights.popleft())
        return steps

    def _land(self, flight: _Flight) -> list[TokenStep]:
        """What a step made; of those that have left since, nothing."""
        rows = zip(flight.requests, flight.turns, flight.positions, flight.drawn(), strict=True)
        return [
            self._advance(request, position, token)
            for request, turn, position, token in rows
            if self._holds(request) and request.turn == turn
        ]

    def _grow(self, request: Request) -> None:
        """Queues a live request that stands at a border for the next stretch of its sequence, if it has the text."""
        if self._requests.grow(request):
            (self._waiting if request.slot < 0 else self._growing).append(request)

    def _next(self) -> Request | None:
        """Whose prefill is due."""
        if self._partly or self._growing:
            return self._partly or self._growing[0]
        return self._waiting[0] if self._waiting and self._free else None

    def _admit(self) -> list[TokenStep]:
        """Give slots to waiting requests within the prefill budget; requests with nothing left to make end here."""
        steps: list[TokenStep] = []
        pieces: list[Piece] = []
        room = self._prefill_tokens
        while request := self._next():
            if request.made >= request.limit:
                steps.append(TokenStep(request.key, (), True))
                self._drop(request)
                continue
            cost = self._steps.cost(len(request.sequence) - 1 - request.prefilled)
            if pieces and cost > room:
                break
            room -= cost
            if request is not self._partly:
                self._seat(request)
            pieces.append(self._piece(request))
        if pieces:
            self._steps.prefill(pieces)
        return steps

    def _seat(self, request: Request) -> None:
        """Takes the first in line, which gets a slot if it has none."""
        if request.slot >= 0:
            self._growing.popleft()
            return
        self._waiting.popleft()
        request.slot = self._free.pop()
        self._active[request.slot] = request

    def _piece(self, request: Request) -> Piece:
        """As much of what is to be prefilled as goes at once."""
        start, whole = request.prefilled, len(request.sequence) - 1
        request.prefilled = min(whole, start + self._steps.longest)
        self._partly = request if request.prefilled < whole else None
        state = None if self._partly else request.state
        return Piece(request.slot, request.first + start, request.sequence[start : request.prefilled], state)

    def _holds(self, request: Request) -> bool:
        """Whether the request has not left its slot."""
        return self._active.get(request.slot) is request

    def _advance(self, request: Request, position: int, token: int) -> TokenStep:
        if request.live:
            return self._advance_live(request, request.live, position, token)
        if token >= self._vocabulary.speech:
            self._drop(request)
            return TokenStep(request.key, (), True)
        request.made += 1
        finished = request.made >= request.limit
        if finished:
            self._drop(request)
        return TokenStep(request.key, (token,), finished)

    def _advance_live(self, request: Request, live: Interleave, position: int, token: int) -> TokenStep:
        tokens = (token,) if token < self._vocabulary.speech else ()
        stopped = live.take(token)
        request.made = live.speech
        if live.resting:
            # What was launched meanwhile had `fill` for its input, where now text stands: its draw is dropped, its keys
            # and values are written over.
            request.turn += 1
            request.position = position + 1
            request.launched = request.limit = request.made
            request.sequence, request.prefilled = NOTHING, 0
            self._grow(request)
            return TokenStep(request.key, tokens, False, filled=True)
        finished = stopped or request.made >= request.limit
        if finished:
            self._drop(request)
        return TokenStep(request.key, tokens, finished)

    def _drop(self, request: Request) -> None:
        """Forgets a request, wherever it is."""
        if request.live:
            del self._live[request.key]
        if request in self._growing:
            self._growing.remove(request)
        if request.slot < 0:
            if request in self._waiting:
                self._waiting.remove(request)
            return
        del self._active[request.slot]
        self._free.append(request.slot)
        if self._partly is request:
            self._partly = None
        if not self._active:
            self._steps.rest()


def _steps(model: SpeechLM, slots: int, max_length: int, prefill_tokens: int) -> Steps:
    if model.device.type == "cpu":
        return AloneSteps(model, slots, max_length)
    return BatchedSteps(model, slots, max_length, prefill_tokens)
