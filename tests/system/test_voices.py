"""Registered voices through real daemons: on disk and in Redis, over restarts, over several brokers, by key."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lighttts.client import Client
from lighttts.errors import InvalidInput, LightTTSError, Unavailable, UnknownVoice, VoiceExists
from tests.redis_server import RedisServer
from tests.system.stack import ROOT, TINY, Stack

TEXT = "Hello there."
SAID = "What I say in it."
PRESET = "tiny-voice"


class Pair:
    """Two brokers on one Redis that share their workers; `first` and `second` are clients of one each."""

    def __init__(self, folder: Path, redis: RedisServer) -> None:
        self.redis = redis
        both = [[f"ipc://{folder}/{number}/{name}" for number in "12"] for name in ("workers", "results")]
        self.stacks = []
        for number in "12":
            (folder / number).mkdir()
            settings = [
                f"broker.state={redis.url}",
                f"connect.workers={','.join(both[0])}",
                f"connect.results={','.join(both[1])}",
                "broker.redis_breaker_s=0.5",
            ]
            self.stacks.append(Stack(folder / number, settings=settings))

    def __enter__(self) -> Pair:
        one, other = self.stacks
        one.start()
        other.start("broker")
        try:
            for stack in self.stacks:
                stack.wait_for_workers()
        except BaseException:
            self.stop()
            raise
        self.first, self.second = (Client(stack.endpoint) for stack in self.stacks)
        return self

    def __exit__(self, *exc: object) -> None:
        self.first.close()
        self.second.close()
        self.stop()

    def stop(self) -> None:
        for stack in self.stacks:
            stack.stop()


@pytest.fixture
def pair(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Pair]:
    with Pair(tmp_path_factory.mktemp("p"), redis_server) as pair:
        yield pair


def test_a_registered_voice_speaks_as_its_recording_does(client: Client, prompt_wav: bytes) -> None:
    added = client.add_voice("mine", prompt_wav, SAID)
    try:
        by_name = client.synthesize(TEXT, voice="mine", seed=7).audio()
        np.testing.assert_array_equal(
            by_name, client.synthesize(TEXT, prompt=prompt_wav, prompt_text=SAID, seed=7).audio()
        )
        instructed = client.synthesize(TEXT, voice="mine", instruct="in a whisper", seed=7).audio()
        given = client.synthesize(TEXT, prompt=prompt_wav, instruct="in a whisper", seed=7).audio()
        np.testing.assert_array_equal(instructed, given)
        converted = client.convert(prompt_wav, voice="mine", seed=7).audio()
        np.testing.assert_array_equal(converted, client.convert(prompt_wav, prompt=prompt_wav, seed=7).audio())
        assert client.show_voice("mine") == added
        assert client.voices() == (PRESET, "mine")
    finally:
        client.remove_voice("mine")
    with pytest.raises(UnknownVoice, match=f'"mine".*{PRESET}'):
        client.synthesize(TEXT, voice="mine").audio()


def test_what_cannot_be_used_is_refused_as_in_a_request_and_nothing_is_kept(client: Client, prompt_wav: bytes) -> None:
    with pytest.raises(InvalidInput) as added:
        client.add_voice("broken", prompt_wav[:1000], SAID)
    with pytest.raises(InvalidInput) as asked:
        client.synthesize(TEXT, prompt=prompt_wav[:1000], prompt_text=SAID).audio()
    assert (added.value.text, added.value.field) == (asked.value.text, asked.value.field)
    with pytest.raises(VoiceExists):
        client.add_voice(PRESET, prompt_wav, SAID, replace=True)
    with pytest.raises(VoiceExists):
        client.remove_voice(PRESET)
    assert client.registered_voices() == ()


def test_a_broker_that_is_killed_keeps_its_voices_on_disk(
    tmp_path_factory: pytest.TempPathFactory, prompt_wav: bytes
) -> None:
    folder = tmp_path_factory.mktemp("s")
    with (
        Stack(folder, settings=[f"broker.voices_directory={folder}/voices"]) as stack,
        Client(stack.endpoint) as client,
    ):
        added = client.add_voice("mine", prompt_wav, SAID)
        stack.signal("broker", signal.SIGKILL)
        stack.start("broker")
        stack.wait_for_workers()
        assert client.show_voice("mine") == added
        assert len(client.synthesize(TEXT, voice="mine", seed=7, retries=3).audio())
        client.remove_voice("mine")
        assert not [path for path in (folder / "voices").iterdir() if prompt_wav[:1000] in path.read_bytes()]


def test_features_are_warm_after_adding_counted_and_forgotten_with_the_voice(
    tmp_path_factory: pytest.TempPathFactory, prompt_wav: bytes
) -> None:
    folder = tmp_path_factory.mktemp("m")
    settings = [f"broker.voices_directory={folder}/voices", "encode.metrics_port=0", "log.format=json"]
    with Stack(folder, settings=settings) as stack, Client(stack.endpoint) as client:
        lines = [json.loads(line) for line in stack.log("encode").splitlines() if line.startswith("{")]
        port = next(line["metrics_port"] for line in lines if line["event"] == "worker started")

        def counted(hits: int, misses: int) -> None:
            """Waits until the encode worker's metrics say so, which are told at every beat."""
            wanted = {"hit": hits, "miss": misses}
            deadline = time.monotonic() + 30
            while (now := look_ups(port)) != (wanted, hits / (hits + misses)):
                assert time.monotonic() < deadline, now

        client.add_voice("mine", prompt_wav, SAID)
        counted(hits=0, misses=1)
        for _ in range(3):
            client.synthesize(TEXT, voice="mine", seed=7).audio()
        counted(hits=3, misses=1)
        client.remove_voice("mine")
        client.add_voice("mine", prompt_wav, SAID)
        counted(hits=3, misses=2)


def look_ups(port: int) -> tuple[dict[str, int], float]:
    """An encode worker's look-ups by result, and its hit rate."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        page = answer.read().decode()
    found = re.findall(r'cache_lookups_total\{cache_type="voice",result="(\w+)"\} (\S+)', page)
    (rate,) = re.findall(r'cache_hit_rate\{cache_type="voice"\} (\S+)', page)
    return {result: int(float(count)) for result, count in found}, float(rate)


def test_brokers_on_one_redis_share_their_voices(pair: Pair, prompt_wav: bytes) -> None:
    added = pair.first.add_voice("mine", prompt_wav, SAID)
    assert pair.second.show_voice("mine") == added
    spoken = pair.second.synthesize(TEXT, voice="mine", seed=7).audio()
    np.testing.assert_array_equal(spoken, pair.first.synthesize(TEXT, voice="mine", seed=7).audio())
    pair.second.remove_voice("mine")
    with pytest.raises(UnknownVoice):
        pair.first.synthesize(TEXT, voice="mine").audio()
    content = [pair.redis.client().dump(key) or b"" for key in pair.redis.client().scan_iter()]
    assert not any(prompt_wav[100:1000] in value for value in content)


def test_voices_outlive_a_broker_and_an_outage_of_redis_is_told_while_streams_go_on(
    pair: Pair, prompt_wav: bytes
) -> None:
    pair.first.add_voice("mine", prompt_wav, SAID)
    pair.stacks[0].signal("broker", signal.SIGKILL)
    assert len(pair.second.synthesize(TEXT, voice="mine", seed=7).audio())
    with pair.second.synthesize(" ".join([TEXT] * 30), voice=PRESET) as stream:
        next(stream)
        pair.redis.kill()
        with pytest.raises(Unavailable, match=r"Redis|store") as failed:
            pair.second.show_voice("mine")
        assert failed.value.retryable
        assert pair.second.voices() == (PRESET,)
        assert len(stream.audio())
    pair.redis.start()
    with pytest.raises(LightTTSError):
        # It came back empty; and as long as nobody has noticed that it is back, it is away.
        pair.second.show_voice("mine")


def test_a_private_stack_finds_the_voices_of_the_one_before(tmp_path: Path, prompt_wav: bytes) -> None:
    (tmp_path / "me.wav").write_bytes(prompt_wav)
    here = ("--set", f"broker.voices_directory={tmp_path}/voices", "--set", f"model.directory={TINY}")
    nobody = ("--set", f"broker.clients=ipc://{tmp_path}/nobody")

    def cli(*words: str) -> str:
        command = [sys.executable, "-m", "lighttts.cli.main", *words, *here, *nobody]
        how = {"capture_output": True, "text": True, "timeout": 120, "check": False}
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, **how)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    assert cli("voices", "add", "me", "--wav", str(tmp_path / "me.wav"), "--text", SAID) == "me added\n"
    cli("synth", TEXT, "--voice", "me", "--seed", "7", "-o", str(tmp_path / "out.wav"), "-q")
    assert (tmp_path / "out.wav").stat().st_size > 44
    assert cli("voices", "remove", "me") == "me removed\n"
