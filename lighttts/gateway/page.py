"""The page at /: type, choose a voice, hear it as it is made."""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from lighttts.gateway.door import Door
from lighttts.gateway.keys import ApiKey

_HEADERS = {
    # It needs nothing from elsewhere, so nothing from elsewhere gets in.
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def routes(door: Door) -> list[Route]:
    """The path of the page."""
    content = files("lighttts.gateway").joinpath("page.html").read_text("utf-8")

    async def page(request: Request, key: ApiKey | None) -> Response:
        return HTMLResponse(content, headers=_HEADERS)

    return [door.route("/", page, "GET")]
