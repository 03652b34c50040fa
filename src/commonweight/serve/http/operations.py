"""How the server is: for whoever keeps it running."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request as Call
from starlette.responses import PlainTextResponse, Response

from .errors import Refused
from .json import Json
from .keys import Key
from .service import Service


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.head("/health", include_in_schema=False)  # what balancers of load ask
    @router.get("/health")
    async def health() -> Any:
        """Whether the engine runs."""
        if service.engine.closed:
            raise Refused(503, "the engine has stopped")
        return Json({"status": "ok"})

    @router.head("/ready", include_in_schema=False)
    @router.get("/ready")
    async def ready() -> Any:
        """Whether new requests are taken."""
        if not service.ready:
            raise Refused(503, "the server is stopping" if service.draining else "the engine has stopped")
        return Json({"status": "ready"})

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics(call: Call) -> Any:
        """For Prometheus; for keys that may ask all tenants."""
        hidden(call.state.key)
        return Response(await service.run(lambda: service.metrics.text), media_type=CONTENT_TYPE_LATEST)

    return router


def hidden(key: Key) -> None:
    """Raises: Refused (403) for a key that may not see the metrics, since they name tenants."""
    if key.tenants is not None:
        raise Refused(403, "this key may ask some tenants alone; metrics are for keys that may ask all")
