"""Every message of the LightTTS protocol: types, tags, version, limits, and their encoding.

One message is one ZeroMQ multipart message, after any routing id::

    frame 0   head     b"LT" | version (1 byte) | tag (1 byte)
    frame 1   body     msgpack array, one entry a field, in the order of the class
    frame 2.. payload  one raw frame for each array or blob field, in field order

`decode` refuses a wrong magic, version, tag or size before it looks into the body, then checks every field. Whatever is
wrong, it raises `ProtocolError`; no input makes it raise anything else. docs/protocol.md describes all this for other
languages.

Two versions are spoken: `VERSION`, and `OLDEST`, the one before it. A version only ever adds fields at a message's end.
What an older version has no words for is not said in it: `encode` refuses rather than leave a part of the meaning out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar, get_type_hints

import msgpack
import numpy as np

from lighttts.errors import ProtocolError
from lighttts.transport.schema import (
    U16,
    U32,
    U63,
    Array,
    Blob,
    Bool,
    Buffer,
    Codec,
    Flag,
    Float,
    FloatArray,
    Int,
    IntArray,
    Many,
    OneOf,
    Record,
    Text,
)

MAGIC = b"LT"
VERSION = 3
OLDEST = 2
VERSIONS = (OLDEST, VERSION)

HEAD_BYTES = 4
MAX_BODY = 1 << 20
MAX_PAYLOADS = 7
MAX_FRAME_BYTES = 64 << 20
MAX_TEXT = 512 * 1024
MAX_AUDIO_FILE = 16 << 20
MAX_SENTENCES = 4096
MAX_PIECE = 4096
TEXT_WINDOW = 16_384
MAX_TEXT_IDS = 200_000
MAX_PROMPT_TOKENS = 1500
MAX_FRAME_TOKENS = 16_384
MAX_FRAME_MEL = 32_768
MAX_FRAME_SAMPLES = 16 << 20
MAX_VOICES = 4096
MAX_REGISTERED = 1000
MAX_VOICE_KEYS = 64
MAX_WORKERS = 4096
MAX_STYLES = 64
MAX_ARRAY = 4096
MEL_BINS = 80
EMBEDDING_SIZE = 192

OUTPUTS = ("audio", "mel", "tokens")
DECODED = ("audio", "mel")
SAMPLE_TYPES = ("f32", "s16")
STAGES = ("encode", "llm", "decode")
VOICE_ACTIONS = ("show", "export", "rename", "remove", "list")
METHODS = ("sentences", "interleaved")


class Since(NamedTuple):
    """Marks a field that came with protocol `version`; in an older message it has the class' default."""

    version: int


RequestId = Annotated[str, Text(64, low=1)]
OptionalRequestId = Annotated[str, Text(64)]
Name = Annotated[str, Text(128)]
VoiceName = Annotated[str, Text(128, low=1)]
Owner = Text(128)
OWNERS_SINCE = 3
"""The version that registered voices, and so their owners, came with."""
Digest = Annotated[str, Text(64, low=1)]
Sentence = Annotated[str, Text(MAX_TEXT)]
Line = Annotated[str, Text(4096)]
Instruction = Text(4096)
Method = Annotated[str, OneOf(("", *METHODS)), Since(3)]
AnyMethod = Annotated[str, OneOf(("", "auto", *METHODS)), Since(3)]
Seed = U63
Epoch = U63
Output = Annotated[str, OneOf(OUTPUTS)]
Decoded = Annotated[str, OneOf(DECODED)]
AudioFile = Annotated[bytes, Blob(MAX_AUDIO_FILE)]
SampleType = Annotated[str, OneOf(SAMPLE_TYPES)]
Stage = Annotated[str, OneOf(STAGES)]
Names = Annotated[tuple[str, ...], Many(Text(128), MAX_VOICES)]
Lengths = Annotated[tuple[int, ...], Many(Int(0, MAX_TEXT_IDS), MAX_SENTENCES)]
TextIds = Annotated[IntArray, Array(("i4",), MAX_TEXT_IDS)]
PromptTokens = Annotated[IntArray, Array(("i4",), MAX_PROMPT_TOKENS)]
PromptMel = Annotated[FloatArray, Array(("f4",), 2 * MAX_PROMPT_TOKENS, columns=MEL_BINS)]
Embedding = Annotated[FloatArray, Array(("f4",), EMBEDDING_SIZE)]
SpeechTokens = Annotated[IntArray, Array(("i4",), MAX_FRAME_TOKENS)]
MelFrames = Annotated[FloatArray, Array(("f2", "f4"), MAX_FRAME_MEL, columns=MEL_BINS)]
Samples = Annotated[FloatArray, Array(("i2", "f4"), MAX_FRAME_SAMPLES)]
Speed = Annotated[float, Float(0.5, 2.0)]
Seconds = Annotated[float, Float(0.0, 1e9)]

REGISTRY: dict[int, type[Message]] = {}


class Later(NamedTuple):
    """A field that came with protocol `version`, and what stands for it in an older message."""

    name: str
    version: int
    default: object

    def said_by(self, message: Message) -> bool:
        """Whether the message would mean something else without it."""
        value = getattr(message, self.name)
        if isinstance(value, np.ndarray) and isinstance(self.default, np.ndarray):
            return not np.array_equal(value, self.default)
        return bool(value != self.default)


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """Base of all messages. Two messages are equal when they encode to the same bytes."""

    TAG: ClassVar[int]
    FIRST: ClassVar[int]
    """The version, of those spoken, that the message came with."""
    FIELDS: ClassVar[tuple[tuple[str, Codec], ...]]
    LENGTHS: ClassVar[dict[int, int]]
    """How many of the fields a version has, from `FIRST` on."""
    LATER: ClassVar[tuple[Later, ...]]
    """The fields that came after `FIRST`."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and [*map(bytes, encode(self))] == [*map(bytes, encode(other))]

    def __hash__(self) -> int:
        return hash(tuple(map(bytes, encode(self))))


M = TypeVar("M", bound=Message)


def _message(tag: int, first: int = OLDEST) -> Callable[[type[M]], type[M]]:
    """Class decorator: compiles the annotated fields of a message class and enters it in the registry under `tag`.

    `first`: the protocol version it came with.
    """

    def register(cls: type[M]) -> type[M]:
        hints = get_type_hints(cls, include_extras=True)
        cls.TAG, cls.FIRST = tag, first
        cls.FIELDS = tuple((f.name, hints[f.name].__metadata__[0]) for f in fields(cls))
        since = [(f, mark.version) for f in fields(cls) for mark in hints[f.name].__metadata__[1:]]
        cls.LENGTHS = {v: len(cls.FIELDS) - sum(version > v for _, version in since) for v in VERSIONS if v >= first}
        cls.LATER = tuple(Later(f.name, v, _default(f)) for f, v in since if v > first)
        if tag in REGISTRY:
            raise TypeError(f"tag {tag:#x} is taken by {REGISTRY[tag].__name__}")
        REGISTRY[tag] = cls
        return cls

    return register


def _no_tokens() -> IntArray:
    return np.zeros(0, np.int32)


def _default(of: Field[Any]) -> object:
    return of.default if of.default_factory is MISSING else of.default_factory()


# ---- client -> broker ------------------------------------------------------------------------------------------------


@_message(0x10)
@dataclass(frozen=True, slots=True, eq=False)
class Hello(Message):
    """First message of a client; answered by `Welcome`."""

    client: Name
    software: Name


@_message(0x11)
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


@_message(0x12)
@dataclass(frozen=True, slots=True, eq=False)
class Credit(Message):
    """The client can take `frames` more frames of this request."""

    request_id: RequestId
    frames: U32


@_message(0x13)
@dataclass(frozen=True, slots=True, eq=False)
class Cancel(Message):
    """Ends a request early; answered by `Error` with code `cancelled`. Idempotent."""

    request_id: RequestId


@_message(0x14)
@dataclass(frozen=True, slots=True, eq=False)
class EndAck(Message):
    """The client has everything up to `End` (or has taken `Error`); the broker forgets the request."""

    request_id: RequestId


@_message(0x15)
@dataclass(frozen=True, slots=True, eq=False)
class ListVoices(Message):
    """Answered by `Voices` with the same `query_id`. `owner`: see `AddVoice`."""

    query_id: U63
    owner: Annotated[str, Owner, Since(3)] = ""


@_message(0x16)
@dataclass(frozen=True, slots=True, eq=False)
class GetStatus(Message):
    """Answered by `Status` with the same `query_id`."""

    query_id: U63


@_message(0x17)
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


@_message(0x18, first=3)
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


@_message(0x19, first=3)
@dataclass(frozen=True, slots=True, eq=False)
class Piece(Message):
    """More text of a `Synth` in pieces, cut anywhere. `seq` counts `Piece`, `Flush` and `Finish` together, from 0."""

    request_id: RequestId
    seq: U32
    text: Annotated[str, Text(MAX_PIECE)]


@_message(0x1A, first=3)
@dataclass(frozen=True, slots=True, eq=False)
class Flush(Message):
    """What has come of the text is to be spoken to its end now; more may follow, as a sentence of its own."""

    request_id: RequestId
    seq: U32


@_message(0x1B, first=3)
@dataclass(frozen=True, slots=True, eq=False)
class Finish(Message):
    """There is no more text: as `Flush`, and `End` follows when all is spoken."""

    request_id: RequestId
    seq: U32


SpeechRequest = Synth | Convert
"""What a client may ask for speech by."""


@_message(0x1C, first=3)
@dataclass(frozen=True, slots=True, eq=False)
class AddVoice(Message):
    """Registers a voice: `prompt`, an audio file, and what is said in it, `prompt_text`, which may be empty. Answered
    by `VoiceDone` or `VoiceFailed`. It belongs to the client's key; `shared`: all may use it. `replace`: in the place
    of one of that name. A gateway says in `owner` whose it is of those it serves; where keys are used, only the keys
    named in `broker.gateways` may."""

    query_id: U63
    owner: Annotated[str, Owner]
    name: VoiceName
    prompt_text: Line
    shared: Flag
    replace: Flag
    prompt: AudioFile


@_message(0x1D, first=3)
@dataclass(frozen=True, slots=True, eq=False)
class VoiceAction(Message):
    """Asks of a registered voice what `action` says. Answered by `VoiceDone` (by `VoiceList` for `list`, which needs no
    `name`), or by `VoiceFailed`. `to`: the new name for `rename`, else empty. `owner`: see `AddVoice`."""

    query_id: U63
    owner: Annotated[str, Owner]
    action: Annotated[str, OneOf(VOICE_ACTIONS)]
    name: Name
    to: Name


VoiceQuestion = ListVoices | AddVoice | VoiceAction
"""What a client may ask about voices."""


# ---- broker -> client ------------------------------------------------------------------------------------------------


@_message(0x20)
@dataclass(frozen=True, slots=True, eq=False)
class Welcome(Message):
    """Answers `Hello`. `max_text`: longest text in characters; `max_credit`: most frames in flight a request; `ready`:
    there is a worker of every stage."""

    broker: Name
    software: Name
    max_text: U32
    max_credit: U32
    ready: Flag = True


@_message(0x21)
@dataclass(frozen=True, slots=True, eq=False)
class Accepted(Message):
    """The request is admitted (and stored, if the state store is durable). Its frames follow, then `End` or `Error`."""

    request_id: RequestId
    sample_rate: U32


@_message(0x22)
@dataclass(frozen=True, slots=True, eq=False)
class End(Message):
    """The request is complete: `frames` frames (seq 0..frames-1) were sent. The client answers `EndAck`."""

    request_id: RequestId
    frames: U32
    tokens: U32
    sentences: U32


@_message(0x23)
@dataclass(frozen=True, slots=True, eq=False)
class Error(Message):
    """A typed error (lighttts.errors). With a request id it ends that request; without, it answers the last message."""

    request_id: OptionalRequestId
    code: Name
    text: Line
    field: Name
    retryable: Flag
    retry_after_ms: U32


@_message(0x24)
@dataclass(frozen=True, slots=True, eq=False)
class Voices(Message):
    """The voices that can be asked for now: first the preset ones, then those registered that the client may use."""

    query_id: U63
    sample_rate: U32
    names: Names


class WorkerStatus(NamedTuple):
    """One worker's row in `Status`; `credit` is what it has granted and not been sent."""

    worker: str
    stage: str
    model: str
    state: str
    credit: int
    active: int
    age_s: float
    seen_s: float


_WORKER_STATUS = Record(
    (Text(128), OneOf(STAGES), Text(128), Text(32), *[Int(0, 2**32)] * 2, *[Float(0, 1e9)] * 2), WorkerStatus
)


@_message(0x25)
@dataclass(frozen=True, slots=True, eq=False)
class Status(Message):
    """What the broker is doing: requests by state, and its workers."""

    query_id: U63
    broker: Name
    store: Name
    uptime_s: Seconds
    queued: U32
    active: U32
    completed: U63
    failed: U63
    workers: Annotated[tuple[WorkerStatus, ...], Many(_WORKER_STATUS, MAX_WORKERS)]


class VoiceRow(NamedTuple):
    """A registered voice: whose it is, when it was added (Unix time), its recording's bytes and their SHA-256."""

    name: str
    owner: str
    shared: bool
    created: float
    size: int
    digest: str


_VOICE_ROW = Record(
    (Text(128, low=1), Text(128), Bool(), Float(0, 1e12), Int(0, MAX_AUDIO_FILE), Text(64, low=1)), VoiceRow
)


@_message(0x27, first=3)
@dataclass(frozen=True, slots=True, eq=False)
class VoiceDone(Message):
    """What was asked of a registered voice is done: `voice` is what it is now, or was. `prompt`: its recording, for
    `export` only."""

    query_id: U63
    voice: Annotated[VoiceRow, _VOICE_ROW]
    prompt_text: Line
    prompt: AudioFile


@_message(0x28, first=3)
@dataclass(frozen=True, slots=True, eq=False)
class VoiceList(Message):
    """The registered voices that the client may use: its own, then those of others that are shared."""

    query_id: U63
    voices: Annotated[tuple[VoiceRow, ...], Many(_VOICE_ROW, MAX_REGISTERED)]


@_message(0x29, first=3)
@dataclass(frozen=True, slots=True, eq=False)
class VoiceFailed(Message):
    """A question about voices has no other answer than a typed error, as in `Error`."""

    query_id: U63
    code: Name
    text: Line
    field: Name
    retryable: Flag
    retry_after_ms: U32


@_message(0x26, first=3)
@dataclass(frozen=True, slots=True, eq=False)
class Written(Message):
    """Text in pieces has been spoken: `limit` bytes of it may be sent in all; 16384 before the first of these."""

    request_id: RequestId
    limit: U63


# ---- stage results: worker -> broker (PUSH/PULL), relayed unchanged --------------------------------------------------


@_message(0x30)
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


@_message(0x31)
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


@_message(0x32)
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


@_message(0x33)
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


@_message(0x34)
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


@_message(0x35, first=3)
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


# ---- worker -> broker control ----------------------------------------------------------------------------------------


@_message(0x40)
@dataclass(frozen=True, slots=True, eq=False)
class Register(Message):
    """First message of a worker boot; answered by `Registered`. `epoch`: random per boot; `voices`: encode only.

    `model`: the model directory's name, a hash of its files, and the style of an llm worker if it has one, with colons
    between. `styles`: those that an llm worker answers to; the default is "", beside its name if it has one.
    """

    worker: Name
    epoch: Epoch
    stage: Stage
    software: Name
    model: Name
    sample_rate: U32
    voices: Names
    styles: Annotated[tuple[str, ...], Many(Text(128), MAX_STYLES), Since(3)] = ("",)


@_message(0x41)
@dataclass(frozen=True, slots=True, eq=False)
class Grant(Message):
    """The worker can take `credit` more requests. Work is sent only against granted credit."""

    epoch: Epoch
    credit: U32


@_message(0x42)
@dataclass(frozen=True, slots=True, eq=False)
class Heartbeat(Message):
    """The worker lives. `progress` counts engine steps: it moves while `active` requests are worked on."""

    epoch: Epoch
    active: U32
    waiting: U32
    progress: U63


@_message(0x43)
@dataclass(frozen=True, slots=True, eq=False)
class Drain(Message):
    """The worker finishes what it has and takes nothing new; its outstanding credit is void."""

    epoch: Epoch


@_message(0x44)
@dataclass(frozen=True, slots=True, eq=False)
class Bye(Message):
    """The worker leaves now; whatever it still had is lost. Answered by `Farewell`."""

    epoch: Epoch


# ---- broker -> worker control ----------------------------------------------------------------------------------------


@_message(0x50)
@dataclass(frozen=True, slots=True, eq=False)
class Registered(Message):
    """Answers `Register`. The worker beats every `heartbeat_ms`; it re-registers when it has heard nothing for
    `expiry_ms`. Any message counts as alive on both sides."""

    epoch: Epoch
    broker: Name
    heartbeat_ms: U32
    expiry_ms: U32


@_message(0x51)
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


@_message(0x52)
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


@_message(0x53)
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


@_message(0x54)
@dataclass(frozen=True, slots=True, eq=False)
class Abort(Message):
    """The request is cancelled or has moved: free everything it holds, send nothing more. Idempotent."""

    request_id: RequestId
    attempt: U16


@_message(0x55)
@dataclass(frozen=True, slots=True, eq=False)
class Farewell(Message):
    """Answers `Bye`: every message before it has arrived, the worker may close its sockets."""

    epoch: Epoch


@_message(0x56)
@dataclass(frozen=True, slots=True, eq=False)
class Alive(Message):
    """Answers `Heartbeat`, so that a worker notices a broker that is gone. `known` is false when the worker must
    register again (the broker restarted, or had given the worker up)."""

    epoch: Epoch
    known: Flag


@_message(0x57)
@dataclass(frozen=True, slots=True, eq=False)
class Ping(Message):
    """Asks nothing, needs no answer: by sending it the broker learns whether a silent worker's connection stands."""

    epoch: Epoch


@_message(0x58, first=3)
@dataclass(frozen=True, slots=True, eq=False)
class ConvertWork(Message):
    """One conversion for an encode worker; fields as in `Convert`. Answered by `Encoded` or `StageFailed`."""

    request_id: RequestId
    attempt: U16
    voice: Name
    prompt: AudioFile
    source: AudioFile


@_message(0x59, first=3)
@dataclass(frozen=True, slots=True, eq=False)
class TextWork(Message):
    """Text that came in pieces, for an encode worker: from the beginning of a sentence on, all there is so far. With
    `flush` it ends there. Answered by `EncodedText` or `StageFailed`."""

    request_id: RequestId
    attempt: U16
    pieces: Annotated[str, OneOf(METHODS)]
    flush: Flag
    text: Annotated[str, Text(TEXT_WINDOW)]


@_message(0x5A, first=3)
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


@_message(0x5D, first=3)
@dataclass(frozen=True, slots=True, eq=False)
class CheckWork(Message):
    """A voice that is to be registered, for an encode worker: whether its recording and text can be used. Answered by
    `Encoded` without sentences, or `StageFailed`."""

    request_id: RequestId
    attempt: U16
    prompt: AudioFile
    prompt_text: Line


@_message(0x5F, first=3)
@dataclass(frozen=True, slots=True, eq=False)
class Forget(Message):
    """A voice was removed: an encode worker drops what it keeps of the recording with SHA-256 `digest`, a decode worker
    what it keeps of voices with these `voice_keys`, as soon as no request needs it. Not answered."""

    digest: Digest
    voice_keys: Annotated[tuple[str, ...], Many(Text(128), MAX_VOICE_KEYS)]


StageWork = EncodeWork | ConvertWork | CheckWork | TextWork | GenerateWork | DecodeWork
"""What a worker may be given of a request."""

_TOKENS_ATTEMPT = [name for name, _ in Tokens.FIELDS].index("attempt")

# ---- encoding --------------------------------------------------------------------------------------------------------


def encode(message: Message, version: int = VERSION) -> list[Buffer]:
    """Frames of a message: head, body, payloads.

    Raises `ProtocolError` when a field is out of its limits, or the message says what `version` has no field for.
    """
    if version < VERSION and version < since(message):
        raise ProtocolError(f"{type(message).__name__} says what version {version} of the protocol has no words for")
    payloads: list[Buffer] = []
    body = []
    for name, codec in message.FIELDS[: message.LENGTHS[version]]:
        try:
            body.append(codec.pack(getattr(message, name), payloads))
        except (ValueError, UnicodeEncodeError) as error:
            raise ProtocolError(f"{type(message).__name__}.{name} {error}", field=name) from None
    packed: bytes = msgpack.packb(body)
    if len(packed) > MAX_BODY:
        raise ProtocolError(f"{type(message).__name__} has a body of {len(packed)} bytes, the limit is {MAX_BODY}")
    return [head(type(message), version), packed, *payloads]


def since(message: Message) -> int:
    """The first version, of those spoken, that can say all that the message says."""
    return max((later.version for later in message.LATER if later.said_by(message)), default=message.FIRST)


def head(cls: type[Message], version: int) -> bytes:
    """The first frame of such a message."""
    return MAGIC + bytes((version, cls.TAG))


def readdress(frames: Sequence[Buffer], attempt: int) -> list[Buffer]:
    """The `Tokens` message in `frames` as one of another `attempt`. Raises `ProtocolError` if its body is none."""
    values = unpack_body(Tokens, frames[1])
    values[_TOKENS_ATTEMPT] = attempt
    packed: bytes = msgpack.packb(values)
    return [frames[0], packed, *frames[2:]]


def translate(frames: Sequence[Buffer], version: int) -> Sequence[Buffer]:
    """A valid message as one of another version. Raises `ProtocolError` if it says what that version cannot."""
    cls = message_type(frames[0])
    if cls.LENGTHS.get(version) == cls.LENGTHS[frames[0][2]]:
        return [head(cls, version), *frames[1:]]
    return encode(decode(frames), version)


def version_of(frames: Sequence[Buffer]) -> int:
    """The version of the message in `frames`, known or not; 0 if it has no head of ours."""
    first = frames[0] if frames else b""
    return first[2] if len(first) == HEAD_BYTES and bytes(first[:2]) == MAGIC else 0


def message_type(first: Buffer) -> type[Message]:
    """The class a head frame announces. Raises `ProtocolError` on a wrong size, magic, version or tag."""
    if len(first) != HEAD_BYTES or bytes(first[:2]) != MAGIC:
        raise ProtocolError("not a LightTTS message: connect to a LightTTS endpoint with a LightTTS client")
    if first[2] not in VERSIONS:
        raise ProtocolError(
            f"protocol version {first[2]} is not supported, this side speaks {OLDEST} and {VERSION}: upgrade the older"
        )
    cls = REGISTRY.get(first[3])
    if cls is None or first[2] < cls.FIRST:
        raise ProtocolError(f"unknown message tag {first[3]:#04x}: the other side is newer or corrupt")
    return cls


def decode(frames: Sequence[Buffer]) -> Message:
    """The message in `frames` (without routing id). Arrays are read-only views of the payload frames.

    Raises `ProtocolError` on anything that is not exactly one valid message.
    """
    if len(frames) < 2 or len(frames) > 2 + MAX_PAYLOADS:
        raise ProtocolError(f"a message has 2 to {2 + MAX_PAYLOADS} frames, not {len(frames)}")
    cls = message_type(frames[0])
    values = unpack_body(cls, frames[1], frames[0][2])
    payloads = iter(frames[2:])
    fields_ = []
    for (name, codec), raw in zip(cls.FIELDS, values, strict=False):
        try:
            fields_.append(codec.unpack(raw, payloads))
        except ValueError as error:
            raise ProtocolError(f"{cls.__name__}.{name} {error}", field=name) from None
    if next(payloads, None) is not None:
        raise ProtocolError(f"{cls.__name__} has more payload frames than fields that need one")
    return cls(*fields_)


def unpack_body(cls: type[Message], body: Buffer, version: int = VERSION) -> list[object]:
    """The raw field values of a `cls` body, one a field but none of them checked: for a relay that looks at a few.

    Raises `ProtocolError` when the body is too large, not msgpack, or has another number of fields.
    """
    if len(body) > MAX_BODY:
        raise ProtocolError(f"{cls.__name__} has a body of {len(body)} bytes, the limit is {MAX_BODY}")
    try:
        values = msgpack.unpackb(body, max_array_len=MAX_ARRAY, max_map_len=0, max_ext_len=0, strict_map_key=True)
    except (ValueError, msgpack.UnpackException) as error:
        raise ProtocolError(f"{cls.__name__} has a body that is not valid msgpack: {error}") from None
    if type(values) is not list or len(values) != cls.LENGTHS[version]:
        raise ProtocolError(f"{cls.__name__} must have {cls.LENGTHS[version]} fields")
    return values
