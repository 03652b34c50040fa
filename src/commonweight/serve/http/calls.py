"""Calls of tools in an answer's text, found as it comes: the forms of Hermes and Qwen, of Llama 3 and of Mistral.

A call is a JSON object with a name and arguments; each form has its marks around it. What stands outside is content.
The arguments are handed on letter by letter as the model wrote them, as OpenAI's interface does.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

_BETWEEN = " \t\r\n,;"  # what may stand between two calls


@dataclass(frozen=True)
class Form:
    """starts: marks before calls. end: the mark after them, "" where there is none. bare: an answer that is an object
    of a known tool is a call without a mark. special: tokens that must stay in the text. letters: of a call's id."""

    starts: tuple[str, ...]
    end: str = ""
    bare: bool = False
    special: tuple[str, ...] = ()
    arguments: str = "arguments"
    letters: int = 24


FORMS = {
    "hermes": Form(("<tool_call>",), "</tool_call>"),
    "llama3": Form(("<|python_tag|>",), bare=True, special=("<|python_tag|>",), arguments="parameters"),
    # the templates of Mistral take ids of nine letters and no others
    "mistral": Form(("[TOOL_CALLS]",), special=("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"), letters=9),
}
_NAMED = re.compile(r"([A-Za-z0-9_.-]+)(?:\[CALL_ID\][A-Za-z0-9]*)?(?:\[ARGS\])?\s*(?=\{)")


@dataclass
class _Object:
    """A JSON object letter by letter: where the values of its own keys stand in `raw`."""

    raw: str = ""
    values: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    depth: int = 0
    _key: str | None = None
    _from: int = 0
    _quoted: bool = False
    _escaped: bool = False
    _value: bool = False  # a colon came: the next letter begins the value

    def add(self, c: str) -> bool:
        """Whether the object has ended with it."""
        at, self.raw = len(self.raw), self.raw + c
        if self._value and not c.isspace():
            self._value, self.values[self._key or ""] = False, (at, None)
        if self._quoted:
            self._in_text(c, at)
        elif c == '"':
            self._quoted = True
            if self._key is None:
                self._from = at
        elif c in "{[":
            self.depth += 1
        elif c in "}]":
            self.depth -= 1
            if not self.depth:
                self._close(at)
        elif self.depth == 1 and c == ":":
            self._value = True
        elif self.depth == 1 and c == ",":
            self._close(at)
        return not self.depth

    def _in_text(self, c: str, at: int) -> None:
        if self._escaped or c == "\\":
            self._escaped = not self._escaped
        elif c == '"':
            self._quoted = False
            if self.depth == 1 and self._key is None:
                self._key = str(_read(self.raw[self._from : at + 1]))

    def _close(self, at: int) -> None:
        if self._key is not None and self._key in self.values:
            self.values[self._key] = (self.values[self._key][0], at)
        self._key = None

    def whole(self, key: str) -> Any:
        """A value that has come whole, else None."""
        start, end = self.values.get(key, (0, None))
        return None if end is None else _read(self.raw[start:end])


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


@dataclass
class Call:
    """One call: what of its arguments was handed on."""

    index: int
    id: str
    name: str
    arguments: str = ""

    @property
    def told(self) -> dict[str, Any]:
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


class Calls:
    """feed(text) -> (content, deltas of calls) that are certain now; end() -> the rest. names: of the tools. most: so
    many calls are handed on, and nothing after them. barred: tools of which a call stays text."""

    def __init__(self, form: Form, names: Collection[str], most: int | None = None, barred: Collection[str] = ()):
        self.form, self.names, self.most, self.barred = form, names, most, barred
        self.found: list[Call] = []
        self._text, self._content = "", ""
        self._deltas: list[dict[str, Any]] = []
        self._inside = False  # behind a mark
        self._mark = ""  # which one, with the space before it: content where no call follows
        self._begun = not form.bare  # whether it is known that the answer is no bare call
        self._object: _Object | None = None
        self._named: str | None = None  # the name that stands before the object
        self._call: Call | None = None
        self._given = self._last = 0  # of the content: how much was handed on, how much stands before the last call

    def feed(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        self._text += text
        while self._text and self._step():
            pass
        content, deltas, self._deltas = self._content[self._given :], self._deltas, []
        self._given = len(self._content)
        return content, deltas

    def end(self) -> tuple[str, list[dict[str, Any]]]:
        """What never became a call is content; but for what was cut right behind a call: a mark, or the next one."""
        content, deltas = self.feed("")
        rest = self._text if self._object is None else ("" if self._call else self._object.raw)
        if self._full or (self._inside and not rest.strip(_BETWEEN + "[]")):
            rest = ""
        behind = self.found and not self._content[self._last :].strip()
        marks = (self.form.end, *self.form.starts)
        if behind and (self._object is not None or any(mark.startswith(rest.strip()) for mark in marks)):
            rest = ""
        self._text, self._object = "", None
        return content + (rest if rest.strip() or not self.found else ""), deltas

    @property
    def _full(self) -> bool:
        return self.most is not None and len(self.found) >= self.most and self._call is None

    def _step(self) -> bool:
        """Takes what it can of the text; False where more must come first."""
        if self._full:
            self._text = ""
        elif self._object is not None:
            self._go_on(self._object)
        elif self._inside:
            return self._between()
        else:
            return self._outside()
        return bool(self._text)

    def _outside(self) -> bool:
        text = self._text
        if not self._begun:
            if not text.strip():
                return False
            self._begun = True
            if text.lstrip()[0] == "{":
                self._inside, self._text = True, text.lstrip()
                return True
        marks = [(i, s) for s in self.form.starts if (i := text.find(s)) >= 0]
        if marks:
            at, mark = min(marks)
            self._content += text[:at].rstrip()
            self._mark = text[len(text[:at].rstrip()) : at + len(mark)]
            self._inside, self._text = True, text[at + len(mark) :]
            return True
        held = max((k for s in self.form.starts for k in range(1, len(s)) if text.endswith(s[:k])), default=0)
        sure = len(text[: len(text) - held].rstrip())
        self._content += text[:sure]
        self._text = text[sure:]
        return False

    def _between(self) -> bool:
        """Behind a mark, and no object is open."""
        form, text = self.form, self._text.lstrip(_BETWEEN)
        for mark in (form.end, *form.starts):
            if mark and text.startswith(mark):
                self._inside, self._text = mark != form.end, text[len(mark) :]
                return True
            if mark and text and mark.startswith(text):
                return False
        if not text or text[0] in "[]":
            self._text = text[1:]
        elif text[0] == "{":
            self._object, self._text = _Object(), text
        elif form.end:  # no call: content, when its end has come
            at = text.find(form.end)
            if at < 0:
                return False
            self._content += self._mark + text[: at + len(form.end)]
            self._inside, self._text = False, text[at + len(form.end) :]
        elif found := _NAMED.match(text):
            self._object, self._named, self._text = _Object(), found[1], text[found.end() :]
        elif re.match(r"[A-Za-z0-9_.\[\]-]*\s*$", text) and not form.bare:
            return False  # a name that has not ended
        else:
            self._inside, self._content, self._text = False, self._content + text, ""
        return bool(self._text)

    def _go_on(self, one: _Object) -> None:
        for i, c in enumerate(self._text):
            if one.add(c):
                self._text = self._text[i + 1 :]
                self._hand(one, True)
                if self._call is None:  # an object without a name, or of a tool that is barred
                    self._content += self._mark + (self._named or "") + one.raw
                    self._inside = False
                    if self.form.end and self._text.lstrip().startswith(self.form.end):
                        self._content += self._text[: self._text.index(self.form.end) + len(self.form.end)]
                        self._text = self._text[self._text.index(self.form.end) + len(self.form.end) :]
                self._object = self._named = self._call = None
                return
        self._text = ""
        self._hand(one, False)

    def _hand(self, one: _Object, ended: bool) -> None:
        """What of an object is certain."""
        if self._call is None:
            name = self._named or one.whole("name")
            if not isinstance(name, str) or not name or (self.form.bare and name not in self.names):
                return
            if name in self.barred:
                return
            self._call = Call(len(self.found), "call_" + secrets.token_hex(12), name)
            if self.form.letters < 24:
                self._call.id = secrets.token_hex(8)[: self.form.letters]
            self.found.append(self._call)
            self._last = len(self._content)
            self._deltas.append({"index": self._call.index, **self._call.told})
        have = self._arguments(one, ended)
        new, self._call.arguments = have[len(self._call.arguments) :], have
        if new:
            self._deltas.append({"index": self._call.index, "function": {"arguments": new}})

    def _arguments(self, one: _Object, ended: bool) -> str:
        if self._named is not None:
            return one.raw
        key = next((k for k in (self.form.arguments, "arguments", "parameters") if k in one.values), None)
        if key is None:
            return "{}" if ended else ""
        start, end = one.values[key]
        text = one.raw[start:end].rstrip() if end is not None else one.raw[start:]
        if text.startswith('"'):  # some models write the arguments as a text
            value = _read(text) if end is not None else None
            return value if isinstance(value, str) else text if end is not None else ""
        return text
