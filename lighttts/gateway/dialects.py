"""What is said over WebSockets: our own messages, and those of LightTTS upstream's /inference_zero_shot_bistream."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.websockets import WebSocket

from lighttts.gateway.connection import ClientGone
from lighttts.gateway.failures import Failure, Refused
from lighttts.gateway.speech import Wish
from lighttts.gateway.texts import Said

M = TypeVar("M", bound=BaseModel)
FieldText = Annotated[str, Field(max_length=65_536)]


class Dialect(Protocol):
    """How one kind of client begins, says texts, and is told what becomes of them.

    `again`: whether it may begin anew when all is spoken.
    """

    again: ClassVar[bool]

    async def begin(self, socket: WebSocket) -> tuple[Wish, str]:
        """What the text is to be spoken with, its style as the name of a model, and the audio format.

        Raises `Refused`, `ClientGone`.
        """

    async def text(self, socket: WebSocket) -> Said:
        """The next piece of text. Raises `Refused`, `ClientGone`."""

    def done(self, tokens: int) -> dict[str, object] | None:
        """What is said after the last audio, if anything."""

    def failed(self, failure: Failure) -> dict[str, object]:
        """What is said when it fails."""


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Begin(_Message):
    voice: Annotated[str, Field(max_length=128)] = ""
    model: Annotated[str, Field(max_length=128)] = ""
    instructions: Annotated[str, Field(max_length=4096)] = ""
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "pcm"
    speed: Annotated[float, Field(ge=0.5, le=2.0)] = 1.0


class _Text(_Message):
    text: FieldText = ""
    flush: bool = False
    end: bool = False


class Own:
    """{"voice": ...}, then {"text": ...} as often as needed, {"flush": true} where what has come is to be spoken to its
    end, {"end": true}; {"type": "done"} follows the audio, and then all may begin anew."""

    again: ClassVar[bool] = True

    async def begin(self, socket: WebSocket) -> tuple[Wish, str]:
        asked = _parsed(_Begin, await _received_text(socket))
        instruct = asked.instructions.strip()
        wish = Wish("", voice=asked.voice, speed=asked.speed, instruct=instruct, style=asked.model)
        return wish, asked.response_format

    async def text(self, socket: WebSocket) -> Said:
        said = _parsed(_Text, await _received_text(socket))
        return Said(said.text, said.flush, said.end)

    def done(self, tokens: int) -> dict[str, object]:
        return {"type": "done", "tokens": tokens}

    def failed(self, failure: Failure) -> dict[str, object]:
        said: dict[str, object] = {"type": "error", "code": failure.code, "detail": failure.text}
        return said if failure.retry_after is None else {**said, "retry_after": failure.retry_after}


class _UpstreamBegin(BaseModel):
    prompt_text: Annotated[str, Field(min_length=1, max_length=65_536)]
    tts_model_name: Annotated[str, Field(max_length=128)] = "default"


class _UpstreamText(BaseModel):
    tts_text: FieldText = ""
    finish: bool = False


class Bistream:
    """{"prompt_text": ...}, the prompt's audio as a binary message, {"tts_text": ...} as often as needed,
    {"finish": true}; the connection is closed after the audio."""

    again: ClassVar[bool] = False

    async def begin(self, socket: WebSocket) -> tuple[Wish, str]:
        asked = _parsed(_UpstreamBegin, await _received_text(socket))
        prompt = await _received(socket)
        if not isinstance(prompt, bytes):
            raise Refused(400, "invalid_input", "the second message must be the prompt's audio file, in binary")
        return Wish("", prompt=prompt, prompt_text=asked.prompt_text, style=asked.tts_model_name), "pcm"

    async def text(self, socket: WebSocket) -> Said:
        said = _parsed(_UpstreamText, await _received_text(socket))
        return Said(said.tts_text, end=said.finish)

    def done(self, tokens: int) -> None:
        """The end of the connection says it."""

    def failed(self, failure: Failure) -> dict[str, object]:
        return {"error": failure.text}


def _parsed(kind: type[M], text: str) -> M:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "message"
        raise Refused(400, "invalid_input", f"{where}: {first['msg']}", field=where) from None


async def _received_text(socket: WebSocket) -> str:
    said = await _received(socket)
    if not isinstance(said, str):
        raise Refused(400, "invalid_input", "a message in JSON was expected, not a binary one")
    return said


async def _received(socket: WebSocket) -> str | bytes:
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise ClientGone
    text: str | None = message.get("text")
    return message["bytes"] if text is None else text
