"""OpenAI's /v1/responses: an input, an output of text and calls of tools, nothing that is kept."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as Call

from . import read
from .asking import Asked, while_there
from .bodies import ResponseBody
from .calls import Calls
from .described import STREAM
from .events import Events
from .items import Items
from .json import Json
from .service import Service
from .settings import BASE
from .structure import named
from .write import Usage, event


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/responses", responses=STREAM)
    async def responses(call: Call, body: ResponseBody) -> Any:
        """A text, or messages, and what comes next: a message, or calls of tools."""
        tenant = await service.tenant(call, body.model)
        requests, tools = read.response(body, tenant, service.settings, service.generator.tokenizer)
        options, told = read.streams(body), Told(body, None if tools is None else tools.calls())
        async with AsyncExitStack() as stack:
            with named(body):
                asked = await while_there(call, stack.enter_async_context(service.running(call, requests)))
            if options is not None:
                return Events(stream(service, asked, told), stack.pop_all())
            answer = (await while_there(call, asked.answers()))[0][0]
            if (error := service.failed(answer)) is not None:
                raise error
            told.items.feed(answer.text)
            told.items.end(answer.finish_reason == "stop")
            return Json(told.ended(answer.finish_reason, asked.usage))

    return router


class Told:
    """The JSON of one response."""

    def __init__(self, body: ResponseBody, calls: Calls | None = None):
        self.body, self.items = body, Items(calls)
        self.id, self.created = f"resp_{secrets.token_hex(12)}", int(time.time())

    def response(self, status: str, usage: Usage | None = None, why: str | None = None) -> Any:
        """With the output as it is once it has ended."""
        b = self.body
        used = None if usage is None else {
            "input_tokens": usage.prompt, "input_tokens_details": {"cached_tokens": usage.cached},
            "output_tokens": usage.new, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.prompt + usage.new,
        }  # fmt: skip
        return {
            "id": self.id, "object": "response", "created_at": self.created, "status": status, "error": None,
            "incomplete_details": None if why is None else {"reason": why}, "instructions": b.instructions,
            "max_output_tokens": b.max_output_tokens, "metadata": b.metadata or {}, "model": b.model or BASE,
            "output": [] if usage is None else self.items.output, "previous_response_id": None, "store": False,
            "parallel_tool_calls": bool(b.tools) and b.parallel_tool_calls is not False,
            "temperature": 1.0 if b.temperature is None else b.temperature,
            "text": b.text or {"format": {"type": "text"}},
            "tool_choice": b.tool_choice or ("auto" if b.tools else "none"),
            "tools": [{"parameters": None, "strict": None, **t} for t in b.tools or []],
            "top_p": 1.0 if b.top_p is None else b.top_p, "truncation": "disabled", "usage": used,
        }  # fmt: skip

    def ended(self, finish: str | None, usage: Usage) -> Any:
        whole = finish == "stop"
        return self.response("completed" if whole else "incomplete", usage, None if whole else "max_output_tokens")


async def stream(service: Service, asked: Asked, told: Told) -> AsyncIterator[bytes]:
    """Each event has its kind and its number."""
    count = 0

    def one(said: dict[str, Any]) -> bytes:
        nonlocal count
        count += 1
        return event({"type": said["type"], "sequence_number": count - 1, **said}, said["type"])

    yield one({"type": "response.created", "response": told.response("in_progress")})
    yield one({"type": "response.in_progress", "response": told.response("in_progress")})
    for said in told.items.begun():
        yield one(said)
    finish = None
    async for _, piece in asked:
        if piece.finish_reason is not None and (error := service.failed(piece)) is not None:
            failed = told.response("failed") | {"error": {"code": "server_error", "message": error.message}}
            yield one({"type": "response.failed", "response": failed})
            return
        finish = piece.finish_reason
        for said in told.items.feed(piece.text):
            yield one(said)
    for said in told.items.end(finish == "stop"):
        yield one(said)
    ended = told.ended(finish, asked.usage)
    yield one({"type": f"response.{ended['status']}", "response": ended})
