"""Tools of a chat: what the model is told of them, and what its answer must be where a call is asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...core import CommonweightError
from .bodies import ResponseBody
from .calls import FORMS, Calls, Form
from .errors import Refused

AUTO = "auto"
PARSERS = (AUTO, *FORMS)
MOST = 128  # tools of one request, as OpenAI has it
_SHOWN = {
    "hermes": '<tool_call>\n{"name": NAME, "arguments": {...}}\n</tool_call>',
    "llama3": '{"name": NAME, "parameters": {...}}',
    "mistral": '[TOOL_CALLS][{"name": NAME, "arguments": {...}}]',
}
# of calls, as their models have learnt to write them
_WRITTEN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": False}


class Tools(NamedTuple):
    """A chat's. form: how its calls are written. names: of its tools. told: the tools for the template, None where it
    takes none. structured: what the answer must be, None where it is free. most: calls of one answer, None: any.
    barred: tools that may not be called."""

    form: Form
    names: tuple[str, ...]
    told: list[dict[str, Any]] | None
    structured: Mapping[str, Any] | None
    most: int | None
    barred: frozenset[str]

    def calls(self) -> Calls:
        return Calls(self.form, self.names, self.most, self.barred)


def named(parser: str, tokenizer: Any) -> str:
    """The form that is meant by a parser's name; "auto": that of the model's chat template.

    Raises: CommonweightError for a name that is none.
    """
    if parser not in PARSERS:
        raise CommonweightError(f"tool parser {parser!r}: unknown; there are {', '.join(PARSERS)}")
    if parser != AUTO:
        return parser
    template = _template(tokenizer)
    marks = {"hermes": ("<tool_call>",), "mistral": ("[TOOL_CALLS]",), "llama3": ("<|python_tag|>", '"parameters":')}
    return next((form for form, found in marks.items() if any(m in template for m in found)), "hermes")


def _template(tokenizer: Any) -> str:
    found = getattr(tokenizer, "chat_template", None) or ""
    return found if isinstance(found, str) else "\n".join(found.values())


class Wanted(NamedTuple):
    """What a body says of tools, in the form of chats. parallel: several may be called at once. formatted: the text of
    the answer has a form. barred: names of tools that may not be called."""

    tools: Sequence[Any]
    choice: str | Mapping[str, Any] | None
    parallel: bool
    formatted: bool
    barred: frozenset[str] = frozenset()


def narrowed(body: Wanted) -> Wanted:
    """With those tools alone that a choice of type allowed_tools names, and its mode as the choice: the model is told
    of no other. Raises: Refused."""
    choice = body.choice
    if not isinstance(choice, Mapping) or choice.get("type") != "allowed_tools":
        return body
    said = choice.get("allowed_tools", choice)  # /v1/responses has the fields beside the type
    mode, allowed = (said.get("mode"), said.get("tools")) if isinstance(said, Mapping) else (None, None)
    if mode not in ("auto", "required") or not isinstance(allowed, Sequence) or isinstance(allowed, str) or not allowed:
        told = "tool_choice: of type allowed_tools wants a mode, auto or required, and tools, a list of functions"
        raise Refused(400, told, "tool_choice")
    names, functions = [_called(tool) for tool in allowed], _functions(body.tools)
    for name in names:
        if name not in functions:
            raise Refused(400, f"tool_choice: there is no tool {name!r} among tools", "tool_choice")
    tools = [t for t in body.tools if t["function"]["name"] in names]
    return body._replace(tools=tools, choice=mode, barred=frozenset(functions) - frozenset(names))


def _called(tool: Any) -> Any:
    """The name in {"type": "function", "function": {"name": ...}} or {"type": "function", "name": ...}."""
    if not isinstance(tool, Mapping) or tool.get("type") != "function":
        return None
    function = tool.get("function", tool)
    return function.get("name") if isinstance(function, Mapping) else None


def asked(body: Wanted, tokenizer: Any, parser: str) -> Tools | None:
    """None where there are no tools, or none is to be called. Raises: Refused."""
    choice, tools = body.choice, body.tools
    if not tools:
        if choice not in (None, "none", "auto"):
            raise Refused(400, "tool_choice: is only allowed when tools are given", "tool_choice")
        return None
    functions = _functions(tools)
    chosen, forced = _choice(choice, functions)
    if choice == "none":
        return None
    form = named(parser, tokenizer)
    if forced and body.formatted:
        told = "tool_choice: asks for a call, and the text of the answer is to have a form; leave one out"
        raise Refused(400, told, "tool_choice")
    most = 1 if not body.parallel or isinstance(choice, Mapping) else None
    structured = {"grammar": grammar(form, chosen, most, tokenizer)} if forced else None
    told = list(tools) if "tools" in _template(tokenizer) else None
    return Tools(FORMS[form], tuple(functions), told, structured, most, body.barred)


def flat(body: ResponseBody, formatted: bool) -> Wanted:
    """Of /v1/responses, where a function's name and schema stand one level higher. Raises: Refused."""
    tools = []
    for i, tool in enumerate(body.tools or []):
        if tool.get("type") != "function":
            raise Refused(400, f"tools.{i}: type {tool.get('type')!r} is not served here; wanted function", "tools")
        function = {k: tool[k] for k in ("name", "description", "parameters", "strict") if tool.get(k) is not None}
        tools.append({"type": "function", "function": function})
    choice = body.tool_choice
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    return Wanted(tools, choice, body.parallel_tool_calls is not False, formatted)


def _functions(tools: Sequence[Any]) -> dict[str, Mapping[str, Any]]:
    if len(tools) > MOST:
        raise Refused(400, f"tools: {len(tools)}; at most {MOST}", "tools")
    out = {}
    for i, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
        if not isinstance(function, Mapping):
            raise Refused(400, f"tools.{i}: wanted an object of type function", "tools")
        name, schema = function.get("name"), function.get("parameters")
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
            raise Refused(400, f"tools.{i}.function.name: {name!r}; wanted letters, digits, dots, dashes", "tools")
        if schema is not None and not isinstance(schema, Mapping):
            raise Refused(400, f"tools.{i}.function.parameters: wanted a JSON schema", "tools")
        if name in out:
            raise Refused(400, f"tools.{i}: there are two tools {name!r}", "tools")
        out[name] = function
    return out


def _choice(choice: Any, functions: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """(the tools of which one may be called, whether one must)."""
    if choice in (None, "none", "auto", "required"):
        return dict(functions), choice == "required"
    function = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        told = "tool_choice: wanted none, auto, required, a function's name, or allowed_tools"
        raise Refused(400, told, "tool_choice")
    if name not in functions:
        raise Refused(400, f"tool_choice: there is no tool {name!r} among tools", "tool_choice")
    return {name: functions[name]}, True


def grammar(form: str, functions: Mapping[str, Mapping[str, Any]], most: int | None, tokenizer: Any) -> str:
    """Lark: one call, or several, of these tools with arguments of their schemas."""
    f = FORMS[form]
    objects = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, f.arguments: _object(told.get("parameters"))},
            "required": ["name", f.arguments],
            "additionalProperties": False,
        }
        for name, told in functions.items()
    ]
    one = json.dumps({**(objects[0] if len(objects) == 1 else {"anyOf": objects}), "x-guidance": _WRITTEN})
    more = "" if most == 1 else "*"
    if form == "hermes":
        begin, end = _mark("<tool_call>", tokenizer), _mark("</tool_call>", tokenizer)
        again = f' ("\\n" call){more}' if more else ""
        return f'start: call{again}\ncall: {begin} "\\n" object "\\n" {end}\nobject: %json {one}'
    if form == "mistral":
        again = f' ("," " " object){more}' if more else ""
        return f'start: {_mark("[TOOL_CALLS]", tokenizer)} "[" object{again} "]"\nobject: %json {one}'
    again = f' (";" " " object){more}' if more else ""
    return f"start: object{again}\nobject: %json {one}"


def _object(schema: Any) -> Any:
    """Of arguments, which are an object whether their schema says so or not."""
    return {"type": "object", **(schema or {})}


def _mark(text: str, tokenizer: Any) -> str:
    """In a grammar: the special token where the tokenizer has it as one, else its letters."""
    for number, token in tokenizer.added_tokens_decoder.items():
        if token.content == text and token.special:
            return f"<[{number}]>"
    return json.dumps(text)


def fitting(
    tools: Tools | None, raw: Sequence[Any], said: list[dict[str, Any]], tokenizer: Any, parser: str
) -> list[dict[str, Any]]:
    """The messages for this model's template. One that knows no tools is told of them by a system message, and gets
    calls and results as text. raw: the tools as they came."""
    template = _template(tokenizer)
    if not ("tool_calls" in template or '"tool"' in template or "'tool'" in template):
        said = [_plain(m, named(parser, tokenizer)) for m in said]
    if tools is None or tools.told is not None:
        return said
    names = "\n".join(json.dumps(t["function"], ensure_ascii=False) for t in raw)
    text = (
        f"You may call functions. They are, with JSON schemas of their arguments:\n{names}\n"
        f"To call one, answer with nothing but this, NAME being its name:\n{_SHOWN[named(parser, tokenizer)]}"
    )
    head, rest = (said[0]["content"] + "\n\n", said[1:]) if said and said[0]["role"] == "system" else ("", said)
    return [{"role": "system", "content": head + text}, *rest]


def _plain(message: dict[str, Any], form: str) -> dict[str, Any]:
    """A message as text alone."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    if not (calls := message.get("tool_calls")):
        return message
    key = FORMS[form].arguments
    written = [json.dumps({"name": c["function"]["name"], key: c["function"]["arguments"]}) for c in calls]
    text = {
        "hermes": "\n".join(f"<tool_call>\n{w}\n</tool_call>" for w in written),
        "llama3": "; ".join(written),
        "mistral": f"[TOOL_CALLS][{', '.join(written)}]",
    }[form]
    return {"role": "assistant", "content": "\n".join(t for t in (message["content"], text) if t)}
