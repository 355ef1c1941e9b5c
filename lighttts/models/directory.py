"""A CosyVoice model directory as upstream publishes it.

    cosyvoice2.yaml | cosyvoice3.yaml   dimensions and settings, read as data
    llm.pt  flow.pt  hift.pt            weights
    campplus.onnx                       speaker embedding
    speech_tokenizer_v2|v3.onnx         speech tokens of a prompt
    CosyVoice-BlankEN/                  Qwen2 configuration and text tokenizer
    spk2info.pt                         registered voices; need not exist
    style_config.json                   several llm weights in place of llm.pt; need not exist

Whatever is missing, damaged or does not fit raises `ModelError` with a sentence that names the file and the remedy.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from lighttts.errors import ModelError
from lighttts.models import weights
from lighttts.models.section import Section
from lighttts.models.spec import MAX_BYTES, Plain, parse
from lighttts.models.styles import read_styles
from lighttts.models.voices import VoiceInfo, VoiceLimits, read_voices

YAML_NAMES = {"cosyvoice2.yaml": 2, "cosyvoice3.yaml": 3}
_SHARED_WEIGHTS = ("flow.pt", "hift.pt")
QWEN_CONFIG = "CosyVoice-BlankEN/config.json"
VOICES_NAME = "spk2info.pt"
_TOKENIZER_NAMES = ("CosyVoice-BlankEN/vocab.json", "CosyVoice-BlankEN/merges.txt")


@dataclass(frozen=True, eq=False)
class ModelDirectory:
    """A model directory whose yaml has been read. Weights and voices are read when asked for."""

    root: Path
    version: int
    """2 or 3: CosyVoice2 or CosyVoice3."""
    yaml_name: str
    spec: dict[str, Plain]
    """The yaml as nested plain data; tagged values as `lighttts.models.spec` describes."""

    @classmethod
    def open(cls, path: str | Path) -> ModelDirectory:
        """The model directory at `path`. Reads the yaml only. Raises `ModelError`."""
        root = Path(path)
        if not root.is_dir():
            raise ModelError(f"{root} is not a directory; give the directory of a CosyVoice2 or CosyVoice3 model.")
        found = [name for name in YAML_NAMES if (root / name).is_file()]
        if len(found) != 1:
            held = " and ".join(found) if found else "neither cosyvoice2.yaml nor cosyvoice3.yaml"
            raise ModelError(f"{root} holds {held}, where a model directory holds one; restore the published files.")
        spec = parse(_read_text(root / found[0]), str(root / found[0]))
        return cls(root=root, version=YAML_NAMES[found[0]], yaml_name=found[0], spec=spec)

    @property
    def settings(self) -> Section:
        """The yaml with typed access, each value checked when it is read."""
        return Section(self.spec, str(self.root / self.yaml_name))

    @property
    def sample_rate(self) -> int:
        """Samples a second of the audio the model makes."""
        return self.settings.integer("sample_rate")

    @property
    def speech_tokenizer_name(self) -> str:
        """Name of the speech tokenizer's file, which carries the model's version."""
        return f"speech_tokenizer_v{self.version}.onnx"

    @cached_property
    def styles(self) -> dict[str, str]:
        """Name of the language model's weights by style, the default style first; see `lighttts.models.styles`."""
        return read_styles(self.root)

    def style(self, name: str) -> str:
        """The style of that name, which is known to exist; the default's for "". Raises `ModelError`."""
        if name and name not in self.styles:
            known = ", ".join(filter(None, self.styles)) or "none: it has no style_config.json"
            raise ModelError(f"{self.root} has no style {name!r}; its styles are {known}.")
        return name or next(iter(self.styles))

    def path(self, name: str) -> Path:
        """Path of a file or directory of the model, which is known to exist. Raises `ModelError`."""
        path = self.root / name
        if not path.exists():
            raise ModelError(f"{path} is missing; restore it from the published model.")
        return path

    def load_weights(self, name: str, *, keep_half: bool = False) -> dict[str, Tensor]:
        """The tensors of a file of weights on the CPU; see `lighttts.models.weights.load_weights`."""
        return weights.load_weights(self.path(name), keep_half=keep_half)

    def qwen_config(self) -> Section:
        """The Qwen2 configuration of `CosyVoice-BlankEN` with typed access. Raises `ModelError`."""
        path = self.path(QWEN_CONFIG)
        try:
            return Section(json.loads(_read_text(path)), str(path))
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{path} is not valid JSON; restore the published file.") from error

    def voices(self) -> dict[str, VoiceInfo]:
        """The registered voices by name; none if there is no `spk2info.pt`. Raises `ModelError`."""
        if not (self.root / VOICES_NAME).exists():
            return {}
        flow = self.settings.section("flow")
        limits = VoiceLimits(
            embedding_size=flow.integer("spk_embed_dim"),
            mel_bins=flow.integer("output_size"),
            speech_tokens=flow.integer("vocab_size"),
            mel_ratio=flow.integer("token_mel_ratio"),
        )
        return read_voices(self.root / VOICES_NAME, limits)

    @cached_property
    def config_hash(self) -> str:
        """Hexadecimal digest of the yaml and the Qwen2 configuration."""
        text = _read_text(self.path(self.yaml_name)) + "\0" + _read_text(self.path(QWEN_CONFIG))
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def model_hash(self) -> str:
        """Hexadecimal digest of configuration, weights and ONNX files: equal for two directories with one model."""
        names = (*self.styles.values(), *_SHARED_WEIGHTS, "campplus.onnx", self.speech_tokenizer_name)
        parts = [self.config_hash, *(weights.fingerprint(self.path(name)) for name in names)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def check(path: str | Path) -> list[str]:
    """Every problem of a model directory as one sentence each; empty if it is whole. Reads all files."""
    try:
        directory = ModelDirectory.open(path)
    except ModelError as error:
        return [error.text]
    problems: list[str] = []
    for name in ("campplus.onnx", directory.speech_tokenizer_name, *_TOKENIZER_NAMES):
        if not (directory.root / name).is_file():
            problems.append(f"{directory.root / name} is missing; restore it from the published model.")
    for name in (*_llm_weights(directory), *_SHARED_WEIGHTS):
        problems.extend(_weight_problems(directory, name))
    for read in (directory.qwen_config, lambda: directory.sample_rate, directory.voices, lambda: directory.styles):
        try:
            read()
        except ModelError as error:
            problems.append(error.text)
    return problems


def _llm_weights(directory: ModelDirectory) -> tuple[str, ...]:
    try:
        return tuple(directory.styles.values())
    except ModelError:
        return ()


def _weight_problems(directory: ModelDirectory, name: str) -> list[str]:
    try:
        tensors = directory.load_weights(name)
    except ModelError as error:
        return [error.text]
    path = directory.root / name
    if weights.damage(path) is not None:
        return [f"{path} is damaged: its content does not match its checksums; restore the published file."]
    bad = [key for key, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    return [f"{path}: {bad[0]} holds values that are not finite; restore the published file."] if bad else []


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ModelError(f"{path} is larger than {MAX_BYTES} bytes; restore the published file.")
        return content.decode("utf-8")
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); restore the published file.") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not UTF-8 text; restore the published file.") from error
