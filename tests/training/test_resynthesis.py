"""Resynthesis with shipped weights: one wav an utterance, in the order of sentences, as long as the speech."""

import sys
import wave

import numpy as np
import pytest
import torch

from lighttts.models.flow import CausalMaskedDiffWithXvec
from training import flow, hift, resynthesis
from training.loop import export, save
from training.speaker_encoder import SpeakerEncoder
from training.store import Store


@pytest.fixture
def run(spec, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    export(folder / "hift.pt", hift.new_generator(hift.read_config(spec)).state_dict())
    export(folder / "flow.pt", CausalMaskedDiffWithXvec(flow.read_config(spec)).state_dict())
    save(folder / "speaker.pt", dict(SpeakerEncoder().state_dict()))
    return folder


@pytest.mark.parametrize(("part", "unit"), [("mel", 480), ("tokens", 960)])
def test_every_utterance_becomes_a_wav_of_its_length(store, spec, run, tmp_path, monkeypatch, part, unit):
    out = tmp_path / "wavs"
    command = ["resynthesis", "--spec", spec, "--run", run, "--store", store, "--part", part, "--out", out]
    monkeypatch.setattr(sys, "argv", [str(word) for word in command])
    resynthesis.main()
    opened = Store.open(store)
    lengths = np.diff(opened.start)[np.argsort(opened.sentence)]
    files = sorted(out.glob("*.wav"))
    assert [path.name for path in files] == [f"{i:03d}.wav" for i in range(len(lengths))]
    for path, length in zip(files, lengths, strict=True):
        with wave.open(str(path)) as file:
            assert file.getframerate() == 24000
            assert abs(file.getnframes() - length) < unit


def test_the_stores_voice_is_a_unit_embedding(store):
    voice = resynthesis.voice_of(SpeakerEncoder(), Store.open(store), torch.device("cpu"))
    assert voice.shape == (192,)
    assert float(voice.norm()) == pytest.approx(1.0, abs=1e-5)
