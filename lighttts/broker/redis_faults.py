"""What an error of Redis means, and what mends it."""

from __future__ import annotations

import redis
from redis.sentinel import MasterNotFoundError

ACL = "~lighttts:* +@read +@write +@connection +@transaction +@scripting -@dangerous +info"
"""The rights the broker needs."""

_BY_TEXT = (
    (
        "Hostname mismatch",
        "its certificate names another host: give that name in broker.state, or issue another certificate",
    ),
    ("IP address mismatch", "its certificate names no such address: give a host name in broker.state that it names"),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "its certificate is signed by nobody known here: add ?ssl_ca_certs=/path/ca.crt to broker.state",
    ),
    ("Permission denied", "let the broker's user open the socket: unixsocketperm 770 in redis.conf, and its group"),
    ("MISCONF", "it cannot write to its disk: see its log, or turn off stop-writes-on-bgsave-error"),
    ("NOREPLICAS", "it has too few replicas: start them, or lower min-replicas-to-write"),
)


def remedy(error: Exception) -> str:
    """What to do about `error`, as words that follow a colon."""
    text = str(error)
    for part, words in _BY_TEXT:
        if part in text:
            return words
    match error:
        case redis.AuthenticationError():
            return "give the right user and password in broker.state: redis://user:password@host:port"
        case redis.exceptions.NoPermissionError():
            return f"give its user the rights: ACL SETUSER <user> {ACL}"
        case redis.exceptions.ReadOnlyError():
            return "it is a read-only replica: give its master's address in broker.state, or use redis+sentinel://"
        case redis.exceptions.OutOfMemoryError():
            return "its memory is full: raise maxmemory"
        case redis.BusyLoadingError():
            return "it is loading its data: wait until it is ready"
        case MasterNotFoundError() if " : " not in text:
            return "correct the service's name in broker.state, or let the Sentinels monitor it"
        case redis.TimeoutError():
            return "see whether it is overloaded, stopped, or behind a firewall"
        case redis.ResponseError():
            return "correct broker.state"
    return "start it"


def cannot_enter(error: Exception) -> bool:
    """Whether the configuration, not the Redis, is to be mended for `error` to go away."""
    if isinstance(error, redis.exceptions.NoPermissionError | redis.AuthenticationError):
        return True
    certificate = "CERTIFICATE_VERIFY_FAILED" in str(error)
    return certificate or isinstance(error, redis.ResponseError) or "Permission denied" in str(error)
