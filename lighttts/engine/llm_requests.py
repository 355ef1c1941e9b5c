"""Requests of the language model's engine: from jobs to sequences, positions, limits and the state they decode from."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lighttts.engine.interleave import FILL, Interleave
from lighttts.engine.llm_jobs import GenerateJob, LiveJob
from lighttts.engine.llm_state import NEVER
from lighttts.errors import InvalidInput
from lighttts.models.interleave import Mix
from lighttts.models.llm import MAX_SPEECH_PER_TEXT, MIN_SPEECH_PER_TEXT, SpeechLM


@dataclass(eq=False)
class Request:
    key: Hashable
    sequence: npt.NDArray[np.int64]
    """Sequence ids known before a decode step: all are prefilled but the last, which is that step's input."""
    state: list[int]
    """Row of the per-slot state at that decode step."""
    made: int
    """Tokens made so far."""
    launched: int
    """Tokens made or being made."""
    limit: int
    """Tokens at which the request ends, or a live one's block."""
    position: int
    """Position of the next decode step's input."""
    first: int = 0
    """Position of the first of `sequence`."""
    prefilled: int = 0
    slot: int = -1
    live: Interleave | None = None
    seed: int = 0
    turn: int = 0
    """Counts a live request's blocks: what was launched in one that is over is dropped."""

    @property
    def ready(self) -> bool:
        """Whether a decode step can be launched for it."""
        return self.prefilled == len(self.sequence) - 1 and self.launched < self.limit


NOTHING = np.zeros(0, np.int64)


class Requests:
    """Makes the requests of `model` for slots of `max_length` positions; `mix`: the blocks of live ones."""

    def __init__(self, model: SpeechLM, max_length: int, mix: Mix) -> None:
        self._vocabulary = model.vocabulary
        self._sampling = model.sampling
        self._max_length = max_length
        self._mix = mix

    def ordinary(self, job: GenerateJob) -> Request:
        """A request ready to be prefilled. Raises `InvalidInput` if it can never run."""
        vocabulary = self._vocabulary
        check_ids(job.text, vocabulary.text, "text")
        check_ids(job.prompt_tokens, vocabulary.speech, "prompt speech")
        check_ids(job.done_tokens, vocabulary.speech, "speech")
        sequence = vocabulary.sequence(job.text, np.concatenate([job.prompt_tokens, job.done_tokens]))
        minimum = job.text_tokens * MIN_SPEECH_PER_TEXT
        made = len(job.done_tokens)
        if len(sequence) - 1 + max(minimum - made, 1) > self._max_length:
            raise InvalidInput(
                f"The text and the prompt take {len(sequence)} positions and their speech at least {minimum} more, "
                f"where the model runs with {self._max_length}; shorten the text or the prompt.",
                field="text",
            )
        window = self._sampling.win_size
        history = [-1] * window + job.done_tokens.tolist()
        return Request(
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

    def live(self, job: LiveJob) -> Request:
        """A request that waits for its first text. Raises `InvalidInput` if it can never run."""
        vocabulary = self._vocabulary
        check_ids(job.prompt_text, vocabulary.text, "text")
        check_ids(job.prompt_tokens, vocabulary.speech, "prompt speech")
        check_ids(job.done_tokens[job.done_tokens != FILL], vocabulary.speech, "speech")
        prompt = len(job.prompt_text) + len(job.prompt_tokens)
        if prompt + self._mix.text + self._mix.speech + 2 > self._max_length:
            raise InvalidInput(
                f"The prompt takes {prompt} positions where the model runs with {self._max_length}; shorten it.",
                field="prompt",
            )
        lead, text = np.split(job.prompt_text, [job.lead])
        live = Interleave(vocabulary, self._mix, lead, text, job.prompt_tokens, job.done_tokens)
        return Request(job.key, NOTHING, [], 0, 0, limit=0, position=0, live=live, seed=_as_int64(job.seed))

    def grow(self, request: Request) -> bool:
        """Gives a live request that stands at a border the next stretch of its sequence; False if text is lacking."""
        live = request.live
        assert live
        ids = live.stretch()
        if ids is None:
            return False
        request.sequence, request.first, request.prefilled = ids, request.position, 0
        request.position += len(ids) - 1
        request.made = request.launched = live.speech
        left = live.block_left
        minimum = NEVER
        request.limit = request.made + (left or 0)
        if left is None:
            request.limit = live.text_tokens * MAX_SPEECH_PER_TEXT
            minimum = len(live.made) + max(0, live.text_tokens * MIN_SPEECH_PER_TEXT - request.made)
        room = self._max_length - request.position
        # Where a block does not fit any more, the sentence ends: it is never left without an end.
        request.limit = min(request.limit, request.made + room) if left is None or left < room else request.made
        request.state = self._live_state(request, live, minimum)
        return True

    def _live_state(self, request: Request, live: Interleave, minimum: int) -> list[int]:
        vocabulary, window = self._vocabulary, self._sampling.win_size
        history = [-1] * window + [vocabulary.fill if token == FILL else token for token in live.made[-window:]]
        inputs = int(request.sequence[-1]) - vocabulary.text
        return [inputs, request.position, request.seed, len(live.made), minimum, *history[-window:]]


def check_ids(ids: npt.NDArray[np.int32], count: int, what: str) -> None:
    """Raises `InvalidInput` unless all `ids` are below `count`; `what` names them."""
    if ids.size and (ids.min() < 0 or ids.max() >= count):
        raise InvalidInput(f"A {what} token is outside 0..{count - 1}; it is not of this model.", field="tokens")


def _as_int64(seed: int) -> int:
    """The int64 that has the low 64 bits of `seed`."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)
