"""CosyVoice's own service: cosyvoice.CosyVoice, for its unchanged clients."""

from __future__ import annotations

import io
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np

from lighttts.formats import make_writer
from lighttts.gateway.failures import Refused
from lighttts.gateway.rpc.calls import Call, Calls
from lighttts.gateway.rpc.protos import Service
from lighttts.gateway.speech import Speaker, Spoken, Wish

PROMPT_RATE = 16000
"""Samples a second of the prompts that its clients send."""
_FIELDS = {"text": "tts_text", "voice": "spk_id", "prompt": "prompt_audio", "instruct": "instruct_text"}


class CosyVoice:
    """Answers the calls of this service."""

    def __init__(self, speaker: Speaker) -> None:
        self.service = Service("cosyvoice.proto", "cosyvoice.CosyVoice")
        self._speaker = speaker

    def handlers(self, calls: Calls) -> Any:
        """All of it, for a server."""
        return calls.handlers(self.service, {"Inference": self._inference}, _FIELDS)

    async def _inference(self, call: Call) -> None:
        wish = replace(_wish(await call.request()), deadline=call.deadline)
        response = self.service.kinds["Response"]
        async with aclosing(Spoken(self._speaker, call.notes, wish, "pcm", call.key).pieces) as pieces:
            async for piece in pieces:
                await call.send(response(tts_audio=piece))


def _wish(asked: Any) -> Wish:
    mode = asked.WhichOneof("RequestPayload")
    if mode is None:
        raise Refused(400, "invalid_input", "the request holds none of the modes that this server knows")
    form = getattr(asked, mode)
    if mode == "sft_request":
        return Wish(form.tts_text, voice=form.spk_id)
    if mode == "instruct_request":
        return Wish(form.tts_text, voice=form.spk_id, instruct=form.instruct_text)
    prompt = _audio_file(form.prompt_audio)
    return Wish(form.tts_text, prompt=prompt, prompt_text=form.prompt_text if mode == "zero_shot_request" else "")


def _audio_file(samples: bytes) -> bytes:
    if not samples or len(samples) % 2:
        text = f"prompt_audio holds no int16 samples: send some, {PROMPT_RATE} a second"
        raise Refused(400, "invalid_input", text, field="prompt_audio")
    file = io.BytesIO()
    writer = make_writer("wav", file, PROMPT_RATE)
    writer.write(np.frombuffer(samples, "<i2"))
    writer.close()
    return file.getvalue()
