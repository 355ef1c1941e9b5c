"""Every error LightTTS reports, each with a stable code that survives the wire.

An error is a sentence that says what is wrong and what to do. `code` never changes meaning; `retryable` says whether
the same request may succeed later, `retry_after` (seconds) when to try. `exit_code` is what a command line tool returns
(sysexits.h numbering where it has one). `from_code` turns a code received in a message back into its class.
"""

from __future__ import annotations

from typing import ClassVar


class LightTTSError(Exception):
    """Base of all errors. `text` is one sentence for a person; `field` names the offending input, if one does."""

    code: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 70
    default_retryable: ClassVar[bool] = False

    def __init__(
        self, text: str, *, field: str = "", retryable: bool | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(text)
        self.text = text
        self.field = field
        self.retryable = self.default_retryable if retryable is None else retryable
        self.retry_after = retry_after


class InvalidInput(LightTTSError):
    """The request itself is wrong: text, prompt audio, option or value. Sending it again cannot help."""

    code = "invalid_input"
    exit_code = 65


class UnknownVoice(InvalidInput):
    """No voice of that name: neither a preset one nor a registered one that this client may use."""

    code = "unknown_voice"


class VoiceExists(InvalidInput):
    """The name is taken: by another voice, or by a preset one, which always stays."""

    code = "voice_exists"


class Forbidden(LightTTSError):
    """What is asked for is another key's to do."""

    code = "forbidden"
    exit_code = 77


class QuotaExceeded(LightTTSError):
    """There is no room for more voices: remove some, or have the limit raised."""

    code = "quota_exceeded"
    exit_code = 73


class ProtocolError(LightTTSError):
    """A message that is not valid LightTTS protocol: magic, version, tag, size, field or payload."""

    code = "protocol"
    exit_code = 76


class Overloaded(LightTTSError):
    """The system is full; retry after `retry_after` seconds."""

    code = "overloaded"
    exit_code = 75
    default_retryable = True


class NoWorker(LightTTSError):
    """No worker of a needed stage is connected."""

    code = "no_worker"
    exit_code = 69
    default_retryable = True


class Unavailable(LightTTSError):
    """A service that is needed cannot be reached (broker, Redis) or is shutting down."""

    code = "unavailable"
    exit_code = 69
    default_retryable = True


class AccessDenied(LightTTSError):
    """The broker does not let this client in: it has no key, one that is not allowed, or another broker's."""

    code = "access_denied"
    exit_code = 77


class DeadlineExceeded(LightTTSError):
    """The request's deadline or the caller's timeout passed before it was complete."""

    code = "deadline_exceeded"
    exit_code = 75
    default_retryable = True


class Cancelled(LightTTSError):
    """The request was cancelled by its owner."""

    code = "cancelled"
    exit_code = 130


class SlowClient(LightTTSError):
    """The client did not take the frames that waited for it."""

    code = "slow_client"
    exit_code = 75


class WorkerFailed(LightTTSError):
    """A worker failed or vanished while it worked on the request."""

    code = "worker_failed"
    exit_code = 70
    default_retryable = True


class UnknownRequest(LightTTSError):
    """The broker that was asked to go on with a request knows nothing of it."""

    code = "unknown_request"
    exit_code = 75
    default_retryable = True


class Poison(LightTTSError):
    """The request has ended the workers that computed it, one after another: it is not tried again."""

    code = "poison"
    exit_code = 70


class ModelError(LightTTSError):
    """A model directory or file is missing, corrupt or of an unsupported kind."""

    code = "model"
    exit_code = 78


class ConfigError(LightTTSError):
    """The configuration is wrong: unknown key, bad value, port in use, unusable path."""

    code = "config"
    exit_code = 78


class MissingDependency(LightTTSError):
    """A Python package or program needed for what was asked is not installed."""

    code = "missing_dependency"
    exit_code = 69


class InternalError(LightTTSError):
    """A defect: the text holds what is known, the daemon's log holds the rest."""


BY_CODE: dict[str, type[LightTTSError]] = {
    cls.code: cls
    for cls in (
        InvalidInput,
        UnknownVoice,
        VoiceExists,
        Forbidden,
        QuotaExceeded,
        ProtocolError,
        Overloaded,
        NoWorker,
        Unavailable,
        AccessDenied,
        DeadlineExceeded,
        Cancelled,
        SlowClient,
        WorkerFailed,
        UnknownRequest,
        Poison,
        ModelError,
        ConfigError,
        MissingDependency,
        InternalError,
    )
}


def from_code(
    code: str, text: str, *, field: str = "", retryable: bool = False, retry_after: float | None = None
) -> LightTTSError:
    """The typed error for a received `code`; an unknown code (a newer peer's) becomes `InternalError` naming it."""
    cls = BY_CODE.get(code)
    if cls is None:
        return InternalError(f"{text} (code {code})", field=field, retryable=retryable, retry_after=retry_after)
    return cls(text, field=field, retryable=retryable, retry_after=retry_after)
