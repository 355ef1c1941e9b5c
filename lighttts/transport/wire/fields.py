"""The types of messages' fields, and the words that some of them are chosen from."""

from __future__ import annotations

from typing import Annotated

from lighttts.transport.schema import U63, Array, Blob, Float, FloatArray, Int, IntArray, Many, OneOf, Text
from lighttts.transport.wire.limits import (
    MAX_AUDIO_FILE,
    MAX_FRAME_MEL,
    MAX_FRAME_SAMPLES,
    MAX_FRAME_TOKENS,
    MAX_PROMPT_TOKENS,
    MAX_SENTENCES,
    MAX_TEXT,
    MAX_TEXT_IDS,
    MAX_VOICES,
)
from lighttts.transport.wire.message import Since

MEL_BINS = 80
EMBEDDING_SIZE = 192
OUTPUTS = ("audio", "mel", "tokens")
DECODED = ("audio", "mel")
SAMPLE_TYPES = ("f32", "s16")
STAGES = ("encode", "llm", "decode")
METHODS = ("sentences", "interleaved")

RequestId = Annotated[str, Text(64, low=1)]
OptionalRequestId = Annotated[str, Text(64)]
Name = Annotated[str, Text(128)]
VoiceName = Annotated[str, Text(128, low=1)]
Digest = Annotated[str, Text(64, low=1)]
Sentence = Annotated[str, Text(MAX_TEXT)]
Line = Annotated[str, Text(4096)]
Owner = Text(128)
OWNERS_SINCE = 3
"""The version that registered voices, and so their owners, came with."""

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
