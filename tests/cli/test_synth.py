"""`lighttts-cli synth` with a running broker: files, pipes, and what goes wrong."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lighttts.errors import InvalidInput
from lighttts.transport.wire import Cancel, Finish, Piece, Synth
from tests.cli.conftest import Run
from tests.cli.processes import ROOT
from tests.client.fake_broker import RATE, FakeBroker, accept_only, chunk_of, frame_of, refuse

COMMAND = (sys.executable, "-m", "lighttts.cli.main")


def spoken(broker: FakeBroker) -> np.ndarray:
    """All samples that the fake spoke for the last request."""
    request = broker.all(Synth)[-1]
    return np.concatenate([chunk_of(request, number) for number in range(broker.chunks)])


# ---- files ----


def test_a_wav_file_has_the_samples_and_their_number(run: Run, broker: FakeBroker, tmp_path: Path) -> None:
    out = tmp_path / "hello.wav"
    assert run("synth", "Hello.", "-o", str(out), "--broker", broker.endpoint) == (0, b"", "")
    with wave.open(str(out)) as sound:
        assert (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) == (RATE, 1, 2)
        samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
    np.testing.assert_array_equal(samples, spoken(broker))
    assert out.stat().st_size == 44 + samples.nbytes


def test_raw_pcm_has_nothing_but_samples(run: Run, broker: FakeBroker, tmp_path: Path) -> None:
    out = tmp_path / "hello.raw"
    assert run("synth", "Hello.", "-o", str(out), "--broker", broker.endpoint).code == 0
    np.testing.assert_array_equal(np.frombuffer(out.read_bytes(), "<i2"), spoken(broker))


@pytest.mark.parametrize(("name", "kind"), [("a.flac", "FLAC"), ("a.ogg", "OGG"), ("a.opus", "OGG"), ("a.mp3", "MP3")])
def test_compressed_files_are_chosen_by_the_name(
    run: Run, broker: FakeBroker, tmp_path: Path, name: str, kind: str
) -> None:
    broker.chunks = 100
    out = tmp_path / name
    assert run("synth", "Hello.", "-o", str(out), "--broker", broker.endpoint).code == 0
    with soundfile.SoundFile(out) as sound:
        assert (sound.format, sound.samplerate, sound.channels) == (kind, RATE, 1)
        samples = sound.read(dtype="int16")
    assert abs(len(samples) - 48_000) < 3000
    if kind == "FLAC":
        np.testing.assert_array_equal(samples, spoken(broker))


@pytest.mark.parametrize(("output", "shape"), [("mel", (200, 80)), ("tokens", (100,))])
def test_mel_and_tokens_are_written_as_numpy_arrays(
    run: Run, broker: FakeBroker, tmp_path: Path, output: str, shape: tuple[int, ...]
) -> None:
    out = tmp_path / "x.npy"
    assert run("synth", "Hello.", "--output", output, "-o", str(out), "--broker", broker.endpoint).code == 0
    array = np.load(out, allow_pickle=False)
    assert array.shape == shape
    np.testing.assert_array_equal(array, spoken(broker).astype(array.dtype))


def test_options_reach_the_request(run: Run, broker: FakeBroker, tmp_path: Path) -> None:
    prompt = tmp_path / "me.wav"
    prompt.write_bytes(b"RIFF....")
    more = ("--prompt-wav", str(prompt), "--prompt-text", "spoken", "--seed", "9", "--speed", "1.5")
    assert run("synth", "Hello.", "-o", "/dev/null", "--format", "wav", *more, "--broker", broker.endpoint).code == 0
    request = broker.wait_for(Synth)
    assert (bytes(request.prompt), request.prompt_text, request.seed, request.speed) == (b"RIFF....", "spoken", 9, 1.5)


def test_an_instruction_reaches_the_request(run: Run, broker: FakeBroker, tmp_path: Path) -> None:
    out = str(tmp_path / "a.wav")
    assert run("synth", "Hello.", "--instruct", "in a whisper", "-o", out, "--broker", broker.endpoint).code == 0
    assert broker.wait_for(Synth).instruct == "in a whisper"


@pytest.mark.parametrize("speed", ["0.49", "2.01", "0", "-1", "nan", "inf"])
def test_a_speed_out_of_its_range_is_refused_saying_the_range(run: Run, tmp_path: Path, speed: str) -> None:
    with FakeBroker() as broker:
        done = run("synth", "Hello.", "--speed", speed, "-o", str(tmp_path / "a.wav"), "--broker", broker.endpoint)
        assert broker.all(Synth) == []
    assert done.code == 65
    assert "speed must be 0.5 to 2.0" in done.err


def test_the_text_comes_from_a_file_or_from_standard_input(run: Run, broker: FakeBroker, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes("\ufeffGrüße.\n".encode())
    out = str(tmp_path / "a.wav")
    assert run("synth", "--file", str(text), "-o", out, "--broker", broker.endpoint).code == 0
    assert broker.all(Synth)[-1].text == "Grüße.\n"
    done = subprocess.run(
        [sys.executable, "-m", "lighttts.cli.main", "synth", "-", "-o", out, "--broker", broker.endpoint],
        input="Ça va ?".encode(),
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0
    assert broker.all(Synth)[-1].text == "Ça va ?"


def test_an_existing_file_is_replaced_only_by_a_whole_one(run: Run, tmp_path: Path) -> None:
    def fail_midway(broker: FakeBroker, peer: bytes, message: Synth) -> None:
        accept_only(broker, peer, message)
        broker.send(peer, frame_of(message, 0))
        refuse("worker_failed", "the decode worker vanished")(broker, peer, message)

    out = tmp_path / "hello.wav"
    out.write_bytes(b"old")
    with FakeBroker(script={Synth: fail_midway}) as broker:
        done = run("synth", "Hello.", "--voice", "heart", "-o", str(out), "--broker", broker.endpoint)
    assert done == (70, b"", "lighttts-cli synth: the decode worker vanished\n")
    assert out.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["hello.wav"]


def test_a_link_stays_a_link_to_the_new_file(run: Run, broker: FakeBroker, tmp_path: Path) -> None:
    (tmp_path / "real.wav").write_bytes(b"old")
    (tmp_path / "link.wav").symlink_to("real.wav")
    assert run("synth", "Hello.", "-o", str(tmp_path / "link.wav"), "--broker", broker.endpoint).code == 0
    assert (tmp_path / "link.wav").is_symlink()
    assert (tmp_path / "real.wav").stat().st_size > 44


def test_without_nameless_files_a_named_one_is_used_and_removed(
    run: Run, broker: FakeBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY | os.O_WRONLY)
    out = tmp_path / "hello.wav"
    assert run("synth", "Hello.", "-o", str(out), "--broker", broker.endpoint).code == 0
    assert os.listdir(tmp_path) == ["hello.wav"]
    out.unlink()
    with FakeBroker(script={Synth: refuse("overloaded", "full")}) as full:
        assert run("synth", "Hello.", "-o", str(out), "--broker", full.endpoint).code == 75
    assert os.listdir(tmp_path) == []


# ---- pipes ----


def test_standard_output_is_a_wav_stream_of_unknown_length(run: Run, broker: FakeBroker) -> None:
    with FakeBroker() as broker:
        done = run_piped(broker, "-o", "-")
    assert done.returncode == 0
    header, data = done.stdout[:44], done.stdout[44:]
    assert (header[:4], header[4:8], header[40:44]) == (b"RIFF", b"\xff" * 4, b"\xff" * 4)
    np.testing.assert_array_equal(np.frombuffer(data, "<i2"), spoken(broker))


def test_numpy_arrays_stream_too() -> None:
    with FakeBroker() as broker:
        done = run_piped(broker, "-o", "-", "--output", "tokens")
        assert done.stderr == b""
        np.testing.assert_array_equal(np.load(io.BytesIO(done.stdout), allow_pickle=False), spoken(broker))


def test_a_request_without_a_frame_is_an_empty_file(run: Run, tmp_path: Path) -> None:
    with FakeBroker(chunks=0) as broker:
        for name, output in (("x.wav", "audio"), ("x.npy", "tokens")):
            out = str(tmp_path / name)
            assert run("synth", "...", "--output", output, "-o", out, "--broker", broker.endpoint).code == 0
    assert (tmp_path / "x.wav").stat().st_size == 44
    assert np.load(tmp_path / "x.npy", allow_pickle=False).size == 0


def test_ogg_streams_too() -> None:
    with FakeBroker(chunks=100) as broker:
        done = run_piped(broker, "-o", "-", "--format", "ogg")
    samples, rate = soundfile.read(io.BytesIO(done.stdout))
    assert (len(samples), rate) == (48_000, RATE)


def test_flac_streams_too_with_a_header_that_does_not_know_its_length() -> None:
    with FakeBroker(chunks=100) as broker:
        content = bytearray(run_piped(broker, "-o", "-", "--format", "flac").stdout)
        expected = spoken(broker)
    assert content[21] & 0x0F == 0
    assert content[22:26] == bytes(4)
    # Told its length, libsndfile reads every sample of it.
    content[22:26] = len(expected).to_bytes(4, "big")
    samples, _ = soundfile.read(io.BytesIO(content), dtype="int16")
    np.testing.assert_array_equal(samples, expected)


def test_mp3_streams_too() -> None:
    with FakeBroker(chunks=100) as broker:
        content = run_piped(broker, "-o", "-", "--format", "mp3").stdout
    assert mp3_frames(content) * 576 >= 48_000


def mp3_frames(content: bytes) -> int:
    """The number of MPEG-2 layer 3 frames that `content` is made of, end to end."""
    kilobits = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
    frames = position = 0
    while position < len(content):
        assert content[position : position + 2] == b"\xff\xf3"
        size = 72_000 * kilobits[content[position + 2] >> 4] // RATE
        position += size + (content[position + 2] >> 1 & 1)
        frames += 1
    return frames


def test_audio_is_written_as_it_arrives(tmp_path: Path) -> None:
    def one_frame(broker: FakeBroker, peer: bytes, message: Synth) -> None:
        accept_only(broker, peer, message)
        broker.send(peer, frame_of(message, 0))

    with FakeBroker(script={Synth: one_frame}) as broker:
        command = [sys.executable, "-m", "lighttts.cli.main", "synth", "Hello.", "-o", "-", "--broker", broker.endpoint]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout
            assert len(process.stdout.read(44 + 960)) == 44 + 960
            process.terminate()
            assert process.wait(30) == 143


def test_standard_input_is_spoken_while_it_is_written(tmp_path: Path) -> None:
    with FakeBroker() as broker:
        command = [*COMMAND, "synth", "-", "--live", "--broker", broker.endpoint, "-o", str(tmp_path / "out.pcm"), "-q"]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdin
            process.stdin.write("Hé".encode()[:-1])
            process.stdin.flush()
            assert broker.wait_for(Piece).text == "H"
            process.stdin.write("Hé".encode()[-1:] + b"llo.")
            process.stdin.close()
            assert process.wait(30) == 0, process.stderr and process.stderr.read()
        assert broker.wait_for(Finish)
        assert "".join(piece.text for piece in broker.all(Piece)) == "Héllo."
        assert broker.wait_for(Synth).pieces == "auto"
        assert (tmp_path / "out.pcm").stat().st_size == 4 * 480 * 2


def test_what_is_no_utf8_on_the_way_is_said_so(tmp_path: Path) -> None:
    with FakeBroker() as broker:
        command = [*COMMAND, "synth", "-", "--live", "--broker", broker.endpoint, "-o", str(tmp_path / "out.wav"), "-q"]
        done = subprocess.run(command, cwd=ROOT, input=b"a\xff", capture_output=True, timeout=60, check=False)
    assert done.returncode == InvalidInput.exit_code
    assert b"not UTF-8" in done.stderr
    assert not (tmp_path / "out.wav").exists()


def test_a_player_that_closes_its_pipe_ends_the_command_quietly() -> None:
    with FakeBroker(chunks=10_000) as broker:
        command = [sys.executable, "-m", "lighttts.cli.main", "synth", "Hello.", "-o", "-", "--broker", broker.endpoint]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout
            assert process.stderr
            process.stdout.read(1000)
            process.stdout.close()
            assert (process.stderr.read(), process.wait(30)) == (b"", 141)
        broker.wait_for(Cancel)


def run_piped(broker: FakeBroker, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "lighttts.cli.main", "synth", "Hello.", "--broker", broker.endpoint, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False)


# ---- bad input ----


def one_sentence(text: str) -> bool:
    return text.startswith("lighttts-cli synth: ") and text.count("\n") == 1 and "Traceback" not in text


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["", "-o", "x.wav"], 65, "empty"),
        ([" \n ", "-o", "x.wav"], 65, "empty"),
        (["caf\udce9", "-o", "x.wav"], 65, "not UTF-8"),
        (["-o", "x.wav"], 65, "TEXT"),
        (["Hi.", "--file", "x.txt", "-o", "x.wav"], 65, "TEXT"),
        (["--file", "no-such-file.txt", "-o", "x.wav"], 65, "No such file"),
        (["--file", ".", "-o", "x.wav"], 65, "Is a directory"),
        (["Hi.", "-o", "x.aac"], 65, ".mp3"),
        (["Hi.", "-o", "noextension"], 65, "--format"),
        (["Hi.", "-o", "no/such/folder/x.wav"], 65, "No such file"),
        (["Hi.", "-o", "x.wav", "--output", "mel"], 65, "numpy"),
        (["Hi.", "-o", "x.wav", "--prompt-wav", "no-such.wav"], 65, "no-such.wav"),
        (["Hi.", "-o", "x.wav", "--prompt-text", "said"], 65, "prompt"),
        (["Hi.", "-o", "x.wav", "--voice", "a", "--prompt-wav", "here.wav"], 65, "not both"),
        (["Hi.", "-o", "x.wav", "--speed", "9"], 65, "speed must be 0.5 to 2.0"),
        (["Hi.", "-o", "x.wav", "--seed", "-1"], 65, "seed"),
        (["Hi.", "-o", "x.wav", "--retries", "-1"], 65, "--retries"),
        (["Hi.", "-o", "x.wav", "--live"], 65, "--live"),
        (["Hi.", "-o", "x.wav", "--model", "m"], 65, "--model"),
        (["Hi.", "-o", "x.wav", "--speed", "fast"], 64, "--speed"),
        (["Hi.", "-o", "x.wav", "--sped", "2"], 64, "did you mean --speed?"),
        (["Hi.", "there", "-o", "x.wav"], 64, "'there'"),
        (["Hi."], 64, "-o"),
    ],
)
def test_wrong_input_is_one_sentence_and_the_right_exit_code(
    run: Run,
    broker: FakeBroker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.wav").write_bytes(b"RIFF")
    done = run("synth", *arguments, "--broker", broker.endpoint)
    assert (done.code, done.out) == (code, b"")
    assert one_sentence(done.err)
    assert words in done.err
    assert os.listdir(tmp_path) == ["here.wav"]
    assert broker.all(Synth) == []


def test_a_text_file_that_is_not_utf8_or_too_long_is_refused(run: Run, broker: FakeBroker, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    for content, words in ((b"caf\xe9", "byte 3"), (b"x" * 600_000, "512 KiB")):
        text.write_bytes(content)
        done = run("synth", "--file", str(text), "-o", str(tmp_path / "x.wav"), "--broker", broker.endpoint)
        assert done.code == 65
        assert words in done.err


def test_a_broker_that_was_named_and_is_not_there_is_not_replaced_by_another(run: Run, tmp_path: Path) -> None:
    with FakeBroker() as gone:
        pass
    done = run("synth", "Hi.", "-o", str(tmp_path / "x.wav"), "--broker", gone.endpoint)
    assert done.code == 69
    assert one_sentence(done.err)
    assert gone.endpoint in done.err


def test_an_address_that_is_none_is_said_so(run: Run, tmp_path: Path) -> None:
    done = run("synth", "Hi.", "-o", str(tmp_path / "x.wav"), "--broker", "localhost")
    assert done.code == 78
    assert "tcp://host:port" in done.err


def test_errors_of_the_broker_have_their_exit_codes(run: Run, tmp_path: Path) -> None:
    for code, exit_code in (("unknown_voice", 65), ("overloaded", 75), ("no_worker", 69), ("model", 78)):
        with FakeBroker(script={Synth: refuse(code, "because")}) as broker:
            done = run("synth", "Hi.", "-o", str(tmp_path / "x.wav"), "--broker", broker.endpoint)
        assert done == (exit_code, b"", "lighttts-cli synth: because\n")


@pytest.mark.parametrize(("options", "tries"), [((), 4), (("--retries", "1"), 2), (("--retries", "0"), 1)])
def test_what_may_succeed_later_is_tried_again_so_often(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], tries: int
) -> None:
    monkeypatch.setattr("lighttts.client.retry.FIRST_S", 0.01)
    with FakeBroker(script={Synth: refuse("overloaded", "full", retryable=True, retry_after_ms=1)}) as broker:
        done = run("synth", "Hi.", "-o", str(tmp_path / "x.wav"), *options, "--broker", broker.endpoint)
        assert len(broker.all(Synth)) == tries
    assert done == (75, b"", "lighttts-cli synth: full\n")


def test_a_full_disk_is_said_so(run: Run, broker: FakeBroker) -> None:
    done = run("synth", "Hi.", "-o", "/dev/full", "--format", "wav", "--broker", broker.endpoint)
    assert done.code == 65
    assert "No space left" in done.err


def test_compressed_output_without_soundfile_says_what_to_install(
    run: Run, broker: FakeBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    done = run("synth", "Hi.", "-o", str(tmp_path / "x.mp3"), "--broker", broker.endpoint)
    assert done.code == 69
    assert "lighttts[audio]" in done.err
    assert run("synth", "Hi.", "-o", str(tmp_path / "x.wav"), "--broker", broker.endpoint).code == 0


def test_audio_is_not_written_to_a_terminal() -> None:
    master, slave = os.openpty()
    command = [sys.executable, "-m", "lighttts.cli.main", "synth", "Hi.", "-o", "-"]
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=slave, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(master)
        os.close(slave)
    assert done.returncode == 65
    assert "terminal" in done.stderr
