"""What clients send, up to a bound in size and in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, UploadFile
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from lighttts.gateway.connection import ClientGone
from lighttts.gateway.failures import Refused
from lighttts.transport.wire import MAX_AUDIO_FILE

JSON_MAX_BYTES = 1 << 20
FIELD_MAX_BYTES = 512 << 10
"""Longest text in a form, as on the wire."""
FIELDS_MAX = 16
TEXTS_MAX_BYTES = 2 << 20
"""The texts of a form, with what it has around them and around files."""
FORM_MAX_BYTES = MAX_AUDIO_FILE + TEXTS_MAX_BYTES
"""A recording and its texts."""
BODY_S = 60.0
"""Seconds that a client has to send all of it."""


async def read_body(request: Request) -> bytes:
    """A small body, such as JSON. Raises `Refused` when it is too large or slow, `ClientGone`."""
    async with _bounded(request, JSON_MAX_BYTES) as bounded:
        return await bounded.body()


@asynccontextmanager
async def read_form(request: Request, files: int = 1) -> AsyncGenerator[FormData, None]:
    """A form in either encoding with at most so many `files`, which are closed at the end.

    Raises `Refused`, `HTTPException`, `ClientGone`.
    """
    async with _bounded(request, files * MAX_AUDIO_FILE + TEXTS_MAX_BYTES) as bounded:
        try:
            form = await bounded.form(max_files=files, max_fields=FIELDS_MAX, max_part_size=FIELD_MAX_BYTES)
        except (FormParserError, UnicodeDecodeError) as error:
            raise Refused(400, "invalid_input", "the body is no form that can be read") from error
    try:
        yield form
    finally:
        await form.close()


async def read_upload(form: FormData, name: str) -> bytes:
    """The content of the file in field `name`. Raises `Refused` when there is none."""
    file = form.get(name)
    if not isinstance(file, UploadFile):
        raise Refused(422, "invalid_input", f"{name} is missing: send an audio file in a multipart form", field=name)
    return await file.read()


@asynccontextmanager
async def _bounded(request: Request, most: int) -> AsyncGenerator[Request, None]:
    """The request with a body that ends in `Refused` beyond `most` bytes, or when it takes too long."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > most:
        raise _too_large(most)
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > most:
            raise _too_large(most)
        return message

    try:
        async with asyncio.timeout(BODY_S):
            yield Request(request.scope, receive)
    except TimeoutError as error:
        raise Refused(408, "timeout", f"the body was not complete after {BODY_S:g} s") from error
    except ClientDisconnect as error:
        raise ClientGone from error


def _too_large(most: int) -> Refused:
    return Refused(413, "too_large", f"the body is larger than {most} bytes: send less")
