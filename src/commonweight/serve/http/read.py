"""What a body asks for, as requests of the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...core import counted
from ..request import Request
from . import tools
from .bodies import ChatBody, CompletionBody, ResponseBody, Sampled, StreamOptions, neutral
from .errors import Refused
from .messages import items, messages, unicode
from .settings import Settings
from .structure import response_format, structured
from .tools import Tools, Wanted

COMPLETION = 16  # new tokens of a completion that does not say, as OpenAI and vLLM have it
MANY = 1024  # prompts of one completion


def completion(body: CompletionBody, tenant: str | None, settings: Settings, vocabulary: int) -> list[Request]:
    """One request a prompt."""
    most = min(COMPLETION, settings.max_tokens or COMPLETION) if body.max_tokens is None else body.max_tokens
    if not most and not body.echo:
        raise Refused(400, "max_tokens: 0; wanted 1 or more, or 0 with echo for the prompt alone", "max_tokens")
    shared = _sampled(body, settings, max(1, most), vocabulary)
    prompts = _prompts(body.prompt)
    if len(prompts) * (body.n or 1) > MANY:
        raise Refused(
            400, f"prompt: {counted(len(prompts), 'prompt')} with n {body.n or 1}; at most {MANY} answers", "prompt"
        )
    return [Request(p, tenant, logprobs=body.logprobs, **shared) for p in prompts]


def chat(
    body: ChatBody, tenant: str | None, settings: Settings, vocabulary: int, tokenizer: Any = None
) -> tuple[list[Request], Tools | None]:
    """(one request, its tools)."""
    if body.top_logprobs is not None and not body.logprobs:
        raise Refused(400, "when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs")
    most = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    shared = _sampled(body, settings, most, vocabulary)
    formatted = body.response_format not in (None, {"type": "text"})
    wanted = Wanted(body.tools or [], body.tool_choice, body.parallel_tool_calls is not False, formatted)
    said, used, more = tooled(messages(body.messages), wanted, settings, tokenizer)
    return [Request(said, tenant, logprobs=logprobs, **{**shared, **more})], used


def tooled(
    said: list[dict[str, Any]], wanted: Wanted, settings: Settings, tokenizer: Any
) -> tuple[list[dict[str, Any]], Tools | None, dict[str, Any]]:
    """(the messages for the template, the tools, what else the request says). Raises: Refused."""
    wanted = tools.narrowed(wanted)
    used = tools.asked(wanted, tokenizer, settings.tool_parser)
    said = tools.fitting(used, wanted.tools, said, tokenizer, settings.tool_parser)
    if used is None:
        return said, None, {}
    forced = {} if used.structured is None else {"structured": used.structured}
    return said, used, {"tools": used.told, "special": used.form.special, **forced}


def response(
    body: ResponseBody, tenant: str | None, settings: Settings, tokenizer: Any = None
) -> tuple[list[Request], Tools | None]:
    """(one request, its tools)."""
    _served(body)
    if isinstance(body.input, str):
        said: list[dict[str, Any]] = [{"role": "user", "content": body.input}]
    else:
        said = items(body.input)
    if not said:
        raise Refused(400, "input: empty; wanted text, or messages", "input")
    if body.instructions:
        said.insert(0, {"role": "system", "content": body.instructions})
    form = _format(body)
    told, used, more = tooled(messages(said, "input"), tools.flat(body, form is not None), settings, tokenizer)
    shared: dict[str, Any] = {
        "max_new_tokens": _most(body.max_output_tokens, settings), "temperature": _or(body.temperature, 1.0),
        "top_p": _or(body.top_p, 1.0), "timeout": settings.timeout, "structured": form,
        "cache_salt": body.cache_salt, "task": body.task,
    }  # fmt: skip
    return [Request(told, tenant, **{**shared, **more})], used


def _format(body: ResponseBody) -> Mapping[str, Any] | None:
    """Of /v1/responses: text.format."""
    for name, value in (body.text or {}).items():
        if name != "format" and not (name == "verbosity" and value in (None, "medium")):
            raise Refused(400, f"text.{name}: not served here; wanted format", "text")
    form = (body.text or {}).get("format") or {"type": "text"}
    if not isinstance(form, Mapping):
        raise Refused(400, f"text.format: {form!r}; wanted an object", "text")
    return response_format(form, "text.format")


def streams(body: Sampled | ResponseBody) -> StreamOptions | None:
    """The options of a stream; None where the answer is to come whole."""
    if body.stream:
        return body.stream_options or StreamOptions()
    if body.stream_options is not None:
        raise Refused(400, "Stream options can only be defined when `stream=True`.", "stream_options")
    return None


def _prompts(prompt: Any) -> list[Any]:
    if isinstance(prompt, str):
        return [unicode(prompt, "prompt")]
    if not prompt:
        raise Refused(400, "prompt: empty; wanted text, token ids, or a list of them", "prompt")
    if isinstance(prompt[0], int):
        return [prompt]
    return [unicode(p, "prompt") if isinstance(p, str) else p for p in prompt]


def _sampled(body: Sampled, settings: Settings, most: int | None, vocabulary: int) -> dict[str, Any]:
    _served(body)
    return {
        "max_new_tokens": _most(most, settings),
        "min_tokens": body.min_tokens or 0,
        "temperature": _or(body.temperature, 1.0),
        "top_p": _or(body.top_p, 1.0),
        "top_k": max(0, body.top_k or 0),
        "min_p": _or(body.min_p, 0.0),
        "repetition_penalty": _or(body.repetition_penalty, 1.0),
        "presence_penalty": _or(body.presence_penalty, 0.0),
        "frequency_penalty": _or(body.frequency_penalty, 0.0),
        "logit_bias": _bias(body.logit_bias or {}, vocabulary),
        "seed": None if body.seed is None else body.seed % (1 << 63),
        "stop": () if body.stop is None else _stop(body.stop),
        "stop_token_ids": tuple(body.stop_token_ids or ()),
        "ignore_eos": bool(body.ignore_eos),
        "n": body.n or 1,
        "timeout": settings.timeout,
        "structured": structured(body),
        "cache_salt": body.cache_salt,
        "task": body.task,
    }


def _served(body: Sampled | ResponseBody) -> None:
    if refused := neutral(body):
        raise Refused(400, f"{refused[0]}: {refused[1]}", refused[0])


def _most(asked: int | None, settings: Settings) -> int | None:
    limit = settings.max_tokens
    if asked is not None and limit is not None and asked > limit:
        raise Refused(400, f"max_tokens: {asked}; this server gives at most {limit} an answer", "max_tokens")
    return limit if asked is None and limit is not None and limit < 256 else asked


def _stop(stop: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(unicode(s, "stop") for s in ([stop] if isinstance(stop, str) else stop))


def _bias(given: Mapping[str, float], vocabulary: int) -> dict[int, float]:
    out = {}
    for name, by in given.items():
        if not name.isascii() or not name.isdigit() or len(name) > 12 or int(name) >= vocabulary:
            raise Refused(
                400, f"logit_bias: {name!r} is no token; wanted whole numbers from 0 to {vocabulary - 1}", "logit_bias"
            )
        out[int(name)] = by
    return out


def _or(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value
