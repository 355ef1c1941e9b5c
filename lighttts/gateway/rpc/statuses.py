"""What is told over gRPC when a call fails: a status code, a sentence, and the rest as trailing metadata."""

from __future__ import annotations

import math
from http import HTTPStatus

from grpc import StatusCode

from lighttts.gateway.failures import Failure

Metadata = tuple[tuple[str, str], ...]

_BY_CODE = {
    "overloaded": StatusCode.RESOURCE_EXHAUSTED,
    "quota_exceeded": StatusCode.RESOURCE_EXHAUSTED,
    "worker_failed": StatusCode.UNAVAILABLE,
    "cancelled": StatusCode.CANCELLED,
    "slow_client": StatusCode.ABORTED,
}
"""Where HTTP's status says less than the error's own code."""
_BY_STATUS = {
    HTTPStatus.BAD_REQUEST: StatusCode.INVALID_ARGUMENT,
    HTTPStatus.UNPROCESSABLE_ENTITY: StatusCode.INVALID_ARGUMENT,
    HTTPStatus.UNAUTHORIZED: StatusCode.UNAUTHENTICATED,
    HTTPStatus.FORBIDDEN: StatusCode.PERMISSION_DENIED,
    HTTPStatus.NOT_FOUND: StatusCode.NOT_FOUND,
    HTTPStatus.CONFLICT: StatusCode.ALREADY_EXISTS,
    HTTPStatus.REQUEST_TIMEOUT: StatusCode.DEADLINE_EXCEEDED,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: StatusCode.RESOURCE_EXHAUSTED,
    HTTPStatus.TOO_MANY_REQUESTS: StatusCode.RESOURCE_EXHAUSTED,
    HTTPStatus.SERVICE_UNAVAILABLE: StatusCode.UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT: StatusCode.DEADLINE_EXCEEDED,
}
"""INTERNAL for all others."""


def status_of(failure: Failure) -> StatusCode:
    """The status code."""
    return _BY_CODE.get(failure.code) or _BY_STATUS.get(HTTPStatus(failure.status), StatusCode.INTERNAL)


def metadata_of(failure: Failure) -> Metadata:
    """`error-code` and `error-field`; when to try again in seconds, and in gRPC's own words for clients with a retry
    policy (a negative number: not at all)."""
    told = [("error-code", failure.code)]
    if failure.field:
        told.append(("error-field", failure.field))
    again = failure.retry_after
    if again is not None:
        told.append(("retry-after", str(max(1, math.ceil(again)))))
    told.append(("grpc-retry-pushback-ms", "-1" if again is None else str(math.ceil(again * 1000))))
    return tuple(told)
