"""One request at the decode worker: the tokens it waits to decode, and what has been sent of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Hashable, Iterator
from typing import cast

import numpy as np
import numpy.typing as npt

from lighttts import metrics
from lighttts.engine.decode import DecodeStep, VoicePrompt
from lighttts.engine.decode_stream import FRAMES_A_TOKEN
from lighttts.errors import InvalidInput, WorkerFailed
from lighttts.models.silence import Pauses
from lighttts.transport import wire
from lighttts.transport.schema import FloatArray
from lighttts.workers.stage import Result, Work

FRAMES_PER_SECOND = 50
_LOUDEST_S16 = 32767


class Speech:
    """Sentences are decoded in order, one stream each; samples, frames and tokens count over the whole request.

    Work taken over begins with the first sentence that is not wholly sent, of which all rows sent before are skipped.
    `silent`: the tokens of which only so many in a row are spoken, unless they come from a recording.
    """

    def __init__(self, work: Work, message: wire.DecodeWork, silent: frozenset[int] = frozenset()) -> None:
        if message.output not in ("audio", "mel"):
            raise InvalidInput(f"there is nothing to decode for output {message.output}", field="output")
        self.message = message
        self.work = work
        # Copies: what arrived is a read-only view that would keep the whole message alive.
        self.voice = VoicePrompt(
            key=message.voice_key,
            embedding=np.array(message.voice_embedding),
            tokens=np.array(message.voice_tokens),
            mel=np.array(message.voice_mel),
        )
        self.stream: Hashable | None = None
        """Key of the engine's stream, while there is one."""
        self.sentence = message.sentence
        """The sentence that is decoded now, or next."""
        self._received, self._receiving = message.tokens_seq, message.sentence
        self._waiting: deque[wire.Tokens] = deque()
        self._last_sentence: int | None = None
        self._pauses = Pauses(frozenset() if message.recorded else silent)
        self._fed = self._decoded = message.tokens
        self._seq, self._rows, self._skip = message.seq, message.first_row, message.skip
        self._sent_at: float | None = None

    def receive(self, message: wire.Tokens) -> None:
        """Takes in the next tokens. Raises `WorkerFailed` when some before them were lost on the way."""
        if (message.seq, message.sentence) != (self._received, self._receiving):
            raise WorkerFailed(
                f"speech tokens were lost: frame {message.seq} of sentence {message.sentence} came "
                f"where frame {self._received} of sentence {self._receiving} was due"
            )
        self._received += 1
        self._receiving += message.final
        self._waiting.append(message)
        if message.last:
            self._last_sentence = message.sentence

    def due(self) -> Iterator[tuple[npt.NDArray[np.int32], bool]]:
        """Takes out the tokens (n,) of the current sentence that have come, each with whether they end it; of silent
        ones, those that are to be spoken."""
        while self._waiting and self._waiting[0].sentence == self.sentence:
            message = self._waiting.popleft()
            self._fed += len(message.tokens)
            yield self._pauses.spoken(message.tokens, message.final), message.final

    def results(self, step: DecodeStep, epoch: int) -> list[Result]:
        """What `step` adds to the request, as at most one message; none if the step made nothing that can be heard."""
        streamed = self._decoded + (step.first_frame + len(step.mel)) // FRAMES_A_TOKEN
        tokens = self._fed if step.finished else streamed
        last = step.finished and self.sentence == self._last_sentence
        sentence = self.sentence
        if step.finished:
            self._decoded = self._fed
            self.sentence += 1
            self.stream = None
        rows = self._unsent(step.audio if self.message.output == "audio" else step.mel)
        if not len(rows) and not last:
            return []
        self._time()
        head = (*self.work.named, epoch, self._seq, sentence, last, self._rows, tokens)
        self._seq += 1
        self._rows += len(rows)
        if self.message.output == "mel":
            return [Result(self.work, wire.Mel(*head, rows), ends=last)]
        # The field's type names the common case, float32; its codec takes int16 too.
        audio = cast(FloatArray, samples(rows, self.message.sample_type))
        return [Result(self.work, wire.Audio(*head, audio), ends=last)]

    def _unsent(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """`rows` without those that another worker has sent."""
        sent = min(self._skip, len(rows))
        self._skip -= sent
        self._rows += sent
        return rows[sent:]

    def _time(self) -> None:
        now = time.monotonic()
        if self._sent_at is not None:
            metrics.chunk_interval.labels("decode").observe(now - self._sent_at)
        self._sent_at = now


def samples(audio: npt.NDArray[np.float32], sample_type: str) -> npt.NDArray[np.float32] | npt.NDArray[np.int16]:
    """`audio` (n,) clipped to -1..1, as float32 or, for "s16", as int16 rounded to the nearest."""
    clipped = np.clip(audio, -1.0, 1.0)
    if sample_type == "f32":
        return clipped
    return np.rint(clipped * _LOUDEST_S16).astype(np.int16)
