"""The ways to a Redis: addresses, users and rights, TLS, unix sockets, Sentinel."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from lighttts.broker.instructions import AppendTokens, SaveState
from lighttts.broker.keys import keys_of
from lighttts.broker.redis_address import connect, redis_at
from lighttts.broker.redis_faults import ACL
from lighttts.broker.state import Claim
from lighttts.broker.voice_redis import RedisVoices
from lighttts.errors import ConfigError, Unavailable
from tests.broker.certificates import Authority
from tests.broker.stores import WAIT_S, Told, open_store, record_of, write_safely
from tests.broker.test_voice_stores import ROOM, WAV, voice
from tests.redis_server import RedisServer


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def serves(url: str, told: Told) -> bool:
    """Whether all that a broker does with a Redis can be done at `url`."""
    store = open_store(url, told)
    write_safely(store, told, *record_of("r1"))
    done = "r1" in store.load().requests and store.claim("r1") is Claim.OURS
    store.close(WAIT_S)
    return done and told.changed.empty() and keeps_voices(url)


def keeps_voices(url: str) -> bool:
    """Whether a voice can be kept at `url`, found, renamed and removed."""
    voices = RedisVoices(url)
    voices.put(voice(shared=True), WAV, ROOM, over=False)
    found = voices.recording(voices.find("me", "mine")) == WAV
    voices.rename("me", "mine", "yours")
    voices.remove("me", "yours")
    empty = not voices.shelves("me").own
    voices.close()
    return found and empty


# ---- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("redis://box:6380/1", "box:6380"),
        ("redis://user:secret@box/1", "box:6379"),
        ("rediss://box?ssl_cert_reqs=none", "box:6379"),
        ("unix://user:secret@/run/redis.sock?db=2", "/run/redis.sock"),
        ("redis+sentinel://user:secret@one,two:26380/speech/3", "speech of Sentinel one:26379, two:26380"),
        ("rediss+sentinel://[::1]:1,b:2/speech?sentinel_password=secret", "speech of Sentinel ::1:1, b:2"),
    ],
)
def test_where_a_redis_is_said_without_its_password(url: str, where: str) -> None:
    there = redis_at(url)
    assert there.where == where
    assert there.tls is url.startswith("rediss")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://box?sll_ca_certs=x", "unknown option 'sll_ca_certs'; there are db, .*ssl_ca_certs"),
        ("redis://box?socket_timeout=soon", "socket_timeout"),
        ("redis+sentinel://one:26379", "lacks the service's name"),
        ("redis+sentinel://one:26379/speech/zero", "'zero' after the service's name is no database number"),
        ("redis+sentinel:///speech", "'' is not the host:port of a Sentinel"),
        ("redis+sentinel://one:x/speech", "Port"),
    ],
)
def test_an_address_that_is_none_says_what_is_wrong_with_it(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"broker.state is not a Redis address: .*{says}"):
        redis_at(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:hush/7@box:6379/0",
        "redis://user:hush?7@box:6379/0",
        "redis://:hush#7@box:6379/0",
        "unix://user:x?hush=7@/run/redis.sock",
        "redis+sentinel://user:hush/7@one:26379/speech/0",
        "redis+sentinel://user:x/speech/hush@one:26379/speech",
        "redis+sentinel://one:26379/speech?sentinel_password=x&hush=7",
    ],
)
def test_a_password_that_is_not_encoded_is_not_shown_in_parts(url: str) -> None:
    with pytest.raises(ConfigError, match="is not a Redis address") as caught:
        redis_at(url)
    assert "hush" not in caught.value.text
    assert caught.value.__suppress_context__


def test_a_database_is_chosen_by_its_number(redis_server: RedisServer, told: Told) -> None:
    assert serves(f"{redis_server.url}?db=5", told)
    with redis_server.client() as look:
        assert look.info("keyspace").keys() == {"db5"}


# ---- users and rights ------------------------------------------------------------------------------------------------


def test_a_user_with_the_rights_that_are_recommended_is_enough(redis_server: RedisServer, told: Told) -> None:
    with redis_server.client() as look:
        look.execute_command("ACL", "SETUSER", "speech", "on", ">p@ss:word/", *ACL.split())
    assert serves(f"unix://speech:p%40ss%3Aword%2F@{redis_server.path}", told)


@pytest.mark.parametrize("user", ["speech:wrong", ":wrong", "nobody:secret", ""])
def test_a_wrong_password_or_none_is_told_without_showing_it(redis_server: RedisServer, user: str) -> None:
    with redis_server.client() as look:
        look.execute_command("ACL", "SETUSER", "speech", "on", ">secret", *ACL.split())
        look.execute_command("ACL", "SETUSER", "default", "resetpass", ">other")
        with pytest.raises(
            ConfigError, match=r"does not let the broker in .*redis://user:password@host:port"
        ) as caught:
            connect(f"unix://{user}@{redis_server.path}")
    assert "wrong" not in caught.value.text
    assert caught.value.field == "broker.state"


def test_a_right_that_is_missing_is_told_with_those_that_are_needed(redis_server: RedisServer, told: Told) -> None:
    with redis_server.client() as look:
        look.execute_command("ACL", "SETUSER", "speech", "on", ">secret", *ACL.split(), "-@scripting")
    store = open_store(f"unix://speech:secret@{redis_server.path}", told)
    store.write(record_of("r1")[0])
    problem = told.changed.get(timeout=WAIT_S)
    assert "no permissions to run" in problem
    assert f"ACL SETUSER <user> {ACL}" in problem
    store.close(0.0)


def test_a_read_only_replica_is_told_as_such(redis_server: RedisServer, told: Told) -> None:
    with redis_server.client() as look:
        look.replicaof("127.0.0.1", 1)
    store = open_store(redis_server.url, told)
    store.renew()
    assert "read-only replica: give its master's address" in told.changed.get(timeout=WAIT_S)
    store.close(0.0)


# ---- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def tls_options(authority: Authority, port: int, names: str = "DNS:localhost,IP:127.0.0.1") -> list[str]:
    """Of a Redis that speaks TLS and wants a certificate of its clients."""
    certificate, key = authority.issue("server", names)
    files = ["--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    return ["--port", "0", "--tls-port", str(port), *files, "--tls-ca-cert-file", str(authority.certificate)]


def test_tls_with_certificates_on_both_sides(
    start_redis: Callable[..., RedisServer], authority: Authority, told: Told
) -> None:
    start_redis(*tls_options(authority, port := free_port()))
    certificate, key = authority.issue("client", "DNS:broker")
    trust = f"ssl_ca_certs={authority.certificate}&ssl_certfile={certificate}&ssl_keyfile={key}"
    assert serves(f"rediss://localhost:{port}?{trust}", told)
    assert serves(f"rediss://127.0.0.1:{port}?{trust}", told)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("rediss://localhost:{port}", r"signed by nobody known here: add \?ssl_ca_certs="),
        ("rediss://localhost:{port}?ssl_ca_certs={ca}", "it wants a certificate of the broker: add ssl_certfile="),
        ("redis://localhost:{port}", "it speaks TLS: write rediss:// instead"),
    ],
)
def test_what_lacks_for_tls_is_told(
    start_redis: Callable[..., RedisServer], authority: Authority, url: str, says: str
) -> None:
    start_redis(*tls_options(authority, port := free_port()))
    with pytest.raises(ConfigError, match=says):
        connect(url.format(port=port, ca=authority.certificate))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_certificate_of_another_host_is_refused(
    start_redis: Callable[..., RedisServer], authority: Authority, host: str
) -> None:
    start_redis(*tls_options(authority, port := free_port(), "DNS:elsewhere"), "--tls-auth-clients", "no")
    with pytest.raises(ConfigError, match="its certificate names"):
        connect(f"rediss://{host}:{port}?ssl_ca_certs={authority.certificate}")


def test_a_redis_without_tls_is_told_as_such(start_redis: Callable[..., RedisServer]) -> None:
    start_redis("--port", str(port := free_port()))
    with pytest.raises(ConfigError, match="does not speak TLS: write redis://"):
        connect(f"rediss://127.0.0.1:{port}?socket_connect_timeout=0.2&socket_timeout=0.2")


# ---- Sentinel --------------------------------------------------------------------------------------------------------


class Failover:
    """A master, a replica, and a Sentinel that watches them."""

    def __init__(self, folder: Path) -> None:
        ports = [free_port() for _ in range(3)]
        self.master, self.replica = (self._server(folder / name, port) for name, port in zip("mr", ports, strict=False))
        self.master.start()
        self.replica.start()
        with self.replica.client() as look:
            look.replicaof("127.0.0.1", ports[0])
        self.url = f"redis+sentinel://127.0.0.1:{ports[2]}/speech/0"
        settings = folder / "sentinel.conf"
        settings.write_text(
            f"port {ports[2]}\ndir {folder}\nsentinel monitor speech 127.0.0.1 {ports[0]} 1\n"
            "sentinel down-after-milliseconds speech 200\nsentinel failover-timeout speech 2000\n"
        )
        self.sentinel = redis.Redis("127.0.0.1", ports[2])
        self._process = subprocess.Popen(["redis-server", str(settings), "--sentinel"], stdout=subprocess.DEVNULL)

    @staticmethod
    def _server(folder: Path, port: int) -> RedisServer:
        folder.mkdir()
        return RedisServer(folder, "--port", str(port), "--repl-diskless-sync-delay", "0")

    def wait_until_watched(self) -> None:
        """Returns when the Sentinel knows the replica and this has all of the master's data."""
        while True:
            try:
                if self.sentinel.sentinel_slaves("speech") and self._replicates():
                    return
            except redis.RedisError:
                continue

    def _replicates(self) -> bool:
        with self.replica.client() as look:
            return bool(look.info("replication")["master_link_status"] == "up")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self.sentinel.close()
        self.master.kill()
        self.replica.kill()


@pytest.fixture
def failover(tmp_path: Path) -> Iterator[Failover]:
    """Three processes, which know each other."""
    failover = Failover(tmp_path)
    failover.wait_until_watched()
    yield failover
    failover.close()


def test_when_the_master_dies_the_store_goes_on_with_the_one_that_sentinel_names(
    failover: Failover, told: Told
) -> None:
    store = open_store(failover.url, told)
    write_safely(store, told, *record_of("r1"))
    with failover.master.client() as look:
        assert look.wait(1, 10_000) == 1
    failover.master.kill()
    store.write(AppendTokens("r1", 2, record_of("r1")[3].tokens))
    store.write(SaveState("r1", "flushing"))
    assert "speech of Sentinel" in told.changed.get(timeout=WAIT_S)
    assert told.changed.get(timeout=3 * WAIT_S) == ""
    store.close(WAIT_S)
    with failover.replica.client() as look:
        assert look.hget(keys_of("r1").request, "state") == b"flushing"
        assert look.hlen(keys_of("r1").tokens) == 3


def test_a_service_that_the_sentinels_do_not_know_is_told(failover: Failover) -> None:
    with pytest.raises(Unavailable, match="correct the service's name"):
        connect(failover.url.replace("speech", "song"))


def test_sentinels_that_do_not_answer_are_to_be_started() -> None:
    with pytest.raises(Unavailable, match="start it"):
        connect(f"redis+sentinel://127.0.0.1:{free_port()}/speech")
