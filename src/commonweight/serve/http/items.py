"""The output of /v1/responses as it grows: messages and calls of tools, one after the other, and the events of each."""

from __future__ import annotations

import secrets
from typing import Any

from .calls import Calls

Event = dict[str, Any]


class Items:
    """output: what is there so far, the last one perhaps open. feed and end give the events that came of a text; what
    stands between calls and is blank is no message. calls: finds calls of tools in the text; None: all of it is one
    message."""

    def __init__(self, calls: Calls | None):
        self.output: list[dict[str, Any]] = []
        self._calls, self._events, self._blank = calls, [], ""
        self._open: dict[str, Any] | None = None
        self._kept = ""  # of the open item: its text, or its arguments
        if calls is None:
            self._message()

    def begun(self) -> list[Event]:
        return self._taken()

    def feed(self, text: str) -> list[Event]:
        if self._calls is None:
            self._text(text)
            return self._taken()
        content, new = "", ""
        for letter in text:  # one by one, so that it is known what came before what
            more, deltas = self._calls.feed(letter)
            content += more
            for delta in deltas:
                self._text(content)
                content = ""
                if "id" in delta:
                    self._arguments(new)
                    new = ""
                    self._call(delta["id"], delta["function"]["name"])
                new += delta["function"]["arguments"]
            if content and new:
                self._arguments(new)
                new = ""
        self._arguments(new)
        self._text(content)
        return self._taken()

    def end(self, whole: bool) -> list[Event]:
        """whole: it ended by itself, and was not cut off."""
        if self._calls is not None:
            content, deltas = self._calls.end()
            for delta in deltas:
                self._arguments(delta["function"]["arguments"])
            self._text(content)
            if not self.output:
                self._text("", True)
        self._close("completed" if whole else "incomplete")
        return self._taken()

    def _arguments(self, new: str) -> None:
        if new:
            self._kept += new
            self._say("response.function_call_arguments.delta", **self._at, delta=new)

    def _text(self, text: str, blank: bool = False) -> None:
        if self._open is None or self._open["type"] != "message":
            self._blank += text
            if not blank and not self._blank.strip():
                return
            text, self._blank = self._blank, ""
            self._message()
        if text:
            self._kept += text
            self._say("response.output_text.delta", **self._at, content_index=0, delta=text, logprobs=[])

    def _message(self) -> None:
        self._add({"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "content": []})
        self._say("response.content_part.added", **self._at, content_index=0, part=_part(""))

    def _call(self, call: str, name: str) -> None:
        self._blank = ""
        told = {"type": "function_call", "call_id": call, "name": name, "arguments": ""}
        self._add({"id": f"fc_{secrets.token_hex(12)}", **told})

    def _add(self, item: dict[str, Any]) -> None:
        self._close("completed")
        self._open, self._kept = item | {"status": "in_progress"}, ""
        self.output.append(self._open)
        self._say("response.output_item.added", output_index=len(self.output) - 1, item=dict(self._open))

    def _close(self, status: str) -> None:
        item, self._open = self._open, None
        if item is None:
            return
        at = {"item_id": item["id"], "output_index": len(self.output) - 1}
        if item["type"] == "message":
            part = _part(self._kept)
            item["content"] = [part]
            self._say("response.output_text.done", **at, content_index=0, text=self._kept, logprobs=[])
            self._say("response.content_part.done", **at, content_index=0, part=part)
        else:
            item["arguments"] = self._kept
            self._say("response.function_call_arguments.done", **at, name=item["name"], arguments=self._kept)
        item["status"] = status
        self._say("response.output_item.done", output_index=at["output_index"], item=dict(item))

    @property
    def _at(self) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": len(self.output) - 1}

    def _say(self, kind: str, **more: Any) -> None:
        self._events.append({"type": kind, **more})

    def _taken(self) -> list[Event]:
        found, self._events = self._events, []
        return found


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
