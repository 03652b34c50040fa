"""OpenAI's /v1/responses for plain text: an input, an output, nothing that is kept."""

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
from .described import STREAM
from .events import Events
from .json import Json
from .service import Service
from .settings import BASE
from .write import Usage, event


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/responses", responses=STREAM)
    async def responses(call: Call, body: ResponseBody) -> Any:
        """A text, or messages, and the next message."""
        tenant = await service.tenant(call, body.model)
        requests, options = read.response(body, tenant, service.settings), read.streams(body)
        told = Told(body)
        async with AsyncExitStack() as stack:
            asked = await while_there(call, stack.enter_async_context(service.running(call, requests)))
            if options is not None:
                return Events(stream(service, asked, told), stack.pop_all())
            answer = (await while_there(call, asked.answers()))[0][0]
            if (error := service.failed(answer)) is not None:
                raise error
            return Json(told.ended(answer.text, answer.finish_reason, asked.usage))

    return router


class Told:
    """The JSON of one response."""

    def __init__(self, body: ResponseBody):
        self.body = body
        self.id, self.message = f"resp_{secrets.token_hex(12)}", f"msg_{secrets.token_hex(12)}"
        self.created = int(time.time())

    def response(self, status: str, output: list[Any], usage: Usage | None = None, why: str | None = None) -> Any:
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
            "output": output, "parallel_tool_calls": False, "previous_response_id": None, "store": False,
            "temperature": 1.0 if b.temperature is None else b.temperature,
            "text": b.text or {"format": {"type": "text"}},
            "tool_choice": "none", "tools": [], "top_p": 1.0 if b.top_p is None else b.top_p, "truncation": "disabled",
            "usage": used,
        }  # fmt: skip

    def part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def item(self, status: str, content: list[Any]) -> dict[str, Any]:
        return {"id": self.message, "type": "message", "status": status, "role": "assistant", "content": content}

    def ended(self, text: str, finish: str | None, usage: Usage) -> Any:
        whole = finish == "stop"
        status = "completed" if whole else "incomplete"
        item = self.item(status, [self.part(text)])
        return self.response(status, [item], usage, None if whole else "max_output_tokens")


async def stream(service: Service, asked: Asked, told: Told) -> AsyncIterator[bytes]:
    """Each event has its kind and its number."""
    count = 0

    def one(kind: str, **more: Any) -> bytes:
        nonlocal count
        count += 1
        return event({"type": kind, "sequence_number": count - 1, **more}, kind)

    at = {"item_id": told.message, "output_index": 0, "content_index": 0}
    yield one("response.created", response=told.response("in_progress", []))
    yield one("response.in_progress", response=told.response("in_progress", []))
    yield one("response.output_item.added", output_index=0, item=told.item("in_progress", []))
    yield one("response.content_part.added", **at, part=told.part(""))
    text, finish = "", None
    async for _, piece in asked:
        if piece.finish_reason is not None and (error := service.failed(piece)) is not None:
            failed = told.response("failed", []) | {"error": {"code": "server_error", "message": error.message}}
            yield one("response.failed", response=failed)
            return
        text, finish = text + piece.text, piece.finish_reason
        if piece.text:
            yield one("response.output_text.delta", **at, delta=piece.text, logprobs=[])
    ended = told.ended(text, finish, asked.usage)
    yield one("response.output_text.done", **at, text=text, logprobs=[])
    yield one("response.content_part.done", **at, part=told.part(text))
    yield one("response.output_item.done", output_index=0, item=ended["output"][0])
    yield one(f"response.{ended['status']}", response=ended)
