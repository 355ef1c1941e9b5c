"""Which stores a broker has: where requests are kept, and where voices are, as the settings say."""

from __future__ import annotations

import os
from collections.abc import Callable

from lighttts.broker.redis_store import Limits, RedisStore
from lighttts.broker.state import MemoryStore, StateStore, StoreEvents
from lighttts.broker.voice_files import FileStore, default_directory
from lighttts.broker.voice_keeper import VoiceKeeper
from lighttts.broker.voice_questions import Answer
from lighttts.broker.voice_records import Room
from lighttts.broker.voice_redis import RedisVoices
from lighttts.broker.voice_store import VoiceStore
from lighttts.config import BrokerConfig


def open_store(settings: BrokerConfig, name: str, events: StoreEvents) -> StateStore:
    """The state store of the broker `name`. `events` are called in threads of the store's.

    Raises `ConfigError`, and `Unavailable` when Redis does not answer.
    """
    if _in_memory(settings):
        return MemoryStore()
    limits = Limits(breaker_failures=settings.redis_breaker_failures, breaker_s=settings.redis_breaker_s)
    return RedisStore(settings.state, settings.state_ttl_s, f"{name}-{os.urandom(4).hex()}", events, limits)


def open_voices(settings: BrokerConfig, answered: Callable[[int, Answer], None]) -> VoiceKeeper:
    """Registered voices: in files if requests are in memory, else in the same Redis. `answered` is called in a thread
    of the keeper's, with the number of the question."""
    store: VoiceStore
    if _in_memory(settings):
        store = FileStore(settings.voices_directory or default_directory())
    else:
        store = RedisVoices(settings.state)
    room = Room(settings.client_voices, _bytes(settings.client_voices_mb), settings.voices, _bytes(settings.voices_mb))
    return VoiceKeeper(store, room, _bytes(settings.voice_cache_mb), settings.redis_breaker_s, answered)


def _in_memory(settings: BrokerConfig) -> bool:
    return settings.state.startswith("memory://")


def _bytes(mib: float) -> int:
    return int(mib * 2**20)
