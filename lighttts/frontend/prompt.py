"""What a model takes from recordings: speech tokens, and of a prompt also mel and speaker embedding."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

# Published builds of onnxruntime report their use to their maker's servers from the moment they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

from lighttts.errors import ModelError
from lighttts.frontend.audio import SPEECH_RATE, PromptAudio
from lighttts.frontend.features import Float32, MelSpec, flow_mel, speaker_features, whisper_log_mel
from lighttts.models.directory import ModelDirectory
from lighttts.models.section import Section

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class VoiceFeatures:
    """The acoustic side of a voice, as the flow takes it. Equal content has an equal key."""

    key: str
    """SHA-256 of the content, hexadecimal."""
    tokens: Int32
    """Speech tokens of the prompt (n,); none for a voice without prompt."""
    mel: Float32
    """Log-mel of the prompt (2n, 80): exactly the model's number of frames for each token."""
    embedding: Float32
    """Speaker embedding (192,), not normalised."""

    @classmethod
    def of(cls, tokens: Int32, mel: Float32, embedding: Float32) -> VoiceFeatures:
        """The features with their key computed."""
        digest = hashlib.sha256(f"{tokens.shape} {mel.shape} {embedding.shape}".encode())
        for array in (tokens, mel, embedding):
            digest.update(np.ascontiguousarray(array).tobytes())
        return cls(digest.hexdigest(), tokens, mel, embedding)

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays hold."""
        return self.tokens.nbytes + self.mel.nbytes + self.embedding.nbytes


class PromptExtractor:
    """Runs a model's speech tokenizer and speaker model on the CPU. Safe to share between threads."""

    def __init__(self, directory: ModelDirectory, threads: int = 1) -> None:
        """`threads`: how many each ONNX model computes with. Raises `ModelError` if one is missing or damaged."""
        flow = directory.settings.section("flow")
        self._token_count = flow.integer("vocab_size")
        self._frames_per_token = flow.integer("token_mel_ratio")
        self._embedding_size = flow.integer("spk_embed_dim")
        self._mel = _mel_spec(directory.settings.section("feat_extractor"), flow.integer("output_size"))
        self._speaker = _Model(directory.path("campplus.onnx"), threads, inputs=1)
        self._tokenizer = _Model(directory.path(directory.speech_tokenizer_name), threads, inputs=2)

    @property
    def sample_rate(self) -> int:
        """Samples a second of `PromptAudio.wave`."""
        return self._mel.sample_rate

    def extract(self, audio: PromptAudio) -> VoiceFeatures:
        """The features of one prompt, tokens and mel cut to the same length. Raises `ModelError`.

        As `frontend_zero_shot` of FunAudioLLM/CosyVoice (`cosyvoice/cli/frontend.py`).
        """
        tokens = self.speech_tokens(audio.speech)
        mel = flow_mel(audio.wave, self._mel)
        count = min(len(tokens), len(mel) // self._frames_per_token)
        return VoiceFeatures.of(tokens[:count], mel[: count * self._frames_per_token], self._embedding(audio.speech))

    def speech_tokens(self, speech: Float32) -> Int32:
        """The speech tokens (n,), 25 a second, of samples at `SPEECH_RATE`, at most 30 s. Raises `ModelError`."""
        features = whisper_log_mel(speech)
        tokens = self._tokenizer.run(features[None], np.array([features.shape[1]], np.int32)).ravel()
        if not np.issubdtype(tokens.dtype, np.integer) or not tokens.size:
            raise self._tokenizer.error("gives no tokens")
        if tokens.min() < 0 or tokens.max() >= self._token_count:
            raise self._tokenizer.error(f"gives tokens outside 0..{self._token_count - 1}")
        return tokens.astype(np.int32)

    def _embedding(self, speech: Float32) -> Float32:
        embedding = self._speaker.run(speaker_features(speech)[None]).ravel()
        if embedding.size != self._embedding_size or not np.isfinite(embedding).all():
            raise self._speaker.error(f"gives no embedding of {self._embedding_size} finite numbers")
        return embedding.astype(np.float32)


class _Model:
    """One ONNX file with a single output."""

    def __init__(self, path: Path, threads: int, inputs: int) -> None:
        self._path = path
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only: warnings of the graph optimiser are no news to an operator
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common base
            raise self.error("cannot be loaded") from error
        self._names = [item.name for item in self._session.get_inputs()]
        if len(self._names) != inputs:
            raise self.error(f"takes {len(self._names)} inputs where {inputs} are expected")

    def run(self, *inputs: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        try:
            outputs = self._session.run(None, dict(zip(self._names, inputs, strict=True)))
        except Exception as error:  # as above; the inputs have been checked, so the file is at fault
            raise self.error("fails on its input") from error
        return np.asarray(outputs[0])

    def error(self, what: str) -> ModelError:
        return ModelError(f"{self._path} {what}; restore the published file.")


def _mel_spec(section: Section, bins: int) -> MelSpec:
    unlimited = section.data.get("fmax") is None
    spec = MelSpec(
        sample_rate=section.integer("sampling_rate", least=SPEECH_RATE),
        n_fft=section.integer("n_fft"),
        hop=section.integer("hop_size"),
        bins=section.integer("num_mels"),
        fmin=section.number("fmin"),
        fmax=None if unlimited else section.number("fmax"),
    )
    if not spec.hop <= spec.n_fft <= spec.sample_rate or spec.bins != bins:
        raise ModelError(f"{section.name}: feat_extractor does not fit the flow; restore the published file.")
    return spec
