"""What `doctor` says of the Redis that keeps the state of requests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import redis

from lighttts.broker.redis_address import Redis, misconfigured, redis_at
from lighttts.broker.redis_faults import ACL, remedy
from lighttts.broker.redis_look import Look
from lighttts.broker.redis_records import Records
from lighttts.cli.checks import Finding, Level
from lighttts.errors import ConfigError

LITTLE = 0.1
"""A share of memory below which it may soon be full."""
RECORD_S = 10.0
MIB = 1 << 20


def findings(url: str) -> Iterator[Finding]:
    """All that can be found at `url`, by doing there what a broker does."""
    try:
        there = redis_at(url)
    except ConfigError as error:
        yield Finding(Level.PROBLEM, error.text)
        return
    with there.client:
        problem = _use(there)
        if problem:
            yield Finding(Level.PROBLEM, f"Redis at {there.where} {problem}")
            return
        yield Finding(Level.OK, f"Redis at {there.where} answers and keeps what the broker writes")
        yield from _memory(there)


def _use(there: Redis) -> str:
    """Why a broker could not use it; empty if it could."""
    try:
        there.client.ping()
    except (redis.RedisError, OSError) as error:
        wrong = misconfigured(there, error)
        if wrong:
            return f"does not let the broker in ({error}): {wrong}"
        return f"does not answer ({error}): {remedy(error)}, or correct broker.state"
    name = f"doctor-{os.urandom(8).hex()}"
    try:
        Look(there.client, Records(there.client, name, RECORD_S), name, there.where).rehearse()
    except (redis.RedisError, OSError) as error:
        return f"does not take what the broker writes ({error}): {remedy(error)}"
    return ""


def _memory(there: Redis) -> Iterator[Finding]:
    try:
        info = there.client.info("memory")
    except redis.exceptions.NoPermissionError:
        text = f"Redis at {there.where} does not tell its memory: allow it with ACL SETUSER <user> {ACL}"
        yield Finding(Level.NOTE, text)
        return
    limit, used, policy = int(info["maxmemory"]), int(info["used_memory"]), str(info["maxmemory_policy"])
    if limit and policy != "noeviction":
        text = f"Redis at {there.where} may drop the state of live requests when its memory is full ({policy})"
        yield Finding(Level.PROBLEM, f"{text}: set maxmemory-policy noeviction")
    whole = limit or int(info["total_system_memory"])
    if whole - used < LITTLE * whole:
        left = f"{(whole - used) / MIB:.0f} of {whole / MIB:.0f} MiB"
        mend = "raise maxmemory, or lower broker.state_ttl_s" if limit else "give it more memory"
        yield Finding(Level.PROBLEM, f"Redis at {there.where} has little memory left, {left}: {mend}")
