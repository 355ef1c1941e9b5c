"""A request is encoded as upstream's front end does for a registered voice, zero-shot and cross-lingual."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from lighttts.errors import InvalidInput, ModelError, UnknownVoice
from lighttts.frontend.encode import ConvertJob, EncodeEngine, EncodeJob
from lighttts.models.directory import ModelDirectory

from .conftest import GOLDEN

torch.set_num_threads(1)

ENGINES = {version: EncodeEngine(ModelDirectory.open(GOLDEN / f"cosyvoice{version}-tiny")) for version in (2, 3)}
END_OF_PROMPT = 503
INSTRUCTION = [349, 494, 259, 402, 68, 75, 79, 69, 84, 75, 409, 82, 269, 83, 382, 13, END_OF_PROMPT]


def register(folder, name, **tensors):
    voices = torch.load(folder / "spk2info.pt", weights_only=True)
    voices[name] = tensors
    torch.save(voices, folder / "spk2info.pt")


def zero_shot_voice(prompt_text):
    return {
        "prompt_text": torch.tensor([prompt_text]),
        "llm_prompt_speech_token": torch.tensor([[5, 6, 7]]),
        "flow_prompt_speech_token": torch.tensor([[5, 6]]),
        "prompt_speech_feat": torch.ones(1, 4, 80),
        "llm_embedding": torch.full((1, 192), 0.5),
        "flow_embedding": torch.full((1, 192), 0.25),
    }


def test_a_text_becomes_sentences_with_their_ids():
    text = "I have 2 cats. " * 12
    encoded = ENGINES[2].encode(EncodeJob(text, voice="tiny-voice"))
    assert len(encoded.sentences) > 1
    assert "".join(sentence.text for sentence in encoded.sentences) == text.strip().replace("2", "two")
    for sentence in encoded.sentences:
        assert sentence.ids.dtype == np.int32
        assert 0 < len(sentence.ids) <= 100
        assert sentence.ids.max() < 600


def test_a_voice_without_prompt_conditions_only_the_flow_and_only_by_its_embedding():
    encoded = ENGINES[2].encode(EncodeJob("Hi.", voice="tiny-voice"))
    registered = torch.load(GOLDEN / "cosyvoice2-tiny" / "spk2info.pt", weights_only=True)["tiny-voice"]["embedding"][0]
    np.testing.assert_array_equal(encoded.voice.embedding, registered.numpy())
    assert encoded.voice.tokens.shape == (0,)
    assert encoded.voice.mel.shape == (0, 80)
    assert len(encoded.prompt_text_ids) == len(encoded.llm_prompt_tokens) == 0


def test_a_registered_prompt_conditions_both_models(model_copy):
    folder = model_copy(2)
    register(folder, "cloned", **zero_shot_voice([8, 9]))
    engine = EncodeEngine(ModelDirectory.open(folder))
    encoded = engine.encode(EncodeJob("Hi.", voice="cloned"))
    assert list(engine.voices) == ["tiny-voice", "cloned"]
    assert encoded.prompt_text_ids.tolist() == [8, 9]
    assert encoded.llm_prompt_tokens.tolist() == [5, 6, 7]
    assert encoded.voice.tokens.tolist() == [5, 6]
    np.testing.assert_array_equal(encoded.voice.mel, np.ones((4, 80)))
    np.testing.assert_array_equal(encoded.voice.embedding, np.full(192, 0.25))


def test_a_registered_prompt_text_beyond_the_embedding_is_of_another_model(model_copy):
    folder = model_copy(2)
    register(folder, "cloned", **zero_shot_voice([8, 600]))
    with pytest.raises(ModelError, match="voice cloned has prompt text of another model"):
        EncodeEngine(ModelDirectory.open(folder))


def test_zero_shot_conditions_both_models(tokenizer, prompt_file):
    encoded = ENGINES[2].encode(EncodeJob("Hi.", prompt_audio=prompt_file, prompt_text="Room 5"))
    assert encoded.prompt_text_ids.tolist() == tokenizer.encode("Room five").tolist()
    assert len(encoded.voice.tokens) == 77
    np.testing.assert_array_equal(encoded.llm_prompt_tokens, encoded.voice.tokens)
    assert encoded.voice.mel.shape == (154, 80)


@pytest.mark.parametrize("prompt_text", ["", " \n"])
def test_cross_lingual_conditions_only_the_flow(prompt_file, prompt_text):
    encoded = ENGINES[2].encode(EncodeJob("Hi.", prompt_audio=prompt_file, prompt_text=prompt_text))
    assert len(encoded.prompt_text_ids) == len(encoded.llm_prompt_tokens) == 0
    assert len(encoded.voice.tokens) == 77


def test_cosyvoice3_is_given_its_instruction_in_every_mode(prompt_file):
    for job in (
        EncodeJob("Hi.", voice="tiny-voice"),
        EncodeJob("Hi.", prompt_audio=prompt_file),
        EncodeJob("Hi.", prompt_audio=prompt_file, prompt_text="Well"),
    ):
        ids = ENGINES[3].encode(job).prompt_text_ids.tolist()
        assert ids[: len(INSTRUCTION)] == INSTRUCTION
        assert bool(ids[len(INSTRUCTION) :]) == bool(job.prompt_text)


def test_where_text_comes_in_pieces_cosyvoice3s_instruction_stands_before_all_blocks(prompt_file):
    voice = EncodeJob("", prompt_audio=prompt_file, prompt_text="Well", pieces="auto")
    third, second = ENGINES[3].encode(voice), ENGINES[2].encode(voice)
    assert (third.pieces, third.sentences, third.lead) == ("interleaved", (), len(INSTRUCTION))
    assert third.prompt_text_ids.tolist()[: third.lead] == INSTRUCTION
    assert (second.pieces, second.lead) == ("interleaved", 0)
    instructed = ENGINES[3].encode(EncodeJob("", voice="tiny-voice", instruct="in a whisper", pieces="sentences"))
    assert (instructed.pieces, instructed.lead) == ("sentences", len(instructed.prompt_text_ids))


def test_cosyvoice3_keeps_an_instruction_that_is_given(prompt_file):
    in_text = ENGINES[3].encode(EncodeJob("Speak fast.<|endofprompt|>Hi.", voice="tiny-voice"))
    assert in_text.sentences[0].ids.tolist().count(END_OF_PROMPT) == 1
    assert len(in_text.prompt_text_ids) == 0
    in_prompt = ENGINES[3].encode(EncodeJob("Hi.", prompt_audio=prompt_file, prompt_text="Low.<|endofprompt|>Well"))
    assert in_prompt.prompt_text_ids.tolist().count(END_OF_PROMPT) == 1


@pytest.mark.parametrize("version", [2, 3])
def test_an_instruction_takes_the_place_of_what_the_prompt_says_and_the_flow_keeps_the_prompt(version, prompt_file):
    encoded = ENGINES[version].encode(EncodeJob("Hi.", prompt_audio=prompt_file, instruct="in a whisper"))
    ids = encoded.prompt_text_ids.tolist()
    words = ENGINES[version].encode(EncodeJob("in a whisper<|endofprompt|>", voice="tiny-voice")).sentences[0].ids
    assert ids[-1] == END_OF_PROMPT
    assert ids.count(END_OF_PROMPT) == 1
    assert ids == words.tolist() if version == 2 else ids[:3] == INSTRUCTION[:3]
    assert len(encoded.llm_prompt_tokens) == 0
    assert len(encoded.voice.tokens) > 0
    assert encoded.voice.key == ENGINES[version].encode(EncodeJob("Ho.", prompt_audio=prompt_file)).voice.key


def test_an_instruction_goes_before_every_sentence_of_a_registered_voice(model_copy):
    folder = model_copy(2)
    register(folder, "cloned", **zero_shot_voice([8, 9]))
    engine = EncodeEngine(ModelDirectory.open(folder))
    plain = engine.encode(EncodeJob("Hi.", voice="cloned"))
    told = engine.encode(EncodeJob("Hi.", voice="cloned", instruct="in a whisper"))
    assert told.prompt_text_ids.tolist()[-1] == END_OF_PROMPT
    assert len(told.llm_prompt_tokens) == 0
    assert told.voice is plain.voice


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    "instruct", ["in a whisper", " in a whisper ", "in a whisper<|endofprompt|>", "in a whisper <|endofprompt|>\n"]
)
def test_the_mark_of_an_instruction_may_be_left_out(version, instruct):
    job = EncodeJob("Hi.", voice="tiny-voice", instruct=instruct)
    bare = EncodeJob("Hi.", voice="tiny-voice", instruct="in a whisper")
    ids = [ENGINES[version].encode(each).prompt_text_ids.tolist() for each in (job, bare)]
    assert ids[0] == ids[1]


def test_cosyvoice3_is_told_who_it_is_once_whoever_says_it():
    told = [
        ENGINES[3].encode(EncodeJob("Hi.", voice="tiny-voice", instruct=instruct)).prompt_text_ids.tolist()
        for instruct in ("in a whisper", "You are a helpful assistant. in a whisper")
    ]
    assert told[0] == told[1]
    assert told[0][: len(INSTRUCTION) - 1] == INSTRUCTION[:-1]


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=40) | st.sampled_from(["<|endofprompt|>", "a<|endofprompt|>b", "<|endofprompt|>" * 2]))
def test_an_instruction_is_refused_or_ends_with_its_only_mark(instruct):
    try:
        ids = ENGINES[2].encode(EncodeJob("Hi.", voice="tiny-voice", instruct=instruct)).prompt_text_ids.tolist()
    except InvalidInput:
        return
    assert ids.count(END_OF_PROMPT) == (1 if instruct.strip() else 0)
    assert not instruct.strip() or ids[-1] == END_OF_PROMPT


@pytest.mark.parametrize("version", [2, 3])
def test_a_conversion_is_the_sources_speech_tokens_and_the_other_voice(version, prompt_file, audio_file, reference):
    expected = load_file(GOLDEN / f"cosyvoice{version}-tiny" / "prompt.safetensors")["speech_token"][0]
    source = audio_file(reference["wav16k"], 16000, subtype="FLOAT")
    of_voice = ENGINES[version].convert(ConvertJob(source, voice="tiny-voice"))
    of_prompt = ENGINES[version].convert(ConvertJob(source, prompt_audio=prompt_file))
    for converted in (of_voice, of_prompt):
        np.testing.assert_array_equal(converted.tokens, expected)
        assert converted.tokens.dtype == np.int32
    assert of_voice.voice is ENGINES[version].encode(EncodeJob("Hi.", voice="tiny-voice")).voice
    assert of_prompt.voice.key == ENGINES[version].encode(EncodeJob("Hi.", prompt_audio=prompt_file)).voice.key


@pytest.mark.parametrize(
    ("job", "field"),
    [
        (ConvertJob(b"x"), "voice"),
        (ConvertJob(b"x", voice="tiny-voice", prompt_audio=b"x"), "voice"),
        (ConvertJob(b"", voice="tiny-voice"), "source"),
        (ConvertJob(b"no audio", voice="tiny-voice"), "source"),
    ],
)
def test_a_wrong_conversion_is_refused_naming_the_field(job, field):
    with pytest.raises(InvalidInput) as caught:
        ENGINES[2].convert(job)
    assert caught.value.field == field


def test_a_conversion_to_what_cannot_be_is_refused(prompt_file):
    with pytest.raises(UnknownVoice, match="no voice"):
        ENGINES[2].convert(ConvertJob(prompt_file, voice="nobody"))
    with pytest.raises(InvalidInput, match="prompt audio cannot be read"):
        ENGINES[2].convert(ConvertJob(prompt_file, prompt_audio=b"no audio"))


def test_a_prompt_seen_before_is_not_extracted_again(prompt_file):
    engine = EncodeEngine(ModelDirectory.open(GOLDEN / "cosyvoice2-tiny"))
    first = engine.encode(EncodeJob("Hi.", prompt_audio=prompt_file))
    again = engine.encode(EncodeJob("Ho.", prompt_audio=prompt_file, prompt_text="Well"))
    assert again.voice is first.voice
    assert (engine.cache.hits, engine.cache.misses) == (1, 1)


def test_equal_voices_have_equal_keys_and_others_do_not(prompt_file, audio_file, reference):
    other = audio_file(reference["wav24k"][: 24000 * 2], 24000)
    engine = EncodeEngine(ModelDirectory.open(GOLDEN / "cosyvoice2-tiny"), cache_bytes=0)
    keys = [
        engine.encode(EncodeJob("Hi.", prompt_audio=audio)).voice.key for audio in (prompt_file, prompt_file, other)
    ]
    keys.append(engine.encode(EncodeJob("Hi.", voice="tiny-voice")).voice.key)
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_threads_sharing_an_engine_get_what_one_thread_gets(audio_file, reference):
    engine = EncodeEngine(ModelDirectory.open(GOLDEN / "cosyvoice2-tiny"))
    jobs = [
        EncodeJob(f"Number {n}.", prompt_audio=audio_file(reference["wav24k"][: 30000 + 3000 * (n % 4)], 24000))
        for n in range(16)
    ]
    alone = [ENGINES[2].encode(job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(engine.encode, jobs))
    for one, other in zip(alone, together, strict=True):
        assert one.voice.key == other.voice.key
        assert one.sentences[0].text == other.sentences[0].text


@pytest.mark.parametrize(
    ("job", "field", "reason"),
    [
        (EncodeJob("Hi."), "voice", "either the name of a voice or prompt audio"),
        (EncodeJob("Hi.", voice="tiny-voice", prompt_audio=b"x"), "voice", "and not both"),
        (EncodeJob("Hi.", voice="tiny-voice", prompt_text="x"), "prompt_text", "goes with prompt audio"),
        (EncodeJob("Hi.", prompt_audio=b"x", prompt_text="x", instruct="x"), "instruct", "an instruction or a prompt"),
        (EncodeJob("Hi.", voice="tiny-voice", instruct="a<|endofprompt|>b"), "instruct", "at their end or nowhere"),
        (EncodeJob("", voice="tiny-voice"), "text", "text is empty"),
        (EncodeJob("Hi.", prompt_audio=b"no audio"), "prompt", "cannot be read as audio"),
        (EncodeJob("Hi.", prompt_audio=b"x", prompt_text="?!"), "prompt_text", "no words"),
    ],
)
def test_a_wrong_request_is_refused_naming_the_field(job, field, reason):
    with pytest.raises(InvalidInput, match=reason) as caught:
        ENGINES[2].encode(job)
    assert caught.value.field == field


def test_an_unknown_voice_is_answered_with_the_known_ones_nearest_first(model_copy):
    folder = model_copy(2)
    for name in ("zoe", "anna", "heart"):
        register(folder, name, embedding=torch.zeros(1, 192))
    with pytest.raises(UnknownVoice, match=r'no voice "hart"; this model has heart, .*zoe') as caught:
        EncodeEngine(ModelDirectory.open(folder)).encode(EncodeJob("Hi.", voice="hart"))
    assert caught.value.field == "voice"


def test_many_known_voices_are_counted_rather_than_listed(model_copy):
    folder = model_copy(2)
    for number in range(30):
        register(folder, f"voice-{number}", embedding=torch.zeros(1, 192))
    with pytest.raises(UnknownVoice, match=r" and 11 more\."):
        EncodeEngine(ModelDirectory.open(folder)).encode(EncodeJob("Hi.", voice="voice"))


def test_a_model_without_voices_asks_for_prompt_audio(model_copy):
    folder = model_copy(2)
    (folder / "spk2info.pt").unlink()
    with pytest.raises(UnknownVoice, match="no registered voices; give prompt audio"):
        EncodeEngine(ModelDirectory.open(folder)).encode(EncodeJob("Hi.", voice="heart"))


def test_a_cosyvoice3_that_cannot_embed_its_instruction_is_refused(model_copy):
    folder = model_copy(3)
    config = folder / "CosyVoice-BlankEN" / "config.json"
    config.write_text(config.read_text().replace('"vocab_size": 600', f'"vocab_size": {END_OF_PROMPT}'))
    with pytest.raises(ModelError, match="cannot embed"):
        EncodeEngine(ModelDirectory.open(folder))


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=40), st.sampled_from(["", "tiny-voice", "other"]), st.binary(max_size=40), st.text(max_size=20))
def test_any_request_is_encoded_or_refused(text, voice, prompt_audio, prompt_text):
    try:
        encoded = ENGINES[2].encode(EncodeJob(text, voice, prompt_audio, prompt_text))
    except InvalidInput:
        return
    assert encoded.sentences
    assert voice == "tiny-voice"


def test_loading_does_not_import_transformers_which_takes_a_second_of_a_cold_start():
    program = "import sys, lighttts.frontend.encode; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
