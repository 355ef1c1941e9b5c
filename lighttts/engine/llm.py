"""Continuous batching of the language model: requests join and leave between steps.

Pure and synchronous: a worker's thread calls `LLMEngine.step` and gets the tokens made. A request's tokens are a
function of its job (text, prompt, seed, tokens already made) and of the batch around it in no way:

- Random numbers are keyed by (seed, token index), whoever else is drawn for.
- On a CPU (`lighttts.engine.llm_alone`) the shape of every operation depends on the request alone, so its logits are
  equal bit for bit to those of a solo run in a process with as many threads.
- On CUDA (`lighttts.engine.llm_batched`) the number of rows of a step depends on how many requests run, so logits may
  differ in the last bits from those of a solo run. There a step is launched before the ids of the step before are
  read: a request whose end has not been read yet runs along once more, and what it draws is dropped.

A resumed request (`done_tokens`) continues with the random numbers it would have had. Its context is prefilled instead
of decoded token by token, so its logits agree with those of the uninterrupted run up to rounding: another token is
drawn only where a draw falls within rounding of the boundary between two tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lighttts.engine.llm_alone import AloneSteps
from lighttts.engine.llm_batched import BatchedSteps
from lighttts.engine.llm_steps import Drawn, Piece, Steps
from lighttts.errors import InvalidInput
from lighttts.models.llm import MAX_SPEECH_PER_TEXT, MIN_SPEECH_PER_TEXT, SpeechLM

PREFILL_TOKENS = 1024
"""Default bound on the positions prefilled in one step."""


@dataclass(frozen=True, eq=False)
class GenerateJob:
    """One request for speech tokens."""

    key: Hashable
    text: npt.NDArray[np.int32]
    """Text token ids, those of the prompt's text first."""
    text_tokens: int
    """How many of them are not the prompt's: the bounds on the number of speech tokens are multiples of it."""
    prompt_tokens: npt.NDArray[np.int32]
    """Speech tokens of the prompt."""
    seed: int
    done_tokens: npt.NDArray[np.int32]
    """Speech tokens made already, by an engine that did not finish; numbering continues after them."""


@dataclass(frozen=True)
class TokenStep:
    """What a step made for one request: at most one token, none if the end of speech was drawn."""

    key: Hashable
    tokens: tuple[int, ...]
    finished: bool


@dataclass(eq=False)
class _Request:
    key: Hashable
    sequence: npt.NDArray[np.int64]
    """Sequence ids known at the start: all are prefilled but the last, which is the first decode step's input."""
    state: list[int]
    """Row of the per-slot state at the first decode step."""
    made: int
    """Tokens made so far."""
    launched: int
    """Tokens made or being made."""
    limit: int
    """Tokens at which the request ends."""
    position: int
    """Position of the next decode step's input."""
    prefilled: int = 0
    slot: int = -1

    @property
    def ready(self) -> bool:
        """Whether a decode step can be launched for it."""
        return self.prefilled == len(self.sequence) - 1 and self.launched < self.limit


class LLMEngine:
    def __init__(self, model: SpeechLM, *, slots: int, max_length: int, prefill_tokens: int = PREFILL_TOKENS) -> None:
        """`slots` requests run at once, each of at most `max_length` positions, of prompt and speech together.

        A step prefills waiting requests up to `prefill_tokens` positions in all. If the first has more, it is prefilled
        whole on a CPU, and in several steps on a GPU.
        """
        self.model = model
        self._vocabulary = model.vocabulary
        self._max_length = max_length
        self._waiting: deque[_Request] = deque()
        self._active: dict[int, _Request] = {}
        self._free = sorted(range(slots), reverse=True)
        self._partly: _Request | None = None
        self._flights: deque[tuple[list[_Request], Drawn]] = deque()
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
        return bool(self._active or self._waiting)

    def add(self, job: GenerateJob) -> None:
        """Queue a job. Raises `InvalidInput` if it can never run, `ValueError` if its key is in use."""
        if any(request.key == job.key for request in (*self._waiting, *self._active.values())):
            raise ValueError(f"a request with the key {job.key!r} is already in the engine")
        self._waiting.append(self._prepare(job))

    def cancel(self, key: Hashable) -> bool:
        """Forget a request and free its slot at once; False if there is none with the key."""
        for request in self._waiting:
            if request.key == key:
                self._waiting.remove(request)
                return True
        for request in self._active.values():
            if request.key == key:
                self._release(request)
                return True
        return False

    @torch.inference_mode()
    def step(self) -> list[TokenStep]:
        """Admit waiting requests, then make one token for each active one. Order of admission is order of arrival.

        On a GPU the tokens are those of the step launched by the call before.
        """
        steps = self._admit()
        ready = sorted((request for request in self._active.values() if request.ready), key=lambda each: each.slot)
        if ready:
            self._flights.append((ready, self._steps.decode([(each.slot, each.position) for each in ready])))
        for request in ready:
            request.position += 1
            request.launched += 1
        ahead = self._steps.lag if ready else 0
        while len(self._flights) > ahead:
            steps += self._land(*self._flights.popleft())
        return steps

    def _land(self, requests: Sequence[_Request], drawn: Drawn) -> list[TokenStep]:
        """What a step made; of those that have left since, nothing."""
        pairs = zip(requests, drawn(), strict=True)
        return [self._advance(request, token) for request, token in pairs if self._holds(request)]

    def _prepare(self, job: GenerateJob) -> _Request:
        vocabulary = self._vocabulary
        _check_ids(job.text, vocabulary.text, "text")
        _check_ids(job.prompt_tokens, vocabulary.speech, "prompt speech")
        _check_ids(job.done_tokens, vocabulary.speech, "speech")
        sequence = vocabulary.sequence(job.text, np.concatenate([job.prompt_tokens, job.done_tokens]))
        minimum = job.text_tokens * MIN_SPEECH_PER_TEXT
        made = len(job.done_tokens)
        if len(sequence) - 1 + max(minimum - made, 1) > self._max_length:
            raise InvalidInput(
                f"The text and the prompt take {len(sequence)} positions and their speech at least {minimum} more, "
                f"where the model runs with {self._max_length}; shorten the text or the prompt.",
                field="text",
            )
        window = self.model.sampling.win_size
        history = [-1] * window + job.done_tokens.tolist()
        return _Request(
            key=job.key,
            sequence=sequence,
            state=[
                int(sequence[-1]) - vocabulary.text,
                len(sequence) - 1,
                _as_int64(job.seed),
                made,
                minimum,
                *history[-window:],
            ],
            made=made,
            launched=made,
            limit=min(job.text_tokens * MAX_SPEECH_PER_TEXT, made + self._max_length - len(sequence) + 1),
            position=len(sequence) - 1,
        )

    def _admit(self) -> list[TokenStep]:
        """Give slots to waiting requests within the prefill budget; requests with nothing left to make end here."""
        steps: list[TokenStep] = []
        pieces: list[Piece] = []
        room = self._prefill_tokens
        while self._partly or (self._waiting and self._free):
            request = self._partly or self._waiting[0]
            if request.made >= request.limit:
                steps.append(TokenStep(self._waiting.popleft().key, (), True))
                continue
            cost = self._steps.cost(len(request.sequence) - 1 - request.prefilled)
            if pieces and cost > room:
                break
            room -= cost
            if request is not self._partly:
                self._seat(self._waiting.popleft())
            pieces.append(self._piece(request))
        if pieces:
            self._steps.prefill(pieces)
        return steps

    def _seat(self, request: _Request) -> None:
        request.slot = self._free.pop()
        self._active[request.slot] = request

    def _piece(self, request: _Request) -> Piece:
        """As much of what is to be prefilled as goes at once."""
        start, whole = request.prefilled, len(request.sequence) - 1
        request.prefilled = min(whole, start + self._steps.longest)
        self._partly = request if request.prefilled < whole else None
        state = None if self._partly else request.state
        return Piece(request.slot, start, request.sequence[start : request.prefilled], state)

    def _holds(self, request: _Request) -> bool:
        """Whether the request has not left its slot."""
        return self._active.get(request.slot) is request

    def _advance(self, request: _Request, token: int) -> TokenStep:
        if token >= self._vocabulary.speech:
            self._release(request)
            return TokenStep(request.key, (), True)
        request.made += 1
        finished = request.made >= request.limit
        if finished:
            self._release(request)
        return TokenStep(request.key, (token,), finished)

    def _release(self, request: _Request) -> None:
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


def _check_ids(ids: npt.NDArray[np.int32], count: int, what: str) -> None:
    if ids.size and (ids.min() < 0 or ids.max() >= count):
        raise InvalidInput(f"A {what} token is outside 0..{count - 1}; it is not of this model.", field="tokens")


def _as_int64(seed: int) -> int:
    """The int64 that has the low 64 bits of `seed`."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)
