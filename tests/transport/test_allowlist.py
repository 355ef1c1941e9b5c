"""The list of allowed keys: what is read again, what is told, and whose connections stand."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lighttts.transport import allowlist
from lighttts.transport.allowlist import AllowList
from lighttts.transport.keyfiles import KeyFolder, Role, new_pair

ALICE, BOB = new_pair().public, new_pair().public
OLD_NS = 10**9


class Listed:
    """A list under test, with what it reported and which files it read. Its clocks stand at a time of their own."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = KeyFolder(path)
        self.folder.make_lists()
        self.told: list[str] = []
        self.read: list[str] = []
        self.list = AllowList(self.folder, Role.CLIENT, self.told.append)
        self.now = 100.0
        read = self.folder.allowed_key
        monkeypatch.setattr(
            self.folder, "allowed_key", lambda role, name: (self.read.append(name), read(role, name))[1]
        )
        monkeypatch.setattr(allowlist.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(allowlist.time, "time_ns", lambda: time_ns() + OLD_NS)

    def later(self) -> None:
        """Time passes in which a list is looked through again."""
        self.now += allowlist.RESCAN_S
        self.read.clear()
        self.list.refresh()


time_ns = time.time_ns


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Listed:
    listed = Listed(tmp_path, monkeypatch)
    listed.folder.allow(Role.CLIENT, "alice", ALICE)
    listed.folder.allow(Role.CLIENT, "bob", BOB)
    return listed


def keys(*publics: bytes) -> frozenset[str]:
    return frozenset(public.decode() for public in publics)


def test_names_belong_to_keys(listed: Listed) -> None:
    assert [listed.list.name_of(key) for key in (ALICE, BOB, new_pair().public)] == ["alice", "bob", None]


def test_a_file_that_has_not_changed_is_not_read_again(listed: Listed) -> None:
    listed.list.refresh()
    assert listed.read == ["alice", "bob"]
    standing = listed.list.standing
    listed.later()
    assert listed.read == []
    assert listed.list.standing is standing


def test_a_file_that_changed_a_moment_ago_is_read_again_for_its_time_stamp_may_stay(
    listed: Listed, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed.list.refresh()
    monkeypatch.setattr(allowlist.time, "time_ns", time_ns)
    listed.folder.allow(Role.CLIENT, "alice", BOB, replace=True)
    listed.later()
    listed.later()
    assert "alice" in listed.read


def test_a_file_changed_in_place_and_dated_back_is_read_again(listed: Listed) -> None:
    listed.list.refresh()
    path = listed.folder.allowed_file(Role.CLIENT, "alice")
    before, other = path.stat(), new_pair().public
    path.write_bytes(path.read_bytes().replace(ALICE, other))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    listed.later()
    assert listed.read == ["alice"]
    assert listed.list.standing == keys(other, BOB)


def test_a_removed_key_stands_no_longer(listed: Listed) -> None:
    listed.list.refresh()
    assert listed.list.standing == keys(ALICE, BOB)
    listed.folder.forbid(Role.CLIENT, "alice")
    listed.later()
    assert listed.list.standing == keys(BOB)


def test_a_damaged_file_is_told_once_admits_nobody_and_ends_nothing(listed: Listed) -> None:
    listed.list.refresh()
    listed.folder.allowed_file(Role.CLIENT, "alice").write_text("oops")
    for _ in range(3):
        listed.later()
    assert ["alice.key is not a public client key" in text for text in listed.told] == [True]
    assert listed.list.name_of(ALICE) is None
    assert listed.list.standing == keys(ALICE, BOB)


def test_a_missing_list_is_told_once_admits_nobody_and_ends_nothing(listed: Listed) -> None:
    listed.list.refresh()
    folder = listed.folder.allowed_folder(Role.CLIENT)
    folder.rename(folder.with_name("elsewhere"))
    for _ in range(3):
        listed.later()
    assert ["cannot be read" in text for text in listed.told] == [True]
    assert listed.list.name_of(ALICE) is None
    assert listed.list.standing == keys(ALICE, BOB)
    folder.with_name("elsewhere").rename(folder)
    assert listed.list.name_of(ALICE) == "alice"


def test_a_file_that_is_damaged_from_the_start_stands_for_nobody(listed: Listed) -> None:
    listed.folder.allowed_file(Role.CLIENT, "alice").write_text("oops")
    listed.list.refresh()
    assert listed.list.standing == keys(BOB)
