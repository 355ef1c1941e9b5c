"""Continuous batching of the language model: requests join and leave between steps.

Pure and synchronous: a worker's thread calls `LLMEngine.step` and gets the tokens made. A request's tokens are a
function of its job (text, prompt, seed, tokens already made) and of the batch around it in no way:

- Random numbers are keyed by (seed, token index), whoever else is drawn for.
- On a CPU, matrix products give other last bits for other batch sizes. There every request is prefilled alone and
  decoded in a batch of `CPU_ROWS` rows, padded if need be, and attends in a call of its own; so the shape of every
  operation depends on the request alone and its logits are equal bit for bit to those of a solo run in a process
  with as many threads.
- On CUDA a step always computes all slots at once, as a CUDA graph. Batch size is constant, but how far the attention
  reaches depends on the longest request, so logits may differ in the last bits from those of a solo run.

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
from torch import Tensor

from lighttts.engine.kv_cache import KVCache, PrefillAttend, RowAttend, SlotsAttend
from lighttts.engine.step_graphs import StepGraphs
from lighttts.errors import InvalidInput
from lighttts.models.llm import MAX_SPEECH_PER_TEXT, MIN_SPEECH_PER_TEXT, SpeechLM
from lighttts.models.qwen2 import Attend, Rotation
from lighttts.models.sampling import sample

CPU_ROWS = 2
"""Rows of a decode call on a CPU. Two take as long as one, for it is reading the weights that takes the time."""
PREFILL_TOKENS = 2048
"""Default bound on the positions prefilled in one step."""

_INPUT, _POSITION, _SEED, _STEP, _MINIMUM, _HISTORY = range(6)
"""Columns of the per-slot state; the history takes all from `_HISTORY` on."""


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
    limit: int
    """Tokens at which the request ends."""
    slot: int = -1
    position: int = 0
    """Position of the next decode step's input."""


class LLMEngine:
    def __init__(self, model: SpeechLM, *, slots: int, max_length: int, prefill_tokens: int = PREFILL_TOKENS) -> None:
        """`slots` requests run at once, each of at most `max_length` positions, of prompt and speech together.

        A step prefills waiting requests up to `prefill_tokens` positions in all, one request whatever its length.
        """
        self.model = model
        self._vocabulary = model.vocabulary
        self._max_length = max_length
        self._prefill_tokens = prefill_tokens
        self._alone = model.device.type == "cpu"
        self._waiting: deque[_Request] = deque()
        self._active: dict[int, _Request] = {}
        self._free = sorted(range(slots), reverse=True)
        with torch.inference_mode():
            self._cache = KVCache(model.config, slots, max_length, model.device, model.dtype)
            self._rotary = model.rotary_table(max_length)
            # Inputs of a decode step are task and speech tokens: one table is one look-up instead of three.
            self._embedding = torch.cat([model.llm_embedding.weight, model.speech_embedding.weight])
            columns = _HISTORY + model.sampling.win_size
            self._state = torch.zeros((slots, columns), dtype=torch.int64, device=model.device)
            self._drawn = torch.zeros(slots, dtype=torch.int64, device=model.device)
            self._graphs: StepGraphs | None = None
            if model.device.type == "cuda":
                self._graphs = StepGraphs(self._decode_all, self._state, max_length)
                self._graphs.capture_all()

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
        """Admit waiting requests, then make one token for each active one. Order of admission is order of arrival."""
        steps = self._admit()
        requests = sorted(self._active.values(), key=lambda request: request.slot)
        if not requests:
            return steps
        drawn = self._drawn_alone(requests) if self._alone else self._drawn_together(requests)
        return steps + [self._advance(request, token) for request, token in zip(requests, drawn, strict=True)]

    def _drawn_alone(self, requests: Sequence[_Request]) -> list[int]:
        groups = [requests[at : at + CPU_ROWS] for at in range(0, len(requests), CPU_ROWS)]
        drawn: list[int] = torch.cat([self._decode(group) for group in groups]).tolist()
        return drawn

    def _drawn_together(self, requests: Sequence[_Request]) -> list[int]:
        """The host waits once: for the ids drawn."""
        positions = 1 + max(request.position for request in requests)
        if self._graphs:
            self._graphs.run(positions)
        else:
            self._decode_all(positions)
        drawn = self._drawn.tolist()
        return [drawn[request.slot] for request in requests]

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
            limit=min(job.text_tokens * MAX_SPEECH_PER_TEXT, made + self._max_length - len(sequence) + 1),
            position=len(sequence) - 1,
        )

    def _admit(self) -> list[TokenStep]:
        """Give slots to waiting requests within the prefill budget; requests with nothing left to make end here."""
        steps: list[TokenStep] = []
        admitted: list[_Request] = []
        positions = 0
        while self._waiting and self._free:
            request = self._waiting[0]
            if request.made >= request.limit:
                steps.append(TokenStep(self._waiting.popleft().key, (), True))
                continue
            if admitted and positions + request.position > self._prefill_tokens:
                break
            positions += request.position
            admitted.append(self._waiting.popleft())
            request.slot = self._free.pop()
            self._active[request.slot] = request
        if admitted:
            for group in [[request] for request in admitted] if self._alone else [admitted]:
                self._prefill(group)
            slots = torch.tensor([request.slot for request in admitted], device=self._state.device)
            self._state[slots] = torch.tensor([request.state for request in admitted], device=self._state.device)
        return steps

    def _prefill(self, group: Sequence[_Request]) -> None:
        length = max(request.position for request in group)
        ids = np.zeros((len(group), length), np.int64)
        for row, request in zip(ids, group, strict=True):
            row[: request.position] = request.sequence[:-1]
        embedded = self.model.embed(torch.from_numpy(ids).to(self._state.device))
        attend = PrefillAttend(self._cache, [request.slot for request in group])
        self.model.body(embedded, Rotation(*self._rotary[:, :length]), attend)

    def _decode(self, group: Sequence[_Request]) -> Tensor:
        """Advance a group by one step: the ids drawn, int64 [len(group)], stop ids included."""
        slots = [request.slot for request in group]
        slots += slots[:1] * (CPU_ROWS - len(slots))
        state = self._state[torch.tensor(slots)]
        attend = RowAttend(self._cache, [(request.slot, request.position) for request in group])
        drawn = self._draw(self._logits(state, attend), state)
        self._state[torch.tensor(slots[: len(group)])] = self._after(state, drawn)[: len(group)]
        return drawn[: len(group)]

    def _decode_all(self, positions: int) -> None:
        """Advance all slots by one step, `_drawn` takes their ids. Tensors stay in place, nothing is read back."""
        state = self._state
        attend = SlotsAttend(self._cache, state[:, _POSITION], positions - 1)
        drawn = self._draw(self._logits(state, attend), state)
        self._drawn.copy_(drawn)
        state.copy_(self._after(state, drawn))

    def _logits(self, state: Tensor, attend: Attend) -> Tensor:
        embedded = self._embedding[state[:, _INPUT]].unsqueeze(1)
        cosine, sine = self._rotary[:, state[:, _POSITION]][:, :, None, None]
        logits: Tensor = self.model.llm_decoder(self.model.body(embedded, Rotation(cosine, sine), attend)[:, 0])
        return logits.float()

    def _draw(self, logits: Tensor, state: Tensor) -> Tensor:
        early = state[:, _STEP] < state[:, _MINIMUM]
        logits[:, self._vocabulary.end_of_speech].masked_fill_(early, -torch.inf)
        return sample(logits, state[:, _HISTORY:], state[:, _SEED], state[:, _STEP], self.model.sampling)

    def _after(self, state: Tensor, drawn: Tensor) -> Tensor:
        """The state one step on. Slots without a request run along, so their position is kept within the cache."""
        after = state.roll(-1, 1)
        after[:, :_HISTORY] = state[:, :_HISTORY]
        after[:, _INPUT] = drawn + self._vocabulary.task
        after[:, _POSITION].add_(1).clamp_(max=self._max_length - 1)
        after[:, _STEP] += 1
        after[:, -1] = drawn
        return after

    def _advance(self, request: _Request, token: int) -> TokenStep:
        if token >= self._vocabulary.speech:
            self._release(request)
            return TokenStep(request.key, (), True)
        request.made += 1
        request.position += 1
        finished = request.made >= request.limit
        if finished:
            self._release(request)
        return TokenStep(request.key, (token,), finished)

    def _release(self, request: _Request) -> None:
        del self._active[request.slot]
        self._free.append(request.slot)
        if not self._active:
            self._cache.give_back()


def _check_ids(ids: npt.NDArray[np.int32], count: int, what: str) -> None:
    if ids.size and (ids.min() < 0 or ids.max() >= count):
        raise InvalidInput(f"A {what} token is outside 0..{count - 1}; it is not of this model.", field="tokens")


def _as_int64(seed: int) -> int:
    """The int64 that has the low 64 bits of `seed`."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)
