"""Where voices are kept, on disk and in Redis: both do the same, and what is removed is gone."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighttts.broker.keys import PREFIX
from lighttts.broker.voice_files import SUFFIX, FileStore, default_directory
from lighttts.broker.voice_records import Room, VoiceRecord, digest_of, unpacked
from lighttts.broker.voice_redis import RedisVoices
from lighttts.broker.voice_store import VoiceStore
from lighttts.errors import LightTTSError, QuotaExceeded, Unavailable, UnknownVoice, VoiceExists
from tests.redis_server import RedisServer

ROOM = Room(owned=10, owned_bytes=10_000, all=20, all_bytes=20_000)
WAV = b"RIFF of a voice"
Open = Callable[[], VoiceStore]


def voice(name: str = "mine", owner: str = "me", recording: bytes = WAV, *, shared: bool = False) -> VoiceRecord:
    return VoiceRecord(owner, name, "What I say.", shared, 5.0, len(recording), digest_of(recording), "key")


@pytest.fixture(params=["files", "redis"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the same place as often as is asked."""
    stores: list[VoiceStore] = []
    redis: RedisServer | None = request.getfixturevalue("redis_server") if request.param == "redis" else None

    def open_one() -> VoiceStore:
        stores.append(RedisVoices(redis.url) if redis else FileStore(tmp_path / "made" / "when needed"))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


def put(store: VoiceStore, new: VoiceRecord, recording: bytes = WAV, *, over: bool = False) -> VoiceRecord | None:
    return store.put(new, recording, ROOM, over=over)


def test_another_broker_finds_what_one_has_kept(opened: Open) -> None:
    one, other = opened(), opened()
    assert put(one, voice()) is None
    found = other.find("me", "mine")
    assert found == voice()
    assert other.recording(found) == WAV
    assert [*other.shelves("me").own] == ["mine"]


def test_an_empty_place_has_no_voices(opened: Open) -> None:
    store = opened()
    assert store.shelves("me") == ({}, {}, (0, 0))
    with pytest.raises(UnknownVoice):
        store.find("me", "mine")


def test_what_one_removes_no_other_finds(opened: Open) -> None:
    one, other = opened(), opened()
    put(one, voice())
    found = other.find("me", "mine")
    assert one.remove("me", "mine") == voice()
    with pytest.raises(UnknownVoice):
        other.find("me", "mine")
    assert other.recording(found) == b""


def test_a_replaced_voice_has_the_new_recording_only(opened: Open) -> None:
    store = opened()
    put(store, voice())
    with pytest.raises(VoiceExists):
        put(store, voice(recording=b"other"), b"other")
    assert put(store, voice(recording=b"other"), b"other", over=True) == voice()
    assert store.recording(voice()) == b""
    assert store.recording(store.find("me", "mine")) == b"other"


def test_a_renamed_voice_keeps_its_recording(opened: Open) -> None:
    store = opened()
    put(store, voice(shared=True))
    after = store.rename("me", "mine", "yours")
    assert after == replace(voice(shared=True), name="yours")
    assert store.recording(after) == WAV
    assert [*store.shelves("me").own] == [*store.shelves("you").shared] == ["yours"]
    put(store, voice("third"))
    with pytest.raises(VoiceExists):
        store.rename("me", "yours", "third")


def test_names_are_any_text(opened: Open) -> None:
    store = opened()
    for name in ("..", "a/b", "声音", "x" * 128, "\0"):
        put(store, voice(name, owner=f"api/{name}"))
        assert store.find(f"api/{name}", name).name == name


def test_room_is_counted_over_all_owners(opened: Open) -> None:
    one, other = opened(), opened()
    small = Room(owned=2, owned_bytes=1000, all=3, all_bytes=1000)
    for name, owner in (("a", "me"), ("b", "me"), ("a", "you")):
        one.put(voice(name, owner), WAV, small, over=False)
    with pytest.raises(QuotaExceeded, match="you may have 2"):
        other.put(voice("c", "me"), WAV, replace_room(small, all=9), over=False)
    with pytest.raises(QuotaExceeded, match="used up"):
        other.put(voice("b", "you"), WAV, small, over=False)
    other.remove("me", "a")
    other.put(voice("b", "you"), WAV, small, over=False)
    with pytest.raises(QuotaExceeded):
        other.put(voice("c", "you", b"x" * 2000), b"x" * 2000, replace_room(small, owned=9, all=9), over=False)


def replace_room(room: Room, **changes: int) -> Room:
    return room._replace(**changes)


def test_of_many_who_add_at_once_nobody_is_lost_and_room_is_kept(opened: Open) -> None:
    stores = [opened() for _ in range(4)]
    outcomes: list[str] = []

    def fill(number: int) -> None:
        for index in range(4):
            try:
                stores[number].put(voice(f"{number}.{index}"), WAV, ROOM, over=False)
                outcomes.append("kept")
            except LightTTSError as error:
                outcomes.append(error.code)

    threads = [threading.Thread(target=fill, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("kept") == len(stores[0].shelves("me").own) <= ROOM.owned
    assert set(outcomes) <= {"kept", "quota_exceeded", "unavailable"}


def test_a_folder_that_has_not_changed_is_not_looked_through_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = FileStore(tmp_path), FileStore(tmp_path)
    put(store, voice())
    os.utime(tmp_path, ns=(1, 1))
    assert store.find("me", "mine") == voice()
    looks = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looks.append(path) or scandir(path))
    assert store.find("me", "mine") == voice()
    assert looks == []
    put(other, voice("another"))
    assert store.find("me", "another") == voice("another")


def test_files_are_the_owners_alone_and_named_by_a_hash(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "voices")
    put(store, voice("a name"))
    (file,) = (tmp_path / "voices").glob(f"*{SUFFIX}")
    assert file.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "voices").stat().st_mode & 0o777 == 0o700
    assert len(file.stem) == 64


def test_after_a_removal_nothing_of_the_recording_is_on_disk(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    put(store, voice())
    store.remove("me", "mine")
    assert not any(WAV in path.read_bytes() for path in tmp_path.iterdir())


def test_what_a_killed_writer_left_goes_with_the_next_change(tmp_path: Path) -> None:
    (tmp_path / ".0123456789abcdef.part").write_bytes(WAV)
    put(FileStore(tmp_path), voice())
    assert not [*tmp_path.glob("*.part")]


@given(st.binary(max_size=200), st.integers(0, 200))
def test_a_damaged_file_costs_only_its_voice(tmp_path_factory: pytest.TempPathFactory, junk: bytes, at: int) -> None:
    folder = tmp_path_factory.mktemp("voices")
    store = FileStore(folder)
    put(store, voice("good"))
    put(store, voice("bad", recording=b"other"), b"other")
    bad = folder / f"{voice('bad').id}{SUFFIX}"
    bad.write_bytes(bad.read_bytes()[:at] + junk)
    assert store.find("me", "good") == voice("good")
    for found in FileStore(folder).shelves("me").own.values():
        assert store.recording(found) in (WAV, b"", b"other")


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = FileStore(tmp_path / "file")
    with pytest.raises(Unavailable, match="voices_directory"):
        put(store, voice())


def test_the_services_state_directory_goes_before_the_users_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    assert default_directory() == Path("/data/lighttts/voices")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/lighttts")
    assert default_directory() == Path("/var/lib/lighttts/voices")


def test_after_a_removal_nothing_is_in_redis(redis_server: RedisServer) -> None:
    store = RedisVoices(redis_server.url)
    put(store, voice(shared=True))
    assert all(key.decode().startswith(f"{PREFIX}voices:") for key in redis_server.client().scan_iter())
    assert redis_server.client().keys()
    store.remove("me", "mine")
    assert redis_server.client().keys() == []
    store.close()


def test_redis_that_is_away_is_told_and_works_when_it_is_back(redis_server: RedisServer) -> None:
    store = RedisVoices(redis_server.url)
    redis_server.kill()
    with pytest.raises(Unavailable, match="start it"):
        store.find("me", "mine")
    redis_server.start()
    put(store, voice())
    assert store.find("me", "mine") == voice()
    store.close()


def test_a_damaged_record_in_redis_costs_only_its_voice(redis_server: RedisServer) -> None:
    store = RedisVoices(redis_server.url)
    put(store, voice())
    (own,) = redis_server.client().keys(f"{PREFIX}voices:*of:*")
    redis_server.client().hset(own, "bad", b"\x91")
    assert [*store.shelves("me").own] == ["mine"]
    with pytest.raises(UnknownVoice):
        store.find("me", "bad")
    store.close()


@given(st.binary(max_size=100))
def test_what_is_no_record_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="it "):
        unpacked(content)
