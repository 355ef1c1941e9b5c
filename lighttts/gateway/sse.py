"""Speech as server-sent events, in the words of OpenAI's API."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import AsyncGenerator

from lighttts.errors import LightTTSError
from lighttts.gateway.connection import Streamed
from lighttts.gateway.failures import failure_of, openai_content
from lighttts.gateway.speech import Spoken


def event_stream(spoken: Spoken, first: bytes) -> Streamed:
    """The answer that sends `first` and what follows it as events."""
    return Streamed(_delta(first), _events(spoken), "text/event-stream", {"Cache-Control": "no-cache"})


def _delta(piece: bytes) -> bytes:
    return _event({"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode("ascii")})


async def _events(spoken: Spoken) -> AsyncGenerator[bytes, None]:
    async with contextlib.aclosing(spoken.pieces) as pieces:
        try:
            async for piece in pieces:
                yield _delta(piece)
        except LightTTSError as error:
            yield _event({"type": "error", **openai_content(failure_of(error))})
            return
    # Texts become tokens behind the broker, which does not tell how many.
    usage = {"input_tokens": 0, "output_tokens": spoken.tokens, "total_tokens": spoken.tokens}
    yield _event({"type": "speech.audio.done", "usage": usage})


def _event(content: dict[str, object]) -> bytes:
    return f"data: {json.dumps(content)}\n\n".encode()
