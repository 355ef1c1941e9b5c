"""The encode stage without its daemon: a request's text or recording, and its voice -> what the models take."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lighttts.errors import InvalidInput, ModelError, UnknownVoice
from lighttts.frontend.audio import read_prompt, read_source
from lighttts.frontend.cache import FeatureCache
from lighttts.frontend.instruction import Instructions
from lighttts.frontend.live import LiveIds, LiveText
from lighttts.frontend.prompt import Int32, PromptExtractor, VoiceFeatures
from lighttts.frontend.text import TextNormalizer
from lighttts.frontend.tokenizer import TextTokenizer
from lighttts.models.directory import ModelDirectory
from lighttts.models.interleave import read_mix
from lighttts.models.voices import VoiceInfo

DEFAULT_CACHE_BYTES = 256 << 20
_NAMES_IN_ERROR = 20
_NONE = np.zeros(0, np.int32)


@dataclass(frozen=True)
class EncodeJob:
    """One request: `text`, and either `voice`, the name of a registered voice, or `prompt_audio`, an audio file.

    With `prompt_text`, the words of the prompt, it is zero-shot; with none (or only white space) it is cross-lingual.
    `instruct`, which is said in the place of `prompt_text`, says how to speak.
    """

    text: str
    voice: str = ""
    prompt_audio: bytes = b""
    prompt_text: str = ""
    instruct: str = ""
    pieces: str = ""
    """Empty if `text` is all of it; else it comes in pieces, and this says how it is to be spoken: "sentences",
    "interleaved", or "auto", as the model does best."""


@dataclass(frozen=True)
class ConvertJob:
    """One conversion: what is said in `source`, an audio file, is to be said by `voice` or as in `prompt_audio`."""

    source: bytes
    voice: str = ""
    prompt_audio: bytes = b""


@dataclass(frozen=True, eq=False)
class Sentence:
    """One sentence to synthesise, as spoken, and its text token ids (n,)."""

    text: str
    ids: Int32


@dataclass(frozen=True, eq=False)
class Encoded:
    """A job as the models take it."""

    sentences: tuple[Sentence, ...]
    prompt_text_ids: Int32
    """Text tokens that go before each sentence's: (n,), none unless the voice has a prompt text or an instruction."""
    llm_prompt_tokens: Int32
    """Speech tokens that the language model continues: (n,), none for a voice without prompt, if cross-lingual and if
    instructed."""
    voice: VoiceFeatures
    """The flow's prompt and the speaker."""
    pieces: str = ""
    """How text that comes in pieces will be spoken, "sentences" or "interleaved"."""
    lead: int = 0
    """How many of the prompt's text ids stand before all blocks of text and speech, where these are interleaved."""


@dataclass(frozen=True, eq=False)
class Converted:
    """A conversion as the flow takes it."""

    tokens: Int32
    """The source's speech tokens (n,)."""
    voice: VoiceFeatures
    """The flow's prompt and the speaker."""


class EncodeEngine:
    """Encodes jobs for one model. Safe to share between threads."""

    def __init__(
        self,
        directory: ModelDirectory,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        threads: int = 1,
        cache_s: float = float("inf"),
    ) -> None:
        """Loads what it needs of the model. `cache_bytes` bounds the features kept of prompts seen, `cache_s` the
        seconds after their last use, `threads` is what each ONNX model computes with. Raises `ModelError`."""
        embedded = directory.qwen_config().integer("vocab_size")
        self._tokenizer = TextTokenizer(directory.path("CosyVoice-BlankEN"), directory.version, embedded)
        self._normalizer = TextNormalizer(self._tokenizer)
        self._extractor = PromptExtractor(directory, threads)
        self.cache = FeatureCache(cache_bytes, cache_s)
        self.voices: Mapping[str, VoiceInfo] = directory.voices()
        """The registered voices by name."""
        for voice in self.voices.values():
            _check_prompt_text(voice, embedded)
        self._presets = {name: _preset_features(voice) for name, voice in self.voices.items()}
        self._instructions = Instructions(self._tokenizer, directory.version)
        self._live = LiveText(self._tokenizer)
        self._best = "interleaved" if read_mix(directory) else "sentences"

    def encode(self, job: EncodeJob) -> Encoded:
        """The job encoded; with an instruction as upstream's `frontend_instruct2`.

        Raises `InvalidInput` or `UnknownVoice` for what the job has wrong, `ModelError` else.
        """
        _check_voice(job)
        if job.voice and job.prompt_text:
            raise InvalidInput(
                "Prompt text goes with prompt audio; leave it out for a named voice.", field="prompt_text"
            )
        if job.instruct and job.prompt_text:
            raise InvalidInput("Give an instruction or a prompt text, and not both.", field="instruct")
        texts = () if job.pieces else self._normalizer.sentences(job.text)
        sentences = tuple(Sentence(text, self._tokenizer.encode(text)) for text in texts)
        pieces = self._best if job.pieces == "auto" else job.pieces
        prompt_text_ids, llm_tokens, voice = self._preset(job.voice) if job.voice else self._prompt(job)
        if job.instruct.strip():
            instruct = self._instructions.encode(job.instruct)
            return Encoded(sentences, instruct, _NONE, voice, pieces, self._instructions.lead(instruct))
        if self._instructions.needed(prompt_text_ids, [sentence.ids for sentence in sentences] or [_NONE]):
            prompt_text_ids = np.concatenate((self._instructions.plain, prompt_text_ids))
        lead = self._instructions.lead(prompt_text_ids)
        return Encoded(sentences, prompt_text_ids, llm_tokens, voice, pieces, lead)

    def write(self, text: str, method: str, *, flush: bool) -> LiveIds:
        """Text that comes in pieces: see `LiveText.encode`."""
        return self._live.encode(text, method, flush=flush)

    def check(self, recording: bytes, text: str) -> VoiceFeatures:
        """The features of a voice that is to be registered, which `recording`, an audio file, and `text`, what is said
        in it or nothing, are good for. Raises as `encode`."""
        if text.strip():
            self._tokenizer.encode(self._normalizer.prompt(text), "prompt_text")
        return self._features(recording)

    def convert(self, job: ConvertJob) -> Converted:
        """The job encoded, as upstream's `frontend_vc`. Raises as `encode`."""
        _check_voice(job)
        speech = read_source(job.source)
        voice = self._preset(job.voice)[2] if job.voice else self._features(job.prompt_audio)
        return Converted(self._extractor.speech_tokens(speech), voice)

    def _preset(self, name: str) -> tuple[Int32, Int32, VoiceFeatures]:
        """Upstream's `frontend_sft`, or `frontend_zero_shot` with a registered prompt."""
        if name not in self.voices:
            raise _unknown_voice(name, list(self.voices))
        voice = self.voices[name]
        return voice.prompt_text, voice.llm_prompt_speech_token, self._presets[name]

    def _prompt(self, job: EncodeJob) -> tuple[Int32, Int32, VoiceFeatures]:
        """Upstream's `frontend_zero_shot`, or `frontend_cross_lingual` without prompt text."""
        if not job.prompt_text.strip():
            return _NONE, _NONE, self._features(job.prompt_audio)
        text_ids = self._tokenizer.encode(self._normalizer.prompt(job.prompt_text), "prompt_text")
        features = self._features(job.prompt_audio)
        return text_ids, features.tokens, features

    def _features(self, content: bytes) -> VoiceFeatures:
        digest = hashlib.sha256(content).hexdigest()
        features = self.cache.get(digest)
        if features is None:
            features = self._extractor.extract(read_prompt(content, self._extractor.sample_rate))
            self.cache.put(digest, features)
        return features


def _check_voice(job: EncodeJob | ConvertJob) -> None:
    if bool(job.voice) == bool(job.prompt_audio):
        raise InvalidInput("Give either the name of a voice or prompt audio, and not both.", field="voice")


def _check_prompt_text(voice: VoiceInfo, embedded: int) -> None:
    ids = voice.prompt_text
    if ids.size and not 0 <= ids.min() <= ids.max() < embedded:
        raise ModelError(f"spk2info.pt: voice {voice.name} has prompt text of another model; register it again.")


def _preset_features(voice: VoiceInfo) -> VoiceFeatures:
    return VoiceFeatures.of(voice.flow_prompt_speech_token, voice.prompt_speech_feat, voice.embedding)


def _unknown_voice(name: str, known: list[str]) -> UnknownVoice:
    """Names the known voices, those that resemble `name` first."""
    if not known:
        return UnknownVoice("This model has no registered voices; give prompt audio instead.", field="voice")
    near = difflib.get_close_matches(name, known, n=_NAMES_IN_ERROR, cutoff=0.0)
    names = ", ".join(near) + (f" and {len(known) - len(near)} more" if len(known) > len(near) else "")
    return UnknownVoice(f'There is no voice "{name[:64]}"; this model has {names}.', field="voice")
