"""The pages for people: at / one to hear it with, at /docs what the OpenAPI document says. Neither needs the other's
or anybody else's files."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from lighttts.gateway.door import Door
from lighttts.gateway.keys import ApiKey


def routes(door: Door) -> list[Route]:
    """The paths of the pages."""
    return [_route(door, "/", "page.html"), _route(door, "/docs", "docs.html")]


def _route(door: Door, path: str, file: str) -> Route:
    content = files("lighttts.gateway").joinpath(file).read_text("utf-8")
    headers = headers_of(content)

    async def page(request: Request, key: ApiKey | None) -> Response:
        return HTMLResponse(content, headers=headers)

    return door.route(path, page, "GET")


def headers_of(page: str) -> dict[str, str]:
    """What a page is sent with: it needs nothing from elsewhere, so only its own script and style run."""
    script, style = (_sources(page, tag) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }


def _sources(page: str, tag: str) -> str:
    """The elements of `tag` as a policy names them, by their hashes."""
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii") for text in found)
    return " ".join(f"'sha256-{each}'" for each in hashes) or "'none'"
