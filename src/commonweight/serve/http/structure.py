"""Structured output as clients ask for it: OpenAI's response_format, vLLM's structured_outputs and guided_*."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .bodies import ResponseBody, Sampled
from .errors import Refused

_GUIDED = {
    "guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar",
    "guided_json_object": "json_object",
}  # fmt: skip


def structured(body: Sampled) -> Mapping[str, Any] | None:
    """What the answer must be, as a `Request` has it; None: any text. Raises: Refused."""
    found = {name: form for name in ("response_format", "structured_outputs") if (form := _of(body, name))}
    for name, kind in _GUIDED.items():
        value = getattr(body, name)
        if value is not None and value is not False:
            found[name] = {kind: value}
    if len(found) > 1:
        raise Refused(400, f"{' and '.join(found)} come together; wanted one of them", list(found)[-1])
    return next(iter(found.values()), None)


@contextmanager
def named(body: Sampled | ResponseBody) -> Iterator[None]:
    """What the engine refuses of a structure is told by the field that asked for it: perhaps by a tool's schema."""
    try:
        yield
    except Refused as e:
        if e.param != "response_format" or not e.message.startswith("structured output: "):
            raise
        form = "text" if isinstance(body, ResponseBody) else "response_format"
        names = ("structured_outputs", *_GUIDED)
        asked = next((n for n in names if getattr(body, n, None) not in (None, False)), None)
        free = asked is None and getattr(body, form) in (None, {"type": "text"}, {"format": {"type": "text"}})
        if free:  # then a call of a tool was asked for
            told = e.message.replace("structured output: this grammar", "tools: a schema among them", 1)
            raise Refused(e.status, told, "tools") from e
        raise Refused(e.status, e.message, asked or form) from e


def _of(body: Sampled, name: str) -> Mapping[str, Any] | None:
    value = getattr(body, name)
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise Refused(400, f"{name}: {value!r}; wanted an object", name)
    if name == "response_format":
        return response_format(value, name)
    # of vLLM; those that are null or false say nothing
    return {k: v for k, v in value.items() if v is not None and v is not False and not k.startswith("_")}


def response_format(form: Mapping[str, Any], where: str) -> Mapping[str, Any] | None:
    """OpenAI's, also that of /v1/responses, which has the schema one level higher."""
    kind = form.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"json_object": True}
    if kind == "json_schema":
        inner = form.get("json_schema", form)
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
        if not isinstance(schema, Mapping | bool):
            raise Refused(400, f"{where}.json_schema.schema: {schema!r}; wanted a JSON schema", where)
        return {"json": schema}
    raise Refused(400, f"{where}.type: {kind!r}; wanted text, json_object or json_schema", where)
