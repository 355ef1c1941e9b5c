"""Features of prompts seen are kept within a bound of bytes; the least recently used go first."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lighttts.frontend.cache import FeatureCache
from lighttts.frontend.prompt import VoiceFeatures


def features(tokens: int) -> VoiceFeatures:
    """Features of 4 bytes a token."""
    return VoiceFeatures.of(np.arange(tokens, dtype=np.int32), np.zeros((0, 80), np.float32), np.zeros(0, np.float32))


def test_the_least_recently_used_is_forgotten_first():
    cache = FeatureCache(80)
    cache.put("a", features(10))
    cache.put("b", features(10))
    cache.get("a")
    cache.put("c", features(10))
    assert cache.get("b") is None
    assert cache.get("a") is not None
    assert cache.get("c") is not None
    assert (cache.hits, cache.misses) == (3, 1)


def test_what_is_not_used_for_a_time_is_forgotten():
    now = [0.0]
    cache = FeatureCache(1000, 10.0, lambda: now[0])
    cache.put("used", features(10))
    cache.put("unused", features(10))
    now[0] = 10.0
    cache.get("used")
    now[0] = 10.5
    cache.expire()
    assert cache.size == 40
    assert cache.get("unused") is None
    assert cache.get("used") is not None


def test_what_is_to_be_forgotten_is():
    cache = FeatureCache(1000)
    cache.put("a", features(10))
    cache.forget("a")
    cache.forget("never there")
    assert cache.get("a") is None
    assert cache.size == 0


def test_what_exceeds_the_bound_alone_displaces_nothing():
    cache = FeatureCache(80)
    cache.put("a", features(10))
    cache.put("b", features(21))
    assert cache.get("b") is None
    assert cache.get("a") is not None


def test_replacing_an_entry_counts_it_once():
    cache = FeatureCache(80)
    cache.put("a", features(10))
    cache.put("a", features(20))
    kept = cache.get("a")
    assert kept is not None
    assert kept.nbytes == cache.size == 80


@given(st.integers(0, 200), st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 60))))
def test_the_bytes_held_never_exceed_the_bound(limit, puts):
    cache = FeatureCache(limit)
    for digest, tokens in puts:
        cache.put(digest, features(tokens))
        held = [entry for entry in map(cache.get, "abcdef") if entry is not None]
        assert cache.size == sum(entry.nbytes for entry in held) <= limit


def test_features_have_the_same_key_just_when_their_content_is_the_same():
    keys = [features(3).key, features(3).key, features(4).key]
    assert keys[0] == keys[1] != keys[2]
    assert len(keys[0]) == 64
