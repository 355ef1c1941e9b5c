"""The Redis that `broker.state` names, and a client of it.

    redis://[user:password@]host:port/db            rediss:// the same over TLS
    unix://[user:password@]/path/redis.sock?db=0
    redis+sentinel://[user:password@]host:port,host:port/service/db      rediss+sentinel:// the same over TLS

Options follow a `?`, see `OPTIONS`. With Sentinel the user is the master's, the Sentinels' own is given by options, and
TLS is spoken to both. Special characters in names and passwords are percent-encoded.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel

from lighttts.broker.redis_faults import cannot_enter, remedy
from lighttts.broker.redis_probe import tls_mismatch
from lighttts.errors import ConfigError, Unavailable

TIMEOUT_S = 2.0
"""Seconds to connect, and for each answer."""
SENTINEL_PORT = 26379
SENTINEL_OPTIONS = {"sentinel_username": "username", "sentinel_password": "password"}
OPTIONS = frozenset(
    {
        "db",
        "socket_timeout",
        "socket_connect_timeout",
        "ssl_ca_certs",
        "ssl_ca_path",
        "ssl_certfile",
        "ssl_keyfile",
        "ssl_password",
        "ssl_cert_reqs",
        "ssl_check_hostname",
        *SENTINEL_OPTIONS,
    }
)
"""`ssl_ca_certs`, `ssl_ca_path`: who signs the server's certificate; `ssl_certfile`, `ssl_keyfile`, `ssl_password`: the
broker's own; `ssl_cert_reqs`: required or none; `ssl_check_hostname`: true or false."""


class Redis(NamedTuple):
    """A client that has not connected yet, and where it will, without a password; `address`: its host and port, if it
    is at one."""

    client: redis.Redis
    where: str
    tls: bool
    address: tuple[str, int] | None


def redis_at(url: str) -> Redis:
    """A client of the Redis at `url`; its calls fail after `TIMEOUT_S`, untried again. Raises `ConfigError`."""
    try:
        scheme, _, rest = url.partition("://")
        return _sentinel(scheme, rest) if scheme.endswith("+sentinel") else _direct(url)
    except ValueError as error:
        why = str(error) if _harmless(str(error), url) else "percent-encode what is special in user and password"
        raise ConfigError(f"broker.state is not a Redis address: {why}", field="broker.state") from None


def _harmless(text: str, url: str) -> bool:
    """Whether `text` shows no part of a password in `url`, that is of what stands before its last @ or after
    ``password=``: unencoded, such parts are taken for a port, a path or an option."""
    credentials, _, rest = url.partition("://")[2].rpartition("@")
    parts = re.split(r"[:/?#&=,@]", f"{credentials}&{rest.partition('password=')[2]}")
    return not any(part in text for part in parts if part)


def connect(url: str) -> Redis:
    """The Redis at `url`, which has answered. Raises `Unavailable` if it does not, `ConfigError` if it keeps us out."""
    there = redis_at(url)
    try:
        there.client.ping()
    except (redis.RedisError, OSError) as error:
        there.client.close()
        if wrong := misconfigured(there, error):
            text = f"Redis at {there.where} does not let the broker in ({error}): {wrong}"
            raise ConfigError(text, field="broker.state") from error
        text = f"Redis at {there.where} cannot be reached ({error}): {remedy(error)}, or set broker.state to memory://"
        raise Unavailable(text) from error
    return there


def misconfigured(there: Redis, error: Exception) -> str:
    """What to correct in `broker.state` for `error` to go away; empty if the fault lies elsewhere. Asks there."""
    if cannot_enter(error):
        return remedy(error)
    if there.address and isinstance(error, redis.ConnectionError | redis.TimeoutError):
        return tls_mismatch(*there.address, tls=there.tls)
    return ""


def _direct(url: str) -> Redis:
    options = _options(url)
    tls = url.startswith("rediss:")
    client = redis.Redis.from_url(url, **_defaults())
    if path := options.get("path"):
        return Redis(client, str(path), False, None)
    host, port = str(options.get("host", "localhost")), int(str(options.get("port", 6379)))
    return Redis(client, f"{host}:{port}", tls, (host, port))


def _sentinel(scheme: str, rest: str) -> Redis:
    before, _, query = rest.partition("?")
    authority, _, path = before.partition("/")
    user, at, hosts = authority.rpartition("@")
    service, _, db = path.partition("/")
    if not service:
        raise ValueError("it lacks the service's name: redis+sentinel://host:port,host:port/service")
    if db and not db.isdecimal():
        raise ValueError(f"{db!r} after the service's name is no database number")
    plain = scheme.removesuffix("+sentinel")
    options = _defaults() | _options(f"{plain}://{user}{at}localhost/{db or 0}?{query}")
    del options["host"]
    tls = options.pop("connection_class", None) is not None
    own = {ours: options.pop(name) for name, ours in SENTINEL_OPTIONS.items() if name in options}
    kept = {name: value for name, value in options.items() if name.startswith(("ssl_", "socket_", "retry"))}
    sentinels = [_host_port(host) for host in hosts.split(",")]
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        sentinels, sentinel_kwargs={**kept, **own, "ssl": tls}, ssl=tls, **options
    )
    where = f"{service} of Sentinel {', '.join(f'{host}:{port}' for host, port in sentinels)}"
    return Redis(sentinel.master_for(service), where, tls, None)  # type: ignore[no-untyped-call]


def _host_port(text: str) -> tuple[str, int]:
    split = urlsplit(f"//{text}")
    if not split.hostname or split.username or split.path:
        raise ValueError(f"{text!r} is not the host:port of a Sentinel")
    return split.hostname, split.port or SENTINEL_PORT


def _options(url: str) -> dict[str, object]:
    """The arguments of a connection. Raises `ValueError`."""
    options: dict[str, object] = parse_url(url)  # type: ignore[no-untyped-call]
    asked = {part.partition("=")[0] for part in urlsplit(url).query.split("&") if part}
    if unknown := sorted(asked - OPTIONS):
        raise ValueError(f"unknown option {unknown[0]!r}; there are {', '.join(sorted(OPTIONS))}")
    return options


def _defaults() -> dict[str, object]:
    timeouts = {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S}
    return {**timeouts, "client_name": "lighttts-broker", "retry": Retry(NoBackoff(), 0)}
