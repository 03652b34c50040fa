"""The page at `/`: tenants side by side. One file, which asks this server alone."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from fastapi import APIRouter
from starlette.responses import HTMLResponse

_GUARDED = {
    # what stands in an answer is never run, and nothing of it goes elsewhere
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


def routes() -> APIRouter:
    router = APIRouter(include_in_schema=False)
    text = files("commonweight.serve.http").joinpath("page.html").read_text("utf-8")

    @router.get("/")
    async def page() -> Any:
        return HTMLResponse(text, headers=_GUARDED)

    return router
