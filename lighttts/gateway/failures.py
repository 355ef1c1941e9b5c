"""What is told over HTTP when a request fails: a status for each error, and the shapes that the doors write it in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from lighttts import errors
from lighttts.errors import LightTTSError
from lighttts.logs import get_logger

RETRY_S = 1.0
"""Seconds to wait, told where an error says that a retry can help but not when."""

_STATUS: dict[type[LightTTSError], int] = {
    errors.InvalidInput: 400,
    errors.UnknownVoice: 400,
    errors.VoiceExists: 409,
    errors.Forbidden: 403,
    errors.QuotaExceeded: 403,
    errors.Overloaded: 503,
    errors.NoWorker: 503,
    errors.Unavailable: 503,
    errors.UnknownRequest: 503,
    errors.DeadlineExceeded: 504,
    errors.WorkerFailed: 502,
    errors.AccessDenied: 502,
    errors.ProtocolError: 502,
}
"""500 for all others."""
_CODES = {404: "not_found", 405: "method_not_allowed"}
"""What the framework refuses, beside forms that it cannot read."""


@dataclass(frozen=True)
class Failure:
    """`code` is stable, `text` a sentence for a person, `field` what of the request is wrong, if that is why.

    `retry_after`: seconds, None if trying again cannot help.
    """

    status: int
    code: str
    text: str
    field: str = ""
    retry_after: float | None = None

    @property
    def headers(self) -> dict[str, str]:
        """What says when to come back, and how to be let in."""
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after)))
        if self.status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        return headers


class Refused(Exception):
    """Raised by the gateway itself for a request that does not get as far as the broker."""

    def __init__(self, status: int, code: str, text: str, *, field: str = "", retry_after: float | None = None) -> None:
        super().__init__(text)
        self.failure = Failure(status, code, text, field, retry_after)


def invalid(error: ValidationError) -> Refused:
    """What is told of fields that are not as they should be: the first of them, and never what it held."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field = str(first["loc"][0]) if first["loc"] else ""
    text = f"{field}: {first['msg']}" if field else first["msg"]
    return Refused(400, "invalid_input", text, field=field)


Shape = Callable[[Failure], Response]
"""How a door writes a failure."""


def failure_of(error: Exception) -> Failure:
    """What is told of an error; one that is a defect of ours goes to the log instead."""
    if isinstance(error, Refused):
        return error.failure
    if isinstance(error, LightTTSError):
        again = (error.retry_after or RETRY_S) if error.retryable else None
        return Failure(_STATUS.get(type(error), 500), error.code, error.text, error.field, again)
    if isinstance(error, HTTPException):
        return Failure(error.status_code, _CODES.get(error.status_code, "invalid_input"), error.detail)
    get_logger().error("request failed", exc_info=error)
    return Failure(500, "internal", "a defect of this server: its log tells more")


def problem(failure: Failure) -> Response:
    """RFC 9457: for doors without a convention of their own."""
    return JSONResponse(_problem(failure), failure.status, failure.headers, "application/problem+json")


def upstream_problem(failure: Failure) -> Response:
    """The same with `message` for clients of LightTTS; those of CosyVoice's servers read `detail`."""
    content = {**_problem(failure), "message": failure.text}
    return JSONResponse(content, failure.status, failure.headers, "application/problem+json")


def openai_error(failure: Failure) -> Response:
    """As OpenAI's API does it."""
    return JSONResponse(openai_content(failure), failure.status, failure.headers)


def openai_content(failure: Failure) -> dict[str, object]:
    """The body of an OpenAI error."""
    return {
        "error": {
            "message": failure.text,
            "type": _openai_type(failure.status),
            "param": failure.field or None,
            "code": failure.code,
        }
    }


def _problem(failure: Failure) -> dict[str, object]:
    content: dict[str, object] = {
        "type": "about:blank",
        "title": HTTPStatus(failure.status).phrase,
        "status": failure.status,
        "detail": failure.text,
        "code": failure.code,
    }
    return {**content, "field": failure.field} if failure.field else content


def _openai_type(status: int) -> str:
    if status == HTTPStatus.UNAUTHORIZED:
        return "authentication_error"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"
