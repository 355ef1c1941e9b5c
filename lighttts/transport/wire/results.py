"""Stage results: what workers make of their work. Frames of speech go on unchanged, to clients and decode workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import msgpack
import numpy as np

from lighttts.transport.schema import U16, U32, U63, Array, Buffer, Flag, Int, IntArray
from lighttts.transport.wire.fields import (
    Embedding,
    Epoch,
    Lengths,
    Line,
    MelFrames,
    Method,
    Name,
    PromptMel,
    PromptTokens,
    RequestId,
    Samples,
    SpeechTokens,
    TextIds,
)
from lighttts.transport.wire.limits import MAX_PROMPT_TOKENS, MAX_TEXT_IDS
from lighttts.transport.wire.message import Message, Since, tagged, unpack_body


@tagged(0x30)
@dataclass(frozen=True, slots=True, eq=False)
class Tokens(Message):
    """Speech tokens of one sentence in order. `final` ends the sentence, `last` the request. llm worker -> broker ->
    decode worker, or client when the output is tokens: all that were made. One without tokens that is not `final` says
    where a block of text and speech is over, in text that comes in pieces."""

    request_id: RequestId
    attempt: U16
    epoch: Epoch
    seq: U32
    sentence: U32
    final: Flag
    last: Flag
    tokens: SpeechTokens


_TOKENS_ATTEMPT = [name for name, _ in Tokens.FIELDS].index("attempt")


def readdress(frames: Sequence[Buffer], attempt: int) -> list[Buffer]:
    """The `Tokens` message in `frames` as one of another `attempt`. Raises `ProtocolError` if its body is none."""
    values = unpack_body(Tokens, frames[1])
    values[_TOKENS_ATTEMPT] = attempt
    packed: bytes = msgpack.packb(values)
    return [frames[0], packed, *frames[2:]]


@tagged(0x31)
@dataclass(frozen=True, slots=True, eq=False)
class Mel(Message):
    """Log-mel frames (50 a second, 80 bins), shape (n, 80), beginning at `first_frame` of the request."""

    request_id: RequestId
    attempt: U16
    epoch: Epoch
    seq: U32
    sentence: U32
    last: Flag
    first_frame: U63
    tokens: U32
    mel: MelFrames


@tagged(0x32)
@dataclass(frozen=True, slots=True, eq=False)
class Audio(Message):
    """Mono samples beginning at `first_sample` of the request; float32 in -1..1 or int16. `tokens`: decoded so far;
    those of silence that was passed over count when their sentence has ended."""

    request_id: RequestId
    attempt: U16
    epoch: Epoch
    seq: U32
    sentence: U32
    last: Flag
    first_sample: U63
    tokens: U32
    samples: Samples


def _no_tokens() -> IntArray:
    return np.zeros(0, np.int32)


@tagged(0x33)
@dataclass(frozen=True, slots=True, eq=False)
class Encoded(Message):
    """The encode stage's result. `text_ids` holds all sentences' ids end to end, `lengths` how many each has; a
    conversion has none, but the speech tokens of its source, `source_tokens`, which are decoded as they are. Text that
    is to come in pieces has none yet, `pieces` says how it will be spoken; of `prompt_text_ids`, the first `lead` stand
    before all blocks of text and speech.
    `voice_key` is a content hash of the voice features (prompt tokens (n,), prompt mel (2n, 80), embedding (192,))."""

    request_id: RequestId
    attempt: U16
    epoch: Epoch
    lengths: Lengths
    voice_key: Name
    text_ids: TextIds
    prompt_text_ids: TextIds
    llm_prompt_tokens: PromptTokens
    voice_tokens: PromptTokens
    voice_mel: PromptMel
    voice_embedding: Embedding
    source_tokens: Annotated[IntArray, Array(("i4",), MAX_PROMPT_TOKENS), Since(3)] = field(default_factory=_no_tokens)
    pieces: Method = ""
    lead: Annotated[int, Int(0, MAX_TEXT_IDS), Since(3)] = 0


@tagged(0x35, first=3)
@dataclass(frozen=True, slots=True, eq=False)
class EncodedText(Message):
    """Answers `TextWork`: the ids of its sentences end to end, `lengths` how many each has. All are whole, but for the
    last one where `whole` is false: of that one, only what nothing that follows can change. `used`: bytes of the text
    that are done with: those of whole sentences, and what is not to be spoken."""

    request_id: RequestId
    attempt: U16
    epoch: Epoch
    lengths: Lengths
    whole: Flag
    used: U32
    text_ids: TextIds


@tagged(0x34)
@dataclass(frozen=True, slots=True, eq=False)
class StageFailed(Message):
    """A worker could not do its part; code, text and field as in `Error`."""

    request_id: RequestId
    attempt: U16
    epoch: Epoch
    code: Name
    text: Line
    field: Name
    retryable: Flag
