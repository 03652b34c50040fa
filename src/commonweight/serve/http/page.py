"""The page at `/`: tenants side by side, or before an encoder what it reads. One text, which asks this server alone."""

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


_PARTS = {"%style%": "page.css", "%key%": "page_key.html", "%shared%": "page.js"}


def routes(name: str) -> APIRouter:
    """name: of the page's file."""
    router = APIRouter(include_in_schema=False)
    text = _file(name)
    for mark, part in _PARTS.items():
        text = text.replace(mark, _file(part).strip("\n"))

    @router.get("/")
    async def page() -> Any:
        return HTMLResponse(text, headers=_GUARDED)

    return router


def _file(name: str) -> str:
    return files("commonweight.serve.http").joinpath(name).read_text("utf-8")
