"""Rows of chats as a template takes them: roles and contents, tools, and which turns are scored."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from ...core import CommonweightError
from ..rows import Row
from ..rows.columns import TEMPLATE, TOOLS

ROLES = {
    "human": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant", "model": "assistant",
    "observation": "tool", "function_response": "tool", "tool_response": "tool",
}  # fmt: skip
KNOWN = ("system", "developer", "user", "assistant", "tool", "function", "ipython")

Message = dict[str, Any]


@dataclass
class Conversation:
    """first: the first message that may be scored. more: what else the template is given, tools among it."""

    messages: list[Message]
    first: int = 0
    more: dict[str, Any] = field(default_factory=dict)

    def scored(self, k: int) -> bool:
        """An assistant's turn, unless the row says that it is not learned (OpenAI's `weight`, Axolotl's `train`)."""
        m = self.messages[k]
        return k >= self.first and m["role"] == "assistant" and m.get("weight") != 0 and m.get("train") is not False

    @property
    def chosen(self) -> bool:
        """Whether not all of the assistant's turns are scored."""
        return any(m["role"] == "assistant" and not self.scored(k) for k, m in enumerate(self.messages))


def of_messages(row: Row, name: str, i: int) -> Conversation:
    """Messages of `role` and `content` (OpenAI, TRL), or of `from` and `value` (ShareGPT)."""
    found = messages(row.get(name), i, name)
    said = row.get("system")
    if isinstance(said, str) and said.strip() and found[0]["role"] != "system":
        found = [{"role": "system", "content": said}, *found]
    return Conversation(found, more=beside(row, i))


def of_pair(row: Row, prompt: str, completion: str, i: int) -> Conversation:
    """TRL's prompt and completion as messages; what stands in the prompt is not scored."""
    before = messages(row[prompt], i, prompt) if not isinstance(row[prompt], str) else user(row[prompt])
    said = row.get(completion)
    after = [{"role": "assistant", "content": said}] if isinstance(said, str) else messages(said, i, completion)
    return Conversation([*before, *after], len(before), beside(row, i))


def user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def messages(value: Any, i: int, name: str) -> list[Message]:
    value = _parsed(value)
    if not isinstance(value, list | tuple) or not value or not all(isinstance(m, dict) for m in value):
        raise CommonweightError(
            f"row {i + 1}: the chat template refuses these messages: {name!r} is {_short(value)}; wanted a list of "
            'messages, as in [{"role": "user", "content": "..."}]'
        )
    return [_message(m, f"row {i + 1}, message {k + 1}") for k, m in enumerate(value)]


def beside(row: Row, i: int) -> dict[str, Any]:
    """Tools and arguments of the template that stand in the row."""
    out: dict[str, Any] = {}
    name = next((n for n in TOOLS if row.get(n)), None)
    if name is not None:
        tools = _parsed(row[name])
        tools = [tools] if isinstance(tools, dict) else tools
        if not isinstance(tools, list) or not all(isinstance(t, dict) for t in tools):
            raise CommonweightError(f"row {i + 1}: {name!r} is {_short(row[name])}; wanted a list of tools")
        if tools:
            out["tools"] = [
                t if "function" in t or "name" not in t else {"type": "function", "function": t} for t in tools
            ]
    more = row.get(TEMPLATE)
    if isinstance(more, dict):
        out |= more
    return out


def _message(given: Message, where: str) -> Message:
    m = {k: v for k, v in given.items() if v is not None}
    if "role" not in m and "from" in m:
        m["role"] = m.pop("from")
    if "content" not in m and "value" in m:
        m["content"] = m.pop("value")
    role = m.get("role")
    if not isinstance(role, str):
        raise CommonweightError(f"{where}: the chat template refuses it: no role in {_short(given)}; wanted role and "
                                "content, or from and value")  # fmt: skip
    if role == "function_call":  # ShareGPT's with tools
        call = _parsed(m.pop("content", None))
        calls = call if isinstance(call, list) else [call]
        if not all(isinstance(c, dict) and "name" in c for c in calls):
            raise CommonweightError(f"{where}: {_short(given)} is not a function call: wanted its name and arguments")
        m = {**m, "role": "assistant", "tool_calls": [{"type": "function", "function": c} for c in calls]}
    else:
        m["role"] = ROLES.get(role.lower(), role.lower() if role.lower() in KNOWN else role)
        if m["role"] not in KNOWN and "from" in given:
            raise CommonweightError(f"{where}: from {role!r}; wanted human, gpt, system, tool or function_call")
    if isinstance(content := m.get("content"), list):
        m["content"] = _text_of(content, where)
    elif content is not None and not isinstance(content, str):
        raise CommonweightError(f"{where}: its content is {_short(content)}; wanted a text")
    if isinstance(calls := m.get("tool_calls"), list | str):
        m["tool_calls"] = [_call(c) for c in _parsed(calls)]
    return m


def _text_of(parts: list[Any], where: str) -> str:
    for part in parts:
        if not (isinstance(part, str) or (isinstance(part, dict) and isinstance(part.get("text"), str))):
            kind = part.get("type") if isinstance(part, dict) else _short(part)
            raise CommonweightError(f"{where}: a part of it is of type {kind!r}; wanted text alone")
    return "".join(p if isinstance(p, str) else p["text"] for p in parts)


def _call(call: Any) -> Any:
    """A tool call whose arguments are an object: a template would write OpenAI's text of JSON as a quoted text."""
    if not isinstance(call, dict):
        return call
    f = call.get("function", call)
    if isinstance(f, dict) and isinstance(f.get("arguments"), str):
        f = {**f, "arguments": _parsed(f["arguments"])}
    return {**call, "function": f} if "function" in call else f


def _parsed(value: Any) -> Any:
    """A list or an object that stands in a cell as text of JSON."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
