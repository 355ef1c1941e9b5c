"""Speech between client and broker: what asks for it, and all that is said of a request until it is over.

Its frames are in `results`: the broker relays them as the workers made them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from lighttts.transport.schema import U32, U63, Flag, Text
from lighttts.transport.wire.fields import (
    AnyMethod,
    AudioFile,
    Decoded,
    Instruction,
    Name,
    Output,
    Owner,
    RequestId,
    SampleType,
    Seed,
    Sentence,
    Speed,
)
from lighttts.transport.wire.limits import MAX_PIECE
from lighttts.transport.wire.message import Message, Since, tagged


@tagged(0x11)
@dataclass(frozen=True, slots=True, eq=False)
class Synth(Message):
    """Asks for speech; answered by `Accepted`, frames and `End`, or by `Error`.

    Exactly one of `voice` (the name of a preset or registered voice) and `prompt` (an audio file) is given. With a
    prompt, a `prompt_text` makes it zero-shot, an empty one cross-lingual. `instruct` says how to speak, in words ("in
    a whisper"); it takes the place of `prompt_text`. Speech at another `speed` than 1 does not stream: each sentence
    comes as one frame. `deadline_ms` counts from receipt, 0 means the broker's default. `credit` is the number of
    frames the client is ready to receive at once. `owner`: see `AddVoice`. `style` chooses among the model's language
    models; empty is the default. `pieces` is empty for a whole text; else `text` is, and follows in `Piece`s: spoken
    sentence by sentence (`sentences`), word by word (`interleaved`), or as the model does best (`auto`).
    """

    request_id: RequestId
    text: Sentence
    voice: Name
    prompt_text: Sentence
    seed: Seed
    speed: Speed
    output: Output
    sample_type: SampleType
    deadline_ms: U32
    credit: U32
    prompt: AudioFile
    instruct: Annotated[str, Instruction, Since(3)] = ""
    owner: Annotated[str, Owner, Since(3)] = ""
    style: Annotated[str, Text(128), Since(3)] = ""
    pieces: AnyMethod = ""


@tagged(0x18, first=3)
@dataclass(frozen=True, slots=True, eq=False)
class Convert(Message):
    """Asks for what is said in `source`, an audio file, in another voice; answered as `Synth`, whose fields it has."""

    request_id: RequestId
    voice: Name
    seed: Seed
    speed: Speed
    output: Decoded
    sample_type: SampleType
    deadline_ms: U32
    credit: U32
    prompt: AudioFile
    source: AudioFile
    owner: Annotated[str, Owner] = ""


SpeechRequest = Synth | Convert
"""What a client may ask for speech by."""


@tagged(0x19, first=3)
@dataclass(frozen=True, slots=True, eq=False)
class Piece(Message):
    """More text of a `Synth` in pieces, cut anywhere. `seq` counts `Piece`, `Flush` and `Finish` together, from 0."""

    request_id: RequestId
    seq: U32
    text: Annotated[str, Text(MAX_PIECE)]


@tagged(0x1A, first=3)
@dataclass(frozen=True, slots=True, eq=False)
class Flush(Message):
    """What has come of the text is to be spoken to its end now; more may follow, as a sentence of its own."""

    request_id: RequestId
    seq: U32


@tagged(0x1B, first=3)
@dataclass(frozen=True, slots=True, eq=False)
class Finish(Message):
    """There is no more text: as `Flush`, and `End` follows when all is spoken."""

    request_id: RequestId
    seq: U32


@tagged(0x26, first=3)
@dataclass(frozen=True, slots=True, eq=False)
class Written(Message):
    """Text in pieces has been spoken: `limit` bytes of it may be sent in all; 16384 before the first of these."""

    request_id: RequestId
    limit: U63


@tagged(0x21)
@dataclass(frozen=True, slots=True, eq=False)
class Accepted(Message):
    """The request is admitted (and stored, if the state store is durable). Its frames follow, then `End` or `Error`."""

    request_id: RequestId
    sample_rate: U32


@tagged(0x12)
@dataclass(frozen=True, slots=True, eq=False)
class Credit(Message):
    """The client can take `frames` more frames of this request."""

    request_id: RequestId
    frames: U32


@tagged(0x13)
@dataclass(frozen=True, slots=True, eq=False)
class Cancel(Message):
    """Ends a request early; answered by `Error` with code `cancelled`. Idempotent."""

    request_id: RequestId


@tagged(0x17)
@dataclass(frozen=True, slots=True, eq=False)
class Resume(Message):
    """Goes on with a request after the connection or the broker was lost. `seq` frames of it with `rows` samples, mel
    frames or tokens have arrived; `accepted`: so has `Accepted`. Answered by what comes next, or by `Error` with code
    `unknown_request`. `credit` as in `Synth`."""

    request_id: RequestId
    accepted: Flag
    seq: U32
    rows: U63
    credit: U32


@tagged(0x22)
@dataclass(frozen=True, slots=True, eq=False)
class End(Message):
    """The request is complete: `frames` frames (seq 0..frames-1) were sent. The client answers `EndAck`."""

    request_id: RequestId
    frames: U32
    tokens: U32
    sentences: U32


@tagged(0x14)
@dataclass(frozen=True, slots=True, eq=False)
class EndAck(Message):
    """The client has everything up to `End` (or has taken `Error`); the broker forgets the request."""

    request_id: RequestId
