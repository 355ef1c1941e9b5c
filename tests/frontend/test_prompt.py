"""A prompt's speech tokens, mel and speaker embedding equal the reference and fit one another."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from lighttts.errors import ModelError
from lighttts.frontend.audio import PromptAudio
from lighttts.frontend.prompt import PromptExtractor
from lighttts.models.directory import ModelDirectory

from .conftest import GOLDEN

EXTRACTOR = PromptExtractor(ModelDirectory.open(GOLDEN / "cosyvoice2-tiny"))


@pytest.mark.parametrize(("version", "mel"), [(2, "mel_80_24k_fmax8k"), (3, "mel_80_24k")])
def test_features_equal_the_reference(reference, version, mel):
    folder = GOLDEN / f"cosyvoice{version}-tiny"
    expected = load_file(folder / "prompt.safetensors")
    extractor = PromptExtractor(ModelDirectory.open(folder))
    features = extractor.extract(PromptAudio(speech=reference["wav16k"], wave=reference["wav24k"]))
    embedding = expected["campplus.embedding"][0]
    assert np.abs(features.embedding - embedding).max() < 1e-4 * embedding.std()
    # 155 mel frames are 77 whole tokens: the last of the 78 speech tokens and the odd frame are cut off
    np.testing.assert_array_equal(features.tokens, expected["speech_token"][0, :77])
    assert np.abs(features.mel - reference[mel][0].T[:154]).max() < 1e-4 * reference[mel].std()


@settings(deadline=None, max_examples=20)
@given(st.integers(16000, 60000), st.integers(24000, 90000))
def test_each_token_has_two_mel_frames_whatever_the_lengths(speech, wave):
    random = np.random.default_rng(0)
    audio = PromptAudio(
        speech=random.uniform(-1, 1, speech).astype(np.float32), wave=random.uniform(-1, 1, wave).astype(np.float32)
    )
    features = EXTRACTOR.extract(audio)
    assert features.mel.shape == (2 * len(features.tokens), 80)
    assert len(features.tokens) == min(wave // 960, -(-(speech // 160) // 4))
    assert (features.tokens.dtype, features.mel.dtype, features.embedding.dtype) == ("int32", "float32", "float32")
    assert features.embedding.shape == (192,)


@pytest.mark.parametrize("name", ["campplus.onnx", "speech_tokenizer_v2.onnx"])
@pytest.mark.parametrize("content", [None, b"", b"not onnx" * 100], ids=["missing", "empty", "damaged"])
def test_a_missing_or_damaged_onnx_file_is_named(model_copy, name, content):
    folder = model_copy(2)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=rf"{name} .*; restore"):
        PromptExtractor(ModelDirectory.open(folder))


def test_an_onnx_file_in_the_wrong_place_is_noticed(model_copy):
    folder = model_copy(2)
    (folder / "campplus.onnx").write_bytes((folder / "speech_tokenizer_v2.onnx").read_bytes())
    with pytest.raises(ModelError, match=r"campplus.onnx takes 2 inputs where 1 are expected"):
        PromptExtractor(ModelDirectory.open(folder))


@pytest.mark.parametrize(
    ("written", "changed", "reason"),
    [
        ("vocab_size: 100", "vocab_size: 10", r"speech_tokenizer_v2.onnx gives tokens outside 0\.\.9"),
        ("spk_embed_dim: 192", "spk_embed_dim: 191", "campplus.onnx gives no embedding of 191 finite numbers"),
        ("num_mels: 80", "num_mels: 81", "feat_extractor does not fit the flow"),
        ("hop_size: 480", "hop_size: 4800", "feat_extractor does not fit the flow"),
    ],
)
def test_a_yaml_of_another_model_is_noticed(model_copy, reference, written, changed, reason):
    path = model_copy(2) / "cosyvoice2.yaml"
    text = path.read_text()
    assert written in text
    path.write_text(text.replace(written, changed))
    audio = PromptAudio(speech=reference["wav16k"], wave=reference["wav24k"])
    with pytest.raises(ModelError, match=reason):
        PromptExtractor(ModelDirectory.open(path.parent)).extract(audio)
