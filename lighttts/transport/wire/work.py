"""Work: what a broker gives a worker to do of a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from lighttts.transport.schema import U16, U32, U63, Flag, Int, OneOf, Text
from lighttts.transport.wire.fields import (
    METHODS,
    AnyMethod,
    AudioFile,
    Embedding,
    Instruction,
    Lengths,
    Line,
    Method,
    Name,
    Output,
    PromptMel,
    PromptTokens,
    RequestId,
    SampleType,
    Seed,
    Sentence,
    SpeechTokens,
    Speed,
    TextIds,
)
from lighttts.transport.wire.limits import MAX_TEXT_IDS, TEXT_WINDOW
from lighttts.transport.wire.message import Message, Since, tagged


@tagged(0x51)
@dataclass(frozen=True, slots=True, eq=False)
class EncodeWork(Message):
    """One request for an encode worker; fields as in `Synth`. Answered by `Encoded` or `StageFailed`."""

    request_id: RequestId
    attempt: U16
    text: Sentence
    voice: Name
    prompt_text: Sentence
    prompt: AudioFile
    instruct: Annotated[str, Instruction, Since(3)] = ""
    pieces: AnyMethod = ""


@tagged(0x58, first=3)
@dataclass(frozen=True, slots=True, eq=False)
class ConvertWork(Message):
    """One conversion for an encode worker; fields as in `Convert`. Answered by `Encoded` or `StageFailed`."""

    request_id: RequestId
    attempt: U16
    voice: Name
    prompt: AudioFile
    source: AudioFile


@tagged(0x5D, first=3)
@dataclass(frozen=True, slots=True, eq=False)
class CheckWork(Message):
    """A voice that is to be registered, for an encode worker: whether its recording and text can be used. Answered by
    `Encoded` without sentences, or `StageFailed`."""

    request_id: RequestId
    attempt: U16
    prompt: AudioFile
    prompt_text: Line


@tagged(0x59, first=3)
@dataclass(frozen=True, slots=True, eq=False)
class TextWork(Message):
    """Text that came in pieces, for an encode worker: from the beginning of a sentence on, all there is so far. With
    `flush` it ends there. Answered by `EncodedText` or `StageFailed`."""

    request_id: RequestId
    attempt: U16
    pieces: Annotated[str, OneOf(METHODS)]
    flush: Flag
    text: Annotated[str, Text(TEXT_WINDOW)]


@tagged(0x52)
@dataclass(frozen=True, slots=True, eq=False)
class GenerateWork(Message):
    """One request for an llm worker; fields as in `Encoded`. Answered by `Tokens` frames or `StageFailed`.

    The worker begins with sentence number `sentence`, of which `done_tokens` are made already, and numbers its frames
    from `seq` on: all zero and empty, unless it takes over from another worker. With `pieces` there is no text in it:
    that follows in `MoreText`, from the beginning of that sentence on, and -1 in `done_tokens` says where a block was
    over.
    """

    request_id: RequestId
    attempt: U16
    seed: Seed
    sentence: U32
    seq: U32
    lengths: Lengths
    text_ids: TextIds
    prompt_text_ids: TextIds
    llm_prompt_tokens: PromptTokens
    done_tokens: SpeechTokens
    pieces: Method = ""
    lead: Annotated[int, Int(0, MAX_TEXT_IDS), Since(3)] = 0


@tagged(0x5A, first=3)
@dataclass(frozen=True, slots=True, eq=False)
class MoreText(Message):
    """More ids of the text that a `GenerateWork` in `pieces` is to speak. `final` ends the sentence; `last`, which is
    said of a sentence without ids, the request."""

    request_id: RequestId
    attempt: U16
    sentence: U32
    final: Flag
    last: Flag
    text_ids: TextIds


@tagged(0x53)
@dataclass(frozen=True, slots=True, eq=False)
class DecodeWork(Message):
    """One request for a decode worker; its `Tokens` follow on the same socket. Answered by `Audio` or `Mel` frames.

    All from `sentence` to `skip` is zero, unless the worker takes over from another: it begins with sentence number
    `sentence`, whose first `Tokens` have number `tokens_seq` and come after `tokens` others; it numbers its frames from
    `seq` and their samples or mel frames from `first_row` on, and sends nothing of the sentence's first `skip`.
    `recorded`: the tokens are those of a recording, and all are spoken, also long silence.
    """

    request_id: RequestId
    attempt: U16
    seed: Seed
    speed: Speed
    output: Output
    sample_type: SampleType
    sentence: U32
    tokens_seq: U32
    tokens: U32
    seq: U32
    first_row: U63
    skip: U63
    voice_key: Name
    voice_tokens: PromptTokens
    voice_mel: PromptMel
    voice_embedding: Embedding
    recorded: Annotated[Flag, Since(3)] = False


@tagged(0x54)
@dataclass(frozen=True, slots=True, eq=False)
class Abort(Message):
    """The request is cancelled or has moved: free everything it holds, send nothing more. Idempotent."""

    request_id: RequestId
    attempt: U16


StageWork = EncodeWork | ConvertWork | CheckWork | TextWork | GenerateWork | DecodeWork
"""What a worker may be given of a request."""
