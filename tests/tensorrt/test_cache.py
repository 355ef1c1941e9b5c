"""Built engines on disk: found again under the same key only, whole or not at all."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from lighttts.errors import ConfigError
from lighttts.tensorrt.builder import Profile, Span
from lighttts.tensorrt.cache import EngineCache, EngineKey, default_folder

KEY = EngineKey(
    model="a" * 64,
    graph="b" * 64,
    dtype="torch.float16",
    profile=Profile(Span(2, 8, 32), Span(1, 50, 200), Span(0, 400, 2000)),
    library="tensorrt",
    version="10.14.1",
    gpu="NVIDIA H100 80GB HBM3",
    capability=(9, 0),
)


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


def test_an_engine_is_found_again_by_another_process(cache) -> None:
    cache.save(KEY, b"plan")
    assert EngineCache(cache.folder).load(replace(KEY)) == b"plan"


@pytest.mark.parametrize(
    "change",
    [
        {"model": "a" * 63 + "c"},
        {"graph": "c" * 64},
        {"dtype": "torch.bfloat16"},
        {"profile": replace(KEY.profile, past=Span(0, 400, 2050))},
        {"library": "tensorrt_rtx"},
        {"version": "10.14.2"},
        {"gpu": "NVIDIA H200"},
        {"capability": (10, 0)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_engine_of_something_else_is_not_found(cache, change) -> None:
    cache.save(KEY, b"plan")
    assert cache.load(replace(KEY, **change)) is None


def test_nothing_is_found_where_nothing_was_saved(cache) -> None:
    assert cache.load(KEY) is None


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:-1] + b"x", lambda b: b"", lambda b: b[:32]])
def test_a_damaged_engine_is_reported_and_not_used(cache, damage) -> None:
    path = cache.save(KEY, b"plan of some length")
    path.write_bytes(damage(path.read_bytes()))
    with structlog.testing.capture_logs() as logs:
        assert cache.load(KEY) is None
    assert [(entry["log_level"], entry["path"]) for entry in logs] == [("warning", str(path))]


def test_saving_again_replaces_and_leaves_one_file(cache) -> None:
    cache.save(KEY, b"old")
    cache.save(KEY, b"new")
    assert cache.load(KEY) == b"new"
    assert os.listdir(cache.folder) == [KEY.file]


def test_a_write_that_fails_leaves_the_old_engine_and_no_debris(cache, monkeypatch) -> None:
    cache.save(KEY, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match=r"No space left on device.*decode\.engine_cache"):
        cache.save(KEY, b"new")
    assert cache.load(KEY) == b"old"
    assert os.listdir(cache.folder) == [KEY.file]


def test_only_its_owner_may_read_or_change_the_folder(cache) -> None:
    path = cache.save(KEY, b"plan")
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o077 == 0


def test_an_engine_that_cannot_be_read_is_an_error(cache) -> None:
    cache.path(KEY).mkdir(parents=True)
    with pytest.raises(ConfigError, match="cannot be read"):
        cache.load(KEY)


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"CACHE_DIRECTORY": "/var/cache/lighttts:/b"}, "/var/cache/lighttts/tensorrt"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/lighttts/tensorrt"),
        ({"HOME": "/home/someone"}, "/home/someone/.cache/lighttts/tensorrt"),
    ],
)
def test_the_default_folder_is_where_the_system_keeps_caches(monkeypatch, environment, folder) -> None:
    for name in ("CACHE_DIRECTORY", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert default_folder() == Path(folder)
