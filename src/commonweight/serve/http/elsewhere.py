"""Paths of another kind of server: told what to start instead."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from .errors import Refused

PATHS = {  # what a kind of server is for
    "generate": ("/v1/completions", "/v1/chat/completions", "/v1/responses"),
    "read": (
        "/v1/embeddings", "/v1/classify", "/classify", "/v1/rerank", "/v2/rerank", "/rerank", "/v1/score", "/score",
    ),
}  # fmt: skip
_TOLD = {
    "generate": "this server's model is an encoder: it makes vectors, classes and ranks, and no text; serve a language "
    "model for this",
    "read": "this server's model makes text; serve an encoder for vectors, classes and ranks, or this model with "
    "--task embed",
}


def routes(does: str) -> APIRouter:
    """does: what the server is for, "generate" or "read"."""
    router = APIRouter(include_in_schema=False)
    other = "read" if does == "generate" else "generate"

    async def refuse() -> Any:
        raise Refused(404, _TOLD[other])

    for path in PATHS[other]:
        router.add_api_route(path, refuse, methods=["POST"])
    return router
