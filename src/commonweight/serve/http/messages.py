"""The messages of a chat, checked: their content as text, calls of tools and their results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import Refused

_MORE = {"assistant": ("tool_calls",), "tool": ("tool_call_id",)}  # what else these have to say
_ITEMS = {
    "message": (), "function_call": ("call_id", "name", "arguments"), "function_call_output": ("call_id", "output"),
}  # fmt: skip


def messages(said: Sequence[Mapping[str, Any]], where: str = "messages") -> list[dict[str, Any]]:
    """With their content as text: parts of type text are joined; other parts are refused."""
    out = []
    for i, m in enumerate(said):
        at = f"{where}.{i}"
        if not isinstance(m.get("role"), str) or not m["role"]:
            raise Refused(400, f"{at}.role: missing; wanted system, user, assistant or tool", where)
        role = "system" if m["role"] == "developer" else m["role"]
        for name, value in m.items():
            if name not in ("role", "content", "name", *_MORE.get(role, ())) and value not in (None, [], {}, ""):
                raise Refused(400, f"{at}.{name}: not served here; wanted messages of text", where)
        more = {k: m[k] for k in ("name", "tool_call_id") if isinstance(m.get(k), str)}
        if m.get("tool_calls"):
            more["tool_calls"] = _calls(m["tool_calls"], at, where)
        silent = "tool_calls" in more and m.get("content") in (None, [])
        text = "" if silent else _text(m.get("content"), f"{at}.content", where)
        unicode(role + text + json.dumps(more, ensure_ascii=False), where)
        out.append({"role": role, "content": text, **more})
    return out


def items(said: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The input of /v1/responses as messages: messages, perhaps such that were an output, calls of tools, which join
    the message before them, and what came of them. Raises: Refused."""
    out: list[dict[str, Any]] = []
    for i, item in enumerate(said):
        kind = item.get("type", "message")
        known = _ITEMS.get(kind if isinstance(kind, str) else "")
        if known is None:
            told = f"input.{i}: an item of type {kind!r}; wanted messages, function_call or function_call_output"
            raise Refused(400, told, "input")
        left = {k: v for k, v in item.items() if k not in ("type", "id", "status")}
        if kind == "message":
            out.append(left)
            continue
        if odd := next((k for k, v in left.items() if k not in known and v is not None), None):
            raise Refused(400, f"input.{i}.{odd}: not served here; wanted {', '.join(known)}", "input")
        for name in known:
            if not isinstance(item.get(name), str) and not (name == "output" and isinstance(item.get(name), list)):
                raise Refused(400, f"input.{i}.{name}: {item.get(name)!r}; wanted text", "input")
        if kind == "function_call_output":
            out.append({"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]})
            continue
        call = {"id": item["call_id"], "function": {"name": item["name"], "arguments": item["arguments"]}}
        if out and out[-1].get("role") == "assistant":
            out[-1] = {"content": None, **out[-1], "tool_calls": [*out[-1].get("tool_calls", ()), call]}
        else:
            out.append({"role": "assistant", "content": None, "tool_calls": [call]})
    return out


def _calls(raw: Any, at: str, where: str) -> list[dict[str, Any]]:
    """What the assistant has called; its arguments as an object, which is what templates write."""
    out = []
    for i, call in enumerate(raw if isinstance(raw, list) else [raw]):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise Refused(400, f"{at}.tool_calls.{i}: wanted an id and a function with its name and arguments", where)
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except ValueError:
                pass  # as the model wrote it
        told = {"name": function["name"], "arguments": {} if arguments is None else arguments}
        out.append({"id": str(call.get("id") or ""), "type": "function", "function": told})
    return out


def unicode(text: str, where: str) -> str:
    """JSON can say halves of characters, which no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as e:
        raise Refused(400, f"{where}: character {e.start} is half a surrogate pair; wanted text", where) from e
    return text


def _text(content: Any, at: str, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise Refused(400, f"{at}: wanted text, or parts of type text", where)
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("text", "input_text", "output_text") or not isinstance(part.get("text"), str):
            raise Refused(400, f"{at}.{i}: a part of type {kind!r}; wanted text alone", where)
    return "\n".join(p["text"] for p in content)
