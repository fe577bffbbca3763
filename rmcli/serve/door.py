"""What every request passes first: it needs the token, and it is counted."""

from collections.abc import Collection
from time import perf_counter
from typing import Any

from starlette.responses import JSONResponse

from rmcli.serve.service import Service
from rmcli.serve.token import is_right

OPEN = ("/health", "/ready")  # what probes ask, which have no token
_NO_TOKEN = {"detail": "the bearer token is missing or wrong", "hint": "send Authorization: Bearer TOKEN"}


class Door:
    """ASGI around an application. `paths`: those that it has; others are counted as one."""

    def __init__(self, app: Any, service: Service, token: str | None, paths: Collection[str]) -> None:
        self._app, self._service, self._token, self._paths = app, service, token, frozenset(paths)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, path, status = perf_counter(), scope["path"], 500

        async def noted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._service.active += 1
        try:
            if self._token is None or path in OPEN or is_right(self._token, scope["headers"]):
                await self._app(scope, receive, noted)
            else:
                refusal = JSONResponse(_NO_TOKEN, 401, headers={"WWW-Authenticate": "Bearer"})
                await refusal(scope, receive, noted)
        finally:
            self._service.active -= 1
            known = path if path in self._paths else "other"
            self._service.metrics.note_request(known, status, perf_counter() - started)
