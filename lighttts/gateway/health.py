"""Whether the gateway lives and can speak, and its metrics: under the paths that LightTTS upstream has them."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lighttts.gateway.board import Board
from lighttts.gateway.door import Door
from lighttts.gateway.failures import RETRY_S, Failure
from lighttts.gateway.keys import ApiKey


class Health:
    """Probes are for everybody, metrics for holders of keys."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def routes(self, open_door: Door, door: Door) -> list[Route]:
        """The paths of this door."""
        return [
            open_door.route("/health", self._health, "GET"),
            open_door.route("/healthz", self._health, "GET"),
            open_door.route("/liveness", self._liveness, "GET"),
            open_door.route("/readiness", self._readiness, "GET"),
            door.route("/metrics", self._metrics, "GET"),
        ]

    async def _liveness(self, request: Request, key: ApiKey | None) -> Response:
        return JSONResponse({"status": "ok"})

    async def _readiness(self, request: Request, key: ApiKey | None) -> Response:
        problem = await self._board.problem()
        return _unready({"status": "unavailable", "detail": problem}) if problem else JSONResponse({"status": "ok"})

    async def _health(self, request: Request, key: ApiKey | None) -> Response:
        problem = await self._board.problem()
        return _unready({"message": "Error", "detail": problem}) if problem else JSONResponse({"message": "Ok"})

    async def _metrics(self, request: Request, key: ApiKey | None) -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


def _unready(content: dict[str, str]) -> Response:
    headers = Failure(503, "unavailable", content["detail"], retry_after=RETRY_S).headers
    return JSONResponse(content, 503, headers)
