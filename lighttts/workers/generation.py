"""Requests at the llm worker: which sentence each is at, and the tokens of it that have not been sent."""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from lighttts.engine.llm import GenerateJob, LiveJob, LLMEngine, TokenStep
from lighttts.errors import ProtocolError
from lighttts.transport import wire
from lighttts.workers.seeds import sentence_seed
from lighttts.workers.stage import Result, Work

_EARLY_TOKENS = 60
"""Tokens of a request that travel in small frames: the decode worker's first hop, up to 49 and 3, waits for them."""
_EARLY_FRAME = 4
_FRAME = 10
"""Tokens a frame later on, when hops are longer and playback is ahead."""
_NO_TOKENS = np.zeros(0, np.int32)


class Generation:
    """A request whose text is there. `sentence`: the one that is spoken now, or next."""

    def __init__(self, work: Work, message: wire.GenerateWork) -> None:
        self.work = work
        self.message = message
        self.sentence = message.sentence
        self._seq = message.seq
        self._sent = 0
        self._unsent: list[int] = []
        self._take(message)

    def _take(self, message: wire.GenerateWork) -> None:
        if not message.lengths or sum(message.lengths) != len(message.text_ids):
            raise ProtocolError("GenerateWork.lengths do not add up to its text_ids", field="lengths")
        if message.sentence >= len(message.lengths):
            raise ProtocolError("GenerateWork.sentence is none of its sentences", field="sentence")
        self._sentences = np.split(message.text_ids, np.cumsum(message.lengths)[:-1])

    def proceed(self, engine: LLMEngine) -> bool:
        """Gives the engine what there is to do. True if nothing is left, and only the end to be told. Raises what the
        engine does."""
        engine.add(self._job(self._sentences[self.sentence]))
        return False

    def results(self, step: TokenStep, epoch: int) -> list[Result]:
        """What is to be sent after a step; a `finished` one ends the sentence."""
        self._unsent += step.tokens
        if step.finished:
            return [self._frame(epoch, final=True, last=self._is_last())]
        filled = [self._frame(epoch) for _ in range(bool(self._unsent) + 1)] if step.filled else []
        due = len(self._unsent) >= (_EARLY_FRAME if self._sent < _EARLY_TOKENS else _FRAME)
        return filled or ([self._frame(epoch)] if due else [])

    def end(self, epoch: int) -> Result:
        """The end of a request of which nothing was left, as a sentence without tokens."""
        return self._frame(epoch, final=True, last=True)

    def _is_last(self) -> bool:
        return self.sentence == len(self._sentences) - 1

    def _job(self, text: npt.NDArray[np.int32]) -> GenerateJob:
        return GenerateJob(
            key=self.work,
            text=np.concatenate([self.message.prompt_text_ids, text]),
            text_tokens=len(text),
            prompt_tokens=self.message.llm_prompt_tokens,
            seed=self._seed,
            done_tokens=self._done,
        )

    @property
    def _seed(self) -> int:
        return sentence_seed(self.message.seed, self.sentence)

    @property
    def _done(self) -> npt.NDArray[np.int32]:
        return self.message.done_tokens if self.sentence == self.message.sentence else _NO_TOKENS

    def _frame(self, epoch: int, *, final: bool = False, last: bool = False) -> Result:
        """The unsent tokens; `final` ends the sentence."""
        tokens = np.array(self._unsent, np.int32)
        message = wire.Tokens(*self.work.named, epoch, self._seq, self.sentence, final, last, tokens)
        self._seq += 1
        self._sent += len(self._unsent)
        self.sentence += final
        self._unsent = []
        return Result(self.work, message, ends=last)


class LiveGeneration(Generation):
    """A request whose text comes in pieces, each sentence of it whole before it is begun or, interleaved, not."""

    def _take(self, message: wire.GenerateWork) -> None:
        self._parts: deque[wire.MoreText] = deque()
        self._whole: list[npt.NDArray[np.int32]] = []
        self._begun: int | None = None
        """The sentence that the engine has."""

    def more(self, message: wire.MoreText) -> None:
        """More of the text has come."""
        self._parts.append(message)

    def proceed(self, engine: LLMEngine) -> bool:
        while self._parts and self._parts[0].sentence == self.sentence:
            if self._parts[0].last:
                return True
            part = self._parts.popleft()
            if self.message.pieces == "interleaved":
                self._feed(engine, part)
            else:
                self._whole.append(part.text_ids)
                if part.final:
                    engine.add(self._job(np.concatenate(self._whole)))
                    self._whole = []
        return False

    def _feed(self, engine: LLMEngine, part: wire.MoreText) -> None:
        if self._begun != self.sentence:
            prompt_text, prompt = self.message.prompt_text_ids, self.message.llm_prompt_tokens
            engine.open(LiveJob(self.work, prompt_text, prompt, self._seed, self._done, self.message.lead))
            self._begun = self.sentence
        engine.feed(self.work, part.text_ids, last=part.final)

    def _is_last(self) -> bool:
        return False
