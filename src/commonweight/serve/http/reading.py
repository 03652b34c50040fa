"""Vectors, classes and ranks of an encoder over HTTP, as OpenAI's, vLLM's and Jina's interfaces have them."""

from __future__ import annotations

import asyncio
import base64
import secrets
import struct
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

from fastapi import APIRouter
from starlette.requests import Request as Call

from ...core import CommonweightError, WrongTask, counted
from ..encoder import Encoder, Reading
from ..engine import Full
from ..readings import Classified, Embedding, Input, Ranked
from .asking import while_there
from .errors import Refused, of_request
from .json import Json
from .messages import unicode
from .reading_bodies import ClassifyBody, EmbeddingBody, Read, RerankBody, ScoreBody
from .service import Service
from .settings import BASE

Answer = TypeVar("Answer", Embedding, Classified, Ranked)
MANY = 2048  # texts of one call, as OpenAI has it


class Asked(NamedTuple):
    """The texts of one call that have been read, in groups that are answered together."""

    groups: list[list[Reading]]

    @property
    def readings(self) -> list[Reading]:
        return [r for group in self.groups for r in group]

    @property
    def usage(self) -> dict[str, int]:
        tokens = sum(len(r.ids) for r in self.readings)
        return {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}


def routes(service: Service, engine: Encoder) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/embeddings")
    async def embeddings(call: Call, body: EmbeddingBody) -> Any:
        """A vector for each text."""
        tenant, texts = await service.tenant(call, body.model), _texts(body.input)
        submit = lambda: [engine.submit("vectors", texts, tenant, body.truncate_prompt_tokens, task=body.task)]  # noqa: E731
        async with _read(service, call, tenant, len(texts), submit) as asked:
            found = _sound(service, [engine.embedding(r, body.normalize is not False) for r in asked.readings])
        wide = len(found[0].vector)
        if body.dimensions not in (None, wide):
            raise Refused(400, f"dimensions: this model's vectors have {wide} numbers, and are not cut", "dimensions")
        packed = _packed if body.encoding_format == "base64" else list
        data = [{"object": "embedding", "index": i, "embedding": packed(e.vector)} for i, e in enumerate(found)]
        return _told("embd", body, data, asked)

    @router.post("/v1/classify")
    @router.post("/classify", include_in_schema=False)
    async def classify(call: Call, body: ClassifyBody) -> Any:
        """The class of each text, with the share of every class."""
        tenant, texts = await service.tenant(call, body.model), _texts(body.input)
        submit = lambda: [engine.submit("scores", texts, tenant, body.truncate_prompt_tokens, task=body.task)]  # noqa: E731
        async with _read(service, call, tenant, len(texts), submit) as asked:
            found = _sound(service, [engine.classified(r) for r in asked.readings])
        data = [
            {"index": i, "label": c.label, "probs": c.shares, "num_classes": len(c.shares)} for i, c in enumerate(found)
        ]
        return _told("classify", body, data, asked)

    @router.post("/v1/rerank")
    @router.post("/v2/rerank", include_in_schema=False)
    @router.post("/rerank", include_in_schema=False)
    async def rerank(call: Call, body: RerankBody) -> Any:
        """The documents, nearest to the query first."""
        tenant = await service.tenant(call, body.model)
        query, documents = unicode(body.query, "query"), [_document(i, d) for i, d in enumerate(body.documents)]
        cut = body.truncate_prompt_tokens
        submit = lambda: [engine.ranking(query, documents, tenant, cut, task=body.task)]  # noqa: E731
        async with _read(service, call, tenant, len(documents) + 1, submit) as asked:
            found = _sound(service, engine.ranked(asked.readings, len(documents)))
        show = body.return_documents is not False
        text = lambda i: {"document": {"text": documents[i]}} if show else {}  # noqa: E731
        results = [{"index": r.index, **text(r.index), "relevance_score": r.score} for r in found]
        told = {"id": _id("rerank"), "model": body.model or BASE, "usage": asked.usage}
        return Json({**told, "results": results[: body.top_n or None]})

    @router.post("/v1/score")
    @router.post("/score", include_in_schema=False)
    async def score(call: Call, body: ScoreBody) -> Any:
        """vLLM's: how near two texts are."""
        tenant, cut = await service.tenant(call, body.model), body.truncate_prompt_tokens
        first, second = _side(body.text_1, "text_1"), _side(body.text_2, "text_2")
        if len(first) not in (1, len(second)):
            told = f"text_1: {counted(len(first), 'text')} beside {len(second)} in text_2; wanted 1 or as many"
            raise Refused(400, told, "text_1")
        sides = [(first[0], second)] if len(first) == 1 else [(a, [b]) for a, b in zip(first, second)]
        ends = ("text_1", "text_2")
        submit = lambda: [  # noqa: E731
            engine.ranking(a, b, tenant, cut, ends, i, body.task) for i, (a, b) in enumerate(sides)
        ]
        async with _read(service, call, tenant, len(first) + len(second), submit) as asked:
            ranks = [engine.ranked(group, len(b)) for group, (_, b) in zip(asked.groups, sides)]
            found = _sound(service, [r for some in ranks for r in sorted(some, key=lambda r: r.index)])
        data = [{"object": "score", "index": i, "score": r.score} for i, r in enumerate(found)]
        return _told("score", body, data, asked)

    return router


@asynccontextmanager
async def _read(
    service: Service, call: Call, tenant: str | None, texts: int, submit: Callable[[], list[list[Reading]]]
) -> AsyncIterator[Asked]:
    """The texts of one call, when all have been read. Raises: Refused; Gone when the client hangs up."""
    key, began, reason = call.state.key, time.monotonic(), "error"
    if texts > MANY:
        raise Refused(400, f"input: {counted(texts, 'text')}; at most {MANY} a call", "input")
    service.within(key, texts)
    asked = Asked([])
    try:
        held = await service.loaded(tenant, service.engine.tenants.get)
        asked = Asked(await service.run(_submitted, service, submit))
        del held
        limit = service.settings.timeout
        await while_there(call, _finished(asked.readings, limit))
        yield asked
        reason = "stop"
    except asyncio.CancelledError:
        reason = "cancelled"
        raise
    finally:
        for reading in asked.readings:
            reading.found.cancel()
        tokens = asked.usage["prompt_tokens"]
        service.limits.charge(key, tokens)
        service.metrics.read([len(r.ids) for r in asked.readings], reason, time.monotonic() - began)
        call.state.told.update(prompt_tokens=tokens, texts=len(asked.readings), finish=reason)
        if service.settings.log_prompts and service.engine.tokenizer is not None:
            call.state.told.update(prompts=[service.engine.tokenizer.decode(r.ids) for r in asked.readings])


def _submitted(service: Service, submit: Callable[[], list[list[Reading]]]) -> list[list[Reading]]:
    """In a thread: a text is made tokens. Raises: Refused."""
    engine = service.engine
    try:
        return submit()
    except Full as e:
        raise Refused(429, str(e), retry=1.0) from e
    except WrongTask as e:
        raise Refused(400, str(e), "task") from e
    except CommonweightError as e:
        if engine.closed:
            raise Refused(503, str(e)) from e
        raise of_request(str(e)) from e


async def _finished(readings: Sequence[Reading], limit: float) -> None:
    """Waits for them, whatever comes of each. Raises: Refused after so many seconds."""
    waits = [asyncio.wrap_future(r.found) for r in readings]
    try:
        await asyncio.wait_for(asyncio.gather(*waits, return_exceptions=True), limit)
    except TimeoutError as e:
        raise Refused(503, f"the texts were not read within {limit:g} seconds; try later", retry=1.0) from e


def _sound(service: Service, found: list[Answer]) -> list[Answer]:
    """Raises: Refused for the first one that has an error."""
    for one in found:
        if one.error is not None:
            raise Refused(503 if service.engine.closed else 500, one.error)
    return found


def _texts(given: Any) -> list[tuple[Input, str | None]]:
    if isinstance(given, str):
        return [(unicode(given, "input"), None)]
    if not given:
        raise Refused(400, "input: empty; wanted text, token ids, or a list of them", "input")
    if isinstance(given[0], int):
        return [(given, None)]
    return [(unicode(t, "input") if isinstance(t, str) else t, None) for t in given]


def _side(given: str | list[str], where: str) -> list[str]:
    if not given and isinstance(given, list):
        raise Refused(400, f"{where}: empty; wanted text, or a list of texts", where)
    return [unicode(t, where) for t in ([given] if isinstance(given, str) else given)]


def _document(i: int, given: str | dict[str, Any]) -> str:
    text = given.get("text") if isinstance(given, dict) else given
    if not isinstance(text, str):
        raise Refused(400, f"documents.{i}: wanted text, or an object with text", "documents")
    return unicode(text, "documents")


def _packed(vector: Sequence[float]) -> str:
    """Float32, little end first, in base64."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")


def _id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(16)}"


def _told(kind: str, body: Read, data: list[dict[str, Any]], asked: Asked) -> Json:
    return Json({
        "id": _id(kind), "object": "list", "created": int(time.time()), "model": body.model or BASE, "data": data,
        "usage": asked.usage,
    })  # fmt: skip
