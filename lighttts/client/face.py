"""What both faces of the client ask for alike: speech of a text, of one that is still being written, of a recording."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Generic, TypeVar

from lighttts.client.loop import ClientLoop
from lighttts.client.request import Decoded, Method, Output, Recording, SampleFormat, make_convert, make_synth
from lighttts.client.stream import Timeouts
from lighttts.errors import InvalidInput
from lighttts.transport.endpoints import DEFAULT_BROKER
from lighttts.transport.wire import SpeechRequest

Pieces = TypeVar("Pieces")
"""The pieces of a text."""
Speech = TypeVar("Speech")
"""What speech is read from."""
Talking = TypeVar("Talking")
"""What a text is written to, and its speech read from."""


class Face(ABC, Generic[Pieces, Speech, Talking]):
    """Asks for speech, which is then on its way: nothing here waits."""

    def __init__(
        self,
        broker: str | Sequence[str] = DEFAULT_BROKER,
        *,
        keys: str | PathLike[str] | None = None,
        timeout: float = 60.0,
        connect_timeout: float = 5.0,
    ) -> None:
        timeouts = Timeouts(connect=connect_timeout, chunk=timeout)
        self._loop = ClientLoop(broker, timeouts, Path(keys) if keys is not None else None)
        self._loop.close_with(self)

    def synthesize(
        self,
        text: str | Pieces,
        voice: str | None = None,
        prompt: Recording | None = None,
        prompt_text: str = "",
        *,
        instruct: str = "",
        style: str = "",
        seed: int | None = None,
        speed: float = 1.0,
        output: Output = "audio",
        format: SampleFormat = "f32",
        deadline: float | None = None,
        retries: int = 0,
        owner: str = "",
    ) -> Speech:
        """Asks for `text` to be spoken; returns at once, chunks are read from the result.

        text: what to say; or an iterable of its pieces, cut anywhere, which is run through in a thread of its own (for
            asyncio in a task) while they are spoken: see `talk`.
        voice: a preset or registered voice's name (see `voices`); without voice and prompt the broker's first one.
        prompt: speech to clone the voice of: an audio file's path, bytes or open binary file, at most 16 MiB.
        prompt_text: what is said in the prompt (zero-shot); without it the prompt may be of another language than the
            text (cross-lingual).
        instruct: how to speak, in words, such as "in a whisper"; goes with a voice or a prompt, not with a prompt_text.
        style: which of the model's language models speaks, where it has several; empty is the default.
        seed: 0 to 2**63-1; the same seed and text give the same audio. None: a random one, see `Synthesis.seed`.
        speed: 0.5 to 2.0. At another speed than 1 each sentence comes in one chunk, when all of it is made.
        output: "audio": samples (n,) float32 or, with format="s16", int16; "mel": log-mel frames (n, 80) float32, 50
            a second; "tokens": speech tokens (n,) int32, 25 a second.
        deadline: seconds for the whole request, retries included.
        retries: how often it is asked for again when it fails with a `retryable` error before its first chunk: after
            the error's `retry_after` and a random time, and within a budget that all requests of the client share.
        owner: for gateways: whose registered voices `voice` may be of those they serve.

        Raises `InvalidInput` here; every other error where the chunks are read.
        """
        if retries and not isinstance(text, str):
            raise InvalidInput("text in pieces cannot be asked for again: leave out retries", field="retries")
        synth = make_synth(
            text if isinstance(text, str) else "",
            voice=voice,
            prompt=prompt,
            prompt_text=prompt_text,
            instruct=instruct,
            style=style,
            seed=seed,
            speed=speed,
            output=output,
            format=format,
            deadline=deadline,
            pieces="" if isinstance(text, str) else "auto",
            owner=owner,
        )
        return self._speech(synth, retries) if isinstance(text, str) else self._spoken(synth, text)

    def talk(
        self,
        voice: str | None = None,
        prompt: Recording | None = None,
        prompt_text: str = "",
        *,
        instruct: str = "",
        style: str = "",
        seed: int | None = None,
        speed: float = 1.0,
        output: Output = "audio",
        format: SampleFormat = "f32",
        deadline: float | None = None,
        method: Method = "auto",
        owner: str = "",
    ) -> Talking:
        """Begins to speak a text that is still being written, by a language model say; all else as in `synthesize`.

            with client.talk(voice="heart") as speech:
                threading.Thread(target=play_all, args=(speech,)).start()     # for chunk in speech: play(chunk)
                for words in language_model:
                    speech.write(words)
                speech.end()

        method: "sentences" speaks each sentence as soon as it is whole, "interleaved" begins with its first words;
            "auto" does what the model was made for.
        deadline: seconds for the whole text; if None, some minutes after the last piece.

        Nothing of it is asked for again, and it does not go on after its connection was lost: then it fails with
        `Unavailable`. A text that has not ended must go on within 30 s of what was written last, or heard.
        """
        synth = make_synth(
            "",
            voice=voice,
            prompt=prompt,
            prompt_text=prompt_text,
            instruct=instruct,
            style=style,
            seed=seed,
            speed=speed,
            output=output,
            format=format,
            deadline=deadline,
            pieces=method,
            owner=owner,
        )
        return self._talk(synth)

    def convert(
        self,
        source: Recording,
        voice: str | None = None,
        prompt: Recording | None = None,
        *,
        seed: int | None = None,
        speed: float = 1.0,
        output: Decoded = "audio",
        format: SampleFormat = "f32",
        deadline: float | None = None,
        retries: int = 0,
        owner: str = "",
    ) -> Speech:
        """Asks for what is said in `source` in another voice (voice conversion); all else is as in `synthesize`.

        source: speech, 1 to 30 s: an audio file's path, bytes or open binary file, at most 16 MiB.
        voice, prompt: who is to say it.
        """
        asked = make_convert(
            source,
            voice=voice,
            prompt=prompt,
            seed=seed,
            speed=speed,
            output=output,
            format=format,
            deadline=deadline,
            owner=owner,
        )
        return self._speech(asked, retries)

    @abstractmethod
    def _speech(self, asked: SpeechRequest, retries: int) -> Speech:
        """Begins a request."""

    @abstractmethod
    def _talk(self, asked: SpeechRequest) -> Talking:
        """Begins a request whose text is to be written."""

    @abstractmethod
    def _spoken(self, asked: SpeechRequest, pieces: Pieces) -> Speech:
        """Begins a request whose text comes in `pieces`."""
