"""From trained parts to a voice: the directory is a model that loads, and each of its parts can be heard."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from lighttts.errors import ModelError
from lighttts.models.directory import ModelDirectory
from lighttts.models.flow import CausalMaskedDiffWithXvec
from training import assemble, evaluate, flow, hift
from training.bpe import train_bpe
from training.llm import Shape, SpeechLM
from training.loop import export
from training.packing import Layout
from training.speaker_encoder import SpeakerEncoder
from training.store import Store
from training.tokenizer import Encoder, codes

SHAPE = Shape(hidden=32, layers=2, heads=2, kv_heads=1, inner=48, guided=(1,))
TEXT_IDS = 320
SMALLER = {
    r"llm_(in|out)put_size: 384": r"llm_\1put_size: 32",
    r"(input|output)_size: 192": r"\1_size: 32",
    "linear_units: 512": "linear_units: 32",
    "num_blocks: 3": "num_blocks: 1",
    r"channels: \[192\]": "channels: [32]",
    "attention_head_dim: 48": "attention_head_dim: 16",
    "num_heads: 4": "num_heads: 2",
    "num_mid_blocks: 4": "num_mid_blocks: 1",
    "base_channels: 192": "base_channels: 32",
    "cond_channels: 256": "cond_channels: 16",
}


@pytest.fixture
def small_spec(tmp_path):
    """The voice's own yaml with small dimensions."""
    text = (assemble.NANO / "cosyvoice2.yaml").read_text()
    for pattern, smaller in SMALLER.items():
        text, found = re.subn(pattern, smaller, text)
        assert found, pattern
    path = tmp_path / "small.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def parts(small_spec, tmp_path):
    """A folder of what the trainers and `training.prepare` write, untrained."""
    folder = tmp_path / "run"
    folder.mkdir()
    train_bpe(["a few words to learn merges of words from"], folder / "CosyVoice-BlankEN", 280)
    export(folder / "llm.pt", SpeechLM(Layout(TEXT_IDS, codes()), SHAPE).published())
    export(folder / "flow.pt", CausalMaskedDiffWithXvec(flow.read_config(small_spec)).state_dict())
    export(folder / "hift.pt", hift.new_generator(hift.read_config(small_spec)).state_dict())
    export(folder / "tokenizer.pt", Encoder().state_dict())
    export(folder / "speaker.pt", SpeakerEncoder().state_dict())
    return folder


@pytest.fixture
def model(small_spec, parts, store, tmp_path):
    out = tmp_path / "voice"
    assemble.assemble(small_spec, parts, SHAPE, parts, Store.open(store), out)
    return out


def test_the_directory_holds_a_models_files_and_whom_to_thank(model):
    names = {str(path.relative_to(model)) for path in model.rglob("*") if path.is_file()}
    assert names == {
        "cosyvoice2.yaml",
        "llm.pt",
        "flow.pt",
        "hift.pt",
        "campplus.onnx",
        "speech_tokenizer_v2.onnx",
        "spk2info.pt",
        "CosyVoice-BlankEN/config.json",
        "CosyVoice-BlankEN/vocab.json",
        "CosyVoice-BlankEN/merges.txt",
        "CosyVoice-BlankEN/tokenizer_config.json",
        "LICENSE",
        "NOTICE",
        "README.md",
    }
    notice = (model / "NOTICE").read_text()
    assert all(name in notice for name in ("hibari-tts", "Kokoro", "WordNet 3.0", "World English Bible"))


def test_its_voice_is_the_speaker_of_the_store(model):
    voice = ModelDirectory.open(model).voices()["heart"]
    assert voice.embedding.shape == (192,)
    assert np.linalg.norm(voice.embedding) == pytest.approx(1.0, abs=1e-5)
    assert len(voice.prompt_text) == len(voice.llm_prompt_speech_token) == 0


def test_a_directory_beyond_its_bound_is_refused_with_what_is_too_much(small_spec, parts, store, tmp_path, monkeypatch):
    monkeypatch.setattr(assemble, "MOST_BYTES", 100_000)
    with pytest.raises(ValueError, match=r"holds \d+ bytes, \d+ more than 100000"):
        assemble.assemble(small_spec, parts, SHAPE, parts, Store.open(store), tmp_path / "voice")


def test_parts_of_other_dimensions_are_refused(small_spec, parts, store, tmp_path):
    export(parts / "flow.pt", {"input_embedding.weight": torch.zeros(3, 3)})
    with pytest.raises(ModelError, match="flow"):
        assemble.assemble(small_spec, parts, SHAPE, parts, Store.open(store), tmp_path / "voice")


def test_every_part_can_be_heard(model, tmp_path):
    voice = evaluate.Voice(model, seed=1)
    recording = tmp_path / "000.wav"
    soundfile.write(recording, 0.1 * np.sin(np.arange(30_000) / 20), 24000)
    for audio in (voice.of_mel(recording), voice.of_tokens(recording)):
        assert 0 <= 30_000 - len(audio) < 960
        assert np.isfinite(audio).all()
    spoken = voice.of_text("A few words. And more of them!")
    assert len(spoken) > 0
    np.testing.assert_array_equal(spoken, voice.of_text("A few words. And more of them!"))


def test_a_folder_is_scored_by_what_the_listener_prints(tmp_path, monkeypatch):
    script = tmp_path / "listener.py"
    script.write_text("print('000 a cat | a hat')\nprint('WER 12.50% on 1 sentences, 0 missing')\n")
    monkeypatch.setattr(evaluate, "LISTENER", (Path(sys.executable), script))
    assert evaluate.heard(tmp_path, tmp_path / "sentences.txt") == 12.5
    assert "a hat" in (tmp_path / "heard.txt").read_text()


def test_without_a_listener_it_is_said_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "LISTENER", (tmp_path / "none", tmp_path / "none.py"))
    with pytest.raises(FileNotFoundError, match="make listener"):
        evaluate.heard(tmp_path, tmp_path / "sentences.txt")
