"""One stack of the tiny reference model, which says something whatever the seed, for all tests of this folder."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator

import numpy as np
import pytest
from safetensors.numpy import load_file

from lighttts.client import Client
from tests.system.stack import ROOT, Stack
from tests.talkative import talkative2


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("s")
    with Stack(folder, model=talkative2(folder / "cosyvoice2-tiny")) as running:
        yield running


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    with Client(stack.endpoint, timeout=60) as connected:
        yield connected


@pytest.fixture(scope="session")
def prompt_wav() -> bytes:
    samples = load_file(ROOT / "tests/golden/frontend/features.safetensors")["wav16k"]
    return make_wav(samples, 16000)


def make_wav(samples: np.ndarray, rate: int) -> bytes:
    """A mono 16-bit WAV file of float samples in -1..1."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()
