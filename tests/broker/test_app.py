"""The broker with real sockets."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from lighttts.broker.redis_store import RedisStore
from lighttts.errors import ConfigError, InternalError, Unavailable
from lighttts.transport import wire
from lighttts.transport.sockets import SocketOptions
from lighttts.transport.transport import Sockets
from tests.broker.harness import SAMPLE_RATE, synth
from tests.broker.peers import ANY, PATIENCE_MS, Crew, Peer, RunningApp, Worker, wait_for
from tests.redis_server import RedisServer


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    """The peers' sockets, which take any number of messages."""
    with Sockets(SocketOptions(high_water_mark=0, linger_ms=100)) as sockets:
        yield sockets


@pytest.fixture
def running(sockets: Sockets) -> Iterator[RunningApp]:
    """A broker with its state in memory."""
    with RunningApp(expiry_s=600) as running:
        yield running


def listen(frames: int, client: Peer) -> list[wire.Audio]:
    """Takes an accepted request's frames, `End` and all; acknowledges."""
    heard = [client.hear(wire.Audio) for _ in range(frames)]
    end = client.hear(wire.End)
    assert end.frames == frames
    client.say(wire.EndAck(end.request_id))
    return heard


def listen_to(client: Peer, made: list[wire.Audio]) -> bool:
    """Whether the client hears just what was made."""
    return listen(len(made), client) == made


def test_a_request_goes_through_real_sockets(sockets: Sockets, running: RunningApp) -> None:
    crew, client = Crew(sockets, running), Peer(sockets, running.endpoints.clients)
    client.say(wire.Hello("me", "test"))
    assert client.hear(wire.Welcome).max_text == 20_000
    client.say(synth())
    assert client.hear(wire.Accepted).sample_rate == SAMPLE_RATE
    crew.bring_to_decoding("r1")
    assert listen_to(client, crew.speak("r1", 5))
    wait_for(lambda: running.app._core.idle, client)


def test_ipc_endpoints_serve_as_tcp_ones_do(sockets: Sockets, tmp_path: Path) -> None:
    where = {name: f"ipc://{tmp_path}/{name}" for name in ("clients", "workers", "results")}
    with RunningApp(expiry_s=600, **where) as running:
        assert running.endpoints._asdict() == where
        crew, client = Crew(sockets, running), Peer(sockets, running.endpoints.clients)
        client.say(synth())
        client.hear(wire.Accepted)
        crew.bring_to_decoding("r1")
        assert listen_to(client, crew.speak("r1", 3))
    assert not list(tmp_path.iterdir())


def test_a_slow_client_delays_no_other_and_gets_all_of_its_own(sockets: Sockets) -> None:
    with RunningApp(expiry_s=600, options=SocketOptions(high_water_mark=2)) as running:
        crew = Crew(sockets, running)
        quick = Peer(sockets, running.endpoints.clients)
        narrow = Sockets(SocketOptions(high_water_mark=2, linger_ms=0))
        slow = Peer(narrow, running.endpoints.clients)
        for client, name in ((slow, "slow"), (quick, "quick")):
            client.say(synth(name, credit=256))
            client.hear(wire.Accepted)
            crew.bring_to_decoding(name)
        # Far more than the kernel's buffers and both high-water marks hold.
        dammed = crew.speak("slow", 40, samples=250_000)
        wait_for(lambda: running.app._core.load().held_bytes > 0, quick)
        assert listen_to(quick, crew.speak("quick", 50))
        assert listen_to(slow, dammed)
        narrow.close()


def test_garbage_is_answered_and_others_are_served(sockets: Sockets, running: RunningApp) -> None:
    crew, client = Crew(sockets, running), Peer(sockets, running.endpoints.clients)
    vandal = Peer(sockets, running.endpoints.clients)
    for frames in ([b"GET / HTTP/1.1"], [b""] * 20, [b"LT\x03\x11", os.urandom(1000), os.urandom(1000)]):
        vandal.link.broadcast(frames)
        assert vandal.hear(wire.Error).code == "protocol"
    crew.decode._push.socket.send_multipart([b"LT\x03\x32", b"junk", b""])
    client.say(synth())
    client.hear(wire.Accepted)
    crew.bring_to_decoding("r1")
    assert listen_to(client, crew.speak("r1", 2))


def test_a_client_that_closes_its_connection_stops_the_work(sockets: Sockets, running: RunningApp) -> None:
    crew = Crew(sockets, running)
    with Sockets(SocketOptions(linger_ms=0)) as others:
        client = Peer(others, running.endpoints.clients)
        client.say(synth())
        client.hear(wire.Accepted)
        crew.bring_to_decoding("r1")
    assert crew.decode.hear(wire.Abort) == wire.Abort("r1", 0)
    assert running.app._core.idle


def test_the_work_of_a_worker_that_falls_silent_goes_to_another(sockets: Sockets) -> None:
    with RunningApp(heartbeat_s=0.05, expiry_s=0.3) as running:
        worker, client = Worker(sockets, running, "encode"), Peer(sockets, running.endpoints.clients)
        client.say(synth())
        assert worker.hear(wire.EncodeWork).attempt == 0
        client.hear(wire.Accepted)
        wait_for(lambda: not running.app._core.load().workers["encode"], client)
        worker.say(wire.Heartbeat(worker.epoch, 0, 0, 0))
        assert not worker.hear(wire.Alive).known
        other = Peer(sockets, running.endpoints.workers, b"other")
        other.say(wire.Register("other", 99, "encode", "", "", 24000, ()), wire.Grant(99, 1))
        assert other.hear(wire.Registered).epoch == 99
        assert other.hear(wire.EncodeWork).attempt == 1


def test_clients_without_requests_leave_no_trace(sockets: Sockets, running: RunningApp) -> None:
    client = Peer(sockets, running.endpoints.clients)
    for _ in range(20):
        other = Peer(sockets, running.endpoints.clients)
        other.say(wire.ListVoices(1))
        other.hear(wire.Voices)
        other.link.socket.close()
    wait_for(lambda: len(running.app._clients.peers) <= 1, client)


@pytest.mark.parametrize("which", ["clients", "workers", "results"])
def test_a_port_in_use_is_one_sentence_that_says_what_to_do(running: RunningApp, which: str) -> None:
    address = getattr(running.endpoints, which)
    with pytest.raises(ConfigError, match=f"cannot listen on {address}.*configure another address"):
        RunningApp(**{which: address})


def test_an_ipc_path_in_use_is_refused_instead_of_stolen(tmp_path: Path) -> None:
    with (
        RunningApp(clients=f"ipc://{tmp_path}/clients") as running,
        pytest.raises(ConfigError, match="in use by another process"),
    ):
        RunningApp(clients=running.endpoints.clients)


def test_metrics_and_health_are_served(sockets: Sockets) -> None:
    with RunningApp(metrics_port=0, expiry_s=600) as running:
        crew, client = Crew(sockets, running), Peer(sockets, running.endpoints.clients)
        client.say(synth())
        client.hear(wire.Accepted)
        crew.bring_to_decoding("r1")
        crew.speak("r1", 3)
        listen(3, client)
        base = f"http://127.0.0.1:{running.app.metrics_port}"
        assert fetch(f"{base}/healthz") == (200, "serving\n")
        running.app._report()
        _, text = fetch(f"{base}/metrics")
        for line in (
            'light_tts_requests_total{method="preset",service="broker"}',
            'light_tts_request_duration_seconds_count{service="broker"}',
            'light_tts_queue_length{service="broker"} 0.0',
            'light_tts_workers{stage="decode"} 1.0',
            "light_tts_first_audio_seconds_count",
            "light_tts_real_time_factor_count",
            'light_tts_chunk_interval_seconds_count{service="broker"}',
            'light_tts_stage_seconds_count{service="llm"}',
            'light_tts_memory_usage{type="rss"}',
        ):
            assert line in text


def fetch(url: str) -> tuple[int, str]:
    """Status and text of a page."""
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_MS / 1000) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


# ---- the end ---------------------------------------------------------------------------------------------------------


def test_told_to_end_the_broker_finishes_what_it_has_and_takes_nothing_new(sockets: Sockets) -> None:
    with RunningApp(expiry_s=600, metrics_port=0) as running:
        crew, client = Crew(sockets, running), Peer(sockets, running.endpoints.clients)
        client.say(synth())
        client.hear(wire.Accepted)
        running.app.terminate()
        wait_for(lambda: running.app.health()[1] == "shutting down", client)
        assert fetch(f"http://127.0.0.1:{running.app.metrics_port}/healthz") == (503, "shutting down\n")
        client.say(synth("r2"))
        assert client.hear(wire.Error).code == "unavailable"
        crew.bring_to_decoding("r1")
        assert listen_to(client, crew.speak("r1", 3))
        running.wait()
    assert running.error is None


def test_told_twice_it_ends_at_once_and_says_so_to_clients(sockets: Sockets) -> None:
    with RunningApp(expiry_s=600) as running:
        worker, client = Worker(sockets, running, "encode"), Peer(sockets, running.endpoints.clients)
        client.say(synth())
        client.hear(wire.Accepted)
        worker.hear(wire.EncodeWork)
        running.app.terminate()
        running.app.terminate()
        error = client.hear(wire.Error)
        assert (error.request_id, error.code, error.retryable) == ("r1", "unavailable", True)
        assert worker.hear(wire.Abort) == wire.Abort("r1", 0)
        running.wait()


# ---- Redis -----------------------------------------------------------------------------------------------------------


def test_with_redis_streams_survive_its_death_and_new_requests_are_refused(
    sockets: Sockets, redis_server: RedisServer
) -> None:
    with RunningApp(expiry_s=600, state=redis_server.url, redis_breaker_s=0.2) as running:
        crew, client = Crew(sockets, running), Peer(sockets, running.endpoints.clients)
        client.say(synth())
        client.hear(wire.Accepted)
        with redis_server.client() as look:
            assert look.exists("lighttts:{r1}:request")
        redis_server.kill()
        crew.bring_to_decoding("r1")
        wait_for(lambda: "cannot be stored" in running.app.health()[1], client)
        client.say(synth("r2"))
        error = client.hear(wire.Error)
        assert (error.request_id, error.code, error.retryable) == ("r2", "unavailable", True)
        assert error.retry_after_ms > 0
        client.say(wire.EndAck("r2"))
        assert listen_to(client, crew.speak("r1", 3))
        redis_server.start()
        wait_for(lambda: running.app.health()[0], client)
        client.say(synth("r3"))
        client.hear(wire.Accepted)
        client.say(wire.Cancel("r3"))
        client.hear(wire.Error)
        client.say(wire.EndAck("r3"))
        wait_for(lambda: running.app._core.idle, client)
    with redis_server.client() as look:
        assert look.keys("*") == []


def test_a_broker_that_is_told_to_end_leaves_its_requests_to_the_next_one(
    sockets: Sockets, redis_server: RedisServer
) -> None:
    with RunningApp(expiry_s=600, state=redis_server.url) as running:
        crew, client = Crew(sockets, running), Peer(sockets, running.endpoints.clients)
        client.say(synth())
        client.hear(wire.Accepted)
        crew.bring_to_decoding("r1")
        made = crew.speak("r1", 3)
        assert client.hear(wire.Audio) == made[0]
        running.app.terminate()
        running.wait()
    with Sockets() as others, RunningApp(expiry_s=600, state=redis_server.url) as running:
        crew, client = Crew(others, running), Peer(others, running.endpoints.clients)
        client.say(wire.Resume("r1", True, 1, 480, 10))
        work = crew.decode.hear(wire.DecodeWork)
        assert (work.seq, work.skip) == (1, 480)
        assert crew.decode.hear(wire.Tokens).last
        crew.decode.push(*made[1:])
        assert [client.hear(wire.Audio) for _ in made[1:]] == made[1:]
        assert client.hear(wire.End).frames == 3
        client.say(wire.EndAck("r1"))
        wait_for(lambda: running.app._core.idle, client)


def test_without_its_redis_the_broker_does_not_start() -> None:
    with pytest.raises(Unavailable, match="cannot be reached"):
        RunningApp(state="unix:///nowhere/redis.sock")


def test_a_defect_of_the_store_ends_the_broker_loudly(
    sockets: Sockets, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(RedisStore, "_execute", break_)
    with RunningApp(state=redis_server.url) as running:
        Peer(sockets, running.endpoints.clients).say(synth())
        running.wait()
    assert isinstance(running.error, InternalError)
    assert str(running.error.__cause__) == "a defect"


# ---- the daemon ------------------------------------------------------------------------------------------------------

DAEMON = [sys.executable, "-m", "lighttts.broker.main", "--set", "broker.metrics_port=null", "--set", "log.format=json"]
ANYWHERE = [part for name in ("clients", "workers", "results") for part in ("--set", f"broker.{name}={ANY}")]


def test_the_daemon_tells_the_service_manager_and_ends_on_sigterm(sockets: Sockets, tmp_path: Path) -> None:
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.settimeout(PATIENCE_MS / 1000)
    environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
    with manager, subprocess.Popen([*DAEMON, *ANYWHERE], stderr=subprocess.PIPE, text=True, env=environment) as daemon:
        assert daemon.stderr is not None
        ready = json.loads(daemon.stderr.readline())
        assert ready["event"] == "ready"
        client = Peer(sockets, ready["clients"])
        client.say(wire.Hello("me", "test"))
        client.hear(wire.Welcome)
        told = {manager.recv(4096).partition(b"=")[0] for _ in range(20)}
        assert told == {b"READY", b"WATCHDOG", b"STATUS"}
        daemon.send_signal(signal.SIGTERM)
        while manager.recv(4096) != b"STOPPING=1":
            pass
        assert daemon.wait(PATIENCE_MS / 1000) == 0


@pytest.mark.parametrize(
    ("setting", "code", "says"),
    [
        ("broker.state=unix:///nowhere/redis.sock", 69, "/nowhere/redis.sock cannot be reached"),
        ("broker.clients=ipc:///nowhere/clients", 78, "choose a folder that exists"),
        ("broker.max_text=0", 78, "broker.max_text"),
    ],
)
def test_a_daemon_that_cannot_start_says_why_in_one_line(setting: str, code: int, says: str) -> None:
    result = subprocess.run(
        [*DAEMON, *ANYWHERE, "--set", setting], capture_output=True, text=True, timeout=PATIENCE_MS / 1000, check=False
    )
    assert result.returncode == code
    assert result.stderr.startswith("lighttts-broker: ")
    assert result.stderr.count("\n") == 1
    assert says in result.stderr


def test_a_port_that_is_taken_ends_the_daemon_with_the_right_code(running: RunningApp) -> None:
    taken = f"broker.clients={running.endpoints.clients}"
    result = subprocess.run([*DAEMON, *ANYWHERE, "--set", taken], capture_output=True, text=True, check=False)
    assert result.returncode == ConfigError.exit_code
    assert running.endpoints.clients in result.stderr
