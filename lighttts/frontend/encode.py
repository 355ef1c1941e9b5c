"""The encode stage without its daemon: a request's text and voice -> what the language model and the flow take."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lighttts.errors import InvalidInput, ModelError, UnknownVoice
from lighttts.frontend.audio import read_prompt
from lighttts.frontend.cache import FeatureCache
from lighttts.frontend.marks import END_OF_PROMPT
from lighttts.frontend.prompt import Int32, PromptExtractor, VoiceFeatures
from lighttts.frontend.text import TextNormalizer
from lighttts.frontend.tokenizer import TextTokenizer
from lighttts.models.directory import ModelDirectory
from lighttts.models.voices import VoiceInfo

DEFAULT_CACHE_BYTES = 256 << 20
_NAMES_IN_ERROR = 20
_INSTRUCTION = "You are a helpful assistant." + END_OF_PROMPT
"""CosyVoice3 was trained with an instruction before every text; this is upstream's plain one."""


@dataclass(frozen=True)
class EncodeJob:
    """One request: `text`, and either `voice`, the name of a registered voice, or `prompt_audio`, an audio file.

    With `prompt_text`, the words of the prompt, it is zero-shot; with none (or only white space) it is cross-lingual.
    """

    text: str
    voice: str = ""
    prompt_audio: bytes = b""
    prompt_text: str = ""


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
    """Speech tokens that the language model continues: (n,), none for a voice without prompt and if cross-lingual."""
    voice: VoiceFeatures
    """The flow's prompt and the speaker."""


class EncodeEngine:
    """Encodes jobs for one model. Safe to share between threads."""

    def __init__(self, directory: ModelDirectory, cache_bytes: int = DEFAULT_CACHE_BYTES, threads: int = 1) -> None:
        """Loads what it needs of the model. `cache_bytes` bounds the features kept of prompts seen, `threads` is what
        each ONNX model computes with. Raises `ModelError`."""
        embedded = directory.qwen_config().integer("vocab_size")
        self._tokenizer = TextTokenizer(directory.path("CosyVoice-BlankEN"), directory.version, embedded)
        self._normalizer = TextNormalizer(self._tokenizer)
        self._extractor = PromptExtractor(directory, threads)
        self.cache = FeatureCache(cache_bytes)
        self.voices: Mapping[str, VoiceInfo] = directory.voices()
        """The registered voices by name."""
        for voice in self.voices.values():
            _check_prompt_text(voice, embedded)
        self._presets = {name: _preset_features(voice) for name, voice in self.voices.items()}
        self._instruction = _instruction(self._tokenizer, directory.version)

    def encode(self, job: EncodeJob) -> Encoded:
        """The job encoded. Raises `InvalidInput` or `UnknownVoice` for what the job has wrong, `ModelError` else."""
        if bool(job.voice) == bool(job.prompt_audio):
            raise InvalidInput("Give either the name of a voice or prompt audio, and not both.", field="voice")
        if job.voice and job.prompt_text:
            raise InvalidInput(
                "Prompt text goes with prompt audio; leave it out for a named voice.", field="prompt_text"
            )
        sentences = tuple(Sentence(text, self._tokenizer.encode(text)) for text in self._normalizer.sentences(job.text))
        prompt_text_ids, llm_tokens, voice = self._preset(job.voice) if job.voice else self._prompt(job)
        if self._instruction.size and not self._has_instruction(prompt_text_ids, sentences):
            prompt_text_ids = np.concatenate((self._instruction, prompt_text_ids))
        return Encoded(sentences, prompt_text_ids, llm_tokens, voice)

    def _preset(self, name: str) -> tuple[Int32, Int32, VoiceFeatures]:
        """Upstream's `frontend_sft`, or `frontend_zero_shot` with a registered prompt."""
        if name not in self.voices:
            raise _unknown_voice(name, list(self.voices))
        voice = self.voices[name]
        return voice.prompt_text, voice.llm_prompt_speech_token, self._presets[name]

    def _prompt(self, job: EncodeJob) -> tuple[Int32, Int32, VoiceFeatures]:
        """Upstream's `frontend_zero_shot`, or `frontend_cross_lingual` without prompt text."""
        none = np.zeros(0, np.int32)
        if not job.prompt_text.strip():
            return none, none, self._features(job.prompt_audio)
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

    def _has_instruction(self, prompt_text_ids: Int32, sentences: tuple[Sentence, ...]) -> bool:
        end = self._instruction[-1]
        return bool(np.any(prompt_text_ids == end)) or all(bool(np.any(item.ids == end)) for item in sentences)


def _check_prompt_text(voice: VoiceInfo, embedded: int) -> None:
    ids = voice.prompt_text
    if ids.size and not 0 <= ids.min() <= ids.max() < embedded:
        raise ModelError(f"spk2info.pt: voice {voice.name} has prompt text of another model; register it again.")


def _instruction(tokenizer: TextTokenizer, version: int) -> Int32:
    if version == 2:
        return np.zeros(0, np.int32)
    try:
        return tokenizer.encode(_INSTRUCTION)
    except InvalidInput as error:
        raise ModelError(
            f"The model cannot embed {END_OF_PROMPT}, which CosyVoice3 needs; restore the model."
        ) from error


def _preset_features(voice: VoiceInfo) -> VoiceFeatures:
    return VoiceFeatures.of(voice.flow_prompt_speech_token, voice.prompt_speech_feat, voice.embedding)


def _unknown_voice(name: str, known: list[str]) -> UnknownVoice:
    """Names the known voices, those that resemble `name` first."""
    if not known:
        return UnknownVoice("This model has no registered voices; give prompt audio instead.", field="voice")
    near = difflib.get_close_matches(name, known, n=_NAMES_IN_ERROR, cutoff=0.0)
    names = ", ".join(near) + (f" and {len(known) - len(near)} more" if len(known) > len(near) else "")
    return UnknownVoice(f'There is no voice "{name[:64]}"; this model has {names}.', field="voice")
