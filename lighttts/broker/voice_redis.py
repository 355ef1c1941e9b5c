"""Registered voices in Redis, shared by all brokers on it.

Changes are optimistic transactions: tried again when another broker has changed the same in between.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import cast

import redis
from redis.client import Pipeline

from lighttts.broker.keys import SHARED_VOICES, USE_OF_VOICES, owner_field, recording_of, voices_of
from lighttts.broker.redis_address import connect
from lighttts.broker.redis_faults import remedy
from lighttts.broker.voice_records import Use, VoiceRecord, digest_of, unpacked, use_of
from lighttts.broker.voice_store import Change, Shelves, VoiceStore
from lighttts.errors import Unavailable
from lighttts.logs import get_logger

TRIES = 16
RETRY_S = 1.0
_Hash = Mapping[bytes, bytes]


class RedisVoices(VoiceStore):
    """The voices in the Redis at `url`. Raises `Unavailable`, `ConfigError`."""

    def __init__(self, url: str) -> None:
        there = connect(url)
        self._redis, self._where = there.client, there.where
        self._log = get_logger()

    def shelves(self, owner: str) -> Shelves:
        with self._asking(), self._redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(voices_of(owner))
            pipe.hgetall(SHARED_VOICES)
            pipe.hgetall(USE_OF_VOICES)
            return self._read(owner, *pipe.execute())

    def find(self, owner: str, name: str) -> VoiceRecord:
        with self._asking(), self._redis.pipeline(transaction=True) as pipe:
            pipe.hget(voices_of(owner), name)
            pipe.hget(SHARED_VOICES, name)
            found = [{b"": packed} if packed else {} for packed in pipe.execute()]
        own, shared = map(self._records, found)
        return own.get(name) or shared.get(name) or super().find(owner, name)

    def recording(self, voice: VoiceRecord) -> bytes:
        with self._asking():
            content = self._redis.get(recording_of(voice.id))
        return content if isinstance(content, bytes) and digest_of(content) == voice.digest else b""

    def change(self, owner: str, decide: Callable[[Shelves], Change]) -> Change:
        with self._asking(), self._redis.pipeline(transaction=True) as pipe:
            for _ in range(TRIES):
                with contextlib.suppress(redis.WatchError):
                    return self._try(pipe, owner, decide)
        text = "other brokers change voices at the same time: try again"
        raise Unavailable(text, retry_after=RETRY_S)

    def close(self) -> None:
        """Closes the connections."""
        self._redis.close()

    def _try(self, pipe: Pipeline, owner: str, decide: Callable[[Shelves], Change]) -> Change:
        """Raises `WatchError` if something has changed since it was read."""
        places = (voices_of(owner), SHARED_VOICES, USE_OF_VOICES)
        pipe.watch(*places)  # type: ignore[no-untyped-call]
        shelves = self._read(owner, *(cast(_Hash, pipe.hgetall(place)) for place in places))
        change = decide(shelves)
        recording = change.recording
        if change.put and change.drop and recording is None:
            recording = cast("bytes | None", pipe.get(recording_of(change.drop.id)))
        pipe.multi()
        left = dict(shelves.own)
        if change.drop:
            del left[change.drop.name]
            self._drop(pipe, change.drop)
        if change.put:
            left[change.put.name] = change.put
            self._put(pipe, change.put, recording or b"")
        self._note_use(pipe, owner, use_of(left))
        pipe.execute()
        return change

    def _drop(self, pipe: Pipeline, voice: VoiceRecord) -> None:
        pipe.hdel(voices_of(voice.owner), voice.name)
        pipe.delete(recording_of(voice.id))
        if voice.shared:
            pipe.hdel(SHARED_VOICES, voice.name)

    def _put(self, pipe: Pipeline, voice: VoiceRecord, recording: bytes) -> None:
        pipe.hset(voices_of(voice.owner), voice.name, voice.packed())
        pipe.set(recording_of(voice.id), recording)
        if voice.shared:
            pipe.hset(SHARED_VOICES, voice.name, voice.packed())

    def _note_use(self, pipe: Pipeline, owner: str, use: Use) -> None:
        if use.voices:
            pipe.hset(USE_OF_VOICES, owner_field(owner), f"{use.voices} {use.size}")
        else:
            pipe.hdel(USE_OF_VOICES, owner_field(owner))

    def _read(self, owner: str, own: _Hash, shared: _Hash, use: _Hash) -> Shelves:
        mine = owner_field(owner).encode()
        taken = [_use(packed) for who, packed in use.items() if who != mine]
        others = Use(sum(each.voices for each in taken), sum(each.size for each in taken))
        return Shelves(self._records(own), self._records(shared), others)

    def _records(self, packed: _Hash) -> dict[str, VoiceRecord]:
        """By name, the oldest first; what is damaged is left out, and told."""
        records = []
        for content in packed.values():
            try:
                records.append(unpacked(content))
            except ValueError as error:
                self._log.error("a voice's record is damaged", problem=str(error))
        return {voice.name: voice for voice in sorted(records, key=lambda voice: voice.created)}

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except (redis.RedisError, OSError) as error:
            text = f"the voices in Redis at {self._where} cannot be had ({error}): {remedy(error)}"
            raise Unavailable(text, retry_after=RETRY_S) from error


def _use(packed: bytes) -> Use:
    count, _, size = packed.decode(errors="replace").partition(" ")
    return Use(int(count), int(size)) if count.isdecimal() and size.isdecimal() else Use()
