"""A store of synthetic speech with tokens, and a model's yaml of few dimensions, for the trainers' tests."""

from pathlib import Path

import numpy as np
import pytest
import torch

from training.store import FRAME, Utterance, write_part

TOKENS = 50
GOLDEN = Path(__file__).parents[1] / "golden/cosyvoice2-tiny/cosyvoice2.yaml"


@pytest.fixture(autouse=True)
def _one_thread_and_fixed_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def tone_utterance(sentence: int, frames: int) -> tuple[Utterance, np.ndarray]:
    """A tone whose pitch changes every token, and the tokens: which pitch it was."""
    rng = np.random.default_rng(sentence)
    samples = frames * FRAME
    token = rng.integers(0, TOKENS, -(-samples // 960))
    hz = 100.0 + 4 * np.repeat(token, 960)[:samples]
    pcm = (6000 * np.sin(2 * np.pi * np.cumsum(hz) / 24000)).astype(np.int16)
    f0 = hz[FRAME // 2 :: FRAME].astype(np.float16)
    phone, duration = np.zeros(1, np.uint8), np.array([frames], np.uint16)
    return Utterance(sentence, pcm, phone, duration, f0), token


@pytest.fixture
def store(tmp_path):
    """A folder of two tokenised parts, utterances of 1.2 to 2 s."""
    for part in range(2):
        made = [tone_utterance(10 * part + i, 97 + 13 * i) for i in range(5)]
        write_part(tmp_path, f"{part:03d}", [utterance for utterance, _ in made])
        tokens = [token for _, token in made]
        np.savez(
            tmp_path / f"tokens-{part:03d}.npz",
            token=np.concatenate(tokens).astype(np.int16),
            tokens=np.array([len(token) for token in tokens], np.int64),
        )
    return tmp_path


@pytest.fixture
def spec() -> Path:
    return GOLDEN
