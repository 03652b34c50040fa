"""Completions and chats of OpenAI's interface."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as Call
from starlette.responses import Response

from ...core import CommonweightError
from ..request import Request
from ..scoring import score
from . import read
from .asking import Asked, while_there
from .bodies import ChatBody, CompletionBody, StreamOptions
from .calls import Calls
from .described import STREAM
from .errors import Refused, of_request
from .events import Events
from .json import Json
from .service import Service
from .settings import BASE
from .structure import named
from .write import DONE, Echo, Kind, Writer, event


def routes(service: Service) -> APIRouter:
    router = APIRouter()
    engine, settings = service.generator, service.settings

    @router.post("/v1/completions", responses=STREAM)
    async def completions(call: Call, body: CompletionBody) -> Any:
        """Goes on from a prompt, or from each of several: text or token ids."""
        tenant = await service.tenant(call, body.model)
        requests = read.completion(body, tenant, settings, engine.vocabulary)
        with named(body):
            return await answered(
                service, call, "completion", body.model, requests, read.streams(body), echo=bool(body.echo),
                mute=body.max_tokens == 0,
            )  # fmt: skip

    @router.post("/v1/chat/completions", responses=STREAM)
    async def chats(call: Call, body: ChatBody) -> Any:
        """The next message of a conversation, by the model's chat template."""
        tenant = await service.tenant(call, body.model)
        requests, tools = read.chat(body, tenant, settings, engine.vocabulary, engine.tokenizer)
        calls = None if tools is None else tools.calls
        with named(body):
            return await answered(service, call, "chat", body.model, requests, read.streams(body), calls)

    return router


async def answered(
    service: Service, call: Call, kind: Kind, model: str | None, requests: Sequence[Request],
    options: StreamOptions | None, calls: Callable[[], Calls] | None = None, echo: bool = False,
    mute: bool = False,
) -> Response:  # fmt: skip
    """The answer to a call: whole, or as it comes. calls: makes what finds calls of tools in an answer. echo: with the
    prompts before the answers. mute: without the answers."""
    writer = Writer(kind, model or BASE, service.tokens, requests[0].n, calls)
    async with AsyncExitStack() as stack:
        asked = await while_there(call, stack.enter_async_context(service.running(call, requests)))
        asked.mute = mute
        if echo:
            writer.echoes = await while_there(call, service.run(echoes, service, asked))
        if options is not None:
            return Events(chunks(service, asked, writer, options), stack.pop_all())
        answers = await while_there(call, asked.answers())
        for answer in (a for found in answers for a in found):
            if (error := service.failed(answer)) is not None:
                raise error
        return Json(writer.whole(answers, asked.usage))


def echoes(service: Service, asked: Asked) -> list[Echo]:
    """The prompts of a call, with their log probabilities where its answers have some. Raises: Refused."""
    found, host, tokenizer = [], service.engine.host, service.engine.tokenizer
    for ticket in (stream.tickets[0] for stream in asked.streams):
        said, tokens, top = ticket.request.prompt, ticket.prompt, ticket.request.logprobs
        text = said if isinstance(said, str) else "" if tokenizer is None else tokenizer.decode(tokens)
        try:
            logs = None if top is None else score(host, ticket.edition, tokens, top)
        except CommonweightError as e:
            raise of_request(str(e)) from e
        except FloatingPointError as e:
            raise Refused(500, str(e)) from e
        found.append(Echo(text, tokens[0], logs))
    return found


async def chunks(service: Service, asked: Asked, writer: Writer, options: StreamOptions) -> AsyncIterator[bytes]:
    """The events of a stream. An error is its last one but [DONE]."""
    always = bool(options.continuous_usage_stats)
    if writer.kind == "chat":
        for i in range(len(asked.tickets)):
            yield event(_used(writer.first(i), asked, always))
    if writer.echoes:
        for i in range(len(asked.tickets)):
            yield event(_used(writer.echoed(i), asked, always))
    async for i, piece in asked:
        if piece.finish_reason is not None and (error := service.failed(piece)) is not None:
            yield event(error.body)
            yield DONE
            return
        if (chunk := writer.piece(i, piece)) is not None:
            yield event(_used(chunk, asked, always))
    if options.include_usage:
        yield event(writer.last(asked.usage))
    yield DONE


def _used(chunk: dict[str, Any], asked: Asked, always: bool) -> dict[str, Any]:
    return {**chunk, "usage": asked.usage.told} if always else chunk
