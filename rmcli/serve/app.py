"""The application: a route per protocol, what probes ask, and the page that describes them all."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from rmcli import __version__
from rmcli.serve.door import Door
from rmcli.serve.metrics import CONTENT_TYPE
from rmcli.serve.protocols.known import PROTOCOLS
from rmcli.serve.protocols.protocol import Protocol, Refusal
from rmcli.serve.receive import Gone
from rmcli.serve.refusal import Refused, shown
from rmcli.serve.service import Service

_STATUSES = {
    401: "The bearer token is missing or wrong",
    408: "The client was too slow",
    413: "Too many bytes, conversations or tokens, or more than fits in memory",
    415: "The body is packed (Content-Encoding)",
    422: "Not a request that can be scored",
    429: "Too much waits already",
    503: "The server is shutting down",
}
_REFERENCE = "#/components/schemas/{model}"


class Health(BaseModel):
    """The process answers."""

    status: str


class Readiness(BaseModel):
    """`golden`: conversations of golden.jsonl, whose scores are held against those that they had at export."""

    ready: bool
    golden: int
    detail: str | None = None


def build_app(service: Service, token: str | None) -> Door:
    """The whole of it, as ASGI."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(title=f"rmcli: {service.served.name}", version=__version__, lifespan=lifespan, redoc_url=None)
    app.add_exception_handler(Exception, _fault)
    app.add_exception_handler(HTTPException, _no_such_place)
    for protocol in PROTOCOLS:
        app.add_api_route(
            protocol.path,
            _endpoint(service, protocol),
            methods=["POST"],
            summary=protocol.summary,
            description=protocol.body.__doc__,
            responses={200: {"model": protocol.reply}, **_refusals(token, *_STATUSES)},
            response_model=None,
            openapi_extra=_request_body(protocol),
        )
    _add_probes(app, service, token)
    app.openapi_schema = _described(app.openapi(), token)
    return Door(app, service, token, [*(protocol.path for protocol in PROTOCOLS), "/health", "/ready", "/metrics"])


def _endpoint(service: Service, protocol: Protocol) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            return JSONResponse(await service.answer(protocol, request))
        except Refused as refused:
            return JSONResponse(refused.as_dict(), refused.status, headers=refused.headers)
        except Gone:
            return Response(status_code=408)  # to nobody

    endpoint.__name__ = protocol.path.strip("/").replace("/", "_")
    return endpoint


def _add_probes(app: FastAPI, service: Service, token: str | None) -> None:
    async def health() -> dict[str, str]:
        """Whether the process answers; also under load, and while it shuts down."""
        return {"status": "ok"}

    async def ready() -> JSONResponse:
        """Whether to send it work: the model scores as when it was exported, and the server is not shutting down."""
        if service.is_draining:
            return JSONResponse({"ready": False, "golden": 0, "detail": "the server is shutting down"}, 503)
        found = service.ready.answer()
        return JSONResponse(found, 200 if found["ready"] else 503)

    async def metrics() -> PlainTextResponse:
        """Counters for Prometheus."""
        gauges = {
            "queue_conversations": (float(service.queue.waiting), "Conversations that wait for a batch."),
            "requests_active": (float(service.active), "Requests that are being answered."),
            "body_bytes": (float(service.receiver.held), "Bytes of requests that are held."),
            "ready": (float(service.ready.is_ready and not service.is_draining), "What /ready answers."),
        }
        return PlainTextResponse(service.metrics.text(gauges), headers={"Content-Type": CONTENT_TYPE})

    not_ready = {503: {"model": Readiness, "description": "Not ready, and why"}}
    app.add_api_route("/health", health, response_model=Health)
    app.add_api_route("/ready", ready, response_model=None, responses={200: {"model": Readiness}, **not_ready})
    app.add_api_route(
        "/metrics", metrics, response_class=PlainTextResponse, response_model=None, responses=_refusals(token, 401)
    )


def _refusals(token: str | None, *statuses: int) -> dict[int | str, dict[str, Any]]:
    wanted = [status for status in statuses if status != 401 or token is not None]
    return {status: {"model": Refusal, "description": _STATUSES[status]} for status in wanted}


def _request_body(protocol: Protocol) -> dict[str, Any]:
    examples = {name: {"value": value} for name, value in protocol.examples.items()}
    schema = {"$ref": _REFERENCE.format(model=protocol.body.__name__)}
    content = {"application/json": {"schema": schema, "examples": examples}}
    return {"requestBody": {"required": True, "content": content}}


def _described(page: dict[str, Any], token: str | None) -> dict[str, Any]:
    """The OpenAPI page with the shapes of the requests, which FastAPI does not read itself, and the token."""
    bodies = {protocol.body for protocol in PROTOCOLS}
    _, shapes = models_json_schema([(body, "validation") for body in bodies], ref_template=_REFERENCE)
    page.setdefault("components", {}).setdefault("schemas", {}).update(shapes["$defs"])
    if token is not None:
        page["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, methods in page["paths"].items():
            for operation in methods.values():
                operation["security"] = [] if path in ("/health", "/ready") else [{"token": []}]
    return page


async def _no_such_place(request: Request, error: Exception) -> JSONResponse:
    """404 and 405 of the router."""
    assert isinstance(error, HTTPException)
    allowed = (error.headers or {}).get("Allow")
    hint = f"ask it by {allowed}" if allowed else "GET /openapi.json names the paths"
    found = Refused(error.status_code, f"{request.method} {shown(request.url.path)}: {error.detail}", hint)
    return JSONResponse(found.as_dict(), error.status_code, headers=error.headers)


async def _fault(_: Request, error: Exception) -> JSONResponse:
    """A fault of ours: its traceback is in the log."""
    return JSONResponse({"detail": f"a fault of the server: {type(error).__name__}"}, 500)
