"""The decode engine gives each request what it would get alone, and keeps nothing of it afterwards."""

from __future__ import annotations

import gc
from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from lighttts.engine.batching import Size, choose
from lighttts.engine.decode import DecodeEngine, DecodeStep, VoicePrompt
from lighttts.engine.voice_cache import VoiceCache
from lighttts.errors import InternalError, InvalidInput, Overloaded
from lighttts.models.directory import ModelDirectory
from lighttts.models.flow import Flow, FlowHop, load_flow
from lighttts.models.hift import Generator, load_hift
from lighttts.models.hift_stream import VocoderHop, vocode
from lighttts.models.streaming import StreamState

TINY = [Path(__file__).parents[1] / "golden" / name for name in ("cosyvoice2-tiny", "cosyvoice3-tiny")]
GOLDEN = {version: load_file(path / "golden.safetensors") for version, path in enumerate(TINY, start=2)}
SAMPLES_A_TOKEN = 960

both_versions = pytest.mark.parametrize("version", [2, 3])


@cache
def models(version: int = 2) -> tuple[Flow, Generator]:
    torch.set_num_threads(1)
    directory = ModelDirectory.open(TINY[version - 2])
    return load_flow(directory), load_hift(directory)


def new_engine(version: int = 2, *, max_batch: int = 8, max_streams: int = 16, **options: float) -> DecodeEngine:
    return DecodeEngine(*models(version), max_batch=max_batch, max_streams=max_streams, **options)


@cache
def voice(prompt: int, version: int = 2) -> VoicePrompt:
    """The reference's voice with the first `prompt` tokens of its prompt, or beyond 40 the whole prompt repeated."""
    golden = GOLDEN[version]
    tokens = np.tile(golden["flow.prompt_token"][0], 3)[:prompt].astype(np.int32)
    mel = np.tile(golden["flow.prompt_feat"][0], (3, 1))[: 2 * prompt]
    return VoicePrompt(f"voice {prompt}", golden["flow.embedding"][0], tokens, mel)


@dataclass(frozen=True)
class Request:
    prompt: int
    first: int
    count: int
    seed: int = 7
    speed: float = 1.0
    version: int = 2

    @property
    def tokens(self) -> np.ndarray:
        return np.tile(GOLDEN[self.version]["flow.token"][0], 2)[self.first : self.first + self.count].astype(np.int32)

    def open(self, engine: DecodeEngine, key: Hashable, **options: object) -> None:
        engine.open(key, voice(self.prompt, self.version), seed=self.seed, speed=self.speed, **options)


def drain(engine: DecodeEngine) -> list[DecodeStep]:
    steps = []
    while engine.busy:
        steps += engine.step()
    return steps


def joined(steps: list[DecodeStep], key: Hashable = 0) -> tuple[np.ndarray, np.ndarray]:
    """Mel and audio of one request; its steps must follow each other without a gap and end."""
    own = [step for step in steps if step.key == key]
    assert [step.hop for step in own] == list(range(len(own)))
    assert [step.first_frame for step in own] == [sum(len(s.mel) for s in own[:i]) for i in range(len(own))]
    assert [step.first_sample for step in own] == [sum(len(s.audio) for s in own[:i]) for i in range(len(own))]
    assert [step.finished for step in own] == [False] * (len(own) - 1) + [True]
    return np.concatenate([step.mel for step in own]), np.concatenate([step.audio for step in own])


def distance(ours: np.ndarray, reference: np.ndarray) -> float:
    """Deviation of the difference in units of the reference's.

    Not its largest value: this vocoder of random weights turns a last bit of its mel into a thousandth at some samples.
    """
    assert ours.shape == reference.shape
    return float((ours - reference).std() / reference.std())


@cache
def alone(request: Request) -> tuple[np.ndarray, np.ndarray]:
    engine = new_engine(request.version)
    request.open(engine, 0)
    engine.feed(0, request.tokens, True)
    return joined(drain(engine))


@cache
@torch.inference_mode()
def one_pass(request: Request) -> np.ndarray:
    """Mel of one chunk-masked pass over prompt and all tokens."""
    flow, spoken = models(request.version)[0], voice(request.prompt, request.version)
    state = flow.start(torch.from_numpy(spoken.embedding), torch.from_numpy(spoken.mel))
    tokens = torch.from_numpy(np.concatenate([spoken.tokens, request.tokens]).astype(np.int64))
    (result,) = flow.advance([FlowHop(state, tokens, final=True)])
    return result.mel[2 * request.prompt :].numpy()


@both_versions
def test_a_stream_gives_the_reference_s_hops_and_mel(version):
    request = Request(prompt=40, first=0, count=230, version=version)
    engine = new_engine(version)
    request.open(engine, 0)
    engine.feed(0, request.tokens, True)
    steps = drain(engine)
    assert [len(step.audio) for step in steps] == GOLDEN[version]["stream.schedule"][:, 3].tolist()
    mel, _ = joined(steps)
    assert np.abs(mel - one_pass(request)).max() < 1e-5


@pytest.mark.parametrize(("version", "accuracy"), [(2, 3e-3), (3, 1e-2)])
def test_without_noise_the_audio_is_the_reference_s(version, accuracy):
    """To the accuracy that the reference's float32 phase allows; `tests/models/test_hift.py` says why."""
    engine = new_engine(version)
    engine.open(0, voice(40, version), seed=None)
    engine.feed(0, Request(40, 0, 230, version=version).tokens, True)
    _, audio = joined(drain(engine))
    reference = GOLDEN[version]["stream.wav_causal"][0]
    assert (audio - reference).std() < accuracy * reference.std()


REQUESTS = st.builds(
    Request,
    prompt=st.sampled_from([0, 10, 40, 57]),
    first=st.sampled_from([0, 90]),
    count=st.sampled_from([1, 24, 60, 130]),
    seed=st.sampled_from([1, 2]),
    speed=st.sampled_from([1.0, 1.0, 1.0, 1.3]),
)


@both_versions
@settings(max_examples=7, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    requests=st.lists(REQUESTS, min_size=2, max_size=5),
    cancelled=st.sets(st.integers(0, 4), max_size=2),
    portions=st.lists(st.integers(1, 90), min_size=1, max_size=6),
    max_batch=st.integers(1, 5),
    data=st.data(),
)
def test_requests_do_not_influence_each_other(version, requests, cancelled, portions, max_batch, data):
    """Requests join, are fed and are cancelled in any order; those that finish get what they would get alone."""
    requests = [replace(request, version=version) for request in requests]
    engine, steps = new_engine(version, max_batch=max_batch), []
    fed = dict.fromkeys(range(len(requests)), -1)
    turn = 0
    while fed:
        key = data.draw(st.sampled_from(sorted(fed)), label="next")
        request, portion = requests[key], portions[turn % len(portions)]
        turn += 1
        if fed[key] < 0:
            request.open(engine, key)
            fed[key] = 0
        end = fed[key] + portion
        engine.feed(key, request.tokens[fed[key] : end], end >= request.count)
        fed[key] = end
        steps += engine.step()
        if key in cancelled:
            engine.close(key)
        if end >= request.count or key in cancelled:
            del fed[key]
    steps += drain(engine)
    assert engine.streams == 0
    for key, request in enumerate(requests):
        if key not in cancelled:
            mel, audio = joined(steps, key)
            assert np.abs(mel - alone(request)[0]).max() < 1e-5
            assert distance(audio, alone(request)[1]) < 5e-3
            if max_batch == 1:
                assert np.array_equal(mel, alone(request)[0])
                assert np.array_equal(audio, alone(request)[1])
            if request.speed == 1.0:
                assert np.abs(mel - one_pass(request)).max() < 1e-5


@both_versions
@pytest.mark.parametrize(("max_batch", "crowd"), [(1, 15), (16, 50)])
def test_a_crowd_at_once_is_not_swapped(version, max_batch, crowd):
    engine = new_engine(version, max_batch=max_batch, max_streams=crowd)
    requests = [Request(0, 4 * index, 30 + index % 3, seed=index, version=version) for index in range(crowd)]
    for key, request in enumerate(requests):
        request.open(engine, key)
        engine.feed(key, request.tokens, True)
    steps = drain(engine)
    for key in range(0, crowd, 7):
        mel, audio = joined(steps, key)
        expected_mel, expected_audio = alone(requests[key])
        assert distance(mel, expected_mel) < 1e-5
        assert distance(audio, expected_audio) < 5e-3
        if max_batch == 1:
            assert np.array_equal(mel, expected_mel)
            assert np.array_equal(audio, expected_audio)


@both_versions
def test_the_same_request_gives_the_same_bits(version):
    request = Request(prompt=10, first=0, count=60, version=version)
    again = alone.__wrapped__(request)
    assert all(np.array_equal(one, other) for one, other in zip(alone(request), again, strict=True))


@both_versions
def test_the_seed_names_the_noise(version):
    request = Request(prompt=0, first=0, count=24, version=version)
    mel, audio = alone(request)
    other_mel, other_audio = alone(replace(request, seed=8))
    assert np.array_equal(mel, other_mel)
    assert np.abs(audio - other_audio).max() > 1e-3


def test_mel_output_makes_no_audio():
    request = Request(prompt=10, first=0, count=60)
    engine = new_engine()
    request.open(engine, 0, output="mel")
    engine.feed(0, request.tokens, True)
    mel, audio = joined(drain(engine))
    assert np.array_equal(mel, alone(request)[0])
    assert len(audio) == 0


@both_versions
@pytest.mark.parametrize("speed", [0.5, 1.25])
@torch.inference_mode()
def test_another_speed_waits_for_the_end_and_stretches_an_unmasked_pass(version, speed):
    request = Request(prompt=40, first=0, count=60, speed=speed, version=version)
    engine = new_engine(version)
    request.open(engine, 0)
    engine.feed(0, request.tokens, False)
    assert not engine.busy
    engine.feed(0, request.tokens[:0], True)
    (step,) = drain(engine)
    full = torch.from_numpy(GOLDEN[version]["flow.mel_full"])
    stretched = torch.nn.functional.interpolate(full, size=int(120 / speed), mode="linear")[0].T
    (expected,) = vocode(models(version)[1], [VocoderHop(None, stretched, True, request.seed)])
    assert np.abs(step.mel - stretched.numpy()).max() < 1e-4
    assert step.audio.shape == expected.audio.shape
    assert np.abs(step.audio - expected.audio.numpy()).std() < 1e-2 * expected.audio.std()


def test_a_request_without_tokens_finishes_empty():
    engine = new_engine()
    Request(prompt=40, first=0, count=0).open(engine, 0)
    assert not engine.busy
    engine.feed(0, np.zeros(0, np.int32), True)
    (step,) = drain(engine)
    assert (step.mel.shape, step.audio.shape, step.finished, engine.streams) == ((0, 80), (0,), True, 0)


@both_versions
def test_a_prompt_is_computed_once_for_all_requests_of_its_voice(version, monkeypatch):
    flow = models(version)[0]
    computed = []
    advance = flow.advance
    monkeypatch.setattr(
        flow, "advance", lambda hops, **how: computed.extend(h.tokens.numel() for h in hops) or advance(hops, **how)
    )
    engine = new_engine(version)
    for key in range(3):
        Request(prompt=57, first=0, count=20, version=version).open(engine, key)
        engine.feed(key, Request(57, 0, 20).tokens, True)
    drain(engine)
    assert sorted(computed) == [27, 27, 27, 53]


def test_a_voice_without_room_in_the_cache_is_kept_while_it_is_awaited():
    engine = new_engine(voice_cache=0)
    request = Request(prompt=57, first=0, count=130)
    request.open(engine, 0)
    engine.feed(0, request.tokens, True)
    assert engine.step() == []
    assert engine.cache_bytes > 0
    assert np.abs(joined(drain(engine))[0] - one_pass(request)).max() < 1e-5
    assert engine.cache_bytes == 0


def test_idle_voices_are_dropped_oldest_first():
    cache = VoiceCache(limit=2 * STATE.bytes)
    for key in "abc":
        cache.put(key, STATE)
    assert cache.get("b") is STATE
    cache.trim({"a"})
    assert [cache.get(key) is not None for key in "abc"] == [True, True, False]


def state_of(frames: int):
    flow = models()[0]
    state = flow.start(torch.zeros(192), torch.zeros(0, 80))
    return replace(state, solver=replace(state.solver, chunks=(torch.zeros(frames),)))


STATE = state_of(100)


def live_states() -> int:
    gc.collect()
    return sum(type(item) is StreamState for item in gc.get_objects())


@both_versions
def test_nothing_of_a_request_is_left_after_it_finished_or_was_closed(version):
    before = live_states()
    engine = new_engine(version)
    requests = {"finished": Request(0, 0, 130), "closed": Request(10, 0, 130), "never ran": Request(0, 0, 24)}
    requests = {key: replace(request, version=version) for key, request in requests.items()}
    for key, request in requests.items():
        request.open(engine, key)
        engine.feed(key, request.tokens[:100], False)
    engine.step()
    assert engine.cache_bytes > 0
    assert live_states() > before
    assert engine.close("closed")
    assert engine.close("never ran")
    engine.feed("finished", requests["finished"].tokens[100:], True)
    drain(engine)
    assert (engine.streams, engine.busy, engine.cache_bytes, live_states()) == (0, False, 0, before)
    assert not engine.close("closed")


def test_memory_grows_by_the_same_for_each_hop_of_the_same_length():
    engine, used = new_engine(), []
    Request(0, 0, 0).open(engine, 0)
    for portion in (28, 50, 100, 100, 100):
        engine.feed(0, Request(0, 0, portion).tokens, False)
        engine.step()
        used.append(engine.cache_bytes)
    growth = np.diff(used)
    assert growth[1] == growth[2] == growth[3] == 2 * growth[0]


def test_those_served_longest_ago_come_first():
    engine = new_engine(max_batch=1, max_streams=3)
    for key in "ab":
        Request(0, 0, 200).open(engine, key)
        engine.feed(key, Request(0, 0, 200).tokens, True)
    order = [engine.step()[0].key, engine.step()[0].key]
    Request(0, 0, 24).open(engine, "c")
    engine.feed("c", Request(0, 0, 24).tokens, True)
    order += [step.key for step in drain(engine)]
    assert "".join(order[:5]) == "abcab"


def test_padding_is_bounded():
    sizes = [Size(0, 50), Size(0, 58), Size(0, 200), Size(0, 50, "other"), Size(4000, 50), Size(100, 50)]
    assert choose(sizes, 8) == [0, 1, 5]
    assert choose(sizes, 2) == [0, 1]
    assert choose(sizes[2:], 8) == [0]
    assert choose([], 8) == []


def test_more_streams_than_allowed_are_refused_as_overload():
    engine = new_engine(max_streams=1)
    Request(0, 0, 24).open(engine, 0)
    with pytest.raises(Overloaded):
        Request(0, 0, 24).open(engine, 1)
    engine.close(0)
    Request(0, 0, 24).open(engine, 1)


BAD_VOICES = {
    "embedding": replace(voice(10), embedding=np.zeros(191, np.float32)),
    "mel": replace(voice(10), mel=voice(10).mel[:-1]),
    "bins": replace(voice(10), mel=voice(10).mel[:, :79]),
    "token": replace(voice(10), tokens=np.full(10, 100, np.int32)),
    "nan": replace(voice(10), mel=np.full_like(voice(10).mel, np.nan)),
}


@pytest.mark.parametrize("bad", BAD_VOICES)
def test_a_voice_that_does_not_fit_is_refused(bad):
    engine = new_engine()
    with pytest.raises(InvalidInput):
        engine.open(0, BAD_VOICES[bad], seed=1)
    assert engine.streams == 0


@pytest.mark.parametrize("speed", [0.0, 0.2, 5.0, float("nan"), float("inf")])
def test_a_speed_out_of_range_is_refused(speed):
    with pytest.raises(InvalidInput, match="speed"):
        new_engine().open(0, voice(0), seed=1, speed=speed)


def test_tokens_that_do_not_fit_are_refused_and_change_nothing():
    engine = new_engine()
    Request(40, 0, 24).open(engine, 0)
    for bad in (np.array([100]), np.array([-1]), np.zeros((2, 2), np.int32), np.zeros(7461, np.int32)):
        with pytest.raises(InvalidInput):
            engine.feed(0, bad.astype(np.int32), True)
    engine.feed(0, np.zeros(3, np.int32), True)
    assert len(joined(drain(engine))[0]) == 6


def test_misuse_is_an_internal_error():
    engine = new_engine()
    with pytest.raises(InternalError):
        engine.feed(0, np.zeros(1, np.int32), True)
    Request(0, 0, 24).open(engine, 0)
    with pytest.raises(InternalError):
        Request(0, 0, 24).open(engine, 0)
    engine.feed(0, np.zeros(1, np.int32), True)
    with pytest.raises(InternalError):
        engine.feed(0, np.zeros(1, np.int32), True)


@both_versions
def test_a_step_that_fails_moves_no_request(version, monkeypatch):
    engine = new_engine(version)
    request = Request(0, 0, 60, version=version)
    request.open(engine, 0)
    engine.feed(0, request.tokens, True)
    first = engine.step()
    with monkeypatch.context() as broken:
        broken.setattr(models(version)[1], "pitch", lambda *mel, **how: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.step()
    mel, _ = joined(first + drain(engine))
    assert np.array_equal(mel, alone(request)[0])
