"""commonweight generate: rows of prompts in, rows of answers out, without a server."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from . import serving

if TYPE_CHECKING:
    from ..serve import Answer, Engine, Request

EXAMPLES = """[bold]Examples[/bold]

Each row has a prompt, or messages, and may have a tenant and options of its own:

  commonweight generate ./my-model --store shop < prompts.jsonl > answers.jsonl

  {"tenant": "legal", "prompt": "Who signs?", "max_tokens": 32, "temperature": 0}
  {"tenant": "sorts", "task": "trec", "prompt": "Who?"}
  {"id": 7, "messages": [{"role": "user", "content": "Hello"}], "seed": 1}

An answer has the row's number, its id and tenant, and text, finish_reason, prompt_tokens, new_tokens; or error.
Exit code 0: every row was answered. 2: every row has its line, and some lines are errors.
"""

_NAMES = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens", "messages": "prompt", "model": "tenant"}  # fmt: skip  # noqa: E501
AHEAD = 4  # rows that are read before their turn, for each answer that runs


def command(
    model: serving.Model,
    store: serving.Store = None,
    tenant: Annotated[str | None, typer.Option(help="Who answers rows that name nobody. Without it, the base.")] = None,
    task_name: serving.TaskName = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="New tokens of rows that do not say; without it, 256 at most.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="Of rows that do not say; 0: the likeliest token.")] = 1.0,
    max_requests: serving.Requests = 64,
    cache_tokens: serving.Cache = None,
    tenant_memory: serving.Memory = None,
    dtype: serving.Dtype = "auto",
    device: serving.Device = "auto",
    tokenizer: serving.Tokenizer = None,
) -> None:
    """Answer the rows of stdin (JSON lines), in their order, many at a time."""
    memory = serving.looked_at(model, store, dtype, device, tenant_memory)
    batch = {"max_requests": max_requests, "cache_tokens": cache_tokens, "tenant_memory": memory}
    serving.task_of(task_name, tenant)
    given = {"tenant": tenant, "task": task_name, "max_new_tokens": max_tokens, "temperature": temperature}
    with serving.opened(model, store, dtype, device, **batch, **serving.words(tokenizer)) as engine:
        bad = 0
        for row in answers(engine, sys.stdin.buffer, given, AHEAD * max_requests):
            bad += "error" in row
            _write(sys.stdout, row)
    if bad:
        typer.echo(f"commonweight: {bad} rows have an error in place of an answer", err=True)
        raise typer.Exit(2)


def answers(
    engine: Engine, lines: Iterable[str | bytes], given: dict[str, Any], ahead: int
) -> Iterator[dict[str, Any]]:
    """One object for each line that is not empty, in order. Cost: so many rows in memory as may be ahead."""
    from ..core import CommonweightError

    waiting: deque[tuple[dict[str, Any], Any]] = deque()
    rows = (line for line in lines if line.strip())
    for i, line in enumerate(rows):
        head: dict[str, Any] = {"row": i}
        try:
            raw = _object(line)
            head |= {k: raw[k] for k in ("id", "tenant") if k in raw}
            request = _request(raw, given)
            if request.tenant is not None:  # perhaps by another name, or as --tenant says
                head["tenant"] = request.tenant
            while len(waiting) >= ahead or (waiting and engine.waiting + request.n > engine.max_waiting):
                yield _answered(*waiting.popleft())
            waiting.append((head, engine.submit(request)))
        except CommonweightError as e:
            waiting.append((head, str(e)))
        except (TypeError, ValueError, AttributeError) as e:  # a value of another kind, or text that is none
            waiting.append((head, f"this row cannot be asked: {e}"))
    while waiting:
        yield _answered(*waiting.popleft())


def _answered(head: dict[str, Any], stream: Any) -> dict[str, Any]:
    if isinstance(stream, str):
        return {**head, "error": stream}
    answer: Answer = stream.answer()
    failed = [c for c in answer.choices if c.error is not None]
    if failed:
        return {**head, "error": failed[0].error}
    out = {**head, "text": answer.text, "finish_reason": answer.finish_reason, "prompt_tokens": answer.prompt_tokens}
    if len(answer.choices) > 1:
        out["choices"] = [{"text": c.text, "finish_reason": c.finish_reason} for c in answer.choices]
    out["new_tokens"] = sum(len(c.tokens) for c in answer.choices)
    if answer.logprobs is not None:
        out["logprobs"] = [{"token": x.token, "logprob": x.logprob, "top": x.top} for x in answer.logprobs]
    return out


def _object(line: str | bytes) -> dict[str, Any]:
    from ..core import CommonweightError

    try:
        raw = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise CommonweightError(f"this row is not JSON: {e}") from e
    if not isinstance(raw, dict):
        raise CommonweightError(f"this row is a {type(raw).__name__}; wanted an object with a prompt or messages")
    return raw


def _request(raw: dict[str, Any], given: dict[str, Any]) -> Request:
    """Names are those of `Request`, and those that OpenAI's interface has for the same."""
    from ..core import CommonweightError, unknown
    from ..serve import Request

    known = {f.name for f in fields(Request)}
    found: dict[str, Any] = {}
    for name, value in raw.items():
        if name == "id":
            continue
        ours = _NAMES.get(name, name)
        if ours not in known:
            raise unknown("field", name, [*known, *_NAMES, "id"])
        if ours in found:
            raise CommonweightError(f"{name} stands beside another name for the same; wanted one of them")
        if name == "messages" and isinstance(value, str):
            raise CommonweightError("messages is text; wanted a list of messages, or name it prompt")
        if value is not None:
            found[ours] = value
    if "prompt" not in found:
        raise CommonweightError("no prompt and no messages; wanted one of them")
    if found.get("tenant") == "base":
        found["tenant"] = None
    if "logit_bias" in found:
        found["logit_bias"] = _bias(found["logit_bias"])
    mine = {k: v for k, v in given.items() if v is not None and not (k == "task" and "tenant" in found)}
    request = Request(**{**mine, **found})
    request.check()
    return request


def _bias(raw: Any) -> dict[int, float]:
    from ..core import CommonweightError

    try:
        return {int(k): v for k, v in raw.items()}
    except (AttributeError, ValueError):
        raise CommonweightError(f"logit_bias is {raw!r}; wanted an object of token ids and numbers") from None


def _write(out: TextIO, row: dict[str, Any]) -> None:
    out.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace").decode("utf-8") + "\n")
    out.flush()
