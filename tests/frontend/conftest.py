"""The tiny reference models as the front end loads them, and prompts as a user would send them."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from safetensors.numpy import load_file

from lighttts.frontend.text import TextNormalizer
from lighttts.frontend.tokenizer import TextTokenizer

GOLDEN = Path(__file__).parent.parent / "golden"
Waves = dict[str, npt.NDArray[np.float32]]
AudioFile = Callable[..., bytes]
ModelCopy = Callable[[int], Path]


@pytest.fixture(scope="session")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(GOLDEN / "cosyvoice2-tiny" / "CosyVoice-BlankEN", 2, 600)


@pytest.fixture(scope="session")
def normalizer(tokenizer: TextTokenizer) -> TextNormalizer:
    return TextNormalizer(tokenizer)


@pytest.fixture(scope="session")
def reference() -> Waves:
    """`wav16k`, `wav24k` and the features that the reference implementation makes of them."""
    return load_file(GOLDEN / "frontend" / "features.safetensors")


@pytest.fixture(scope="session")
def audio_file() -> AudioFile:
    """Bytes of an audio file with the given samples."""

    def write(samples: npt.ArrayLike, rate: int, kind: str = "WAV", subtype: str = "PCM_16") -> bytes:
        buffer = io.BytesIO()
        soundfile.write(buffer, np.asarray(samples, np.float32), rate, format=kind, subtype=subtype)
        return buffer.getvalue()

    return write


@pytest.fixture(scope="session")
def prompt_file(reference: Waves, audio_file: AudioFile) -> bytes:
    """A prompt of 3.1 s."""
    return audio_file(reference["wav24k"], 24000)


@pytest.fixture
def model_copy(tmp_path: Path) -> ModelCopy:
    """A copy of a tiny model's front end files, to be damaged."""

    def copy(version: int) -> Path:
        source = GOLDEN / f"cosyvoice{version}-tiny"
        target = tmp_path / source.name
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors", "llm.pt", "flow.pt", "hift.pt"))
        for path in target.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        return target

    return copy
