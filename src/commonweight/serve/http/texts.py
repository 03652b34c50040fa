"""vLLM's routes for tokens."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as Call

from ...core import CommonweightError
from .. import prompts
from ..request import Request
from .bodies import DetokenizeBody, TokenizeBody
from .errors import Refused, of_request
from .json import Json
from .messages import messages, unicode
from .read import tooled
from .service import Service
from .tools import Wanted


def routes(service: Service) -> APIRouter:
    router = APIRouter()
    engine = service.engine

    @router.post("/tokenize")
    async def tokenize(call: Call, body: TokenizeBody) -> Any:
        """The tokens of a text, or of messages by the chat template."""
        await service.tenant(call, body.model)
        if (body.prompt is None) == (body.messages is None):
            raise Refused(400, "prompt: wanted either a prompt or messages", "prompt")
        if body.tools and body.messages is None:
            raise Refused(400, "tools: only beside messages; a prompt is text as it is", "tools")
        if body.add_generation_prompt is False:
            raise Refused(400, "add_generation_prompt: only True is served", "add_generation_prompt")
        found = await service.run(_tokens, service, body)
        texts = [engine.tokenizer.convert_ids_to_tokens(t) for t in found] if body.return_token_strs else None
        return Json({"count": len(found), "max_model_len": engine.length, "tokens": found, "token_strs": texts})

    @router.post("/detokenize")
    async def detokenize(call: Call, body: DetokenizeBody) -> Any:
        """The text of tokens."""
        await service.tenant(call, body.model)
        if engine.tokenizer is None:
            raise Refused(400, "no tokenizer lies beside the model")
        if beyond := [t for t in body.tokens if t >= engine.vocabulary]:
            raise Refused(400, f"tokens: {beyond[0]} is none; wanted 0 to {engine.vocabulary - 1}", "tokens")
        return Json({"prompt": await service.run(engine.tokenizer.decode, body.tokens)})

    return router


def _tokens(service: Service, body: TokenizeBody) -> list[int]:
    engine = service.engine
    if body.messages is None:
        said: Any = unicode(body.prompt or "", "prompt")
        if body.add_special_tokens is False and engine.tokenizer is not None:
            return list(engine.tokenizer(said, add_special_tokens=False)["input_ids"])
        more: dict[str, Any] = {}
    else:
        wanted = Wanted(body.tools or [], None, True, False)
        said, _, more = tooled(messages(body.messages), wanted, service.settings, engine.tokenizer)
    try:
        return prompts.tokens(Request(said, **more), engine.tokenizer, engine.vocabulary)
    except CommonweightError as e:
        raise of_request(str(e)) from e
