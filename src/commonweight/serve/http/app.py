"""The application: routes, errors, and the door before them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import Request as Call
from starlette.responses import Response

from ...core import library
from ..encoder import Encoder
from ..engine import Engine
from . import elsewhere, models, openai, operations, page, reading, responses, tenants, texts, traces
from .asking import Gone
from .described import ERRORS, described
from .door import Door
from .errors import Refused, of_body
from .keys import Keys
from .limits import Counted
from .logs import say
from .service import Service
from .settings import Settings


def make(engine: Engine | Encoder, settings: Settings | None = None) -> FastAPI:
    """The server before an engine of a language model, or of an encoder. `app.state.service` is what it stands on."""
    settings = settings or Settings()
    keys, told = Keys(settings.keys, settings.admin), traces.configured()
    service = Service(engine, settings, keys, Counted(keys))
    app = application(service, engine, () if told is None else (told.close,))
    app.add_middleware(Door, settings=settings, keys=keys, refused=service.metrics.refused, traces=told)
    return app


def application(service: Service, engine: Engine | Encoder, ends: Sequence[Callable[[], None]] = ()) -> FastAPI:
    """Without the door: who calls it puts key and log of each call into its scope. ends: called when it is over."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        watch = asyncio.ensure_future(service.watch())
        yield
        watch.cancel()
        service.stop()
        for pool in (service.pool, service.loaders):
            pool.shutdown(wait=False, cancel_futures=True)
        for end in ends:
            await asyncio.to_thread(end)

    app = FastAPI(
        title="commonweight", version=library(), lifespan=life, docs_url=None, redoc_url=None,
        responses=ERRORS, dependencies=[Security(HTTPBearer(auto_error=False))],
    )  # fmt: skip
    app.state.service = service
    for part in (models, texts, tenants, operations):
        app.include_router(part.routes(service))
    if isinstance(engine, Encoder):
        app.include_router(reading.routes(service, engine))
        app.include_router(page.routes("page_reading.html"))
    else:
        for part in (openai, responses):
            app.include_router(part.routes(service))
        app.include_router(page.routes("page.html"))
    app.include_router(elsewhere.routes("read" if isinstance(engine, Encoder) else "generate"))
    for kind in (Refused, RequestValidationError, HTTPException, Gone, Exception):
        app.add_exception_handler(kind, _answer)
    app.openapi = described(app, service.guard)  # type: ignore[method-assign]
    return app


async def _answer(call: Call, e: Exception) -> Response:
    """Every error in one form."""
    if isinstance(e, Gone):
        return Response(status_code=499)  # nobody reads it
    told = _refused(call, e)
    return Response(told.content, told.status, told.headers, "application/json")


def _refused(call: Call, e: Exception) -> Refused:
    if isinstance(e, Refused):
        return e
    if isinstance(e, RequestValidationError):
        return of_body(e.errors())
    if isinstance(e, HTTPException):
        if isinstance(e.__cause__, Refused):
            return e.__cause__
        if e.status_code == 404:
            return Refused(404, f"{call.url.path}: there is no such path here")
        if e.status_code == 405:
            return Refused(405, f"{call.method} {call.url.path}: not this method")
        return Refused(e.status_code, str(e.detail))
    told: dict[str, Any] = {"id": call.state.told["id"]} if hasattr(call.state, "told") else {}
    say("failed", 40, exc_info=e, **told)
    return Refused(500, "the server failed at this request; its log says why")
