"""How a request's record is written to Redis and read back.

Each write is a script, so it is done wholly or not at all, and it never makes a hole: a write to a record that is not
there (Redis came back empty) or whose token log lacks what came before (a replica that lagged took over) removes what
is left of the record instead. A write to a record that belongs to another broker changes nothing. Every write can be
repeated.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgpack
import redis
from redis.client import Pipeline
from redis.commands.core import Script

from lighttts.broker.instructions import (
    PARKED_S,
    AppendTokens,
    DeleteRequest,
    ReleaseRequest,
    SaveEncoded,
    SaveRequest,
    SaveState,
    Write,
)
from lighttts.broker.keys import LEASE, keys_of, lease_of
from lighttts.broker.outbox import Frames
from lighttts.broker.state import Saved
from lighttts.errors import LightTTSError
from lighttts.transport.wire import Convert, Encoded, Message, Synth, Tokens, decode


class Outcome(enum.IntEnum):
    """What a script answers."""

    DONE = 1
    BROKEN = 0
    """The record is not whole, or not there: nothing is left of it now."""
    FOREIGN = -1
    """The record belongs to another broker: nothing was changed."""


# KEYS: request, encoded, tokens. ARGV: owner, time to live in ms, the prefix of leases, then what the script needs.
_FIND_OWNER = """
local owner = redis.pcall('HGET', KEYS[1], 'owner')
if type(owner) ~= 'string' then owner = nil end
local foreign = owner and owner ~= ARGV[1]
local alive = foreign and redis.call('EXISTS', ARGV[3] .. owner) == 1
"""
_OURS_OR_NONE = """
local owner = redis.call('HGET', KEYS[1], 'owner')
if not owner then redis.call('DEL', unpack(KEYS)) return 0 end
if owner ~= ARGV[1] then return -1 end
"""
_KEEP = """
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[2]) end
return 1
"""
_SAVE = f"""{_FIND_OWNER}
if alive then return -1 end
redis.call('DEL', unpack(KEYS))
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'state', 'received', 'client', ARGV[4], 'synth', ARGV[5],
    'received', ARGV[6])
{_KEEP}"""
_STATE = f"{_OURS_OR_NONE} redis.call('HSET', KEYS[1], 'state', ARGV[4]) {_KEEP}"
_ENCODED = f"{_OURS_OR_NONE} redis.call('SET', KEYS[2], ARGV[4]) {_KEEP}"
_TOKENS = f"""{_OURS_OR_NONE}
local count = redis.call('HLEN', KEYS[3])
for at = 4, #ARGV, 2 do
    if tonumber(ARGV[at]) > count then redis.call('DEL', unpack(KEYS)) return 0 end
    count = count + redis.call('HSET', KEYS[3], ARGV[at], ARGV[at + 1])
end
{_KEEP}"""
_RELEASE = f"""{_OURS_OR_NONE}
redis.call('HSET', KEYS[1], 'owner', '')
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[4]) end
return 1
"""
_DELETE = f"{_FIND_OWNER} if foreign then return -1 end redis.call('DEL', unpack(KEYS)) return 1"
_DISCARD = f"{_FIND_OWNER} if alive then return -1 end redis.call('DEL', unpack(KEYS)) return 1"
_CLAIM = f"""{_FIND_OWNER}
if not owner then return 0 end
if alive then return -1 end
redis.call('HSET', KEYS[1], 'owner', ARGV[1])
redis.call('SET', ARGV[3] .. ARGV[1], '', 'PX', ARGV[4])
{_KEEP}"""


def together(writes: Iterable[Write]) -> list[list[Write]]:
    """Writes by what goes in one script: the tokens of a request up to its next write of another kind.

    Those of one request stay in order; that is all the order there is.
    """
    groups: list[list[Write]] = []
    logs: dict[str, list[Write]] = {}
    for write in writes:
        if isinstance(write, AppendTokens) and write.request_id in logs:
            logs[write.request_id].append(write)
            continue
        groups.append([write])
        if isinstance(write, AppendTokens):
            logs[write.request_id] = groups[-1]
        else:
            logs.pop(write.request_id, None)
    return groups


class Records:
    """Writes the records of one broker, `owner`, and reads those of all."""

    def __init__(self, client: redis.Redis, owner: str, ttl: float) -> None:
        self._client = client
        self._owner = owner
        self._common = (owner, _ms(ttl), LEASE)
        self._save = client.register_script(_SAVE)
        self._state = client.register_script(_STATE)
        self._encoded = client.register_script(_ENCODED)
        self._tokens = client.register_script(_TOKENS)
        self._delete = client.register_script(_DELETE)
        self._release = client.register_script(_RELEASE)
        self._discard = client.register_script(_DISCARD)
        self._claim = client.register_script(_CLAIM)

    def load_scripts(self) -> None:
        """Makes the scripts known to a Redis that has not got them. Raises `RedisError`, `OSError`."""
        with self._client.pipeline(transaction=False) as pipe:
            for script in (self._save, self._state, self._encoded, self._tokens, self._delete, self._release):
                pipe.script_load(script.script)
            pipe.execute()

    def add(self, pipe: Pipeline, writes: Sequence[Write]) -> None:
        """Adds writes that go together (see `together`) to `pipe`; their one answer there will be an `Outcome`."""
        match write := writes[0]:
            case DeleteRequest():
                self._put(pipe, self._delete, write)
            case ReleaseRequest():
                self._put(pipe, self._release, write, _ms(PARKED_S))
            case SaveRequest(_, client, synth):
                self._put(pipe, self._save, write, client, packed(synth), str(time.time()))
            case SaveState(_, state):
                self._put(pipe, self._state, write, state)
            case SaveEncoded(_, encoded):
                self._put(pipe, self._encoded, write, packed(encoded))
            case AppendTokens():
                log = (entry for entry in writes if isinstance(entry, AppendTokens))
                self._put(pipe, self._tokens, write, *(part for e in log for part in (e.seq, packed(e.tokens))))

    def add_lease(self, pipe: Pipeline, seconds: float) -> None:
        """Adds to `pipe`: the broker lives, for so long at least."""
        pipe.set(lease_of(self._owner), b"", px=_ms(seconds))

    def claim(self, request_id: str, seconds: float) -> Outcome:
        """Makes a record this broker's, with a lease of so many seconds, unless it is another's that lives.

        Raises `RedisError`, `OSError`.
        """
        return Outcome(int(self._claim(keys=keys_of(request_id), args=[*self._common, _ms(seconds)])))

    def discard(self, request_id: str) -> Outcome:
        """Removes a record unless it is another's that lives. Raises `RedisError`, `OSError`."""
        return Outcome(int(self._discard(keys=keys_of(request_id), args=self._common)))

    def _put(self, pipe: Pipeline, script: Script, write: Write, *values: bytes | str | int) -> None:
        pipe.evalsha(script.sha, 3, *keys_of(write.request_id), *self._common, *values)


def _ms(seconds: float) -> int:
    return max(1, round(1000 * seconds))


class Damaged(Exception):
    """A record that cannot be used, and why."""


class Raw(NamedTuple):
    """A record as Redis has it."""

    request: dict[bytes, bytes]
    encoded: bytes | None
    tokens: dict[bytes, bytes]


def saved(request_id: str, raw: Raw) -> Saved:
    """The record as it was saved. Raises `Damaged`."""
    if missing := [name for name in ("owner", "client", "synth", "state") if name.encode() not in raw.request]:
        raise Damaged(f"it lacks {', '.join(missing)}")
    log = _log(request_id, raw.tokens)
    if log and not raw.encoded:
        raise Damaged("it has tokens, but nothing encoded")
    try:
        received = float(raw.request[b"received"])
        state, owner = raw.request[b"state"].decode(), raw.request[b"owner"].decode()
    except (KeyError, ValueError) as error:
        raise Damaged(f"it cannot be read: {error}") from error
    synth = _message(request_id, raw.request[b"synth"], (Synth, Convert))
    encoded = _message(request_id, raw.encoded, (Encoded,)) if raw.encoded else ()
    return Saved(raw.request[b"client"], synth, state, encoded, log, received, owner)


def is_wrong_type(answer: object) -> bool:
    """Whether Redis answered that a key holds something of another type: somebody else wrote it."""
    return isinstance(answer, redis.ResponseError) and "WRONGTYPE" in str(answer)


def outcome_of(answer: object) -> Outcome:
    """What a script answered. Raises the error, unless it comes of that one record."""
    if is_wrong_type(answer):
        return Outcome.BROKEN
    if isinstance(answer, Exception):
        raise answer
    return Outcome(answer) if isinstance(answer, int) else Outcome.DONE


def packed(frames: Frames) -> bytes:
    """A message as it is stored."""
    message: bytes = msgpack.packb([bytes(frame) for frame in frames])
    return message


def _log(request_id: str, tokens: dict[bytes, bytes]) -> dict[int, Frames]:
    try:
        log = {int(seq): message for seq, message in tokens.items()}
    except ValueError as error:
        raise Damaged("its token log has something else than sequence numbers") from error
    if sorted(log) != list(range(len(log))):
        raise Damaged(f"its token log has a hole: {len(log)} entries up to {max(log)}")
    return {seq: _message(request_id, log[seq], (Tokens,), seq) for seq in sorted(log)}


def _message(request_id: str, stored: bytes, kinds: tuple[type[Message], ...], seq: int | None = None) -> list[bytes]:
    """The frames of a stored message, which is of one of those kinds and of that request."""
    kind = " or ".join(kind.__name__ for kind in kinds)
    try:
        frames: list[bytes] = msgpack.unpackb(stored)
        if type(frames) is not list or any(type(frame) is not bytes for frame in frames):
            raise ValueError("it is no array of frames")
        message = decode(frames)
    except (LightTTSError, ValueError, msgpack.UnpackException) as error:
        raise Damaged(f"its {kind} message is none: {error}") from error
    match message:
        case Synth(request_id=of) | Convert(request_id=of) | Encoded(request_id=of):
            right = isinstance(message, kinds) and of == request_id
        case Tokens(request_id=of, seq=at):
            right = isinstance(message, kinds) and (of, at) == (request_id, seq)
        case _:
            right = False
    if not right:
        raise Damaged(f"its {kind} message is another's")
    return frames
