"""Errors as the broker tells them."""

from __future__ import annotations

from lighttts.errors import LightTTSError, from_code
from lighttts.transport.wire import Error, VoiceFailed


def error_of(message: Error | VoiceFailed) -> LightTTSError:
    """The typed error that a message carries."""
    return from_code(
        message.code,
        message.text,
        field=message.field,
        retryable=message.retryable,
        retry_after=message.retry_after_ms / 1000 if message.retry_after_ms else None,
    )
