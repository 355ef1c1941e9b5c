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

The modules of this package are its own: all others import from here.
"""

from lighttts.transport.wire.fields import DECODED, EMBEDDING_SIZE, MEL_BINS, METHODS, OUTPUTS, OWNERS_SINCE, STAGES
from lighttts.transport.wire.limits import (
    MAX_ARRAY,
    MAX_AUDIO_FILE,
    MAX_BODY,
    MAX_FRAME_BYTES,
    MAX_PAYLOADS,
    MAX_PIECE,
    MAX_REGISTERED,
    MAX_TEXT,
    MAX_VOICE_KEYS,
    MAX_VOICES,
    MAX_WORKERS,
    TEXT_WINDOW,
)
from lighttts.transport.wire.membership import Alive, Bye, Drain, Farewell, Grant, Heartbeat, Ping, Register, Registered
from lighttts.transport.wire.message import (
    OLDEST,
    REGISTRY,
    VERSION,
    VERSIONS,
    Message,
    decode,
    encode,
    head,
    since,
    translate,
    unpack_body,
    version_of,
)
from lighttts.transport.wire.results import Audio, Encoded, EncodedText, Mel, StageFailed, Tokens, readdress
from lighttts.transport.wire.session import Error, GetStatus, Hello, Status, Welcome, WorkerStatus
from lighttts.transport.wire.speech import (
    Accepted,
    Cancel,
    Convert,
    Credit,
    End,
    EndAck,
    Finish,
    Flush,
    Piece,
    Resume,
    SpeechRequest,
    Synth,
    Written,
)
from lighttts.transport.wire.voices import (
    AddVoice,
    Forget,
    ListVoices,
    VoiceAction,
    VoiceDone,
    VoiceFailed,
    VoiceList,
    VoiceRow,
    Voices,
)
from lighttts.transport.wire.work import (
    Abort,
    CheckWork,
    ConvertWork,
    DecodeWork,
    EncodeWork,
    GenerateWork,
    MoreText,
    StageWork,
    TextWork,
)

__all__ = [
    "DECODED",
    "EMBEDDING_SIZE",
    "MAX_ARRAY",
    "MAX_AUDIO_FILE",
    "MAX_BODY",
    "MAX_FRAME_BYTES",
    "MAX_PAYLOADS",
    "MAX_PIECE",
    "MAX_REGISTERED",
    "MAX_TEXT",
    "MAX_VOICES",
    "MAX_VOICE_KEYS",
    "MAX_WORKERS",
    "MEL_BINS",
    "METHODS",
    "OLDEST",
    "OUTPUTS",
    "OWNERS_SINCE",
    "REGISTRY",
    "STAGES",
    "TEXT_WINDOW",
    "VERSION",
    "VERSIONS",
    "Abort",
    "Accepted",
    "AddVoice",
    "Alive",
    "Audio",
    "Bye",
    "Cancel",
    "CheckWork",
    "Convert",
    "ConvertWork",
    "Credit",
    "DecodeWork",
    "Drain",
    "EncodeWork",
    "Encoded",
    "EncodedText",
    "End",
    "EndAck",
    "Error",
    "Farewell",
    "Finish",
    "Flush",
    "Forget",
    "GenerateWork",
    "GetStatus",
    "Grant",
    "Heartbeat",
    "Hello",
    "ListVoices",
    "Mel",
    "Message",
    "MoreText",
    "Piece",
    "Ping",
    "Register",
    "Registered",
    "Resume",
    "SpeechRequest",
    "StageFailed",
    "StageWork",
    "Status",
    "Synth",
    "TextWork",
    "Tokens",
    "VoiceAction",
    "VoiceDone",
    "VoiceFailed",
    "VoiceList",
    "VoiceRow",
    "Voices",
    "Welcome",
    "WorkerStatus",
    "Written",
    "decode",
    "encode",
    "head",
    "readdress",
    "since",
    "translate",
    "unpack_body",
    "version_of",
]
