"""Text to speech through the three workers, their sockets and the tiny reference model, relayed as the broker does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from lighttts.engine.decode import VoicePrompt
from lighttts.frontend.encode import EncodeJob
from lighttts.transport import wire
from lighttts.workers.decode import DecodeStage
from lighttts.workers.encode import EncodeStage
from lighttts.workers.llm import LLMStage
from lighttts.workers.seeds import sentence_seed
from lighttts.workers.stage import Boot
from tests.workers.fakes import FakeBroker, running
from tests.workers.golden import VOICE, decode_engine, decoded, encode_engine, generated, llm_engine

REQUESTS = {
    f"r{seed}": (seed, text)
    for seed, text in enumerate(
        ["Good morning to all of you. It is cold.", "One two three.", "Where is it? There it is, over the hill."]
    )
}


class Chain:
    """A broker for each stage, so that each has one worker."""

    def __init__(self) -> None:
        self.encode, self.llm, self.decode = FakeBroker(), FakeBroker(), FakeBroker()

    def begin(self, request_id: str, text: str, seed: int) -> None:
        self.encode.send(wire.EncodeWork(request_id, 0, text, VOICE, "", b""))
        encoded = self.encode.result(wire.Encoded)
        self.llm.send(
            wire.GenerateWork(
                request_id,
                0,
                seed,
                0,
                0,
                encoded.lengths,
                encoded.text_ids,
                encoded.prompt_text_ids,
                encoded.llm_prompt_tokens,
                np.zeros(0, np.int32),
            )
        )
        self.decode.send(
            wire.DecodeWork(
                request_id,
                0,
                seed,
                1.0,
                "mel",
                "f32",
                *[0] * 6,
                encoded.voice_key,
                encoded.voice_tokens,
                encoded.voice_mel,
                encoded.voice_embedding,
            )
        )

    def mel(self, count: int) -> dict[str, np.ndarray]:
        """Relays tokens until `count` requests have all their mel."""
        mels: dict[str, list[wire.Mel]] = {}
        left = count
        while left:
            tokens = self.llm.result(wire.Tokens)
            self.decode.send(tokens)
            left -= tokens.last
        left = count
        while left:
            frame = self.decode.result(wire.Mel)
            mels.setdefault(frame.request_id, []).append(frame)
            assert frame.first_frame == sum(len(earlier.mel) for earlier in mels[frame.request_id][:-1])
            left -= frame.last
        return {name: np.concatenate([frame.mel for frame in frames]) for name, frames in mels.items()}


@pytest.fixture
def chain() -> Iterator[Chain]:
    chain = Chain()
    with ExitStack() as stack:
        boots = {stage: Boot(stage, "golden", 24_000) for stage in wire.STAGES}
        stages = [
            (EncodeStage(encode_engine(), boots["encode"].epoch, 4), chain.encode),
            (LLMStage(llm_engine(), boots["llm"].epoch, 4), chain.llm),
            (DecodeStage(decode_engine(), boots["decode"].epoch, 4), chain.decode),
        ]
        for stage, broker in stages:
            stack.enter_context(running(stage, broker.address, boot=boots[stage.name]))
            broker.joined()
        yield chain


def alone(text: str, seed: int) -> np.ndarray:
    """Mel of a request computed by the engines with nothing around them."""
    encoded = encode_engine().encode(EncodeJob(text, VOICE))
    voice = encoded.voice
    prompt = VoicePrompt(voice.key, voice.embedding, voice.tokens, voice.mel)
    parts = []
    for index, sentence in enumerate(encoded.sentences):
        own_seed = sentence_seed(seed, index)
        tokens = generated(sentence.ids, encoded.prompt_text_ids, encoded.llm_prompt_tokens, own_seed)
        parts.append(decoded(np.array(tokens, np.int32), prompt, own_seed, "mel"))
    return np.concatenate(parts)


def test_requests_that_pass_through_together_each_come_out_as_they_would_alone(chain: Chain) -> None:
    for request_id, (seed, text) in REQUESTS.items():
        chain.begin(request_id, text, seed)
    mels = chain.mel(len(REQUESTS))
    for request_id, (seed, text) in REQUESTS.items():
        np.testing.assert_allclose(mels[request_id], alone(text, seed), atol=1e-4)
